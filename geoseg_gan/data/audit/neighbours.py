"""Tiles of the same ground or beside each other, by windows, by georeference and by names."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_SLACK = 0.51  # pixels between tiles that still touch
_LEAST_OVERLAP = 0.01  # of the smaller one's area; less is rounding

_SERIES = {
    "grid": r"(?i)^(.*?)[ _-]*r(?:ow)?[_-]?(\d+)[ _-]*c(?:ol)?[_-]?(\d+)$",
    "offsets": r"^(.*?)[ _-](\d+)[ _-](\d+)$",
    "numbers": r"^(.*?)[ _-]*(\d+)$",
}
"""Names of tiles of one picture: what they share, then a row and column, or one number."""


class Footprint(NamedTuple):
    """The ground that a tile covers, in units of its frame."""

    frame: str  # a source image, or a coordinate reference system
    left: float
    top: float
    right: float
    bottom: float  # greater than top
    pixel: float  # side of a pixel


def footprint_neighbours(
    first: Sequence[Footprint | None], second: Sequence[Footprint | None]
) -> list[tuple[int, int, float]]:
    """Tiles of two lists whose footprints overlap, or touch along a side.

    Footprints of other frames are not compared; None stands for a tile whose place is not known.

    Returns:
        The positions of both, and the share of the smaller one that both cover; 0 where they touch.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, place in enumerate(second):
        if place is not None:
            rows[place.frame].append(row)
    boxes = {frame: np.array([second[row][1:] for row in its]) for frame, its in rows.items()}  # type: ignore[index]
    found = []
    for row, place in enumerate(first):
        if place is None or place.frame not in boxes:
            continue
        left, top, right, bottom, pixel = boxes[place.frame].T
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
        near = np.flatnonzero((share > 0) | touch)
        found += [(row, rows[place.frame][at], float(share[at])) for at in near]
    return found


def name_neighbours(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """Tiles of two lists of stems that stand beside each other by their names.

    These are equal but for row and column (`scene_r01_c02`), two offsets (`scene_256_512`), or the
    last number (`scene_17`), where the numbers are next to each other in their order.
    """
    grids: dict[tuple[str, str], dict[tuple[int, ...], list[tuple[int, int]]]] = {}
    for part, stems in enumerate((first, second)):
        for row, stem in enumerate(stems):
            for kind, pattern in _SERIES.items():
                if match := re.match(pattern, stem):
                    grid = grids.setdefault((kind, match[1]), defaultdict(list))
                    grid[tuple(map(int, match.groups()[1:]))].append((part, row))
                    break
    found = set()
    for (kind, _), grid in grids.items():
        # Offsets in pixels have the distance of tiles as their least difference.
        axes = [np.unique(axis) for axis in zip(*grid, strict=True)]
        steps = [int(np.diff(axis).min()) if len(axis) > 1 else 0 for axis in axes]
        ways = [(1,)] if kind == "numbers" else [(steps[0], 0), (0, steps[1])]
        for numbers, tiles in grid.items():
            for way in filter(any, ways):
                beside = grid.get(tuple(n + s for n, s in zip(numbers, way, strict=True)), [])
                pairs = ((one, other) for one in tiles for other in beside if one[0] != other[0])
                found |= {(min(pair)[1], max(pair)[1]) for pair in pairs}
    return sorted(found)


def group_pattern(stems: Sequence[str]) -> tuple[str, int] | None:
    """A regular expression by which stems fall into location groups, and how many these are.

    Returns:
        None where no pattern of `name_neighbours` fits all stems and makes 2 or more groups, of two
        tiles each on average.
    """
    for pattern in _SERIES.values():
        names = [match[1] for stem in stems if (match := re.match(pattern, stem))]
        if len(names) == len(stems) and all(names) and 2 <= len(set(names)) <= len(stems) / 2:
            # Without groups of numbers, of which the location group would be none.
            return pattern.replace(r"(\d+)", r"\d+"), len(set(names))
    return None
