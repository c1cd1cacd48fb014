"""Samples and batches: stored values become network inputs in [-1, 1] on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired, Self, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.scan import FolderIndex
from geoseg_gan.data.transplant import region_map
from geoseg_gan.utils.errors import UserError, plural


class Sample(TypedDict):
    """One sample of a dataset; collated, every entry gains a leading batch dimension.

    Keys:
        image: Stored dtype, shape (K, H, W).
        label: uint8, shape (H, W); 255 is ignore.
        stem: The pair's name.
        group: Its location group.
        regions: int32, shape (H, W), the connected regions of the label map; only where a
            generator's training asks for them.
        synthetic: bool, a scalar, whether the pair is synthetic; only where a segmenter's training
            asks for it.
    """

    image: Tensor
    label: Tensor
    stem: str
    group: str
    regions: NotRequired[Tensor]
    synthetic: NotRequired[Tensor]


@dataclass(frozen=True)
class Batch:
    """A batch as networks and objectives take it.

    Attributes:
        image: Shape (B, K, H, W), float, in [-1, 1].
        label: Shape (B, H, W), uint8; 255 is ignore.
        one_hot: Shape (B, C, H, W), float; all zero where ignored.
        valid: Shape (B, 1, H, W), float; 0 where ignored, else 1.
        serials: Number of each sample in the run, over all processes; with the run's seed it fixes
            the sample's randomness.
        paired: Weight of each pair where the generated image is compared with the real one, shape
            (B,), float: 0 where it is to look otherwise. None for 1.
        pixels: Labelled pixels of each class, shape (C,), float, by which sums over classes are
            divided: the mean over all parts of the global batch, so that the mean of their losses
            is that of the whole. None to count those of this part.
    """

    image: Tensor
    label: Tensor
    one_hot: Tensor
    valid: Tensor
    serials: Sequence[int]
    pixels: Tensor | None = None
    paired: Tensor | None = None

    def class_pixels(self) -> Tensor:
        """`pixels`, or the labelled pixels of this part where it is None."""
        return self.one_hot.sum((0, 2, 3)) if self.pixels is None else self.pixels


@dataclass(frozen=True)
class ImageScaling:
    """Per-band linear scaling between stored values and [-1, 1]."""

    low: Sequence[float]  # stored value that becomes -1, one a band
    high: Sequence[float]  # stored value that becomes 1, one a band
    dtype: str = "uint8"  # NumPy name of the stored dtype

    @classmethod
    def fit(cls, index: FolderIndex) -> Self:
        """The full range for 8-bit images; else the outermost 1st and 99th percentiles.

        They are those of labelled pixels, which leave out pixels without data.
        """
        labelled = index.pixels[:, :-1].any(1)
        rows = labelled if labelled.any() else np.ones_like(labelled)
        low, high = index.low[rows].min(0), index.high[rows].max(0)
        high = np.where(high > low, high, low + 1)  # a constant band has no range to divide by
        return cls(low.tolist(), high.tolist(), index.dtype.name)

    def check_fits(self, index: FolderIndex, root: Path) -> None:
        """Refuses real images of other bands or type than a generator's, whose scaling this is.

        Raises:
            UserError: Naming the folder, and both.
        """
        bands = len(self.low)
        if (bands, self.dtype) != (index.bands, index.dtype.name):
            raise UserError(
                f"data_root={root} holds images with {plural(index.bands, 'band')} of "
                f"{index.dtype}, but the generator makes {plural(bands, 'band')} of {self.dtype}. "
                "Give the data that it was trained on, or data like it."
            )

    def to_network(self, image: Tensor) -> Tensor:
        """Maps stored values (B, K, H, W) to float32 in [-1, 1], clamping what lies outside."""
        low, high = _bounds(tuple(self.low), tuple(self.high), image.device)
        return ((image.float() - low) * (2 / (high - low)) - 1).clamp(-1, 1)

    def to_stored(self, image: Tensor) -> npt.NDArray[Any]:
        """Maps (K, H, W) in [-1, 1] to an array of shape (H, W, K) in the stored dtype."""
        low, high = _bounds(tuple(self.low), tuple(self.high), torch.device("cpu"))
        values = ((image.float().cpu().clamp(-1, 1) + 1) / 2 * (high - low) + low)[0]
        pixels = values.permute(1, 2, 0).numpy()
        dtype = np.dtype(self.dtype)
        if np.issubdtype(dtype, np.integer):
            info = np.iinfo(dtype)
            pixels = pixels.round().clip(info.min, info.max)
        return np.ascontiguousarray(pixels.astype(dtype))

    def to_rgb(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Maps stored values (H, W, K) to an RGB picture (H, W, 3) of the first three bands."""
        bands = slice(3) if pixels.shape[2] >= 3 else [0, 0, 0]
        low, high = np.asarray(self.low)[bands], np.asarray(self.high)[bands]
        share = (pixels[..., bands] - low) / (high - low)
        picture: npt.NDArray[np.uint8] = (share.clip(0, 1) * 255).round().astype(np.uint8)
        return picture


@lru_cache(maxsize=16)
def _bounds(
    low: tuple[float, ...], high: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The bounds as (1, K, 1, 1) tensors, cached: creating them each time would stall a GPU."""
    lower, upper = (torch.tensor(v, dtype=torch.float32, device=device) for v in (low, high))
    return lower.view(1, -1, 1, 1), upper.view(1, -1, 1, 1)


def to_device(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device, without making the host wait for the device's work."""
    held = torch.from_numpy(values)
    return held.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else held


def one_hot_of(label: Tensor, num_classes: int) -> Tensor:
    """Turns a label map (B, H, W) uint8 into floats (B, C, H, W), all zero where ignored."""
    classes = torch.arange(num_classes, dtype=torch.uint8, device=label.device)
    return (label.unsqueeze(1) == classes.view(1, -1, 1, 1)).float()


def regions_of(label: Tensor) -> Tensor:
    """Numbers the connected regions of label maps (B, H, W) uint8: int32, on the same device."""
    maps = [torch.from_numpy(region_map(own)) for own in label.cpu().numpy()]
    return torch.stack(maps).to(label.device)


def make_batch(
    sample: Sample, scaling: ImageScaling, num_classes: int, serials: Sequence[int] = ()
) -> Batch:
    """Builds the network's view of a collated sample, on the sample's device.

    Only objectives need `serials`, the numbers of the samples.
    """
    label = sample["label"]
    return Batch(
        image=scaling.to_network(sample["image"]),
        label=label,
        one_hot=one_hot_of(label, num_classes),
        valid=(label != IGNORE).unsqueeze(1).float(),
        serials=serials,
    )
