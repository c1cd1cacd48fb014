"""Connected regions of rare classes, cut out of one image and pasted into another.

For masks this gives a new layout; for images with their masks it is the copy-paste augmentation of
Ghiasi et al. 2021, "Simple Copy-Paste", here for regions of land cover and with a place that suits
them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import stems_of
from geoseg_gan.data.palette import IGNORE, Palette, class_ids
from geoseg_gan.data.scan import FolderIndex
from geoseg_gan.data.settings import TransplantStep
from geoseg_gan.utils.errors import UserError

Label = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

Box = tuple[int, int, int, int]
"""Top, left, height and width, in pixels."""

ReadPair = Callable[[int], tuple[npt.NDArray[Any] | None, Label]]
"""Reads image (H, W, K) and label map (H, W) of a row; the image is None where masks suffice."""

MARGIN = 3
"""Pixels around a region in which surroundings are compared, and images may blend."""

_NECK = 5  # radius in pixels of the disc that does not pass through a neck
_MAX_NECKS = 0.25  # largest share of the margin on the region's own class, where necks were cut
_MIN_MATCH = 0.75  # least share of the margin that must match the region's surroundings
_DONORS = 8  # images that are searched for a region that fits somewhere
_FEATHER = 0.75  # standard deviation in pixels: an edge as soft as a resampled image's


def rare_classes(pixels: npt.NDArray[np.int64]) -> list[int]:
    """The classes under half of an even share of the labelled pixels, or else under an even share.

    Args:
        pixels: Pixels of every class and, last, of ignore in each row: shape (N, C + 1), int64.

    Returns:
        IDs of classes that occur; all of those where none has less than an even share.
    """
    totals = pixels[:, :-1].sum(0)
    occurring = np.flatnonzero(totals).tolist()
    for share in (0.5, 1.0):
        if under := [c for c in occurring if totals[c] < share * totals.mean()]:
            return under
    return occurring


def region_map(label: Label) -> npt.NDArray[np.int32]:
    """Numbers the connected regions of a label map (H, W); ignore counts as a class of its own.

    Returns:
        Shape (H, W), from 0 on, in order of class and then of place; pixels that touch at a corner
        are connected.
    """
    regions = np.zeros(label.shape, np.int32)
    count = 0
    for value in np.flatnonzero(np.bincount(label.ravel())).tolist():
        found, parts = cv2.connectedComponents((label == value).astype(np.uint8), connectivity=8)
        regions += np.where(parts > 0, parts - 1 + count, 0)
        count += found - 1
    return regions


@dataclass(frozen=True, eq=False)
class Transplant:
    """A region of one pair, and its place in another."""

    donor: str  # stem of the pair it comes from
    class_name: str
    pixels: int  # how many of its class it has
    source: Box  # in the donor
    quarter_turns: int  # counter-clockwise, 0 to 3
    flip: bool  # whether left and right are mirrored, after the turn
    box: Box  # in the other pair
    label: Label = field(repr=False)  # of `box` and the margin around it; 255 changes nothing
    image: npt.NDArray[Any] | None = field(default=None, repr=False)  # the donor's pixels there

    def to_dict(self) -> dict[str, Any]:
        """Origin and place, as manifests keep them."""
        return {
            "donor": self.donor,
            "class": self.class_name,
            "pixels": self.pixels,
            "from": list(self.source),
            "to": list(self.box),
            "quarter_turn": self.quarter_turns,
            "flip": self.flip,
        }

    def apply(self, label: Label) -> Label:
        """A copy of a label map (H, W) with the region in it."""
        pasted = label.copy()
        np.copyto(pasted[slices(self.box, MARGIN)], self.label, where=self.label != IGNORE)
        return pasted

    def apply_pair(self, image: npt.NDArray[Any], label: Label) -> tuple[npt.NDArray[Any], Label]:
        """Copies of an image (H, W, K) and its label map (H, W) with the region in both.

        At the edge the images blend over about two pixels, half of them on either side.
        """
        assert self.image is not None, "a region of a mask alone has no image"
        weight = feather(self.label != IGNORE)[..., None]
        below = image[slices(self.box, MARGIN)].astype(np.float32)
        mixed = below + weight * (self.image - below)
        pasted = image.copy()
        if np.issubdtype(image.dtype, np.integer):
            mixed = np.rint(mixed)
        pasted[slices(self.box, MARGIN)] = mixed.astype(image.dtype)
        return pasted, self.apply(label)


class Transplanter:
    """Draws transplants from training pairs.

    A region is a connected area of a class together with what it encloses (see `draw_region`). It
    is flipped and turned at random and pasted where its margin is mostly on the class that
    surrounds it in the donor, never onto ignored pixels.

    Args:
        step: The settings.
        pixels: Pixels of every class and, last, of ignore in each row: shape (N, C + 1), int64.
        palette: The classes.
        read: Reads a row; must be picklable where loader processes are spawned.
        stems: The rows' stems.
        key: What the step is called in the configuration, for messages.

    Raises:
        UserError: If no row holds enough of any of the classes.
    """

    def __init__(
        self,
        step: TransplantStep,
        pixels: npt.NDArray[np.int64],
        palette: Palette,
        read: ReadPair,
        stems: Sequence[str],
        key: str = "jitter.transplant",
    ) -> None:
        """Lists every class's donors; nothing is read yet."""
        self.step = step
        self.palette = palette
        self.read = read
        self.stems = stems
        if step.classes is None:
            asked = rare_classes(pixels)
        else:
            asked = class_ids(step.classes, palette, f"{key}.classes")
        donors = {c: np.flatnonzero(pixels[:, c] >= step.min_pixels) for c in asked}
        self.donors = {c: rows for c, rows in donors.items() if len(rows)}
        if not self.donors:
            names = ", ".join(palette.names[c] for c in asked) or "any class"
            raise UserError(
                f"{key}: no training mask holds min_pixels={step.min_pixels} of {names}. Lower "
                f"it, choose other {key}.classes, or set {key}.p=0."
            )

    @classmethod
    def of_masks(
        cls, step: TransplantStep, index: FolderIndex, reader: MaskReader
    ) -> "Transplanter":
        """One that reads masks alone: its transplants apply to label maps, not to images."""
        read = partial(_read_mask, index, reader)
        return cls(step, index.pixels, reader.palette, read, stems_of(index.pairs))

    def draw(
        self, rng: np.random.Generator, label: Label, view: Box | None = None
    ) -> Transplant | None:
        """Draws one transplant for a label map; all randomness comes from `rng`.

        Args:
            rng: Source of randomness.
            label: The label map to paste into, (H, W) uint8, 255 = ignore.
            view: The visible part of it, in which the transplant lies and of which `max_share` is
                a share; None for all.

        Returns:
            The transplant; None with probability 1 - p, or where no region fits.
        """
        if rng.random() >= self.step.p:
            return None
        view = view or (0, 0, *label.shape)
        largest = self.step.max_share * view[2] * view[3]
        classes = list(self.donors)
        for _ in range(_DONORS):
            class_id = classes[int(rng.integers(len(classes)))]
            row = int(rng.choice(self.donors[class_id]))
            image, donor = self.read(row)
            region = draw_region(donor, class_id, self.step.min_pixels, largest, rng)
            turns, flip = int(rng.integers(4)), bool(rng.integers(2))
            if region is None:
                continue
            filled = rotate_flip(region.filled, turns, flip)
            place = draw_place(label, view, filled, region.surroundings, self.step.tries, rng)
            if place is None:
                continue
            patch = np.where(region.filled, crop_with_margin(donor, region.box), np.uint8(IGNORE))
            if image is not None:
                image = rotate_flip(crop_with_margin(image, region.box), turns, flip)
            return Transplant(
                donor=self.stems[row],
                class_name=self.palette.names[class_id],
                pixels=region.pixels,
                source=region.box,
                quarter_turns=turns,
                flip=flip,
                box=(*place, filled.shape[0] - 2 * MARGIN, filled.shape[1] - 2 * MARGIN),
                label=rotate_flip(patch, turns, flip),
                image=image,
            )
        return None


def _read_mask(index: FolderIndex, reader: MaskReader, row: int) -> tuple[None, Label]:
    return None, reader.read(index.pairs[row].mask)[0]


class Region(NamedTuple):
    """A connected area of a class with all that it encloses."""

    box: Box  # where it lies, without the margin
    filled: Mask  # its pixels within the box and margin
    pixels: int  # how many it has of its class
    surroundings: int  # the class of most of its margin


def draw_region(
    label: Label, class_id: int, smallest: int, largest: float, rng: np.random.Generator
) -> Region | None:
    """Draws a region such that each pixel of the class has the same chance to be in it.

    Its outline must be known: areas that touch the border, or have ignored pixels in their margin,
    are skipped. Areas that touch the border or are too large are first cut at necks of up to 10
    pixels, since villages are connected by roads. It has from `smallest` pixels of the class to
    `largest` pixels with enclosed areas.

    Returns:
        The region; None where there is none, or the one that was drawn does not fit.
    """
    of_class = (label == class_id).astype(np.uint8)
    parts, boxes, areas = _components(of_class, smallest, largest)
    of_class[np.isin(parts, areas.nonzero()[0])] = 0
    opened = cv2.morphologyEx(of_class, cv2.MORPH_OPEN, _disc(_NECK))
    cut_parts, cut_boxes, cut_areas = _components(opened.astype(np.uint8), smallest, largest)
    chances = np.concatenate([areas, cut_areas])
    if not chances.any():
        return None
    drawn = part = int(rng.choice(len(chances), p=chances / chances.sum()))
    if drawn >= len(areas):
        parts, boxes, part = cut_parts, cut_boxes, drawn - len(areas)
    box: Box = tuple(boxes[part].tolist())
    filled = _fill_holes(np.pad(parts[slices(box)] == part, MARGIN))
    around = np.bincount(crop_with_margin(label, box)[_ring(filled)], minlength=IGNORE + 1)
    # How an area continues where labels end is unknown; and cut necks must not form a side.
    if around[IGNORE] or filled.sum() > largest or around[class_id] > _MAX_NECKS * around.sum():
        return None
    around[class_id] = 0
    return Region(box, filled, int(chances[drawn]), int(around.argmax()))


def draw_place(
    label: Label, view: Box, filled: Mask, surroundings: int, tries: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Draws places for a region and returns the one whose margin best matches its surroundings.

    Args:
        label: The label map (H, W) it goes into.
        view: The part of the map in which it must lie, margin included.
        filled: Its pixels, margin included.
        surroundings: The class that should surround it.
        tries: How many places are compared.
        rng: Source of randomness.

    Returns:
        Top and left of the region, without its margin; None where less than three quarters of the
        margin would match, or ignored pixels would be covered.
    """
    top, left, height, width = view
    free_rows, free_columns = height - filled.shape[0], width - filled.shape[1]
    if free_rows < 0 or free_columns < 0:
        return None
    tops = top + rng.integers(free_rows + 1, size=tries)
    lefts = left + rng.integers(free_columns + 1, size=tries)
    rows, columns = np.nonzero(_ring(filled))
    match = (label[tops[:, None] + rows, lefts[:, None] + columns] == surroundings).mean(1)
    for best in (-match).argsort(kind="stable").tolist():
        if match[best] < _MIN_MATCH:
            return None
        place = int(tops[best]), int(lefts[best])
        if not (label[slices((*place, *filled.shape))][filled] == IGNORE).any():
            return place[0] + MARGIN, place[1] + MARGIN
    return None


def visible_box(maps: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], label: Label) -> Box:
    """The part of a label map (H, W) that a source map of `Warp.source_map` shows."""
    height, width = label.shape
    (left, right), (top, bottom) = (
        np.clip([int(axis.min()), int(axis.max()) + 1], 0, end).tolist()
        for axis, end in zip(maps, (width, height), strict=True)
    )
    return top, left, bottom - top, right - left


def feather(covered: Mask) -> npt.NDArray[np.float32]:
    """Opacity of what is pasted where `covered` holds, in [0, 1]: shape (H, W), soft at edges."""
    weight = cv2.GaussianBlur(covered.astype(np.float32), (2 * MARGIN - 1,) * 2, _FEATHER)
    return weight.astype(np.float32, copy=False)


def slices(box: Box, margin: int = 0) -> tuple[slice, slice]:
    """Rows and columns of a box, and of a margin around it."""
    top, left, height, width = box
    rows = slice(top - margin, top + height + margin)
    return rows, slice(left - margin, left + width + margin)


def crop_with_margin(pixels: npt.NDArray[Any], box: Box) -> npt.NDArray[Any]:
    """A box of (H, W, ...) with its margin; beyond the border, border pixels are repeated."""
    rows, columns = (
        np.arange(part.start, part.stop).clip(0, length - 1)
        for part, length in zip(slices(box, MARGIN), pixels.shape[:2], strict=True)
    )
    taken: npt.NDArray[Any] = pixels[rows[:, None], columns]
    return taken


def rotate_flip(pixels: npt.NDArray[Any], quarter_turns: int, flip: bool) -> npt.NDArray[Any]:
    """Rotates (H, W, ...) counter-clockwise, and then mirrors left and right."""
    result = np.rot90(pixels, quarter_turns)
    return np.ascontiguousarray(result[:, ::-1] if flip else result)


def _components(
    of_class: Label, smallest: int, largest: float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Numbered components of a binary map, their boxes, and their areas, 0 where they don't fit."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(of_class, connectivity=8)
    boxes = stats[:, [cv2.CC_STAT_TOP, cv2.CC_STAT_LEFT, cv2.CC_STAT_HEIGHT, cv2.CC_STAT_WIDTH]]
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    inside = (boxes[:, :2] > 0) & (boxes[:, :2] + boxes[:, 2:] < of_class.shape)
    areas[~inside.all(1) | (areas < smallest) | (areas > largest)] = 0
    areas[0] = 0  # everything else
    return np.asarray(parts), boxes, areas


def _fill_holes(part: Mask) -> Mask:
    """A component with all that it encloses; its corners must be empty."""
    _, areas = cv2.connectedComponents((~part).astype(np.uint8), connectivity=4)
    filled: Mask = areas != areas[0, 0]
    return filled


def _ring(filled: Mask) -> Mask:
    ring: Mask = (cv2.dilate(filled.astype(np.uint8), _disc(MARGIN)) > 0) & ~filled
    return ring


def _disc(radius: int) -> Label:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return disc.astype(np.uint8, copy=False)
