"""The looks of classes in real tiles, and painted images that take them on.

Colour transfer by mean and standard deviation of every band, after Reinhard et al. 2001, "Color
Transfer between Images", here class by class and in the bands as they are.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from torch import Tensor

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.images import MaskReader, read_image
from geoseg_gan.data.pairs import Pair

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
        rows = np.linspace(0, len(pairs) - 1, min(_TILES, len(pairs))).round().astype(int)
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
