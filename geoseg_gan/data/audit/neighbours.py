"""Tiles of the same ground or beside each other, by windows, by georeference and by names."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_SLACK = 0.51  # pixels between tiles that still touch
_LEAST_OVERLAP = 0.01  # of the smaller one's area; less is rounding

_GRID = re.compile(r"(?i)^(.*?)[ _-]*r(?:ow)?[_-]?(\d+)[ _-]*c(?:ol)?[_-]?(\d+)$")
_OFFSETS = re.compile(r"^(.*?)[ _-](\d+)[ _-](\d+)$")
_SERIES = re.compile(r"^(.*?)[ _-]*(\d+)$")


class Footprint(NamedTuple):
    """The ground that a tile covers, in units of its frame."""

    frame: str  # a source image, or a coordinate reference system
    left: float
    top: float
    right: float
    bottom: float  # greater than top
    pixel: float  # side of a pixel


@dataclass(frozen=True)
class Neighbours:
    """Two tiles beside each other, or of the same ground."""

    first: int
    second: int
    overlap: float  # share of the smaller one that both cover; 0 where they but touch


def footprint_neighbours(
    first: Sequence[Footprint | None], second: Sequence[Footprint | None]
) -> list[Neighbours]:
    """Tiles of two lists whose footprints overlap, or touch along a side.

    Footprints of other frames are not compared; None stands for a tile whose place is not known.
    """
    found = []
    rows_by_frame: dict[str, list[int]] = defaultdict(list)
    for row, place in enumerate(second):
        if place is not None:
            rows_by_frame[place.frame].append(row)
    boxes = {
        frame: np.array([second[row][1:] for row in rows])  # type: ignore[index]
        for frame, rows in rows_by_frame.items()
    }
    for row, place in enumerate(first):
        if place is not None and place.frame in boxes:
            rows = rows_by_frame[place.frame]
            found += [
                Neighbours(row, rows[at], share) for at, share in _near(place, boxes[place.frame])
            ]
    return found


def _near(place: Footprint, boxes: npt.NDArray[np.float64]) -> list[tuple[int, float]]:
    """Rows of boxes (left, top, right, bottom, pixel) near to a place, and shares of overlap."""
    left, top, right, bottom, pixel = boxes.T
    wide = np.minimum(right, place.right) - np.maximum(left, place.left)
    high = np.minimum(bottom, place.bottom) - np.maximum(top, place.top)
    slack = _SLACK * np.maximum(pixel, place.pixel)
    area = np.minimum(
        (right - left) * (bottom - top), (place.right - place.left) * (place.bottom - place.top)
    )
    share = wide.clip(0) * high.clip(0) / np.maximum(area, 1e-12)
    share[share < _LEAST_OVERLAP] = 0
    # Along a side, not at a corner alone.
    touch = (np.minimum(wide, high) >= -slack) & (np.maximum(wide, high) > slack)
    return [(int(row), float(share[row])) for row in np.flatnonzero((share > 0) | touch)]


def name_neighbours(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """Tiles of two lists of stems that stand beside each other by their names.

    These are equal but for row and column (`scene_r01_c02`), two offsets (`scene_256_512`), or the
    last number (`scene_17`), where the numbers are next to each other in their order.
    """
    places: dict[tuple[str, str], dict[tuple[int, ...], list[tuple[int, int]]]] = {}
    for part, stems in enumerate((first, second)):
        for row, stem in enumerate(stems):
            kind, base, numbers = _place(stem)
            if kind:
                grid = places.setdefault((kind, base), defaultdict(list))
                grid[numbers].append((part, row))
    found = []
    for (kind, _), grid in places.items():
        for numbers, tiles in grid.items():
            for step in _steps(kind, grid):
                beside = tuple(n + s for n, s in zip(numbers, step, strict=True))
                for part, row in tiles:
                    for other_part, other in grid.get(beside, ()):
                        if part != other_part:
                            found.append((row, other) if part == 0 else (other, row))
    return sorted(set(found))


def group_pattern(stems: Sequence[str]) -> tuple[str, int] | None:
    """A regular expression by which stems fall into location groups, and how many these are.

    Returns:
        None where no pattern of `name_neighbours` fits all stems and makes 2 or more groups, of two
        tiles each on average.
    """
    for pattern, text in (
        (_GRID, r"(?i)^(.*?)[ _-]*r(?:ow)?[_-]?\d+[ _-]*c(?:ol)?[_-]?\d+$"),
        (_OFFSETS, r"^(.*?)[ _-]\d+[ _-]\d+$"),
        (_SERIES, r"^(.*?)[ _-]*\d+$"),
    ):
        found = [pattern.match(stem) for stem in stems]
        if all(found):
            groups = len({match[1] for match in found if match})
            if 2 <= groups <= len(stems) / 2 and all(match[1] for match in found if match):
                return text, groups
    return None


def _place(stem: str) -> tuple[str, str, tuple[int, ...]]:
    for kind, pattern in (("grid", _GRID), ("offsets", _OFFSETS), ("series", _SERIES)):
        if match := pattern.match(stem):
            return kind, match[1], tuple(int(number) for number in match.groups()[1:])
    return "", "", ()


def _steps(kind: str, grid: dict[tuple[int, ...], list[tuple[int, int]]]) -> list[tuple[int, ...]]:
    """Differences of numbers between neighbours."""
    if kind == "series":
        return [(1,)]
    axes = [sorted({numbers[axis] for numbers in grid}) for axis in (0, 1)]
    # Offsets in pixels have the distance of tiles as their least difference.
    steps = [int(np.diff(axis).min()) if len(axis) > 1 else 0 for axis in axes]
    return [step for step in ((steps[0], 0), (0, steps[1])) if any(step)]
