"""What images and masks hold, each file read once."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from rich.progress import track

from geoseg_gan.data.audit.folders import Entry
from geoseg_gan.data.audit.similar import border_lines, thumbnail
from geoseg_gan.data.audit.values import Values
from geoseg_gan.data.georeference import Georeference, georeference_problem, read_georeference
from geoseg_gan.data.images import UnreadableError, read_stored
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.utils.errors import UserError, plural

_BAR_FROM = 200  # fewer pairs take a moment, which needs no progress bar
_BLOCK = 512  # pairs that are handed to the threads at a time
_MOST_VALUES = 1024  # of a mask that are kept: JPEGs have tens of thousands
_PLAIN = 16  # values up to which a mask is taken to have no smoothed edges
_EVEN = 12  # grey levels by which JPEG changes an even region, away from edges
_FILLERS = (-9_999, -32_768, 65_535)
"""Values that usually mean "no data"."""


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
    nonfinite: int  # values that are NaN or infinite
    nodata: float | None  # the value that the file says to be no data
    fillers: dict[int, int]  # pixels of values that usually mean "no data", but are not tagged
    digest: bytes  # of its pixels
    thumbnail: npt.NDArray[np.uint8]
    borders: npt.NDArray[np.uint8]  # see `border_lines`
    place: Georeference | None


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
    pixels: npt.NDArray[np.int64]  # of every class and, last, of ignore: shape (C + 1,)
    unknown: int  # pixels outside the palette
    digest: bytes  # of the label map

    def colors(self, even: bool = False) -> Values:
        """Its values as colours."""
        values = self.even if even else self.values
        if self.is_color:
            return values
        codes = [
            self.table.get(value, (value * self.step & 255) * 0x010101)
            for value in values.values.tolist()
        ]
        return values.renamed(codes)

    def numbers(self, even: bool = False) -> Values:
        """Its values as numbers: grey levels where it has colours."""
        values = self.even if even else self.values
        return values.renamed((values.values & 255).tolist()) if self.is_color else values

    def shows_colors(self) -> bool:
        """Whether it has colours, and not only grey levels."""
        codes = self.colors().values
        return bool(((codes & 255) * 0x010101 != codes).any())


@dataclass(frozen=True)
class PairFacts:
    """What an entry's files hold; a text instead says why a file does not decode."""

    entry: Entry
    image: ImageFacts | str | None
    mask: MaskFacts | str | None
    elsewhere: str | None = None  # how the georeferences of both contradict


def measure(entries: Sequence[Entry], reader: MaskReader) -> list[PairFacts]:
    """Reads every file once, in parallel, with a progress bar for long lists.

    What is kept of a pair are some kilobytes.

    Args:
        entries: What to read.
        reader: How masks become label maps; what it does not know counts as ignored.
    """
    if reader.unknown == "error":
        reader = replace(reader, unknown="ignore")
    return list(_each(entries, lambda entry: _measure(entry, reader), "Reading"))


def count_labels(
    entries: Sequence[Entry], reader: MaskReader
) -> list[tuple[npt.NDArray[np.int64], int] | str]:
    """Reads every mask with another reader.

    Returns:
        Pixels of every class and, last, of ignore, and pixels outside the palette; or why a mask
        cannot be read.
    """

    def count(entry: Entry) -> tuple[npt.NDArray[np.int64], int] | str:
        assert entry.mask is not None, "only entries with masks"
        try:
            label, unknown = reader.read(entry.mask)
        except UserError as error:
            return str(error)
        return _class_pixels(label, reader), unknown

    return list(_each(entries, count, "Reading the masks again, of"))


def _each(entries: Sequence[Entry], read: Any, title: str) -> Iterator[Any]:
    starts: Any = range(0, len(entries), _BLOCK)
    if len(entries) >= _BAR_FROM:
        starts = track(starts, f"{title} {plural(len(entries), 'pair')}")
    # Threads rather than processes: decoding releases the interpreter lock, and nothing is pickled.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in starts:
            yield from pool.map(read, entries[start : start + _BLOCK])


def _measure(entry: Entry, reader: MaskReader) -> PairFacts:
    image: ImageFacts | str | None = None
    mask: MaskFacts | str | None = None
    empty = missing = None
    if entry.image is not None:
        try:
            image, empty, missing = _image_facts(entry.image)
        except UnreadableError as error:
            image = str(error)
    if entry.mask is not None:
        try:
            mask = _mask_facts(entry.mask, reader, missing, empty)
        except UnreadableError as error:
            mask = str(error)
    elsewhere = None
    if isinstance(image, ImageFacts) and isinstance(mask, MaskFacts) and image.place is not None:
        elsewhere = georeference_problem(*(path for path in (entry.image, entry.mask) if path))
    return PairFacts(entry, image, mask, elsewhere)


def _image_facts(
    path: Path,
) -> tuple[ImageFacts, npt.NDArray[np.bool_], npt.NDArray[np.bool_] | None]:
    """What an image holds, where it is empty (no data, or 0 in all bands), and has no data."""
    stored = read_stored(path)
    pixels, missing = stored.shown(), stored.missing()
    height, width, bands = pixels.shape
    black = _everywhere(pixels, 0)
    valid = np.ones((height, width), bool) if missing is None else ~missing
    weights = None if missing is None else valid.astype(np.uint8)
    parts = [
        # OpenCV takes at most four bands at a time.
        cv2.meanStdDev(np.ascontiguousarray(pixels[..., k : k + 4]), mask=weights)
        for k in range(0, bands, 4)
    ]
    means, deviations = (np.concatenate([part[n].ravel() for part in parts]) for n in (0, 1))
    clipped, nonfinite, fillers = 0.0, 0, {}
    if np.issubdtype(pixels.dtype, np.integer):
        largest = np.iinfo(pixels.dtype).max
        clipped = float((_everywhere(pixels, largest) & valid).sum() / max(1, valid.sum()))
    else:
        nonfinite = int(np.count_nonzero(~np.isfinite(pixels)))
    if pixels.dtype != np.uint8:
        for value in _FILLERS:
            at = ((pixels == value).any(-1)) & valid
            if count := int(np.count_nonzero(at)):
                fillers[value] = count
    gray = _gray(pixels, valid)
    header = f"{pixels.shape}{pixels.dtype}".encode()
    facts = ImageFacts(
        size=(height, width),
        bands=bands,
        dtype=pixels.dtype.name,
        missing=1 - float(valid.mean()),
        blank=float((black & valid).mean()),
        means=means,
        deviations=deviations,
        clipped=clipped,
        nonfinite=nonfinite,
        nodata=next((value for value in stored.nodata if value is not None), None),
        fillers=fillers,
        digest=hashlib.sha256(header + pixels.tobytes()).digest(),
        thumbnail=thumbnail(gray),
        borders=border_lines(gray),
        place=read_georeference(path),
    )
    return facts, black | ~valid, missing


def _everywhere(pixels: npt.NDArray[Any], value: int) -> npt.NDArray[np.bool_]:
    """Where all bands have a value, shape (H, W)."""
    found: npt.NDArray[np.bool_] = pixels[..., 0] == value
    for band in range(1, pixels.shape[2]):
        if not found.any():
            break
        found &= pixels[..., band] == value
    return found


def _gray(pixels: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
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
    path: Path,
    reader: MaskReader,
    missing: npt.NDArray[np.bool_] | None,
    empty: npt.NDArray[np.bool_] | None,
) -> MaskFacts:
    stored = read_stored(path)
    values, refusal = stored.values, None
    size = (values.shape[0], values.shape[1])
    is_color = values.shape[2] >= 3 and values.dtype == np.uint8
    kind = _kind(path, values, stored.table is not None, stored.step)
    if is_color:
        rgb = np.ascontiguousarray(values[..., :3])
        # A fourth byte makes every pixel one word, as in `Palette.encode`.
        codes = cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0] & 0xFFFFFF
    else:
        codes = values[..., 0]
        if np.issubdtype(codes.dtype, np.floating):
            finite = np.isfinite(codes)
            if (codes[finite] != np.floor(codes[finite])).any() or not finite.all():
                kind += ", not whole"
            codes = np.where(finite, codes.clip(-(2.0**31), 2.0**31), -1)
    counted = _counted(codes, empty if empty is not None and empty.shape == size else None)
    even = counted
    is_lossy = path.suffix.lower() in (".jpg", ".jpeg")
    if values.dtype == np.uint8 and (is_lossy or len(counted.values) > _PLAIN):
        inside = _is_even(values[..., :3])
        even = _counted(codes[inside], None)
    table = {}
    if stored.table is not None:
        rgb = stored.table.astype(np.int64) @ (1, 1 << 8, 1 << 16)
        table = {value: int(rgb[value]) for value in counted.values.tolist()}
    label, unknown = np.full(size, IGNORE, np.uint8), 0
    try:
        label, unknown = reader.read(path)
        if missing is not None and missing.shape == size:  # as the reader of pairs does
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
        pixels=_class_pixels(label, reader),
        unknown=unknown,
        digest=hashlib.sha256(f"{size}".encode() + label.tobytes()).digest(),
    )


def _kind(path: Path, values: npt.NDArray[Any], has_table: bool, step: int) -> str:
    file = {".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(
        path.suffix.lower(), path.suffix[1:].upper()
    )
    if has_table:
        return f"{file} with a colour table"
    if step > 1:
        return f"{file} of { ({255: 1, 85: 2, 17: 4}[step]) } bit"
    channels = values.shape[2]
    if channels == 1:
        return f"{file} of one channel, {values.dtype}"
    return f"{file} of colours" if channels == 3 else f"{file} of {channels} channels"


def _is_even(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where a mask (H, W, K) hardly changes around a pixel: apart from edges and their damage."""
    kernel = np.ones((3, 3), np.uint8)
    planes = [np.ascontiguousarray(values[..., band]) for band in range(values.shape[2])]
    changes = [cv2.morphologyEx(plane, cv2.MORPH_GRADIENT, kernel) for plane in planes]
    even: npt.NDArray[np.bool_] = np.max(changes, axis=0) <= _EVEN
    return even


def _counted(codes: npt.NDArray[Any], empty: npt.NDArray[np.bool_] | None) -> Values:
    """How often the values of one mask occur, and how often on empty pixels of the image."""
    flat = codes.ravel()
    if not flat.size:
        return Values.joined(())
    if empty is not None and not empty.any():
        empty = None
    # Masks are even: sorting runs of equal pixels takes a small part of the time of sorting pixels.
    changes = flat[1:] != flat[:-1]
    if empty is not None:
        changes |= empty.ravel()[1:] != empty.ravel()[:-1]
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    lengths = np.diff(np.append(starts, flat.size))
    found, places = np.unique(flat[starts].astype(np.int64), return_inverse=True)
    on_empty = np.zeros(len(starts)) if empty is None else empty.ravel()[starts] * lengths
    pixels, over = (
        np.bincount(places, counts, len(found)).astype(np.int64) for counts in (lengths, on_empty)
    )
    order = np.argsort(-pixels, kind="stable")[:_MOST_VALUES]
    others = int(pixels.sum() - pixels[order].sum())
    return Values(found[order], pixels[order], np.ones(len(order), np.int64), over[order], others)


def _class_pixels(label: npt.NDArray[np.uint8], reader: MaskReader) -> npt.NDArray[np.int64]:
    counts = np.bincount(label.ravel(), minlength=IGNORE + 1)
    return np.append(counts[: reader.palette.num_classes], counts[IGNORE]).astype(np.int64)
