"""The colours of classes: their mean and spread in each band, taken from one tile to another.

Moving an image's statistics to those of another is by Reinhard et al. (2001); here each class is
moved by itself, so that images of unlike content can be matched.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from geoseg_gan.data.batch import ImageScaling, Sample
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import Pair
from geoseg_gan.data.settings import MatchStep
from geoseg_gan.utils.pictures import evenly_spaced

Style = npt.NDArray[np.float32]
"""Mean and standard deviation of every class and band in [-1, 1], (2, C, K); NaN where unknown."""

_MOST_TILES = 256  # whose styles are measured, evenly spread: enough to choose from
_FEWEST_PIXELS = 64  # that show the style of a class
_MATCH_STREAM = 0x3A7C4  # separates these draws from others of the same seed and sample
_FLAT = 1 / 255  # standard deviation below which there is only rounding to be stretched


@dataclass(frozen=True, eq=False)
class Styles:
    """The styles of the classes in tiles.

    Attributes:
        stems: The tiles' stems, R of them.
        values: Their styles, shape (R, 2, C, K), float32; NaN for classes of under 64 pixels.
    """

    stems: Sequence[str]
    values: npt.NDArray[np.float32]

    @classmethod
    def of_tiles(cls, pairs: Sequence[Pair], reader: MaskReader, scaling: ImageScaling) -> Self:
        """Reads up to 256 pairs, evenly spread."""
        rows = evenly_spaced(len(pairs), _MOST_TILES)
        tiles = [pairs[row] for row in rows]
        with ThreadPoolExecutor() as pool:
            styles = pool.map(lambda pair: style_of(pair, reader, scaling), tiles)
            found = list(track(styles, "Measuring styles of classes", total=len(tiles)))
        return cls([pair.stem for pair in tiles], np.stack(found))

    @classmethod
    def joined(cls, parts: Sequence["Styles"]) -> Self:
        """The styles of the tiles of all parts, at least one."""
        stems = [stem for part in parts for stem in part.stems]
        return cls(stems, np.concatenate([part.values for part in parts]))

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
    """The style of the classes in a tile; NaN for classes of under 64 pixels."""
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
class StyleMatcher:
    """Moves the colours of each class in training samples to those of the class in other tiles.

    Attributes:
        step: How often, and how far.
        styles: Those of the other tiles.
        scaling: Of the samples.
        seed: With the serial number of a sample it fixes what is drawn for it.
    """

    step: MatchStep
    styles: Styles
    scaling: ImageScaling
    seed: int

    def apply(self, sample: Sample, serial: int) -> None:
        """Changes the sample's image, shape (K, H, W) in its stored dtype, with probability p."""
        rng = np.random.default_rng((_MATCH_STREAM, self.seed, serial))
        if rng.random() >= self.step.p:
            return
        style = torch.from_numpy(self.styles.draw(rng, sample["stem"]))[None]
        image = self.scaling.to_network(sample["image"][None])
        moved = match_styles(image, sample["label"][None], style, self.step.amount)[0]
        stored = self.scaling.to_stored(moved)
        sample["image"] = torch.from_numpy(np.ascontiguousarray(np.moveaxis(stored, -1, 0)))
