"""Composed images: real tiles in which only some regions are painted."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from geoseg_gan.data.batch import ImageScaling, to_device
from geoseg_gan.data.images import MaskReader, read_image
from geoseg_gan.data.pairs import Pair
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.transplant import Label, Mask, feather, region_map
from geoseg_gan.synthesis.settings import ComposeSettings
from geoseg_gan.utils.pictures import evenly_spaced

Style = npt.NDArray[np.float32]

"""Mean and standard deviation of every class and band in [-1, 1], (2, C, K); NaN where unknown."""


_TILES = 256  # that are looked at, evenly spread: enough looks to choose from


_LEAST = 64  # pixels that tell the look of a class


_FLAT = 1 / 255  # standard deviation below which there is only rounding to be stretched


@dataclass(frozen=True, eq=False)
class Styles:
    """The looks of the classes in real tiles.

    Attributes:
        stems: The tiles' stems, R of them.
        looks: Their styles, shape (R, 2, C, K), float32; NaN for classes of under 64 pixels.
    """

    stems: Sequence[str]
    looks: npt.NDArray[np.float32]

    @classmethod
    def of_tiles(cls, pairs: Sequence[Pair], reader: MaskReader, scaling: ImageScaling) -> "Styles":
        """Reads up to 256 pairs, evenly spread.

        Args:
            pairs: Real pairs.
            reader: How masks become label maps.
            scaling: From stored values to [-1, 1].
        """
        rows = evenly_spaced(len(pairs), _TILES)
        tiles = [pairs[row] for row in rows.tolist()]
        with ThreadPoolExecutor() as pool:
            looks = pool.map(lambda pair: _look_of(pair, reader, scaling), tiles)
            found = list(track(looks, "Looking at real classes", total=len(tiles)))
        return cls([pair.stem for pair in tiles], np.stack(found))

    def draw(self, rng: np.random.Generator, source: str) -> Style:
        """Draws a tile for every class, other than the source, and takes its look of that class."""
        others = np.array([stem != source for stem in self.stems])
        style: Style = np.full_like(self.looks[0], np.nan)
        for kind in range(style.shape[1]):
            rows = np.flatnonzero(others & ~np.isnan(self.looks[:, 0, kind, 0]))
            if len(rows):
                style[:, kind] = self.looks[rng.choice(rows), :, kind]
        return style


def match_styles(images: Tensor, labels: Tensor, styles: Tensor, match: float) -> Tensor:
    """Moves mean and standard deviation of every class and band towards given ones.

    Args:
        images: Shape (B, K, H, W), float32, in [-1, 1].
        labels: Shape (B, H, W), uint8; pixels of no class stay as they are.
        styles: Shape (B, 2, C, K), float32; a class stays as it is where they are NaN.
        match: How far, from 0 (not at all) to 1 (all the way).

    Returns:
        Shape (B, K, H, W), float32, which may leave [-1, 1].
    """
    moved = images
    for kind in range(styles.shape[2]):
        inside = (labels == kind)[:, None]
        count = inside.sum((2, 3), keepdim=True).clamp(min=1)
        mean = (images * inside).sum((2, 3), keepdim=True) / count
        spread = (((images - mean) * inside).square().sum((2, 3), keepdim=True) / count).sqrt()
        to_mean, to_spread = styles[:, :, kind, :, None, None].unbind(1)
        gain = 1 + match * (to_spread / spread.clamp(min=_FLAT) - 1)
        matched = (images - mean) * gain + mean + match * (to_mean - mean)
        moved = torch.where(inside & ~to_mean.isnan(), matched, moved)
    return moved


def _look_of(pair: Pair, reader: MaskReader, scaling: ImageScaling) -> Style:
    label, _ = reader.read(pair.mask)
    stored = torch.from_numpy(np.moveaxis(read_image(pair.image), -1, 0).copy())
    image = scaling.to_network(stored[None])[0].permute(1, 2, 0).numpy()
    look = np.full((2, reader.palette.num_classes, image.shape[-1]), np.nan, np.float32)
    for kind in range(look.shape[1]):
        values = image[label == kind]
        if len(values) >= _LEAST:
            look[:, kind] = values.mean(0, np.float64), values.std(0, np.float64)
    return look


@dataclass(frozen=True, eq=False)
class Composition:
    """What of a candidate is painted, and what shows elsewhere.

    Attributes:
        painted: Where it is painted, shape (H, W).
        real: The source tile's image under the candidate's geometry, shape (H, W, K), in the
            stored dtype; None where nothing is painted.
    """

    painted: Mask
    real: npt.NDArray[Any] | None

    @property
    def share(self) -> float:
        """Share of the painted pixels."""
        return float(self.painted.mean())


def draw_painted(
    settings: ComposeSettings, rng: np.random.Generator, label: Label, grafted: Mask
) -> Mask:
    """Draws where a candidate is painted, shape (H, W).

    What was transplanted always is, since the real image shows something else there.

    Args:
        settings: What is to be painted.
        rng: The source of chance.
        label: The candidate's mask (H, W).
        grafted: Where it shows what was transplanted, shape (H, W).
    """
    if settings.paint in ("grafts", "none"):
        return grafted
    regions = region_map(label)
    chosen = rng.random(int(regions.max()) + 1) < settings.share
    painted: Mask = grafted | (chosen[regions] & (label != IGNORE))
    return painted


class Blend(NamedTuple):
    """What a batch of painted images is mixed with, on the device.

    Attributes:
        real: The real images in their stored dtype, shape (B, H, W, K); None if all is painted.
        weight: Share of the painted image in every pixel, shape (B, H, W), float32; None likewise.
        styles: Mean and standard deviation that classes are moved to, shape (B, 2, C, K), float32,
            NaN where a class stays as it is; None where all do.
        match: How far they are moved.
        nothing: Whether nothing is painted, so that the real images are all there is.
    """

    real: Tensor | None
    weight: Tensor | None
    styles: Tensor | None
    match: float
    nothing: bool

    @classmethod
    def of(
        cls,
        compositions: Sequence[Composition | None],
        styles: Sequence[Style | None],
        match: float,
        device: torch.device,
    ) -> Self | None:
        """That of a batch's candidates, all of one run; None if images stay as they are painted.

        An edge passes from the painted to the real image over about two pixels.
        """
        real = [own.real for own in compositions if own is not None and own.real is not None]
        edges = [feather(own.painted) for own in compositions if own is not None]
        found = [own for own in styles if own is not None]
        if not edges and not found:
            return None
        return cls(
            to_device(np.stack(real), device) if real else None,
            to_device(np.stack(edges), device) if edges else None,
            to_device(np.stack(found), device) if found else None,
            match,
            nothing=bool(real) and all(own is not None and not own.share for own in compositions),
        )

    def match_painted(self, images: Tensor, labels: Tensor) -> Tensor:
        """Moves what is painted towards the styles: (B, K, H, W) in [-1, 1]; labels (B, H, W)."""
        if self.styles is None:
            return images
        seen = labels if self.weight is None else labels.where(self.weight > 0, IGNORE)
        return match_styles(images.float(), seen, self.styles, self.match)

    def over_real(self, values: Tensor) -> Tensor:
        """Lays what is painted, (B, K, H, W) in stored units, over the real images."""
        if self.real is None or self.weight is None:
            return values
        # Exact where the weight is 0 or 1.
        return torch.lerp(
            self.real.permute(0, 3, 1, 2).float(), values, self.weight[:, None].expand_as(values)
        )
