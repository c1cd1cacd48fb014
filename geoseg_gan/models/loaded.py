"""Generators and segmenters that are loaded from their files, and can be called."""

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from geoseg_gan.data.batch import one_hot_of, regions_of
from geoseg_gan.data.images import DTYPES
from geoseg_gan.data.palette import IGNORE, PALETTE
from geoseg_gan.data.settings import Fit
from geoseg_gan.models.checkpoints import (
    BAND_RANGES,
    NETWORK_FILES,
    NetworkKind,
    RunFacts,
    SegmenterEvaluation,
    check_weights,
    network_kind,
    read_network,
    run_facts,
)
from geoseg_gan.models.discriminators.oasis import EXTRA_DISCRIMINATORS, changed_settings
from geoseg_gan.models.generators.noise import sample_noise
from geoseg_gan.models.onnx_segmenters import load_exported
from geoseg_gan.models.registry import Generator, build_generator
from geoseg_gan.models.segmenters import build_segmenter, segmenter_stride
from geoseg_gan.utils.device import named_device
from geoseg_gan.utils.distributed import rank_of_process
from geoseg_gan.utils.errors import UserError

ConfigT = TypeVar("ConfigT")

_IN_RUNS: dict[str, tuple[NetworkKind, ...]] = {
    "gen_ckpt": ("generator",),
    "init_from": ("generator",),
    "segmenter_ckpt": ("segmenter",),
    "ckpt": ("generator", "segmenter"),
}  # by the settings that name a file, or the folder of the run that wrote it


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator in evaluation mode; called with a label map, it generates an image.

    Attributes:
        network: Gives images (B, K, H, W) in [-1, 1].
        facts: The run it comes from.
        epoch: How many epochs it was trained.
        digest: SHA-256 of its file, in hexadecimal.
    """

    network: Generator
    facts: RunFacts
    epoch: int
    digest: str

    @torch.inference_mode()
    def __call__(self, mask: npt.NDArray[np.uint8], seed: int = 0) -> npt.NDArray[Any]:
        """Generates an image.

        Args:
            mask: Label map of any shape (H, W), uint8: class IDs of the palette, 255 where ignored.
                Masked pixels of a masked array are ignored, too.
            seed: Fixes the noise; another one gives another image of the same mask.

        Returns:
            Shape (H, W, K), in the stored dtype of the training images.

        Raises:
            UserError: If the label map is not as described.
        """
        classes = self.facts.palette.num_classes
        _check_array("mask", mask)
        if not isinstance(seed, int | np.integer):
            raise UserError(f"seed is {seed!r}: give a whole number.")
        mask = np.ma.filled(mask, IGNORE)
        if mask.ndim != 2 or 0 in mask.shape or mask.dtype != np.uint8:
            raise UserError(
                f"mask is {mask.dtype} of shape {mask.shape}: give class IDs as uint8 of shape "
                "(H, W)."
            )
        if (unknown := mask[(mask >= classes) & (mask != IGNORE)]).size:
            raise UserError(
                f"mask holds class {unknown[0]}: use 0 to {classes - 1}, 255 to ignore."
            )
        device = next(cast(nn.Module, self.network).parameters()).device
        label = torch.from_numpy(_padded(mask, self.network.stride))[None]
        noise = sample_noise(self.network.noise, int(seed), [0], regions_of(label))
        image = self.network(one_hot_of(label.to(device), classes), noise.to(device))
        height, width = mask.shape
        return self.facts.scaling.to_stored(image[0, :, :height, :width])


@dataclass(frozen=True)
class LoadedSegmenter:
    """A segmenter in evaluation mode; called with an image, it finds the class of every pixel.

    Attributes:
        network: Gives logits (B, C, H, W) for images (B, K, H, W) in [-1, 1].
        facts: The run it comes from.
        evaluation: How good it is.
        epoch: How many epochs it was trained.
        digest: SHA-256 of the file, in hexadecimal.
    """

    network: nn.Module
    facts: RunFacts
    evaluation: SegmenterEvaluation
    epoch: int
    digest: str

    def __call__(self, image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """The likeliest class of every pixel: shape (H, W), uint8; see `probabilities`."""
        found: npt.NDArray[np.uint8] = self.probabilities(image).argmax(0).astype(np.uint8)
        return found

    @torch.inference_mode()
    def probabilities(self, image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The probability of every class at every pixel.

        Args:
            image: Any shape (H, W, K), in the stored dtype of the training images.

        Returns:
            Shape (C, H, W), float32; they sum to 1 over the classes.

        Raises:
            UserError: If the image is of another shape or dtype.
        """
        scaling, bands = self.facts.scaling, len(self.facts.scaling.low)
        _check_array("image", image)
        shape = image.shape
        if (*shape[2:], image.dtype.name) != (bands, scaling.dtype) or 0 in shape:
            raise UserError(
                f"image is {image.dtype} of shape {shape}: this segmenter takes {scaling.dtype} of "
                f"shape (H, W, {bands})."
            )
        pixels = torch.from_numpy(_padded(image, segmenter_stride(self.network))).movedim(-1, 0)
        device = next(self.network.parameters(), torch.empty(0)).device
        logits: Tensor = self.network(scaling.to_network(pixels[None].to(device)))
        found = logits[0, :, : shape[0], : shape[1]].float().softmax(0).cpu().numpy()
        return cast(npt.NDArray[np.float32], found)


def _check_array(name: str, value: object) -> None:
    if not isinstance(value, np.ndarray):
        raise UserError(f"{name} is of type {type(value).__name__}: give a NumPy array.")


def _padded(pixels: npt.NDArray[Any], stride: int) -> npt.NDArray[Any]:
    """The rows and columns (H, W, ...), reflected at their ends up to multiples of the stride."""
    ends = [(0, -side % stride) for side in pixels.shape[:2]]
    return np.pad(pixels, [*ends, *[(0, 0)] * (pixels.ndim - 2)], mode="reflect")


def with_files(config: ConfigT) -> ConfigT:
    """A command's configuration in which each run folder is replaced by its checkpoint.

    Of generators, that is the one of the latest epoch. A line says which file was taken.

    Raises:
        UserError: If a folder holds none.
    """
    files = {}
    for key, kinds in _IN_RUNS.items():
        given = getattr(config, key, None)
        if given is None or not Path(given).is_dir():
            continue
        file = network_file(Path(given), *kinds, shown=f"{key}={given}")
        files[key] = str(file)
        if rank_of_process() == 0:
            print(f"{key}={given} is a folder: using {file.name} in it.")
    return cast(ConfigT, replace(cast(Any, config), **files))


def network_file(path: Path, *kinds: NetworkKind, shown: str | None = None) -> Path:
    """A network's file: `path` itself or, where that is a run folder, the one in it.

    Of generators, that is the one of the latest epoch. Messages name the path as `shown`.

    Raises:
        UserError: If the folder holds none of these kinds.
    """
    if not path.is_dir():
        return path
    for kind in kinds:
        if (file := _file_in(path, kind)) is not None:
            return file
    wanted = " or ".join(NETWORK_FILES[kind] for kind in kinds)
    raise UserError(
        f"{shown or path} is a folder without a checkpoint. Give {wanted}, or its run folder."
    )


def _file_in(folder: Path, kind: NetworkKind) -> Path | None:
    if kind == "segmenter":
        path = folder / "segmenter.pt"
        return path if path.is_file() else None
    found = folder.glob("G_e*.pt")
    files = [path for path in found if path.stem[3:].isdecimal() and path.is_file()]
    return max(files, key=lambda path: int(path.stem[3:]), default=None)


def load_network(path: Path) -> LoadedGenerator | LoadedSegmenter:
    """Reads a file that holds a generator or a segmenter, whichever it is.

    Raises:
        UserError: If there is no such file, or it is neither that this version can read.
    """
    if network_kind(path) == "segmenter":
        return load_segmenter(path)
    return load_generator(path)


def load_generator(path: Path, device: torch.device | str = "cpu") -> LoadedGenerator:
    """Reads a `G_e###.pt` and builds its generator.

    Raises:
        UserError: If there is no such file or device, or it is not a generator this version can
            read.
    """
    content = read_network(path, "generator")
    facts = run_facts(path, content)
    settings: Mapping[str, Any] = facts.config["model"]["generator"]
    sizes = facts.palette.num_classes, len(facts.scaling.low)
    network, digest = _finish(lambda: build_generator(settings, *sizes), path, content, device)
    return LoadedGenerator(cast(Generator, network), facts, content["epoch"], digest)


def load_segmenter(path: Path, device: torch.device | str = "cpu") -> LoadedSegmenter:
    """Reads a `segmenter.pt` and builds its network, or a `segmenter.onnx` that export wrote.

    Raises:
        UserError: If there is no such file or device, or it is not a segmenter this version can
            read.
    """
    if path.suffix.lower() == ".onnx":
        shape = {"palette": PALETTE, "scaling": BAND_RANGES, "dtype": set(DTYPES)}
        model, said, digest = load_exported(path, shape | {"fit?": set(get_args(Fit))})
        config = {"image_size": said["tile_size"], "data": {"fit": said.get("fit", "crop")}}
        content = {"palette": said["palette"], "config": config}
        content["scaling"] = said["scaling"] | {"dtype": said["dtype"]}
        return LoadedSegmenter(
            model, run_facts(path, content), SegmenterEvaluation([], {}), 0, digest
        )
    content = read_network(path, "segmenter")
    facts = run_facts(path, content)
    settings: Mapping[str, Any] = facts.config["segmenter"]
    sizes = facts.palette.num_classes, len(facts.scaling.low)
    network, digest = _finish(
        lambda: build_segmenter(settings, *sizes, pretrained=False), path, content, device
    )
    # Older files also hold class losses.
    known = {f.name: content["judged"][f.name] for f in fields(SegmenterEvaluation)}
    evaluation = SegmenterEvaluation(**known)
    return LoadedSegmenter(network, facts, evaluation, content["epoch"], digest)


def start_from(path: Path, generator: nn.Module, discriminator: nn.Module, facts: RunFacts) -> None:
    """Loads the weights of another run into the networks of a new one, e.g. for larger images.

    Args:
        path: A `G_e###.pt`. The `D_e###.pt` of the same epoch beside it is loaded into the
            discriminator; without it, as beside `G_best.pt`, that keeps its initial weights.
        generator: Changed in place.
        discriminator: Changed in place; its extra discriminators (see `EXTRA_DISCRIMINATORS`) keep
            their initial weights where the other run's settings of them differ.
        facts: The new run.

    Raises:
        UserError: If the file is no generator, or the new run's networks, classes or bands are not
            those of the run it is from.
    """
    d_path = path.with_name(f"D{path.name[1:]}")
    wanted: list[tuple[NetworkKind, Path, nn.Module]] = [("generator", path, generator)]
    if d_path.is_file():
        wanted.append(("discriminator", d_path, discriminator))
    for kind, source, network in wanted:
        content = read_network(source, kind)
        theirs = run_facts(source, content)
        if theirs.palette.to_dict()["classes"] != facts.palette.to_dict()["classes"]:
            raise UserError(f"init_from: {source} was trained on other classes than data= has.")
        settings, own = theirs.config["model"][kind], facts.config["model"][kind]
        for key in changed_settings(own, settings):
            raise UserError(
                f"init_from: {source} has model.{kind}.{key}={settings.get(key)}, not "
                f"{own[key]}. Give its settings, or use init_from=null."
            )
        if len(theirs.scaling.low) != len(facts.scaling.low):
            raise UserError(
                f"init_from: {source} was trained on images of {len(theirs.scaling.low)} bands, "
                f"and these have {len(facts.scaling.low)}."
            )
        new = {key for key in EXTRA_DISCRIMINATORS if settings.get(key) != own.get(key)}
        shared = {n: w for n, w in content["weights"].items() if n.split(".")[0] not in new}
        weights = network.state_dict() | shared
        check_weights(source, weights, network)
        network.load_state_dict(weights)
    if not d_path.is_file():
        warnings.warn(
            f"{d_path} does not exist: the discriminator starts with new weights.", stacklevel=2
        )


def _finish(
    build: Callable[[], nn.Module],
    path: Path,
    content: Mapping[str, Any],
    device: torch.device | str,
) -> tuple[nn.Module, str]:
    """Builds the network whose weights a file holds; returns it with the file's digest."""
    device, weights, config = named_device(device), content["weights"], content["config"]
    # Mix Transformers read values of tensors when they are built.
    on_cpu = config.get("segmenter", {}).get("encoder", "").startswith("mit_")
    try:
        if not on_cpu:
            with torch.device("meta"):  # without memory, whatever size the configuration asks for
                size = sum(parameter.numel() for parameter in build().parameters())
            if size > (held := sum(value.numel() for value in weights.values())):
                raise UserError(f"its network has {size:,} parameters, but it holds {held:,}.")
        network = build()
        check_weights(path, weights, network)
    except UserError as error:
        text = str(error) if str(path) in str(error) else f"{path} cannot be used: {error}"
        raise UserError(text) from None
    network.load_state_dict(weights)
    network.to(device).eval().requires_grad_(False)
    with path.open("rb") as file:
        return network, hashlib.file_digest(file, "sha256").hexdigest()
