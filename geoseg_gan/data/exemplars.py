"""Images laid together from regions of real tiles.

Every connected region of a label map shows a real region of its class, of like size, shape and
neighbours: the first step of semi-parametric synthesis (Qi et al. 2018).
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from rich.progress import track
from scipy.ndimage import distance_transform_edt, find_objects

from geoseg_gan.data.dataset import PairSource
from geoseg_gan.data.images import resize_image, resize_label
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.settings import Fit
from geoseg_gan.data.transplant import (
    MARGIN,
    Box,
    Label,
    Mask,
    feather,
    region_map,
    rotate_flip,
    slices,
)
from geoseg_gan.utils.pictures import evenly_spaced

_MOST_TILES = 4096  # whose regions can be taken, evenly spread: enough to choose from
_COMPARED = 64  # regions of the class that are compared with each region, and as many of one light
_BEST = 4  # of which one is drawn, so that the same mask shows different images
_COVERED = 0.8  # share of the wanted region that it should cover; else the next one is tried
_PLACES = 8  # places within a larger region that are compared
_FEWEST_PIXELS = 8  # of a region that can be taken, unless it is its tile's largest of the class
_REFLECTIONS = 8  # of a pixel beyond a region's edge until it lies inside; then the nearest one
_GRID = 8  # side of the raster in which shapes are compared
_SAME_TILE, _SAME_GROUP = 0.75, 0.5  # how much better regions of one tile, or one group, fit
_KEPT = 2**27  # bytes of decoded tiles that are kept, of two at least
_TURNS = [(turns, flip) for flip in (False, True) for turns in range(4)]


class Shape(NamedTuple):
    """What regions are compared by; of one region, or of N with a first dimension more.

    Attributes:
        extent: Logarithms of its pixels, height and width, shape (3,).
        raster: Its share of the pixels of its box in each cell of a grid, shape (8, 8).
        neighbours: Share of each class, and last of ignore, in the pixels around it, (C + 1,).
    """

    extent: npt.NDArray[np.float32]
    raster: npt.NDArray[np.float32]
    neighbours: npt.NDArray[np.float32]


class _Bank(NamedTuple):
    """The regions of one class, N of them."""

    tiles: npt.NDArray[np.int64]  # row of the tile, shape (N,)
    boxes: npt.NDArray[np.int64]  # shape (N, 4)
    numbers: npt.NDArray[np.int64]  # its number in the tile's region map, shape (N,)
    shapes: Shape


class _Tile(NamedTuple):
    image: npt.NDArray[Any]
    label: Label
    regions: npt.NDArray[np.int32]


class Exemplars:
    """The regions of real tiles by class, and images that are laid together from them.

    Args:
        source: The tiles.
        num_classes: C.
        fit: "resize" if tiles are shown resized to a square, else "crop".
        image_size: Side of that square in pixels.
    """

    def __init__(self, source: PairSource, num_classes: int, fit: Fit, image_size: int) -> None:
        """Lists the regions of up to 4,096 tiles, evenly spread."""
        self._source = source
        self._num_classes = num_classes
        self._side = image_size if fit == "resize" else None
        self._rows = {pair.stem: row for row, pair in enumerate(source.pairs)}
        groups = [pair.group for pair in source.pairs]
        self._groups = np.unique(groups, return_inverse=True)[1]
        self._kept: OrderedDict[int, _Tile] = OrderedDict()
        first = source.read(0)[0]
        self._bands, self._dtype = first.shape[-1], first.dtype
        rows = evenly_spaced(len(source.pairs), _MOST_TILES)
        with ThreadPoolExecutor() as pool:
            found = pool.map(self._list_regions, rows)
            listed = list(track(found, "Listing regions", total=len(rows)))
        self._banks = {
            kind: _joined([banks[kind] for banks in listed if kind in banks])
            for kind in sorted({kind for banks in listed for kind in banks})
        }

    def known(self, label: Label) -> Label:
        """A copy of a label map (H, W) in which classes that no tile has are ignored."""
        table = np.full(256, IGNORE, np.uint8)
        known = [*self._banks]
        table[known] = known
        return table[label]

    def compose(self, rng: np.random.Generator, label: Label, without: str) -> npt.NDArray[Any]:
        """Lays an image together.

        Regions are taken in order of their size. Those of the location group, and most of all of
        the tile, that the first one comes from are preferred for their light. Each is turned and
        mirrored as it fits best, and continued by reflection where it is too small. Edges blend
        over about two pixels.

        Args:
            rng: Source of randomness.
            label: The label map, (H, W) uint8, 255 = ignore.
            without: Stem of a tile of which nothing is taken, where others have the class.

        Returns:
            Shape (H, W, K), in the dtype of the tiles; 0 where no tile has such pixels.
        """
        total = np.zeros((*label.shape, self._bands), np.float32)
        weights = np.zeros((*label.shape, 1), np.float32)
        regions = region_map(label)
        boxes = _boxes(regions)
        leader: int | None = None
        for number in np.argsort(-np.bincount(regions.ravel()), kind="stable").tolist():
            box = boxes[number]
            covered = regions[slices(box)] == number
            bank = self._banks.get(int(label[slices(box)][covered][0]))
            if bank is None:
                continue
            shape = shape_of(label, regions, number, box, self._num_classes)
            found = self._choose(rng, bank, shape, self._rows.get(without), leader)
            row, image, taken, corner = self._best_covering(rng, bank, found, covered)
            leader = row if leader is None else leader
            window = tuple(
                slice(max(0, side.start - MARGIN), min(length, side.stop + MARGIN))
                for side, length in zip(slices(box), label.shape, strict=True)
            )
            rows, columns = (
                np.arange(side.start, side.stop) - start + place
                for side, start, place in zip(window, box[:2], corner, strict=True)
            )
            weight = feather(regions[window] == number)[..., None]
            total[window] += weight * image[continued(taken, rows, columns)]
            weights[window] += weight
        values = total / np.maximum(weights, np.finfo(np.float32).tiny)
        if np.issubdtype(self._dtype, np.integer):
            values = np.rint(values)
        return values.astype(self._dtype)

    def _choose(
        self,
        rng: np.random.Generator,
        bank: _Bank,
        shape: Shape,
        own: int | None,  # row of the tile that is left out
        leader: int | None,
    ) -> list[tuple[int, int]]:
        """The regions that are most alike, and their orientations, in random order."""
        others = np.flatnonzero(bank.tiles != own)
        allowed = others if len(others) else np.arange(len(bank.tiles))
        rows = _some(rng, allowed)
        preference: float | npt.NDArray[np.float64] = 0.0
        if leader is not None:
            groups, light = self._groups[bank.tiles], self._groups[leader]
            rows = np.union1d(rows, _some(rng, allowed[groups[allowed] == light]))
            preference = np.where(groups[rows] == light, _SAME_GROUP, 0.0)
            preference[bank.tiles[rows] == leader] = _SAME_TILE
        costs = differences(shape, Shape(*(part[rows] for part in bank.shapes))) - preference
        best = costs.min(0).argsort(kind="stable")[:_BEST]
        order = rng.permutation(best).tolist()
        return [(int(rows[at]), int(costs[:, at].argmin())) for at in order]

    def _best_covering(
        self,
        rng: np.random.Generator,
        bank: _Bank,
        found: Sequence[tuple[int, int]],
        covered: Mask,
    ) -> tuple[int, npt.NDArray[Any], Mask, tuple[int, int]]:
        """The first region that covers enough of the wanted one, or that which covers most.

        Returns:
            Row of its tile, pixels (h, w, K) of its box, which of them are of the region (h, w),
            and where in the box the corner of the wanted one's lies.
        """
        best, most = None, -1
        for entry, orientation in found:
            row = int(bank.tiles[entry])
            tile = self._read(row)
            inside = slices(tuple(bank.boxes[entry].tolist()))
            taken = rotate_flip(tile.regions[inside] == bank.numbers[entry], *_TURNS[orientation])
            corner, count = best_place(covered, taken, rng)
            if count > most:
                image = rotate_flip(tile.image[inside], *_TURNS[orientation])
                best, most = (row, image, taken, corner), count
            if most >= _COVERED * covered.sum():
                break
        assert best is not None, "a class has regions"
        return best

    def _read(self, row: int) -> _Tile:
        if row in self._kept:
            self._kept.move_to_end(row)
            return self._kept[row]
        image, label = self._source.read(row)
        if self._side is not None:
            image, label = resize_image(image, self._side), resize_label(label, self._side)
        tile = self._kept[row] = _Tile(image, label, region_map(label))
        sizes = [sum(part.nbytes for part in kept) for kept in self._kept.values()]
        while len(sizes) > 2 and sum(sizes) > _KEPT:
            del sizes[0]
            self._kept.popitem(last=False)
        return tile

    def _list_regions(self, row: int) -> dict[int, _Bank]:
        _, label = self._source.read(row)
        if self._side is not None:
            label = resize_label(label, self._side)
        regions = region_map(label)
        boxes, pixels = _boxes(regions), np.bincount(regions.ravel())
        found: dict[int, list[tuple[int, Box, Shape]]] = {}
        for number in np.argsort(-pixels, kind="stable").tolist():
            box = boxes[number]
            kind = int(label[slices(box)][regions[slices(box)] == number][0])
            if kind in found and pixels[number] < _FEWEST_PIXELS:
                continue
            shape = shape_of(label, regions, number, box, self._num_classes)
            found.setdefault(kind, []).append((number, box, shape))
        return {
            kind: _Bank(
                np.full(len(entries), row),
                np.array([box for _, box, _ in entries]),
                np.array([number for number, _, _ in entries]),
                Shape(*map(np.stack, zip(*(shape for *_, shape in entries), strict=True))),
            )
            for kind, entries in found.items()
        }


def shape_of(
    label: Label, regions: npt.NDArray[np.int32], number: int, box: Box, num_classes: int
) -> Shape:
    """The shape of a region, in its box, of a label map (H, W) with C classes."""
    top, left, height, width = box
    covered = regions[slices(box)] == number
    raster = cv2.resize(covered.astype(np.float32), (_GRID, _GRID), interpolation=cv2.INTER_AREA)
    wide = np.s_[max(0, top - 1) : top + height + 1, max(0, left - 1) : left + width + 1]
    own = (regions[wide] == number).astype(np.uint8)
    ring = cv2.dilate(own, np.ones((3, 3), np.uint8)) > own
    counts = np.bincount(np.minimum(label[wide][ring], num_classes), minlength=num_classes + 1)
    return Shape(
        np.log([covered.sum(), height, width]).astype(np.float32),
        raster,
        (counts / max(1, counts.sum())).astype(np.float32),
    )


def differences(wanted: Shape, offered: Shape) -> npt.NDArray[np.float32]:
    """How unlike N regions are to the wanted one, in each of the 8 orientations: shape (8, N).

    Regions that are too small count more than larger ones, of which a part is shown.
    """
    neighbours = np.abs(offered.neighbours - wanted.neighbours).sum(-1)
    pixels, *sides = wanted.extent
    costs = []
    for turns, flip in _TURNS:
        # The wanted region's raster as the offered one has to look before it is turned.
        raster = wanted.raster[:, ::-1] if flip else wanted.raster
        raster = np.rot90(raster, -turns)
        shown = np.array([pixels, *(sides[::-1] if turns % 2 else sides)])
        lacking = shown - offered.extent
        size = (np.where(lacking > 0, lacking, -lacking / 4) * (1.0, 0.5, 0.5)).sum(-1)
        common = np.minimum(raster, offered.raster).sum((1, 2))
        union = np.maximum(raster, offered.raster).sum((1, 2))
        costs.append(size + 2 * (1 - common / union) + neighbours / 2)
    return np.stack(costs).astype(np.float32)


def best_place(covered: Mask, taken: Mask, rng: np.random.Generator) -> tuple[tuple[int, int], int]:
    """Row and column of another region's box (h, w) at which the wanted one (H, W) is shown best.

    Of centre on centre and eight drawn places it is the one where most of it is covered.

    Returns:
        The place, which may lie outside of the box, and how many pixels are covered.
    """
    height, width = covered.shape
    shares = np.concatenate([[[0.5, 0.5]], rng.random((_PLACES, 2))])
    best, most = (0, 0), -1
    for top, left in np.rint(shares * np.subtract(taken.shape, covered.shape)).astype(int).tolist():
        rows = slice(max(0, top), min(taken.shape[0], top + height))
        columns = slice(max(0, left), min(taken.shape[1], left + width))
        there = np.s_[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
        count = int((covered[there] & taken[rows, columns]).sum())
        if count > most:
            best, most = (top, left), count
    return best, most


def continued(
    taken: Mask, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which pixels of a region (h, w) are shown at some rows (R,) and columns (S,) of its box.

    Beyond its box everything is mirrored, and within it the region at its edge, so that its texture
    goes on.

    Returns:
        Rows and columns of these pixels, shape (R, S) each.
    """
    sides = zip((rows, columns), taken.shape, strict=True)
    places = [np.where(at % (2 * n) < n, at % n, n - 1 - at % n) for at, n in sides]
    near = tuple(slice(int(at.min()), int(at.max()) + 1) for at in places)
    if not taken[near].any():  # rare: all that would be shown is of other regions
        near = (slice(0, taken.shape[0]), slice(0, taken.shape[1]))
    frame, corner = taken[near], [part.start for part in near]
    grid = np.ix_(*(at - start for at, start in zip(places, corner, strict=True)))
    shown = np.stack(np.broadcast_arrays(*grid))
    nearest = distance_transform_edt(~frame, return_distances=False, return_indices=True)
    last = np.array(frame.shape)[:, None] - 1
    for _ in range(_REFLECTIONS):
        outside = ~frame[tuple(shown)]
        if not outside.any():
            break
        there = shown[:, outside]
        shown[:, outside] = (2 * nearest[:, *there] - there).clip(0, last)
    row, column = nearest[:, *shown]
    return row + corner[0], column + corner[1]


def _some(rng: np.random.Generator, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Up to 64 of the rows."""
    return rng.choice(rows, min(_COMPARED, len(rows)), replace=False)


def _boxes(regions: npt.NDArray[np.int32]) -> list[Box]:
    """The box of every region, by its number."""
    found = find_objects(regions + 1)
    return [(r.start, c.start, r.stop - r.start, c.stop - c.start) for r, c in found]


def _joined(banks: Sequence[_Bank]) -> _Bank:
    tiles, boxes, numbers = (np.concatenate([bank[i] for bank in banks]) for i in range(3))
    shapes = Shape(*map(np.concatenate, zip(*(bank.shapes for bank in banks), strict=True)))
    return _Bank(tiles, boxes, numbers, shapes)
