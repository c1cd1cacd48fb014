"""Regions of label maps: connected areas that can be cut out, and places that suit them."""

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from geoseg_gan.data.palette import IGNORE

Label = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""Top, left, height and width, in pixels."""

MARGIN = 3
"""Pixels around a region in which the ground is compared, and images may blend."""

_NECK = 5  # pixels of radius of the disc that does not pass through a neck
_NECKS = 0.25  # of the margin that may lie on the region's own class, where it was cut
_AGREEMENT = 0.75  # of the margin that must lie on such ground as it lay on


class Region(NamedTuple):
    """A connected area of a class with all that it encloses.

    Attributes:
        box: Where it lies, without the margin.
        filled: Its pixels within the box and margin.
        pixels: How many pixels it has of its class.
        ground: The class that most of its margin shows.
    """

    box: Box
    filled: Mask
    pixels: int
    ground: int


def region_map(label: Label) -> npt.NDArray[np.int32]:
    """Numbers the connected regions of a label map; ignored ground is a class of its own.

    Args:
        label: Label map (H, W).

    Returns:
        Shape (H, W), from 0 on, in order of class and then of place; pixels that touch at a corner
        are connected.
    """
    regions = np.zeros(label.shape, np.int32)
    count = 0
    for kind in np.flatnonzero(np.bincount(label.ravel())).tolist():
        found, parts = cv2.connectedComponents((label == kind).astype(np.uint8), connectivity=8)
        regions += np.where(parts > 0, parts - 1 + count, 0)
        count += found - 1
    return regions


def draw_region(
    label: Label, class_id: int, smallest: int, largest: float, rng: np.random.Generator
) -> Region | None:
    """Draws a region such that each pixel of the class has the same chance to be in it.

    It must end where the map shows it to end: areas that touch the border, or have ignored pixels
    in their margin, are passed over. Areas that touch the border or are too large are first cut at
    necks of up to 10 pixels, since villages hang together by roads.

    Args:
        label: Label map (H, W).
        class_id: The region's class.
        smallest: Least number of pixels of the class.
        largest: Greatest number of pixels, those of enclosed areas included.
        rng: The source of chance.

    Returns:
        The region; None where there is none to draw, or the one that was drawn is unfit.
    """
    of_class = (label == class_id).astype(np.uint8)
    parts, boxes, areas = _fitting(of_class, smallest, largest)
    of_class[np.isin(parts, areas.nonzero()[0])] = 0
    opened = cv2.morphologyEx(of_class, cv2.MORPH_OPEN, _disc(_NECK))
    cut_parts, cut_boxes, cut_areas = _fitting(opened.astype(np.uint8), smallest, largest)
    chances = np.concatenate([areas, cut_areas])
    if not chances.any():
        return None
    drawn = part = int(rng.choice(len(chances), p=chances / chances.sum()))
    if drawn >= len(areas):
        parts, boxes, part = cut_parts, cut_boxes, drawn - len(areas)
    box: Box = tuple(boxes[part].tolist())
    filled = _filled(np.pad(parts[slices(box)] == part, MARGIN))
    around = np.bincount(cut(label, box)[_ring(filled)], minlength=IGNORE + 1)
    # Nobody knows how an area goes on where the labels end; and necks must be short of a side.
    if around[IGNORE] or filled.sum() > largest or around[class_id] > _NECKS * around.sum():
        return None
    around[class_id] = 0
    return Region(box, filled, int(chances[drawn]), int(around.argmax()))


def draw_place(
    label: Label, view: Box, filled: Mask, ground: int, tries: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Draws places for a region and takes the one whose margin lies most on its kind of ground.

    Args:
        label: The label map (H, W) it goes into.
        view: The part of the map in which it must lie, with its margin.
        filled: Its pixels, margin included.
        ground: The class that should surround it.
        tries: How many places are compared.
        rng: The source of chance.

    Returns:
        Top and left of the region, without its margin; None where less than three quarters of the
        margin would lie on such ground, or ignored pixels would be covered.
    """
    top, left, height, width = view
    free_rows, free_columns = height - filled.shape[0], width - filled.shape[1]
    if free_rows < 0 or free_columns < 0:
        return None
    tops = top + rng.integers(free_rows + 1, size=tries)
    lefts = left + rng.integers(free_columns + 1, size=tries)
    rows, columns = np.nonzero(_ring(filled))
    agreement = (label[tops[:, None] + rows, lefts[:, None] + columns] == ground).mean(1)
    for best in (-agreement).argsort(kind="stable").tolist():
        if agreement[best] < _AGREEMENT:
            return None
        place = int(tops[best]), int(lefts[best])
        if not (label[slices((*place, *filled.shape))][filled] == IGNORE).any():
            return place[0] + MARGIN, place[1] + MARGIN
    return None


def slices(box: Box, margin: int = 0) -> tuple[slice, slice]:
    """Rows and columns of a box, and of a margin around it."""
    top, left, height, width = box
    return (
        slice(top - margin, top + height + margin),
        slice(left - margin, left + width + margin),
    )


def cut(pixels: npt.NDArray[Any], box: Box) -> npt.NDArray[Any]:
    """A box of (H, W, ...) with its margin; beyond the border, the border's pixels repeat."""
    rows, columns = (
        np.arange(part.start, part.stop).clip(0, length - 1)
        for part, length in zip(slices(box, MARGIN), pixels.shape[:2], strict=True)
    )
    taken: npt.NDArray[Any] = pixels[rows[:, None], columns]
    return taken


def turned(pixels: npt.NDArray[Any], quarter_turns: int, flip: bool) -> npt.NDArray[Any]:
    """Turns (H, W, ...) counter-clockwise, and then mirrors left and right."""
    result = np.rot90(pixels, quarter_turns)
    return np.ascontiguousarray(result[:, ::-1] if flip else result)


def _fitting(
    of_class: Label, smallest: int, largest: float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Numbered parts of a binary map, their boxes, and their sizes, which are 0 for unfit ones."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(of_class, connectivity=8)
    boxes = stats[:, [cv2.CC_STAT_TOP, cv2.CC_STAT_LEFT, cv2.CC_STAT_HEIGHT, cv2.CC_STAT_WIDTH]]
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    inside = (boxes[:, :2] > 0) & (boxes[:, :2] + boxes[:, 2:] < of_class.shape)
    areas[~inside.all(1) | (areas < smallest) | (areas > largest)] = 0
    areas[0] = 0  # everything else
    return np.asarray(parts), boxes, areas


def _filled(part: Mask) -> Mask:
    """A part with all that it encloses; its corners must be empty."""
    _, areas = cv2.connectedComponents((~part).astype(np.uint8), connectivity=4)
    filled: Mask = areas != areas[0, 0]
    return filled


def _ring(filled: Mask) -> Mask:
    ring: Mask = (cv2.dilate(filled.astype(np.uint8), _disc(MARGIN)) > 0) & ~filled
    return ring


def _disc(radius: int) -> Label:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return disc.astype(np.uint8, copy=False)
