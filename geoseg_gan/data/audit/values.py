"""The colours or numbers that masks hold, and which of them stand for classes."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Codes = npt.NDArray[np.int64]

_MOST_EXACT = 64
"""Different colours up to which masks are taken to be free of damage, unless they are JPEGs."""

_MOST_COMPARED = 4096  # most frequent colours that are compared with each other
_NEAR = 48.0  # distance in RGB within which a colour is a damaged one of a frequent colour
_MASS_RADIUS = 20.0  # distance in RGB within which JPEG spreads an even region
_LEAST_MASS = 5e-4  # share of all pixels that a class has at least among damaged colours
_ON_EDGE = 24.0  # distance in RGB from the line between two colours: anti-aliased edges
_EDGE_SHARE = 0.05  # of the smaller class beside it: edges hold less than that
_STRAY = 1e-5  # share of pixels below which an exact colour of one or two masks is a slip
_STRAY_MASKS = 2


@dataclass(frozen=True)
class Values:
    """What some masks hold: N values, the most frequent first.

    Colours are 24-bit codes: red, green and blue from the lowest byte on.
    """

    values: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]
    masks: npt.NDArray[np.int64]  # that hold the value
    empty: npt.NDArray[np.int64]  # pixels under which the image holds nothing
    others: int  # pixels of values that were too many to list

    @property
    def total(self) -> int:
        """All pixels."""
        return int(self.pixels.sum()) + self.others

    def share(self, place: int) -> float:
        """A value's share of all pixels."""
        return float(self.pixels[place]) / max(1, self.total)

    def renamed(self, values: Sequence[int]) -> "Values":
        """The same with other values, of which several may be equal; of one mask."""
        found, places = np.unique(np.asarray(values, np.int64), return_inverse=True)
        pixels, empty = (
            np.bincount(places, counts, len(found)).astype(np.int64)
            for counts in (self.pixels, self.empty)
        )
        order = np.argsort(-pixels, kind="stable")
        ones = np.ones(len(found), np.int64)
        return Values(found[order], pixels[order], ones, empty[order], self.others)

    @classmethod
    def joined(cls, parts: Iterable["Values"]) -> "Values":
        """What all of these hold together; each stands for one mask."""
        pixels: Counter[int] = Counter()
        masks: Counter[int] = Counter()
        empty: Counter[int] = Counter()
        others = 0
        for part in parts:
            listed = part.values.tolist()
            pixels.update(dict(zip(listed, part.pixels.tolist(), strict=True)))
            empty.update(dict(zip(listed, part.empty.tolist(), strict=True)))
            masks.update(listed)
            others += part.others
        found = sorted(pixels, key=lambda value: (-pixels[value], value))

        def column(counts: Counter[int]) -> npt.NDArray[np.int64]:
            return np.array([counts[value] for value in found], np.int64)

        listed_values = np.array(found, np.int64)
        return cls(listed_values, column(pixels), column(masks), column(empty), others)


@dataclass(frozen=True)
class Peaks:
    """The values that seem to stand for classes, and what has become of the others."""

    places: list[int]  # in `Values`, the most frequent first
    colors: npt.NDArray[np.int64]  # RGB of each, shape (P, 3)
    pixels: npt.NDArray[np.int64]  # of each, with those of damaged colours near it
    repaired: int  # pixels of damaged colours
    strays: list[int]  # places of exact colours of so few pixels that they are slips

    @property
    def is_exact(self) -> bool:
        """Whether every pixel is of one of the values."""
        return self.repaired == 0


def gray_of(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Grey colours (N, 3) of numbers (N,)."""
    return np.repeat(numbers[:, None], 3, axis=1)


def rgb_of(codes: npt.NDArray[np.int64] | Sequence[int]) -> npt.NDArray[np.int64]:
    """Colours (N, 3) of 24-bit codes (N,)."""
    codes = np.asarray(codes, np.int64)
    return np.stack([codes & 255, codes >> 8 & 255, codes >> 16 & 255], -1)


def find_peaks(
    values: Values, even: Values, is_lossy: bool, color_of: Callable[[Codes], Codes]
) -> Peaks:
    """Finds the values that stand for classes among damaged ones.

    JPEG spreads a colour over those around it, and anti-aliasing puts blends of two colours between
    them. Both happen at edges, so that classes are looked for inside of regions: colours are taken
    by their frequency there, and one is a class if it is far from those before it, and no blend of
    two of them.

    Args:
        values: What the masks hold.
        even: What they hold apart from edges.
        is_lossy: Whether some are JPEGs.
        color_of: Makes RGB colours (N, 3) of values (N,), grey ones of numbers.
    """
    rgb = color_of(values.values)
    if not is_lossy and not _is_damaged(values, rgb):
        strays = [
            place
            for place in range(len(values.values))
            if values.share(place) < _STRAY and values.masks[place] <= _STRAY_MASKS
        ]
        places = [place for place in range(len(values.values)) if place not in strays]
        repaired = int(values.pixels[strays].sum()) + values.others
        return Peaks(places, rgb[places], values.pixels[places], repaired, strays)
    centres = _centres(even if even.total else values, color_of)
    if not len(centres):
        return Peaks([], centres.astype(np.int64), np.zeros(0, np.int64), values.total, [])
    nearest = cKDTree(centres).query(rgb)[1]
    owned = np.bincount(nearest, values.pixels, len(centres)).astype(np.int64)
    places = cKDTree(rgb).query(centres)[1].tolist()
    exact = int(values.pixels[np.unique(places)].sum())
    return Peaks(places, centres.round().astype(np.int64), owned, values.total - exact, [])


def _centres(even: Values, color_of: Callable[[Codes], Codes]) -> npt.NDArray[np.float64]:
    """RGB colours of the classes among damaged colours, shape (P, 3), the most frequent first."""
    count = min(len(even.values), _MOST_COMPARED)
    colors = color_of(even.values[:count]).astype(np.float64)
    pixels = even.pixels[:count]
    chosen: list[npt.NDArray[np.float64]] = []
    masses: list[float] = []
    for color in colors:
        if chosen and min(np.linalg.norm(color - other) for other in chosen) < _NEAR:
            continue
        mass = float(pixels[((colors - color) ** 2).sum(1) <= _MASS_RADIUS**2].sum())
        if mass < _LEAST_MASS * even.total:
            continue
        if any(
            _is_blend(color, chosen[one], chosen[other])
            and mass < _EDGE_SHARE * min(masses[one], masses[other])
            for one in range(len(chosen))
            for other in range(one)
        ):
            continue
        chosen.append(color)
        masses.append(mass)
    return np.array(chosen).reshape(-1, 3)


def _is_damaged(values: Values, rgb: npt.NDArray[np.int64]) -> bool:
    """Whether many rare colours are blends of few frequent ones."""
    if len(values.values) > _MOST_EXACT or values.others:
        # A map of many classes has many frequent values.
        many = int(np.count_nonzero(values.pixels >= _LEAST_MASS * values.total))
        return many <= len(values.values) / 4
    shares = values.pixels / max(1, values.total)
    frequent = np.flatnonzero(shares >= 0.005)
    rare = np.flatnonzero(shares < _LEAST_MASS)
    blends = sum(
        any(
            _is_blend(*rgb[[place, one, other]].astype(np.float64))
            for one in frequent
            for other in frequent
            if one < other
        )
        for place in rare
    )
    return blends >= 8 and blends >= 0.6 * len(rare)


def _is_blend(
    color: npt.NDArray[np.float64], one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]
) -> bool:
    """Whether a colour lies between two others, close to the line that joins them."""
    way = other - one
    length = float(way @ way)
    at = float((color - one) @ way) / length if length else 0.0
    return 0.02 < at < 0.98 and float(np.linalg.norm(color - one - at * way)) <= _ON_EDGE


def ladder(values: Sequence[int]) -> tuple[int, int] | None:
    """First value and step of numbers at equal distances; None for others, and for one alone."""
    ordered = sorted(values)
    if len(ordered) < 2:
        return None
    step = int(np.gcd.reduce(np.diff(ordered)))
    return ordered[0], step


def shared_colors(tables: Iterable[Mapping[int, int]]) -> dict[int, int] | None:
    """The colour of every index in all colour tables; None where two tables contradict."""
    known: dict[int, int] = {}
    for table in tables:
        for index, code in table.items():
            if known.setdefault(index, code) != code:
                return None
    return known
