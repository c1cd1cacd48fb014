"""Sets of images, real or generated, that an evaluation compares."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.dataset import WindowDataset
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.models.loaded import LoadedGenerator
from geoseg_gan.synthesis.generate_images import generate_images

Floats = npt.NDArray[np.float64]

_PART = 64
"""Images that are held as floating-point numbers at once."""

REAL_KINDS = {"val": "validation", "held_out": "held-out"}
"""What the real images of an evaluation are called, by the value of `split`."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class ImageSet:
    """N images of one size, with their label maps.

    Attributes:
        pixels: Shape (N, S, S, K), in the stored dtype.
        labels: Shape (N, S, S), uint8; 255 is ignore.
        counted: The same, but ignore where an earlier window of the tile shows the pixel already.
        names: A name for each, shape (N,).
        groups: The location group of each, shape (N,).
    """

    pixels: npt.NDArray[Any]
    labels: npt.NDArray[np.uint8]
    counted: npt.NDArray[np.uint8]
    names: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.pixels)

    def parts(self) -> Iterator["ImageSet"]:
        """All images in turn, few enough at once to be held as floating-point numbers."""
        for first in range(0, len(self), _PART):
            yield self.part(range(first, min(first + _PART, len(self))))

    def part(self, rows: Sequence[int]) -> "ImageSet":
        """Some of the images."""
        return ImageSet(**{name: values[list(rows)] for name, values in vars(self).items()})

    def shares(self, classes: int) -> Floats:
        """Share of every class in each label map, shape (N, C)."""
        counts = np.stack([np.bincount(m.ravel(), minlength=IGNORE + 1) for m in self.labels])
        totals = counts[:, :classes].sum(1, keepdims=True)
        shares: Floats = counts[:, :classes] / np.maximum(totals, 1)
        return shares

    def batches(
        self, scaling: ImageScaling, size: int, device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """The images as networks take them, (B, K, S, S) in [-1, 1], at most `size` at once."""
        for first in range(0, len(self), size):
            part = np.moveaxis(self.pixels[first : first + size], -1, 1)
            yield scaling.to_network(torch.from_numpy(np.ascontiguousarray(part)).to(device))

    def scaled(self, scaling: ImageScaling) -> Floats:
        """All images in [-1, 1], shape (N, K, S, S), float64; there must be one."""
        values: Floats = next(self.batches(scaling, len(self))).double().numpy()
        return values


def collect(dataset: WindowDataset, rows: Sequence[int]) -> ImageSet:
    """Reads some windows of tiles."""
    if not rows:
        return collect(dataset, [0]).part([])
    # Networks see whole label maps; only counts leave out pixels of earlier windows.
    whole, once = copy.copy(dataset), copy.copy(dataset)
    whole.once, once.once = False, True
    samples = [whole[row] for row in rows]
    return ImageSet(
        np.stack([np.moveaxis(sample["image"].numpy(), 0, -1) for sample in samples]),
        np.stack([sample["label"].numpy() for sample in samples]),
        np.stack([once[row]["label"].numpy() for row in rows]),
        np.array([sample["stem"] for sample in samples]),
        np.array([sample["group"] for sample in samples]),
    )


def tracked(items: Sequence[Item], title: str | None) -> Iterable[Item]:
    """The items, each a step of a progress bar; without a title, no bar."""
    return items if title is None else track(items, title)


def generate_like(
    generator: LoadedGenerator,
    real: ImageSet,
    seed: int,
    device: torch.device,
    title: str | None = None,
    *,
    first: int = 0,
    batch_size: int = 16,
) -> ImageSet:
    """Generates one image for each label map of a set, without jitter.

    Args:
        generator: On `device`.
        real: The set whose label maps are used.
        seed: With an image's position it fixes its noise.
        device: Where the generator is.
        title: Of the progress bar; None for none.
        first: Position of the first image, where the set is part of a larger one.
        batch_size: Images generated at once on a GPU.
    """
    images: list[npt.NDArray[Any]] = []
    for row in tracked(range(0, len(real), batch_size), title):
        labels = list(real.labels[row : row + batch_size])
        numbers = range(first + row, first + row + len(labels))
        images += generate_images(generator, labels, seed=seed, indices=numbers, device=device)
    return replace(real, pixels=np.stack(images) if images else real.pixels)
