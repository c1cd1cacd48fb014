"""The scene of a tile, its units, and the drawing helpers that all of the demo world shares.

Lengths are in fine pixels, of which there are `FINE` to a pixel of the finished tile (about
0.75 m).
"""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

FINE = 2
BACKGROUND, FOREST, GRASSLAND, CROPLAND, SETTLEMENT, SEMINATURAL = range(6)
Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sky:
    """What changes from flight to flight, and is the same all over one tile."""

    season: float  # 0 (early spring) to 1 (late autumn)
    dryness: float  # 0 (lush) to 1 (parched)
    azimuth: float  # direction towards the sun in the image plane, in radians
    elevation: float  # of the sun above the horizon, in radians
    ambient: float  # share of the light that reaches a shadow, 0 to 1
    haze: float  # share of veiling light, 0 to 1
    gains: tuple[float, float, float]  # white balance: factors of red, green and blue


@dataclass(frozen=True)
class Building:
    """A rectangular building."""

    centre: tuple[float, float]  # (x, y)
    heading: float  # direction of the ridge, in radians
    length: float  # along the ridge
    width: float  # across the ridge
    wall: float  # height of the eaves
    roof: str  # "gable", "hip" or "flat"


@dataclass
class Scene:
    """The ground of one tile and a margin around it: maps of shape (N, N) on the fine grid."""

    label: npt.NDArray[np.uint8]  # class IDs
    parcel: npt.NDArray[np.int32]  # the parcel each pixel belongs to, from 0
    parcels: int  # how many there are
    edge: Floats  # distance to the nearest parcel border
    heading: float  # main direction of the field borders, in radians
    water: Mask  # which background is water rather than bare ground
    grain: Floats  # noise as fine as tufts and clods; the painters share it
    mottle: Floats  # noise as broad as wet patches; the painters share it
    roads: list[tuple[Points, float, bool]]  # centre line (M, 2), width, whether it is paved
    plots: list[Points]  # corners (4, 2) of each built-up plot
    buildings: list[Building]

    def __post_init__(self) -> None:
        """Starts from level, black ground."""
        self.albedo = np.zeros((*self.label.shape, 3), np.float32)  # of red, green and blue, 0 to 1
        self.height = np.zeros(self.label.shape, np.float32)  # above the ground


def fractal_noise(rng: np.random.Generator, side: int, cell: float, octaves: int = 3) -> Floats:
    """Smooth noise (side, side) with mean about 0 and standard deviation about 1.

    Its coarsest features are about `cell` fine pixels wide (at least 1); each further octave is
    half as wide and about half as strong.
    """
    total = np.zeros((side, side), np.float32)
    power = 0.0
    for octave in range(octaves):
        step = max(cell / 2**octave, 1.0)
        # a coarse octave is smooth enough to be drawn small and enlarged, which is far cheaper
        zoom = max(int(step / 5), 1)
        knots = int(side / step) + 4
        grid = rng.standard_normal((knots, knots), dtype=np.float32)
        pitch = step / zoom
        small = cv2.resize(grid, None, fx=pitch, fy=pitch, interpolation=cv2.INTER_CUBIC)
        layer = cv2.resize(small, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)
        left, top = (rng.random(2) * (len(layer) - side)).astype(int)
        total += np.float32(0.55**octave) * layer[top : top + side, left : left + side]
        power += 0.5 * 0.55 ** (2 * octave)
    return np.asarray(total / np.sqrt(power), np.float32)


def rgb(*colour: float) -> Floats:
    """A colour on the scale of 0 to 255 as reflectance: float32 (3,), 0 to 1."""
    return np.array([channel / 255 for channel in colour], np.float32)


def shade(colour: Floats, tone: Floats) -> Floats:
    """Multiplies one colour (3,), or colours (N, N, 3), by a tone for each pixel (N, N)."""
    if colour.ndim == 1:
        return np.asarray(cv2.merge([tone * channel for channel in colour]), np.float32)
    return np.asarray(cv2.multiply(colour, cv2.merge([tone] * 3)), np.float32)


def lay(scene: Scene, mask: Mask, albedo: Floats, height: Floats) -> None:
    """Sets reflectance (N, N, 3) and height (N, N) of the masked part of a scene, in place."""
    where = mask.view(np.uint8)
    cv2.copyTo(albedo, where, scene.albedo)
    cv2.copyTo(height, where, scene.height)


def pixels(points: Points) -> npt.NDArray[np.int32]:
    """Positions (x, y) rounded to the whole pixels that OpenCV draws with."""
    return np.round(points).astype(np.int32)


def densify(points: Points, step: float = 10.0 * FINE) -> Points:
    """Adds points to a line, at most twice `step` apart, so that it can be bent."""
    pieces = [
        np.linspace(start, end, max(int(np.hypot(*(end - start)) / step), 1), endpoint=False)
        for start, end in pairwise(points)
    ]
    return np.vstack([*pieces, points[-1:]])


def split(polygon: Points, point: Points, normal: Points) -> tuple[Points, Points, Points]:
    """Cuts a convex polygon (M, 2) in two along the line through `point` across `normal`.

    Returns:
        The part behind the line, the part ahead of it along `normal`, and the two ends of the cut.
    """
    offset = (polygon - point) @ normal
    halves: tuple[list[Points], list[Points]] = ([], [])
    ends = []
    for i, j in zip(range(len(polygon)), np.roll(range(len(polygon)), -1), strict=True):
        halves[int(offset[i] > 0)].append(polygon[i])
        if (offset[i] > 0) != (offset[j] > 0):
            share = offset[i] / (offset[i] - offset[j])
            crossing = polygon[i] + share * (polygon[j] - polygon[i])
            ends.append(crossing)
            halves[0].append(crossing)
            halves[1].append(crossing)
    return np.array(halves[0]), np.array(halves[1]), np.array(ends)
