"""Datasets of image-mask pairs."""

import errno
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from geoseg_gan.data.batch import Sample
from geoseg_gan.data.image_files import UnreadableError
from geoseg_gan.data.images import resize_image, resize_label
from geoseg_gan.data.jitter import Window, draw_warp, draw_window, sample_image, sample_label
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import Pair, some_pairs
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.sampler import SampleIndex, draw_focused
from geoseg_gan.data.scan import FolderIndex
from geoseg_gan.data.settings import Fit, JitterSettings
from geoseg_gan.data.styles import StyleMatcher
from geoseg_gan.data.transplant import Transplanter, region_map, visible_box
from geoseg_gan.utils.device import free_memory
from geoseg_gan.utils.errors import UserError

Decoded = tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]
"""An image (H, W, K) in its stored dtype and its label map (H, W) uint8."""


T = TypeVar("T")

RETRY_SECONDS = (1.0, 4.0, 10.0)
"""How long to wait before each further attempt to read a file from a disk that may come back."""

_LOST = {errno.EIO, errno.ENOENT, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}


def retried(read: Callable[[], T]) -> T:
    """What `read` returns, which is called again where a disk or a network share has dropped out.

    Raises:
        UnreadableError: If it stays away, or the file can be read but not decoded.
    """
    waits = list(RETRY_SECONDS)
    while True:
        try:
            return read()
        except UnreadableError as error:
            if error.errno not in _LOST:
                raise
            if not waits:
                raise UnreadableError(
                    f"{error} It was tried {len(RETRY_SECONDS) + 1} times in "
                    f"{sum(RETRY_SECONDS):g} s. Training goes on from its last.ckpt with "
                    "resume=true."
                ) from None
        time.sleep(waits.pop(0))


@dataclass(frozen=True)
class PairSource:
    """Reads pairs, from files or from memory."""

    pairs: Sequence[Pair]
    reader: MaskReader  # how masks become label maps
    decoded: Sequence[Decoded] | None = None  # the pairs' pixels where they are kept in memory

    def read(self, row: int) -> Decoded:
        """Image (H, W, K) in its stored dtype and label map (H, W) uint8 of one pair."""
        if self.decoded is not None:
            return self.decoded[row]
        pair = self.pairs[row]
        return retried(lambda: self.reader.read_pair(pair.image, pair.mask)[:2])

    def rows(self, rows: Sequence[int]) -> "PairSource":
        """A source of some of the pairs, in the order asked for; pixels in memory are shared."""
        decoded = None if self.decoded is None else [self.decoded[row] for row in rows]
        return PairSource(some_pairs(self.pairs, rows), self.reader, decoded)

    def parts(self) -> npt.NDArray[np.int64] | None:
        """The part of the storage in which each pair lies; None where reading order is free."""
        return None

    def repeated(self) -> "PairSource":
        """The same source for reading all pairs repeatedly."""
        return self

    def in_memory(self, index: FolderIndex) -> "PairSource":
        """The same source with every pair decoded in memory.

        Raises:
            UserError: If that needs more than 80 % of the memory that is free.
        """
        pixels = int(index.sizes.prod(1).sum())
        needed = pixels * (index.bands * index.dtype.itemsize + 1)
        free = free_memory()
        if needed > 0.8 * free:
            raise UserError(
                f"data.cache=ram needs {needed / 2**30:.1f} GiB for {len(self.pairs)} pairs, but "
                f"{free / 2**30:.1f} GiB are free. Set data.cache=none."
            )
        with ThreadPoolExecutor() as pool:
            decoded = list(pool.map(self.read, range(len(self.pairs))))
        return PairSource(self.pairs, self.reader, decoded)

    def sample(self, row: int, image: npt.NDArray[Any], label: npt.NDArray[np.uint8]) -> Sample:
        """A sample that holds copies of a pair's pixels."""
        return Sample(
            # Always copies: the pixels may be read-only, or the cache itself.
            image=torch.from_numpy(np.array(np.moveaxis(image, -1, 0), order="C")),
            label=torch.from_numpy(np.array(label, order="C")),
            stem=self.pairs[row].stem,
            group=self.pairs[row].group,
        )


@dataclass(eq=False)
class PairDataset(Dataset[Sample]):
    """Training samples: a pair under a random warp, cropped or resized to a square.

    Attributes:
        source: Where pairs come from.
        image_size: Side of the samples in pixels.
        fit: "crop" takes a random window at full resolution, "resize" the whole image.
        jitter: Geometry that acts on image and mask together.
        seed: With the serial number of the sample it fixes all randomness.
        transplanter: Pastes regions of other pairs into image and mask before the warp.
        matcher: Moves the colours of classes after the warp.
        regions: Whether samples include the connected regions of their label map.
    """

    source: PairSource
    image_size: int
    fit: Fit
    jitter: JitterSettings
    seed: int
    transplanter: Transplanter | None = None
    matcher: StyleMatcher | None = None
    regions: bool = False

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.source.pairs)

    def __getitem__(self, index: SampleIndex | int) -> Sample:
        """One sample: image (K, S, S) in its stored dtype, label (S, S) uint8."""
        row, serial, focus = index if isinstance(index, SampleIndex) else SampleIndex(index, index)
        rng = np.random.default_rng((self.seed, serial))
        image, label = self.source.read(row)
        whole = self.fit == "resize"
        height, width = (self.image_size,) * 2 if whole else label.shape
        warp = draw_warp(self.jitter, rng)
        if focus is None or whole:
            window = draw_window(*warp.shape(height, width), self.image_size, rng)
        else:
            window = draw_focused(label, focus, warp, self.image_size, rng)
        maps = warp.source_map(height, width, window)
        if self.transplanter is not None:
            transplant = self.transplanter.draw(
                rng, label, None if whole else visible_box(maps, label)
            )
            if transplant is not None:
                image, label = transplant.apply_pair(image, label)
        if whole:
            image = resize_image(image, self.image_size)
            label = resize_label(label, self.image_size)
        label = sample_label(label, maps)
        sample = self.source.sample(row, sample_image(image, maps), label)
        if self.matcher is not None:
            self.matcher.apply(sample, serial)
        if self.regions:
            sample["regions"] = torch.from_numpy(region_map(label))
        return sample


@dataclass(eq=False)
class MixedDataset(Dataset[Sample]):
    """Several datasets of pairs as one, row after row.

    Attributes:
        parts: Real pairs, then synthetic ones.
        gate: What each label becomes on synthetic pixels, shape (256,); None where all stay.
    """

    parts: Sequence[PairDataset]
    gate: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        """Notes where each part ends."""
        self.ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        """How many pairs there are in all parts."""
        return self.ends[-1]

    def __getitem__(self, index: SampleIndex) -> Sample:
        """One sample: image (K, S, S) in its stored dtype, label (S, S) uint8."""
        number = bisect_right(self.ends, index.row)
        part = self.parts[number]
        sample = part[index._replace(row=index.row - self.ends[number] + len(part))]
        if self.gate is not None and number > 0:
            sample["label"] = torch.from_numpy(self.gate.take(sample["label"].numpy()))
        return sample


@dataclass(eq=False)
class WindowDataset(Dataset[Sample]):
    """Validation samples: every image in full, as a grid of windows or resized; nothing is random.

    The last window of a row or column ends at the border, so that all pixels are covered. The last
    image read is kept, since its windows follow one another.

    Attributes:
        source: Where pairs come from.
        sizes: Height and width of every image, shape (N, 2).
        image_size: Side of the samples in pixels.
        fit: "crop" for windows at full resolution, "resize" for whole images.
        once: Labels pixels that an earlier window covers as ignore (255), so that metrics over all
            windows count every pixel once.
    """

    source: PairSource
    sizes: npt.NDArray[np.int64]
    image_size: int
    fit: Fit
    once: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Lists the windows; nothing is read yet."""
        shown = np.full_like(self.sizes, self.image_size) if self.fit == "resize" else self.sizes
        self.windows: Sequence[tuple[int, Window]] = AllWindows(shown, self.image_size)
        self._last: tuple[int, Decoded] | None = None

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self.windows)

    def __getitem__(self, position: int) -> Sample:
        """One sample: image (K, S, S) in its stored dtype, label (S, S) uint8."""
        row, (top, left, side) = self.windows[position]
        image, label = self._read(row)
        if self.fit == "resize":
            image, label = resize_image(image, side), resize_label(label, side)
        inside = np.s_[top : top + side, left : left + side]
        sample = self.source.sample(row, image[inside], label[inside])
        if self.once:
            # Only the last window of a row or column overlaps another, which ends at a multiple.
            sample["label"][: -top % side] = IGNORE
            sample["label"][:, : -left % side] = IGNORE
        return sample

    def _read(self, row: int) -> Decoded:
        if self._last is None or self._last[0] != row:
            self._last = row, self.source.read(row)
        return self._last[1]


class AllWindows(Sequence[tuple[int, Window]]):
    """The windows that cover images in full, image after image, each row by row.

    `sizes` are height and width of every image, at least `side` pixels each: shape (N, 2).
    """

    def __init__(self, sizes: npt.NDArray[np.int64], side: int) -> None:
        """Counts the windows of every image; none is created yet."""
        self.sizes = sizes
        self.side = side
        self.columns = -(-sizes[:, 1] // side)
        self.ends = (-(-sizes[:, 0] // side) * self.columns).cumsum()

    def __len__(self) -> int:
        """How many windows there are."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @overload
    def __getitem__(self, position: int) -> tuple[int, Window]: ...
    @overload
    def __getitem__(self, position: slice) -> list[tuple[int, Window]]: ...
    def __getitem__(self, position: int | slice) -> tuple[int, Window] | list[tuple[int, Window]]:
        """The row of an image, and top, left and side of a window of it; or several of them."""
        if isinstance(position, slice):
            return [self[number] for number in range(len(self))[position]]
        number = range(len(self))[position]
        row = int(self.ends.searchsorted(number, side="right"))
        nth = number - (int(self.ends[row - 1]) if row else 0)
        down, right = divmod(nth, int(self.columns[row]))
        height, width = self.sizes[row].tolist()
        side = self.side
        return row, (min(down * side, height - side), min(right * side, width - side), side)
