"""What images and masks hold, each file read once."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from geoseg_gan.data.audit.folders import Entry
from geoseg_gan.data.audit.similar import thumbnail
from geoseg_gan.data.georeference import Georeference, georeference_problem, read_georeference
from geoseg_gan.data.image_files import UnreadableError
from geoseg_gan.data.images import Stored, read_stored
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.palette import IGNORE, color_codes
from geoseg_gan.data.scan import in_blocks
from geoseg_gan.utils.errors import UserError, plural

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

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

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Every value's share of all pixels."""
        shares: npt.NDArray[np.float64] = self.pixels / max(1, self.total)
        return shares


@dataclass(frozen=True)
class ImageFacts:
    """What an image holds; statistics are those of its pixels with data."""

    entry: Entry
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

    entry: Entry
    image: ImageFacts | None  # that it belongs to; None where there is none, or it does not decode
    elsewhere: str | None  # how the georeferences of both contradict
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

    def read_as(self, in_color: bool, even: bool = False) -> Values:
        """Its values, or those apart from edges, as colours or numbers; both can be grey levels."""
        values = self.even if even else self.values
        if self.is_color == in_color:
            return values
        if self.is_color:
            return values.renamed(values.values & 255)
        grays = (values.values * self.step & 255) * 0x010101
        listed = zip(values.values.tolist(), grays.tolist(), strict=True)
        return values.renamed(np.array([self.table.get(v, gray) for v, gray in listed], np.int64))

    def shows_colors(self) -> bool:
        """Whether it has colours, and not only grey levels."""
        codes = self.read_as(in_color=True).values
        return bool(((codes & 255) * 0x010101 != codes).any())

    def counted_by(self, reader: MaskReader) -> Ints:
        """Pixels of every class and, last, of ignore as another reader reads it."""
        values = self.read_as(reader.mask_format == "rgb")
        labels, seen = reader.labels_of(values.values), values.pixels - values.unseen
        counts = np.bincount(labels, seen, IGNORE + 1).astype(np.int64)
        counts[IGNORE] += values.unseen.sum()
        return _of_classes(counts, reader)


class Facts(NamedTuple):
    """What all files hold."""

    images: list[ImageFacts]  # those that decode
    masks: list[MaskFacts]
    unreadable: dict[str, list[str]]  # why other ones do not, by "image" and "mask"


def measure(entries: Sequence[Entry], reader: MaskReader) -> Facts:
    """Reads every file once, in parallel, with a progress bar for long lists.

    What is kept of a pair are some kilobytes.

    Args:
        entries: What to read.
        reader: How masks become label maps; what it does not know counts as ignored.
    """
    if reader.unknown == "error":
        reader = replace(reader, unknown="ignore")
    title = f"Reading {plural(len(entries), 'pair')}"
    blocks = in_blocks(entries, lambda entry: _measure(entry, reader), title)
    found = [two for block in blocks for two in block]
    images, masks = ([two[part] for two in found] for part in (0, 1))
    return Facts(
        images=[image for image in images if isinstance(image, ImageFacts)],
        masks=[mask for mask in masks if isinstance(mask, MaskFacts)],
        unreadable={
            what: [text for text in part if isinstance(text, str)]
            for what, part in (("image", images), ("mask", masks))
        },
    )


def _measure(
    entry: Entry, reader: MaskReader
) -> tuple[ImageFacts | str | None, MaskFacts | str | None]:
    """What image and mask hold; a text instead says why one does not decode."""
    image: ImageFacts | str | None = None
    mask: MaskFacts | str | None = None
    empty = missing = None
    try:
        if entry.image is not None:
            image, empty, missing = _image_facts(entry, entry.image, reader.nodata)
    except UnreadableError as error:
        image = str(error)
    try:
        if entry.mask is not None:
            its_image = image if isinstance(image, ImageFacts) else None
            mask = _mask_facts(entry, entry.mask, its_image, reader, empty, missing)
    except UnreadableError as error:
        mask = str(error)
    return image, mask


def _image_facts(
    entry: Entry, path: Path, nodata: float | None
) -> tuple[ImageFacts, Flags, Flags | None]:
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
        entry=entry,
        size=(pixels.shape[0], pixels.shape[1]),
        bands=pixels.shape[2],
        dtype=pixels.dtype.name,
        missing=1 - float(valid.mean()),
        blank=float((black & valid).mean()),
        means=means,
        deviations=deviations,
        clipped=float(clipped.sum() / max(1, valid.sum())),
        nonfinite=not is_whole and not np.isfinite(pixels).all(),
        nodata=_nodata(stored),
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
    entry: Entry,
    path: Path,
    image: ImageFacts | None,
    reader: MaskReader,
    empty: Flags | None,
    missing: Flags | None,
) -> MaskFacts:
    """What a mask holds, by where its image is empty and where it has no data."""
    stored = read_stored(path)
    values, kind, nodata = stored.values, _kind(stored), _nodata(stored)
    is_color = values.shape[2] >= 3 and values.dtype == np.uint8
    if is_color:
        codes: npt.NDArray[Any] = color_codes(np.ascontiguousarray(values[..., :3]))
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
        table = dict(enumerate(color_codes(stored.table[None])[0].tolist()))
        table = {value: table[value] for value in counted.values.tolist()}
    label, unknown = np.full(size, IGNORE, np.uint8), 0
    try:
        label, unknown = reader.label(stored)
        if missing is not None:  # as the reader of pairs does
            label[missing] = IGNORE
    except UserError as error:
        refusal = str(error)
    return MaskFacts(
        entry=entry,
        image=image,
        elsewhere=georeference_problem(entry.image, path) if image and entry.image else None,
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


def _nodata(stored: Stored) -> float | None:
    """The first nodata value that a file names for a band."""
    return next((value for value in stored.nodata if value is not None), None)


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


def _counted(
    codes: npt.NDArray[Any],
    is_color: bool,
    empty: Flags | None = None,
    unseen: Flags | None = None,
) -> Values:
    """How often the values of one mask occur, in all, where it is empty and where it is unseen.

    Values beyond the most frequent ones are kept in coarse steps.
    """
    flat = codes.ravel()
    nowhere = np.zeros(flat.shape, bool)
    marks = [nowhere if mark is None else mark.ravel() for mark in (empty, unseen)]
    # Masks are even: sorting runs of equal pixels takes a small part of the time of sorting pixels.
    changes = np.logical_or.reduce([part[1:] != part[:-1] for part in (flat, *marks)])
    starts = np.flatnonzero(np.append(True, changes)[: flat.size])
    lengths = np.diff(np.append(starts, flat.size))
    columns = (lengths, np.ones(len(starts)), *(mark[starts] * lengths for mark in marks))
    found = _summed(flat[starts], *columns)
    rest = found.values[_MOST_VALUES:]
    rest = rest & 0xF0F0F0 | 0x080808 if is_color else rest & ~255 | 128
    return found.renamed(np.concatenate([found.values[:_MOST_VALUES], rest]))


def _summed(values: npt.NDArray[Any], *columns: npt.NDArray[Any]) -> Values:
    """The rows of equal values as one, the most frequent first."""
    found, places = np.unique(values.astype(np.int64), return_inverse=True)
    sums = [np.bincount(places, column, len(found)).astype(np.int64) for column in columns]
    order = np.lexsort((found, -sums[0]))
    return Values(found[order], *(column[order] for column in sums))


def _of_classes(counts: Ints, reader: MaskReader) -> Ints:
    """Pixels of every class and, last, of ignore, of the pixels of all 256 labels."""
    return np.append(counts[: reader.palette.num_classes], counts[IGNORE]).astype(np.int64)
