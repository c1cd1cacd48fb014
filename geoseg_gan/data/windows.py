"""Overlapping windows that cover a raster, and their results blended without seams."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.utils.errors import UserError

Floats = npt.NDArray[np.float32]
Parts = tuple[npt.NDArray[Any], ...]

ReadRows = Callable[[int, int], npt.NDArray[Any]]
"""Reads the rows of a raster from a first one to before a last one: shape (n, W, ...)."""


def window_starts(length: int, side: int, overlap: int = 0) -> list[int]:
    """Starts of the windows that cover a length in full, the last one ending at its end.

    All in pixels: a length of at least `side`, and the overlap of neighbours.
    """
    step = side - overlap
    count = math.ceil((length - side) / step) + 1
    return [min(i * step, length - side) for i in range(count)]


@dataclass(frozen=True)
class WindowGrid:
    """Square windows in rows and columns; what they lack beyond the raster is mirrored into them.

    Attributes:
        height: The raster's, in pixels.
        width: The raster's, in pixels.
        side: Of a window in pixels, a multiple of `align`.
        overlap: Of neighbours in pixels, a multiple of `align` and less than `side`; the last
            window of a row or column may overlap more.
        align: What every window's left and top are multiples of, in pixels.
        border: Pixels by which windows reach beyond the raster on all sides, a multiple of `align`.
    """

    height: int
    width: int
    side: int
    overlap: int
    align: int = 1
    border: int = 0

    @cached_property
    def tops(self) -> list[int]:
        """The first row of the windows of each row of windows."""
        return self._starts(self.height)

    @cached_property
    def lefts(self) -> list[int]:
        """The first column of the windows of each column of windows."""
        return self._starts(self.width)

    @property
    def count(self) -> int:
        """How many windows there are."""
        return len(self.tops) * len(self.lefts)

    @property
    def row_width(self) -> int:
        """From the left of a row's first window to the right of its last one, in pixels."""
        return self.lefts[-1] + self.side - self.lefts[0]

    def read(self, rows: ReadRows, number: int) -> npt.NDArray[Any]:
        """The pixels of a row of windows, mirrored at the border: (side, row width, ...)."""
        top, left = self.tops[number], self.lefts[0]
        places = _mirrored(top, top + self.side, self.height)
        first, last = int(places.min()), int(places.max()) + 1
        block = rows(first, last)[places - first]
        if self.row_width > self.width:
            block = block[:, _mirrored(left, left + self.row_width, self.width)]
        return block

    def end_of(self, number: int) -> int:
        """The row of the raster before which all is final once this row of windows is."""
        following = self.tops[number + 1] if number + 1 < len(self.tops) else self.height
        return min(max(following, 0), self.height)

    def first_needed(self, done: int) -> int:
        """The first row of windows that has a part in the rows from `done` on."""
        return next(n for n, top in enumerate(self.tops) if top + self.side > done)

    def _starts(self, length: int) -> list[int]:
        whole = length + 2 * self.border
        covered = max(self.side, -(-whole // self.align) * self.align)
        return [start - self.border for start in window_starts(covered, self.side, self.overlap)]


def rows_of_windows(
    read: Callable[[int, int], Parts], height: int, step: int, tops: Sequence[int], side: int
) -> Iterator[tuple[int, Parts]]:
    """The rows that each row of windows covers; every row of the raster is read once, in order.

    Args:
        read: As `ReadRows`, of several arrays at once.
        height: Of the raster, in pixels.
        step: How many rows are read at once.
        tops: The first row of each row of windows, ascending.
        side: Of the windows, in pixels.

    Yields:
        The first row of a row of windows, and its rows of all arrays.
    """
    begin, waiting = 0, deque(tops)
    held: Parts = ()
    for first in range(0, height, step):
        end = min(first + step, height)
        new = read(first, end)
        held = tuple(map(np.concatenate, zip(held, new, strict=True))) if held else new
        while waiting and waiting[0] + side <= end:
            top = waiting.popleft()
            yield top, tuple(part[top - begin : top - begin + side] for part in held)
        kept = waiting[0] if waiting else end
        held = tuple(part[kept - begin :].copy() for part in held) if kept < end else ()
        begin = min(kept, end)


def default_overlap(side: int, align: int, share: float) -> int:
    """The share of a window that overlaps its neighbour, in pixels: a multiple of `align`.

    At least one, and less than the side, where the window has room for it.
    """
    most = max(0, side // align - 1) * align
    return min(max(align, round(share * side / align) * align), most)


def check_windows(side: int, overlap: int, align: int) -> None:
    """Refuses, with a UserError, windows that do not fit a network."""
    if side % align:
        raise UserError(
            f"image_size={side}: this network works on windows of multiples of {align} px."
        )
    if not 0 <= overlap < side or overlap % align:
        raise UserError(
            f"overlap={overlap}: use less than the {side} px of a window"
            + (f", and a multiple of {align}." if align > 1 else ".")
        )


def check_full_resolution(path: str, fit: str) -> None:
    """Refuses a network, at `path`, that has seen whole tiles resized to one size."""
    if fit == "resize":
        raise UserError(
            f"{path} has seen whole tiles resized to one size (data.fit=resize), so that the "
            "length of a pixel on the ground is not known. Train with data.fit=crop."
        )


def blend(
    grid: WindowGrid,
    channels: int,
    results: Callable[[int], Iterable[tuple[int, Floats]]],
    done: int = 0,
) -> Iterator[tuple[int, Floats]]:
    """Blends what is worked out of windows, from the top to the bottom of a raster.

    Windows count by a raised cosine that falls from 1 to 0 over their overlap. The memory is that
    of one row of windows, whatever the height.

    Args:
        grid: The windows.
        channels: C.
        results: Gives for a row of windows each one's left border and result (C, side, side).
        done: Rows of the raster that are there already, as an earlier call has yielded them.

    Yields:
        The first row of the raster that is new, and the rows from it on: (C, n, W), in memory that
        is used again for those that follow.
    """
    weight = _weight(grid.side, grid.overlap)
    square = weight[:, None] * weight
    across, down = _total(grid.lefts, weight), _total(grid.tops, weight)
    held = np.zeros((channels, grid.side, grid.row_width), np.float32)
    inside = slice(-grid.lefts[0], grid.width - grid.lefts[0])
    for number in range(grid.first_needed(done), len(grid.tops)):
        for left, result in results(number):
            at = left - grid.lefts[0]
            held[..., at : at + grid.side] += square * result
        top, end = grid.tops[number], grid.end_of(number)
        if end > done:
            # Windows that are worked out again, for their part in new rows, yield no old ones.
            begin = max(done, top)
            total = down[begin - grid.tops[0] : end - grid.tops[0], None] * across[inside]
            lines = held[:, begin - top : end - top, inside]
            lines /= total  # in place: nobody adds to these rows any more
            yield begin, lines
        if number + 1 < len(grid.tops):
            step = grid.tops[number + 1] - top
            for plane in held:  # one by one: what overlaps is copied first
                plane[: grid.side - step] = plane[step:]
            held[:, grid.side - step :] = 0


def _weight(side: int, overlap: int) -> Floats:
    """How much each pixel along a window's side counts."""
    ramp = np.ones(side)
    ramp[:overlap] = np.sin((np.arange(overlap) + 0.5) * (np.pi / 2 / max(overlap, 1))) ** 2
    return (ramp * ramp[::-1]).astype(np.float32)


def _total(starts: list[int], weight: Floats) -> Floats:
    """The summed weights of all windows along a side, from the first window's start on."""
    total = np.zeros(starts[-1] + len(weight) - starts[0], np.float32)
    for start in starts:
        total[start - starts[0] : start - starts[0] + len(weight)] += weight
    return total


def _mirrored(first: int, last: int, length: int) -> npt.NDArray[np.int64]:
    """The places within a length that those from first to last are mirrored to."""
    places = np.arange(first, last) % (2 * length)
    return np.minimum(places, 2 * length - 1 - places)
