"""Segmenters that score generated images: this project's own, or any other as ONNX."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.dataset import PairSource, WindowDataset
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.palette import IGNORE, Palette
from geoseg_gan.data.scan import FolderIndex
from geoseg_gan.data.settings import Fit
from geoseg_gan.models.loaded import load_segmenter
from geoseg_gan.models.onnx_segmenters import open_model
from geoseg_gan.models.segmenters import segmenter_stride
from geoseg_gan.synthesis.settings import OnnxSettings
from geoseg_gan.utils.errors import UserError

_SUM = 1e-3  # how far from 1 probabilities may add up to

Logits = Callable[[Tensor], Tensor]
"""Gives logits (B, C', h, w) for stored values (B, K, S, S), both on any device."""


@dataclass(frozen=True)
class Recognizer:
    """A segmenter that scores generated images.

    Attributes:
        digest: SHA-256 of its file, in hexadecimal.
        held_out: Agreement (mIoU) on real training windows that it was not fitted to; None where
            none were held out.
        predict: What computes the logits.
        channels: The segmenter's channel of every palette class.
        window: Side of the held-out windows in pixels; None where there are none.
        singly: Whether `predict` takes one image at a time: on the CPU, where the last bits of
            logits would depend on what else is in a batch, and for ONNX models.
    """

    digest: str
    held_out: list[float] | None
    predict: Logits
    channels: Sequence[int]
    window: int | None = None
    singly: bool = True

    def logits(self, image: npt.NDArray[Any]) -> Tensor:
        """Logits for one image.

        Args:
            image: Shape (S, S, K), in the stored dtype of the training images.

        Returns:
            Shape (C, S, S), float32, on the CPU; channels in the order of the generator's palette.
        """
        return self.batch_logits(torch.from_numpy(np.ascontiguousarray(image))[None])[0].cpu()

    @torch.inference_mode()
    def batch_logits(self, images: Tensor) -> Tensor:
        """Logits for a batch, on the CPU the same whatever other images are in it.

        Args:
            images: Shape (B, S, S, K), in the stored dtype of the training images, on any device.

        Returns:
            Shape (B, C, S, S), float32, where the segmenter works; channels in the order of the
            generator's palette.
        """
        pixels = images.movedim(-1, 1).contiguous()
        step = 1 if self.singly else len(pixels)
        parts = [pixels[first : first + step] for first in range(0, len(pixels), step)]
        logits = torch.cat([self.predict(part) for part in parts])
        if list(self.channels) != list(range(logits.shape[1])):
            # Picked one by one, since a list of indices would make a GPU wait for its copy.
            logits = torch.stack([logits[:, channel] for channel in self.channels], 1)
        if logits.shape[-2:] != pixels.shape[-2:]:
            size = tuple(pixels.shape[-2:])
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits


def load_recognizer(
    path: Path,
    palette: Palette,
    scaling: ImageScaling,
    size: int,
    device: torch.device | str,
    class_map: Sequence[int] | None,
    onnx: OnnxSettings,
) -> Recognizer:
    """Reads a segmenter and makes sure that it fits the generated images.

    Args:
        path: A `segmenter.pt` that train_segmenter wrote, or an ONNX model (.onnx) with its weights
            inside, which maps float32 (1, K, S, S) to logits or probabilities (1, C', h, w) in its
            first output.
        palette: The generator's classes.
        scaling: The generator's scaling; its length is K.
        size: S, side of the generated images in pixels.
        device: Where an own segmenter works; ONNX models work on the CPU.
        class_map: The segmenter's channel of every palette class, counted from 0; None where they
            are the same, or where an own segmenter's palette lists equal classes in another order.
        onnx: What an ONNX model expects of its images.

    Raises:
        UserError: If the file cannot be read, or its classes, bands or sizes do not fit; nothing in
            it has been run as code.
    """
    match path.suffix.lower():
        case ".pt":
            return _load_own(path, palette, scaling, size, device, class_map)
        case ".onnx":
            return _load_onnx(path, palette, scaling, size, class_map, onnx)
    raise UserError(
        f"segmenter_ckpt={path}: give a segmenter.pt that train_segmenter wrote, or an ONNX model "
        "(.onnx), which torch.onnx.export makes of others. Formats that can run code when they are "
        "read, such as pickled or scripted networks, are not loaded."
    )


def _load_own(
    path: Path,
    palette: Palette,
    scaling: ImageScaling,
    size: int,
    device: torch.device | str,
    class_map: Sequence[int] | None,
) -> Recognizer:
    loaded = load_segmenter(path, device)
    network, own = loaded.network, loaded.facts
    known, made = (f"{len(s.low)}-band {s.dtype}" for s in (own.scaling, scaling))
    if known != made:
        raise UserError(
            f"segmenter_ckpt={path} was trained on {known} images, but the generator makes {made} "
            "ones. Give a segmenter of the same data."
        )
    if size % (stride := segmenter_stride(network)):
        raise UserError(
            f"segmenter_ckpt={path} takes images whose sides are multiples of {stride}, but the "
            f"generator makes {size}x{size}. Give a segmenter of a smaller depth, or train the "
            "generator at a multiple."
        )

    def predict(pixels: Tensor) -> Tensor:
        logits: Tensor = network(own.scaling.to_network(pixels.to(device)))
        return logits.float()

    if class_map is None:
        channels = _same_classes(path, own.palette, palette)
    else:
        channels = _valid(path, class_map, own.palette.num_classes, palette)
    _dry_run(path, predict, scaling, size)
    return Recognizer(
        loaded.digest,
        loaded.evaluation.held_out or None,
        predict,
        channels,
        own.config["image_size"],
        torch.device(device).type == "cpu",
    )


def _load_onnx(
    path: Path,
    palette: Palette,
    scaling: ImageScaling,
    size: int,
    class_map: Sequence[int] | None,
    onnx: OnnxSettings,
) -> Recognizer:
    onnx.check()
    bands = len(scaling.low)
    for key, values in (("mean", onnx.mean), ("std", onnx.std)):
        if len(values) not in (1, bands):
            raise UserError(
                f"onnx.{key}={list(values)} has {len(values)} numbers for {bands} bands. Use one, "
                "or one a band."
            )
    mean, std = torch.tensor(onnx.mean).view(1, -1, 1, 1), torch.tensor(onnx.std).view(1, -1, 1, 1)
    session, digest = open_model(path)
    name = _input_name(path, session, bands, size)

    def predict(pixels: Tensor) -> Tensor:
        share = (scaling.to_network(pixels.cpu()) + 1) / 2
        values = ((share - mean) / std).numpy()
        return torch.from_numpy(session.run(None, {name: values})[0])

    def logits(pixels: Tensor) -> Tensor:
        """The logarithms of probabilities, which are logits of the same probabilities."""
        return predict(pixels).clamp_min(torch.finfo(torch.float32).tiny).log()

    outputs = _dry_run(path, predict, scaling, size)
    if _is_sigmoid(outputs) and _is_sigmoid(predict(_noise(scaling, size))):
        raise UserError(
            f"segmenter_ckpt={path} gives values from 0 to 1 that do not add up to 1, as a sigmoid "
            "does. Export it without its last layer, so that it gives logits."
        )
    count = outputs.shape[1]
    if class_map is not None:
        channels = _valid(path, class_map, count, palette)
    elif count == palette.num_classes:
        channels = list(range(count))
    else:
        raise UserError(
            f"segmenter_ckpt={path} tells {count} classes apart, but the generator's palette has "
            f"{palette.num_classes}: {_listed(palette)}. Give a segmenter of these, or "
            "class_map=[...] with its channel of each."
        )
    gives = logits if _are_probabilities(outputs) else predict
    return Recognizer(digest, None, gives, channels)


def _are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs (1, C, h, w) are from 0 to 1 and add up to 1 over the classes."""
    is_share = outputs.min() >= 0 and outputs.max() <= 1 + _SUM
    return bool(is_share and ((outputs.sum(1) - 1).abs() < _SUM).all())


def _is_sigmoid(outputs: Tensor) -> bool:
    """Whether outputs are probabilities of each class by itself."""
    is_share = outputs.min() >= 0 and outputs.max() <= 1
    return bool(is_share) and not _are_probabilities(outputs)


def _noise(scaling: ImageScaling, size: int) -> Tensor:
    """A stored image (1, K, S, S) of all values, the same each time."""
    low, high = (torch.tensor(part).view(1, -1, 1, 1) for part in (scaling.low, scaling.high))
    share = torch.rand(1, low.shape[1], size, size, generator=torch.Generator().manual_seed(0))
    return low + (high - low) * share


def _input_name(path: Path, session: Any, bands: int, size: int) -> str:
    """The name of a model's only input, if that takes the generated images."""
    inputs = session.get_inputs()
    wanted = [1, bands, size, size]
    first = inputs[0] if inputs else None
    # Sides that an export left open are named, not numbered.
    if (
        first is None
        or len(inputs) > 1
        or first.type != "tensor(float)"
        or len(first.shape) != 4
        or any(isinstance(s, int) and s != w for s, w in zip(first.shape, wanted, strict=True))
    ):
        shown = ", ".join(f"{entry.type} {entry.shape}" for entry in inputs) or "nothing"
        raise UserError(
            f"segmenter_ckpt={path} takes {shown}, but the generator's images are tensor(float) "
            f"{wanted} (batch, bands, height, width). Export it for these."
        )
    return str(first.name)


def _dry_run(path: Path, predict: Logits, scaling: ImageScaling, size: int) -> Tensor:
    """Runs a model on a dark image; returns what it gives, (1, C, h, w)."""
    try:
        logits = predict(torch.zeros(1, len(scaling.low), size, size))
    except Exception as error:  # onnxruntime's errors have no common base but this
        reason = " ".join(str(error).split())
        raise UserError(
            f"segmenter_ckpt={path} fails on images of {size}x{size} with {len(scaling.low)} "
            f"bands: {reason}"
        ) from error
    if logits.ndim != 4 or len(logits) != 1 or logits.dtype != torch.float32:
        kind = str(logits.dtype).removeprefix("torch.")
        raise UserError(
            f"segmenter_ckpt={path} gives {kind} {list(logits.shape)}, but float32 logits "
            "[1, classes, height, width] are needed. Export it without argmax."
        )
    return logits


def _same_classes(path: Path, own: Palette, palette: Palette) -> list[int]:
    """Where the classes of a palette stand in a segmenter's own, which must list the same."""
    known, wanted = (
        [(entry.name, tuple(entry.color)) for entry in p.classes] for p in (own, palette)
    )
    if sorted(known) != sorted(wanted):
        raise UserError(
            f"segmenter_ckpt={path} has the classes {_listed(own)}, but the generator's are "
            f"{_listed(palette)}. Give a segmenter of the same palette, or class_map=[...] with "
            "its channel of each of the generator's."
        )
    return [known.index(entry) for entry in wanted]


def _valid(path: Path, class_map: Sequence[int], count: int, palette: Palette) -> list[int]:
    """A user's class_map, if it names one of `count` channels for every class."""
    channels = list(class_map)
    distinct = set(channels) & set(range(count))
    if not len(channels) == len(distinct) == palette.num_classes:
        raise UserError(
            f"class_map={channels} must list, for each of {_listed(palette)}, another channel of "
            f"the {count} of segmenter_ckpt={path}, counted from 0."
        )
    return channels


def _listed(palette: Palette) -> str:
    return ", ".join(palette.describe(label) for label in range(palette.num_classes))


def pixel_losses(label: npt.NDArray[np.uint8] | Tensor, logits: Tensor) -> Tensor:
    """The cross-entropy of every pixel.

    Args:
        label: The true classes, shape (H, W) or (B, H, W), uint8; 255 is ignore.
        logits: The segmenter's output, shape (C, H, W) or (B, C, H, W), on any device.

    Returns:
        The label's shape, float32, on the device of the logits; 0 where ignored.
    """
    classes = class_ids_on(label, logits)
    rows = logits.float().movedim(-3, -1).flatten(0, -2)
    losses = F.cross_entropy(rows, classes.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.view(classes.shape)


def class_ids_on(label: npt.NDArray[np.uint8] | Tensor, beside: Tensor) -> Tensor:
    """The label map as int64 on the device of another tensor."""
    # A copy, since torch warns where it shares an array that must not be written to.
    held = label if isinstance(label, Tensor) else torch.tensor(label)
    return held.to(beside.device, torch.int64)


def measure_class_losses(
    recognizer: Recognizer, index: FolderIndex, reader: MaskReader, fit: Fit, image_size: int
) -> list[float | None]:
    """The mean cross-entropy of every class on real pairs; None where a class has no pixel.

    Arguments are as for `WindowDataset`; `index` lists the pairs.
    """
    sums, pixels = np.zeros(IGNORE + 1), np.zeros(IGNORE + 1, np.int64)
    windows = WindowDataset(
        PairSource(index.pairs, reader), index.sizes, image_size, fit, once=True
    )
    for position in track(range(len(windows)), "Measuring class losses on real tiles"):
        sample = windows[position]
        logits = recognizer.logits(np.moveaxis(sample["image"].numpy(), 0, -1))
        label, losses = sample["label"].flatten(), pixel_losses(sample["label"], logits).flatten()
        sums += np.bincount(label, losses, IGNORE + 1)
        pixels += np.bincount(label, minlength=IGNORE + 1)
    kinds = range(reader.palette.num_classes)
    return [float(sums[kind] / pixels[kind]) if pixels[kind] else None for kind in kinds]
