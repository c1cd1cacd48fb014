"""Composed images: real tiles of which only some regions are generated, and styles of classes."""

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
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import Pair
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.transplant import Label, Mask, feather, region_map
from geoseg_gan.synthesis.settings import ComposeSettings
from geoseg_gan.utils.pictures import evenly_spaced

Style = npt.NDArray[np.float32]
"""Mean and standard deviation of every class and band in [-1, 1], (2, C, K); NaN where unknown."""

_MOST_TILES = 256  # whose styles are measured, evenly spread: enough to choose from
_FEWEST_PIXELS = 64  # that show the style of a class
_FLAT = 1 / 255  # standard deviation below which there is only rounding to be stretched


@dataclass(frozen=True, eq=False)
class Styles:
    """The styles of the classes in real tiles.

    Attributes:
        stems: The tiles' stems, R of them.
        values: Their styles, shape (R, 2, C, K), float32; NaN for classes of under 64 pixels.
    """

    stems: Sequence[str]
    values: npt.NDArray[np.float32]

    @classmethod
    def of_tiles(cls, pairs: Sequence[Pair], reader: MaskReader, scaling: ImageScaling) -> "Styles":
        """Reads up to 256 real pairs, evenly spread."""
        rows = evenly_spaced(len(pairs), _MOST_TILES)
        tiles = [pairs[row] for row in rows]
        with ThreadPoolExecutor() as pool:
            styles = pool.map(lambda pair: style_of(pair, reader, scaling), tiles)
            found = list(track(styles, "Measuring styles of classes", total=len(tiles)))
        return cls([pair.stem for pair in tiles], np.stack(found))

    def draw(self, rng: np.random.Generator, source: str) -> Style:
        """Draws for every class a tile other than the source, and takes its style of the class."""
        others = np.array([stem != source for stem in self.stems])
        style: Style = np.full_like(self.values[0], np.nan)
        for kind in range(style.shape[1]):
            rows = np.flatnonzero(others & ~np.isnan(self.values[:, 0, kind, 0]))
            if len(rows):
                style[:, kind] = self.values[rng.choice(rows), :, kind]
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


def style_of(pair: Pair, reader: MaskReader, scaling: ImageScaling) -> Style:
    """The style of the classes in a real tile; NaN for classes of under 64 pixels."""
    pixels, label, _ = reader.read_pair(pair.image, pair.mask)
    stored = torch.from_numpy(np.moveaxis(pixels, -1, 0).copy())
    image = scaling.to_network(stored[None])[0].permute(1, 2, 0).numpy()
    style = np.full((2, reader.palette.num_classes, image.shape[-1]), np.nan, np.float32)
    for kind in range(style.shape[1]):
        values = image[label == kind]
        if len(values) >= _FEWEST_PIXELS:
            style[:, kind] = values.mean(0, np.float64), values.std(0, np.float64)
    return style


@dataclass(frozen=True, eq=False)
class Composition:
    """Where a candidate's image is generated, and what it shows elsewhere.

    Attributes:
        generated: Where it is generated, shape (H, W).
        real: The source tile's image under the candidate's geometry, shape (H, W, K), in the
            stored dtype; None where nothing is generated although something should be.
    """

    generated: Mask
    real: npt.NDArray[Any] | None

    @property
    def share(self) -> float:
        """Share of the generated pixels."""
        return float(self.generated.mean())


def draw_generated(
    settings: ComposeSettings, rng: np.random.Generator, label: Label, grafted: Mask
) -> Mask:
    """Draws where a candidate's image is generated, shape (H, W).

    What was transplanted (`grafted`, also of shape (H, W)) always is, since the real image shows
    something else there.
    """
    if settings.generate in ("grafts", "none"):
        return grafted
    regions = region_map(label)
    chosen = rng.random(int(regions.max()) + 1) < settings.share
    generated: Mask = grafted | (chosen[regions] & (label != IGNORE))
    return generated


class Blend(NamedTuple):
    """What a batch of generated images is combined with, on the device.

    Attributes:
        real: The real images in their stored dtype, shape (B, H, W, K); None if nothing of them is
            shown.
        weight: Share of the generated image in every pixel, shape (B, H, W), float32; None
            likewise.
        styles: Mean and standard deviation that classes are moved to, shape (B, 2, C, K), float32,
            NaN where a class stays as it is; None where all do.
        match: How far they are moved.
        all_real: Whether the real images are all there is to show.
    """

    real: Tensor | None
    weight: Tensor | None
    styles: Tensor | None
    match: float
    all_real: bool

    @classmethod
    def of(
        cls,
        compositions: Sequence[Composition | None],
        styles: Sequence[Style | None],
        match: float,
        device: torch.device,
    ) -> Self | None:
        """That of a batch's candidates, all of one run; None if images stay as they are.

        An edge passes from the generated to the real image over about two pixels.
        """
        real = [own.real for own in compositions if own is not None and own.real is not None]
        edges = [feather(own.generated) for own in compositions if own is not None]
        found = [own for own in styles if own is not None]
        if not edges and not found:
            return None
        return cls(
            to_device(np.stack(real), device) if real else None,
            to_device(np.stack(edges), device) if edges else None,
            to_device(np.stack(found), device) if found else None,
            match,
            all_real=bool(real) and all(own is not None and not own.share for own in compositions),
        )

    def with_styles(self, images: Tensor, labels: Tensor) -> Tensor:
        """Generated images (B, K, H, W) in [-1, 1] moved towards the styles; labels (B, H, W)."""
        if self.styles is None:
            return images
        shown = labels if self.weight is None else labels.where(self.weight > 0, IGNORE)
        return match_styles(images.float(), shown, self.styles, self.match)

    def over_real(self, values: Tensor) -> Tensor:
        """Generated images (B, K, H, W) in stored units laid over the real ones."""
        if self.real is None or self.weight is None:
            return values
        # Exact where the weight is 0 or 1.
        return torch.lerp(
            self.real.permute(0, 3, 1, 2).float(), values, self.weight[:, None].expand_as(values)
        )
