"""What images and masks hold, each file read once."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from rich.progress import track

from geoseg_gan.data.audit.folders import Entry
from geoseg_gan.data.audit.similar import thumbnail
from geoseg_gan.data.georeference import Georeference, georeference_problem, read_georeference
from geoseg_gan.data.images import Stored, UnreadableError, read_stored
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.utils.errors import UserError, plural

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_BAR_FROM = 200  # fewer pairs take a moment, which needs no progress bar
_BLOCK = 512  # pairs that are handed to the threads at a time
_MOST_VALUES = 1024  # of a mask that are kept exactly: JPEGs have tens of thousands
_PLAIN = 16  # values up to which a mask is taken to have no smoothed edges
_EVEN = 12  # grey levels by which JPEG changes an even region, away from edges
_FILLERS = (-9_999, -32_768, 65_535)
"""Values that usually mean "no data"."""


@dataclass(frozen=True)
class Values:
    """What masks hold: N different values, the most frequent first, each column of shape (N,).

    Colours are 24-bit codes, red in the lowest byte.
    """

    values: Ints
    pixels: Ints
    masks: Ints  # that hold the value
    empty: Ints  # pixels under which the image has no data, or 0 in all bands
    unseen: Ints  # pixels that are read as ignore, since image or mask has no data there

    @classmethod
    def joined(cls, parts: Iterable["Values"]) -> "Values":
        """What several masks hold together."""
        columns = [*zip(*(vars(part).values() for part in parts), strict=True)]
        return _summed(*map(np.concatenate, columns)) if columns else _summed(*[np.zeros(0)] * 5)

    def renamed(self, values: Ints) -> "Values":
        """The same of one mask with other values, of which several may be equal."""
        found = _summed(values, self.pixels, self.masks, self.empty, self.unseen)
        return replace(found, masks=np.minimum(found.masks, 1))

    @property
    def total(self) -> int:
        """All pixels."""
        return int(self.pixels.sum())

    def shares(self) -> npt.NDArray[np.float64]:
        """Every value's share of all pixels."""
        shares: npt.NDArray[np.float64] = self.pixels / max(1, self.total)
        return shares


def rgb_of(codes: Ints) -> Ints:
    """Colours (N, 3) of 24-bit codes (N,)."""
    return np.stack([codes & 255, codes >> 8 & 255, codes >> 16 & 255], -1)


@dataclass(frozen=True)
class ImageFacts:
    """What an image holds; statistics are those of its pixels with data."""

    size: tuple[int, int]  # height and width
    bands: int
    dtype: str
    missing: float  # share of pixels without data, as the file says or NaN
    blank: float  # share of pixels that have data, but are 0 in all bands
    means: npt.NDArray[np.float64]  # of every band, shape (K,)
    deviations: npt.NDArray[np.float64]  # standard deviation of every band, shape (K,)
    clipped: float  # share of pixels that have the largest value of their type in all bands
    nonfinite: bool  # whether some values are NaN or infinite
    nodata: float | None  # the value that the file says to be no data
    fillers: dict[int, float]  # share of pixels of values that usually mean "no data", not tagged
    digest: bytes  # of its pixels
    thumbnail: npt.NDArray[np.uint8]
    place: Georeference | None

    @property
    def empty(self) -> float:
        """Share of pixels that are 0 in all bands or without data."""
        return self.blank + self.missing


@dataclass(frozen=True)
class MaskFacts:
    """What a mask holds, as it is stored and as the data settings read it."""

    size: tuple[int, int]  # height and width
    kind: str  # how it is stored, in words
    is_color: bool  # whether `values` are colours rather than numbers
    is_lossy: bool
    values: Values
    even: Values  # the same of pixels that are like those around them, where values are damaged
    table: dict[int, int]  # 24-bit code of the colour of each number, where a file has a table
    step: int  # what one number counts as a grey level
    nodata: int | None  # the number that the file says to be no data
    refusal: str | None  # why the settings cannot read it
    pixels: Ints  # of every class and, last, of ignore: shape (C + 1,)
    unknown: int  # pixels outside the palette
    digest: bytes  # of its values

    def colors(self, even: bool = False) -> Values:
        """Its values, or those apart from edges, as colours."""
        values = self.even if even else self.values
        if self.is_color:
            return values
        grays = (values.values * self.step & 255) * 0x010101
        listed = zip(values.values.tolist(), grays.tolist(), strict=True)
        return values.renamed(np.array([self.table.get(v, gray) for v, gray in listed], np.int64))

    def numbers(self, even: bool = False) -> Values:
        """Its values, or those apart from edges, as numbers: grey levels where it has colours."""
        values = self.even if even else self.values
        return values.renamed(values.values & 255) if self.is_color else values

    def shows_colors(self) -> bool:
        """Whether it has colours, and not only grey levels."""
        codes = self.colors().values
        return bool(((codes & 255) * 0x010101 != codes).any())

    def counted_by(self, reader: MaskReader) -> Ints:
        """Pixels of every class and, last, of ignore as another reader reads it."""
        values = self.numbers() if reader.mask_format == "index" else self.colors()
        labels, seen = reader.labels_of(values.values), values.pixels - values.unseen
        counts = np.bincount(labels, seen, IGNORE + 1).astype(np.int64)
        counts[IGNORE] += values.unseen.sum()
        return _of_classes(counts, reader)


@dataclass(frozen=True)
class PairFacts:
    """What an entry's files hold; a text instead says why a file does not decode."""

    entry: Entry
    image: ImageFacts | str | None
    mask: MaskFacts | str | None
    elsewhere: str | None = None  # how the georeferences of both contradict


def image_facts(facts: Iterable[PairFacts]) -> list[tuple[PairFacts, ImageFacts]]:
    """The pairs whose image decodes, with what it holds."""
    return [(f, f.image) for f in facts if isinstance(f.image, ImageFacts)]


def mask_facts(facts: Iterable[PairFacts]) -> list[tuple[PairFacts, MaskFacts]]:
    """The pairs whose mask decodes, with what it holds."""
    return [(f, f.mask) for f in facts if isinstance(f.mask, MaskFacts)]


def measure(entries: Sequence[Entry], reader: MaskReader) -> list[PairFacts]:
    """Reads every file once, in parallel, with a progress bar for long lists.

    What is kept of a pair are some kilobytes.

    Args:
        entries: What to read.
        reader: How masks become label maps; what it does not know counts as ignored.
    """
    if reader.unknown == "error":
        reader = replace(reader, unknown="ignore")
    starts: Any = range(0, len(entries), _BLOCK)
    if len(entries) >= _BAR_FROM:
        starts = track(starts, f"Reading {plural(len(entries), 'pair')}")
    # Threads rather than processes: decoding releases the interpreter lock, and nothing is pickled.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        blocks = (entries[start : start + _BLOCK] for start in starts)
        return [f for block in blocks for f in pool.map(lambda e: _measure(e, reader), block)]


def _measure(entry: Entry, reader: MaskReader) -> PairFacts:
    image: ImageFacts | str | None = None
    mask: MaskFacts | str | None = None
    empty = missing = elsewhere = None
    try:
        if entry.image is not None:
            image, empty, missing = _image_facts(entry.image, reader.nodata)
    except UnreadableError as error:
        image = str(error)
    try:
        if entry.mask is not None:
            mask = _mask_facts(entry.mask, reader, empty, missing)
            if entry.image and isinstance(image, ImageFacts) and image.place:
                elsewhere = georeference_problem(entry.image, entry.mask)
    except UnreadableError as error:
        mask = str(error)
    return PairFacts(entry, image, mask, elsewhere)


def _image_facts(path: Path, nodata: float | None) -> tuple[ImageFacts, Flags, Flags | None]:
    """What an image holds, where it is empty (no data, or 0 in all bands), and has no data."""
    stored = read_stored(path, nodata=nodata)
    pixels, missing = stored.shown(), stored.missing()
    black = _everywhere(pixels, 0)
    valid = np.ones(black.shape, bool) if missing is None else ~missing
    weights = None if missing is None else valid.astype(np.uint8)
    parts = [
        # OpenCV takes at most four bands at a time.
        cv2.meanStdDev(np.ascontiguousarray(pixels[..., k : k + 4]), mask=weights)
        for k in range(0, pixels.shape[2], 4)
    ]
    means, deviations = (np.concatenate([part[n].ravel() for part in parts]) for n in (0, 1))
    is_whole, fillers = np.issubdtype(pixels.dtype, np.integer), {}
    clipped = _everywhere(pixels, np.iinfo(pixels.dtype).max) & valid if is_whole else ~valid[:0]
    if pixels.dtype != np.uint8:
        shares = ((v, float(((pixels == v).any(-1) & valid).mean())) for v in _FILLERS)
        fillers = {value: share for value, share in shares if share}
    header = f"{pixels.shape}{pixels.dtype}".encode()
    facts = ImageFacts(
        size=(pixels.shape[0], pixels.shape[1]),
        bands=pixels.shape[2],
        dtype=pixels.dtype.name,
        missing=1 - float(valid.mean()),
        blank=float((black & valid).mean()),
        means=means,
        deviations=deviations,
        clipped=float(clipped.sum() / max(1, valid.sum())),
        nonfinite=not is_whole and not np.isfinite(pixels).all(),
        nodata=next((value for value in stored.nodata if value is not None), None),
        fillers=fillers,
        digest=hashlib.sha256(header + pixels.tobytes()).digest(),
        thumbnail=thumbnail(_gray(pixels, valid)),
        place=read_georeference(path),
    )
    return facts, black | ~valid, missing


def _everywhere(pixels: npt.NDArray[Any], value: int) -> Flags:
    """Where all bands have a value, shape (H, W)."""
    found: Flags = pixels[..., 0] == value
    for band in range(1, pixels.shape[2] if found.any() else 1):
        found &= pixels[..., band] == value
    return found


def _gray(pixels: npt.NDArray[Any], valid: Flags) -> npt.NDArray[np.uint8]:
    """The mean over bands as 8 bits, other types between their 2nd and 98th percentile."""
    gray: npt.NDArray[Any] = pixels[..., 0]
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    elif pixels.shape[2] > 1:
        gray = pixels.mean(-1, dtype=np.float32)
    if pixels.dtype != np.uint8:
        low, high = np.percentile(gray[valid], (2, 98)) if valid.any() else (0, 1)
        scale = 255 / max(float(high) - float(low), 1e-9)
        gray = np.nan_to_num((gray.astype(np.float32) - low) * scale)
    return gray.clip(0, 255).astype(np.uint8, copy=False)


def _mask_facts(
    path: Path, reader: MaskReader, empty: Flags | None, missing: Flags | None
) -> MaskFacts:
    stored = read_stored(path)
    values, kind = stored.values, _kind(stored)
    is_color = values.shape[2] >= 3 and values.dtype == np.uint8
    if is_color:
        # A fourth byte makes every pixel one word, as in `Palette.encode`.
        rgb = np.ascontiguousarray(values[..., :3])
        codes = cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0] & 0xFFFFFF
    else:
        codes = values[..., 0]
        if np.issubdtype(codes.dtype, np.floating):
            finite = np.isfinite(codes)
            if not finite.all() or (codes != np.floor(codes)).any():
                kind += ", not whole"
            codes = np.where(finite, codes.clip(-(2.0**31), 2.0**31), -1)
    size, refusal = codes.shape, None
    empty, missing = (None if a is None or a.shape != size else a for a in (empty, missing))
    hidden = None if is_color else stored.hidden
    unseen = [part for part in (missing, hidden) if part is not None]
    counted = _counted(codes, is_color, empty, np.logical_or.reduce(unseen) if unseen else None)
    even = counted
    is_lossy = path.suffix.lower() in (".jpg", ".jpeg")
    if values.dtype == np.uint8 and (is_lossy or len(counted.values) > _PLAIN):
        even = _counted(codes[_is_even(values[..., :3])], is_color)
    table = {}
    if stored.table is not None:
        rgb_codes = stored.table.astype(np.int64) @ (1, 1 << 8, 1 << 16)
        table = {value: int(rgb_codes[value]) for value in counted.values.tolist()}
    label, unknown = np.full(size, IGNORE, np.uint8), 0
    try:
        label, unknown = reader.label(stored)
        if missing is not None:  # as the reader of pairs does
            label[missing] = IGNORE
    except UserError as error:
        refusal = str(error)
    nodata = next((value for value in stored.nodata if value is not None), None)
    return MaskFacts(
        size=size,
        kind=kind,
        is_color=is_color,
        is_lossy=is_lossy,
        values=counted,
        even=even,
        table=table,
        step=stored.step,
        nodata=int(nodata) if nodata is not None and np.isfinite(nodata) else None,
        refusal=refusal,
        pixels=_of_classes(np.bincount(label.ravel(), minlength=IGNORE + 1), reader),
        unknown=unknown,
        digest=hashlib.sha256(f"{size}".encode() + codes.tobytes()).digest(),
    )


def _kind(stored: Stored) -> str:
    suffix, channels = stored.path.suffix[1:].lower(), stored.values.shape[2]
    file = {"tif": "TIFF", "jpg": "JPEG"}.get(suffix, suffix.upper())
    if stored.table is not None:
        return f"{file} with a colour table"
    if stored.step > 1:
        return f"{file} of { ({255: 1, 85: 2, 17: 4}[stored.step]) } bit"
    if channels == 1:
        return f"{file} of one channel, {stored.values.dtype}"
    return f"{file} of colours" if channels == 3 else f"{file} of {channels} channels"


def _is_even(values: npt.NDArray[np.uint8]) -> Flags:
    """Where a mask (H, W, K) hardly changes around a pixel: apart from edges and their damage."""
    kernel = np.ones((3, 3), np.uint8)
    planes = [np.ascontiguousarray(values[..., band]) for band in range(values.shape[2])]
    changes = [cv2.morphologyEx(plane, cv2.MORPH_GRADIENT, kernel) for plane in planes]
    even: Flags = np.max(changes, axis=0) <= _EVEN
    return even


def _counted(codes: npt.NDArray[Any], is_color: bool, *marks: Flags | None) -> Values:
    """How often the values of one mask occur, in all and where it is marked: empty and unseen.

    Values beyond the most frequent ones are kept in coarse steps.
    """
    flat = codes.ravel()
    marked = [None if mark is None or not mark.any() else mark.ravel() for mark in marks]
    # Masks are even: sorting runs of equal pixels takes a small part of the time of sorting pixels.
    parts = [flat, *(mark for mark in marked if mark is not None)]
    changes = np.logical_or.reduce([part[1:] != part[:-1] for part in parts])
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1]) if flat.size else np.zeros(0, int)
    lengths = np.diff(np.append(starts, flat.size))
    columns = [lengths * 0 if mark is None else mark[starts] * lengths for mark in marked]
    columns += [lengths * 0] * (2 - len(columns))
    found = _summed(flat[starts].astype(np.int64), lengths, np.ones(len(starts)), *columns)
    if len(rest := found.values[_MOST_VALUES:]):
        rest = rest & 0xF0F0F0 | 0x080808 if is_color else rest & ~255 | 128
        coarse = np.concatenate([found.values[:_MOST_VALUES], rest])
        return found.renamed(coarse)
    return replace(found, masks=np.minimum(found.masks, 1))


def _summed(values: npt.NDArray[Any], *columns: npt.NDArray[Any]) -> Values:
    """The rows of equal values as one, the most frequent first."""
    found, places = np.unique(values.astype(np.int64), return_inverse=True)
    sums = [np.bincount(places, column, len(found)).astype(np.int64) for column in columns]
    order = np.lexsort((found, -sums[0]))
    return Values(found[order], *(column[order] for column in sums))


def _of_classes(counts: Ints, reader: MaskReader) -> Ints:
    """Pixels of every class and, last, of ignore, of the pixels of all 256 labels."""
    return np.append(counts[: reader.palette.num_classes], counts[IGNORE]).astype(np.int64)
