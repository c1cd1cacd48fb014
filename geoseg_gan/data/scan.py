"""The first look at a folder: every pair is read once, and what was seen is remembered."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track

from geoseg_gan.data.images import MaskReader, UnreadableError, read_image
from geoseg_gan.data.pairs import DataError, PackedStrings, Pair, PairList, some_pairs
from geoseg_gan.data.palette import IGNORE, UnknownColorError
from geoseg_gan.utils.errors import plural
from geoseg_gan.utils.files import atomic_path


@dataclass(frozen=True)
class SeenPair:
    """What is seen of one pair.

    Attributes:
        size: Height and width.
        pixels: Pixels of every class and, last, of ignore.
        unknown: Pixels of unknown colour.
        low: 1st percentile of every band.
        high: 99th percentile of every band.
        dtype: NumPy name of the image's dtype.
    """

    size: tuple[int, int]
    pixels: list[int]
    unknown: int
    low: list[float]
    high: list[float]
    dtype: str


@dataclass(frozen=True)
class Figures:
    """What is seen of N pairs, with whatever bands and dtypes they have.

    Attributes:
        sizes: Height and width, shape (N, 2).
        pixels: Pixels of every class and, last, of ignore: shape (N, C + 1).
        unknown: Pixels of unknown colour, shape (N,).
        bands: Bands of every image, shape (N,).
        low: 1st percentile of every band, as wide as the most bands: shape (N, K).
        high: 99th percentile of every band, likewise.
        dtype: NumPy names of the images' dtypes, shape (N,).
    """

    sizes: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]
    unknown: npt.NDArray[np.int64]
    bands: npt.NDArray[np.int64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    dtype: npt.NDArray[np.str_]

    @classmethod
    def of(cls, rows: Sequence[SeenPair]) -> "Figures":
        """What is seen of some pairs, at least one."""
        bands = np.array([len(row.low) for row in rows], np.int64)
        width = int(bands.max())
        return cls(
            sizes=np.array([row.size for row in rows], np.int64),
            pixels=np.array([row.pixels for row in rows], np.int64),
            unknown=np.array([row.unknown for row in rows], np.int64),
            bands=bands,
            low=np.array([row.low + [0.0] * (width - len(row.low)) for row in rows]),
            high=np.array([row.high + [0.0] * (width - len(row.high)) for row in rows]),
            dtype=np.array([row.dtype for row in rows]),
        )

    @classmethod
    def joined(cls, parts: Sequence["Figures"]) -> "Figures":
        """What is seen of the pairs of all parts, at least one, one after another."""
        width = max(part.low.shape[1] for part in parts)

        def column(name: str) -> npt.NDArray[Any]:
            arrays = [getattr(part, name) for part in parts]
            if name in ("low", "high"):
                arrays = [np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays]
            return np.concatenate(arrays)

        return cls(**{entry.name: column(entry.name) for entry in fields(cls)})

    def rows(self, rows: npt.NDArray[np.int64]) -> "Figures":
        """What is seen of some of the pairs, in the order asked for."""
        return Figures(**{entry.name: getattr(self, entry.name)[rows] for entry in fields(self)})


def stamps_of(pairs: Sequence[Pair]) -> PackedStrings:
    """A name, size and time stamp for both files of every pair."""
    if not isinstance(pairs, PairList):
        return PackedStrings(f"{_stamp(str(p.image))}|{_stamp(str(p.mask))}" for p in pairs)
    # Of 100,000 files, making paths would take longer than asking for their stamps.
    images, masks = f"{pairs.images}{os.sep}", f"{pairs.masks}{os.sep}"
    names = zip(pairs.image_names, pairs.mask_names, strict=True)
    return PackedStrings(
        f"{_stamp(images + image)}|{_stamp(masks + mask)}" for image, mask in names
    )


def _stamp(path: str) -> str:
    try:
        seen = os.stat(path)  # noqa: PTH116
    except OSError:
        return ""  # a link to nothing: no stamp is known, and reading will say what is wrong
    return f"{path.rpartition(os.sep)[2]}:{seen.st_size}:{seen.st_mtime_ns}"


def save_figures(path: Path, stamps: PackedStrings, figures: Figures) -> None:
    """Keeps what was seen, with a stamp for every pair; where there is no room, nothing."""
    text, ends = stamps.arrays()
    columns = {entry.name: getattr(figures, entry.name) for entry in fields(figures)}
    try:
        with atomic_path(path) as scratch, scratch.open("wb") as target:
            np.savez(target, allow_pickle=False, stamps=text, stamp_ends=ends, **columns)
    except OSError:
        return  # a home without room costs the next start its speed, and nothing else


def load_figures(path: Path) -> tuple[PackedStrings, Figures] | None:
    """Stamps and figures that were kept; None where there are none, or they are not whole."""
    try:
        with path.open("rb") as source, np.load(source, allow_pickle=False) as stored:
            columns = {entry.name: stored[entry.name] for entry in fields(Figures)}
            stamps = PackedStrings.from_arrays(stored["stamps"], stored["stamp_ends"])
            whole = all(len(column) == len(stamps) for column in columns.values())
            return (stamps, Figures(**columns)) if whole else None
    except (OSError, EOFError, KeyError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return None


_FORMAT = 2
_BLOCK = 512  # pairs whose figures are objects at a time
_BAR_FROM = 200  # fewer pairs take a moment, which needs no bar


@dataclass(frozen=True)
class FolderIndex:
    """What is known of the N pairs of one split, in the order of `pairs`.

    Attributes:
        pairs: The pairs.
        sizes: Height and width, shape (N, 2), int64.
        pixels: Pixels of every class and, last, of ignore: shape (N, C + 1), int64.
        unknown: Pixels of unknown colour, shape (N,), int64.
        low: 1st percentile of every band, shape (N, K), float64.
        high: 99th percentile of every band, shape (N, K), float64.
        dtype: The dtype that all images share.
    """

    pairs: Sequence[Pair]
    sizes: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]
    unknown: npt.NDArray[np.int64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    dtype: np.dtype[Any]

    @property
    def bands(self) -> int:
        """How many bands (K) every image has."""
        return int(self.low.shape[1])

    def rows(self, rows: Sequence[int]) -> "FolderIndex":
        """What is known of some of the pairs, in the order asked for."""
        some = np.asarray(rows, np.int64)
        return FolderIndex(
            pairs=some_pairs(self.pairs, rows),
            sizes=self.sizes[some],
            pixels=self.pixels[some],
            unknown=self.unknown[some],
            low=self.low[some],
            high=self.high[some],
            dtype=self.dtype,
        )

    def class_shares(self) -> npt.NDArray[np.float64]:
        """Share of every class in the labelled pixels, shape (C,), summing to 1."""
        totals = self.pixels[:, :-1].sum(0)
        shares: npt.NDArray[np.float64] = totals / max(1, totals.sum())
        return shares


def scan(
    pairs: Sequence[Pair], reader: MaskReader, cache_folder: Path | None = None
) -> FolderIndex:
    """Reads every pair once, in parallel, with a progress bar for long lists.

    What was seen is kept by file name, size and time stamp, so that a later call reads only new or
    changed pairs.

    Args:
        pairs: What to read.
        reader: How masks become label maps.
        cache_folder: Where to remember it; by default `geoseg_gan` in the user's cache folder, so
            that data folders may be read-only.

    Raises:
        DataError: Naming the first pair that does not decode, holds an unknown colour, or differs
            in size, bands or dtype, and how many more there are.
    """
    store = _cache_path(pairs, reader, cache_folder or default_cache_folder())
    stamps = stamps_of(pairs)
    known = load_figures(store)
    if known is not None and known[0] == stamps:  # as it mostly is: nothing need be looked up
        return _index(pairs, known[1])
    places = {stamp: row for row, stamp in enumerate(known[0])} if known else {}
    found = np.array([places.get(stamp, -1) for stamp in stamps], np.int64)
    hits, missing = np.flatnonzero(found >= 0), np.flatnonzero(found < 0)
    parts, positions, problems = [], [hits], []
    if known is not None and len(hits):
        parts.append(known[1].rows(found[hits]))
    done = 0
    for results in _read_all(some_pairs(pairs, missing.tolist()), reader):
        good = [n for n, result in enumerate(results, done) if not isinstance(result, str)]
        problems += [result for result in results if isinstance(result, str)]
        if good:
            parts.append(Figures.of([row for row in results if not isinstance(row, str)]))
            positions.append(missing[good])
        done += len(results)
    seen = np.concatenate(positions)
    if parts:
        figures = Figures.joined(parts).rows(seen.argsort())
        if len(missing):
            save_figures(store, stamps.rows(np.sort(seen)), figures)
    if problems:
        more = f" ({plural(len(problems) - 1, 'more pair')} with problems)"
        raise DataError(problems[0] + more * (len(problems) > 1))
    return _index(pairs, figures)


def default_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/geoseg_gan`, or `~/.cache/geoseg_gan`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geoseg_gan"


def _read_all(pairs: Sequence[Pair], reader: MaskReader) -> Iterator[list[SeenPair | str]]:
    """Figures or problems of all pairs in order, some pairs at a time."""
    starts: Any = range(0, len(pairs), _BLOCK)
    if len(pairs) >= _BAR_FROM:
        starts = track(starts, f"Reading {plural(len(pairs), 'pair')} once")
    # Threads rather than processes: decoding releases the interpreter lock, and nothing is pickled.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in starts:
            some = pairs[start : start + _BLOCK]
            yield list(pool.map(lambda pair: _read(pair, reader), some))


def _read(pair: Pair, reader: MaskReader) -> SeenPair | str:
    try:
        image = read_image(pair.image)
        label, unknown = reader.read(pair.mask)
    except (UnreadableError, UnknownColorError) as error:
        return str(error)
    if image.shape[:2] != label.shape:
        return (
            f"{pair.image} is {_size(image.shape)} but {pair.mask} is {_size(label.shape)} "
            "(width x height). Export both from the same window, or remove the pair."
        )
    if image.dtype == np.float32 and not np.isfinite(image).all():
        return (
            f"{pair.image} holds {plural(int((~np.isfinite(image)).sum()), 'value')} that are NaN "
            "or infinite. Fill them with a number, and mark their pixels as ignore in the mask."
        )
    counts = np.bincount(label.ravel(), minlength=256)
    if image.dtype == np.uint8:  # scaled by its type's range, so nothing need be measured
        low, high = np.zeros(image.shape[2]), np.full(image.shape[2], 255.0)
    else:
        low, high = np.percentile(image.reshape(-1, image.shape[2]), (1, 99), axis=0)
    return SeenPair(
        (image.shape[0], image.shape[1]),
        [*counts[: reader.palette.num_classes].tolist(), int(counts[IGNORE])],
        unknown,
        low.tolist(),
        high.tolist(),
        image.dtype.name,
    )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _index(pairs: Sequence[Pair], seen: Figures) -> FolderIndex:
    others = np.flatnonzero((seen.bands != seen.bands[0]) | (seen.dtype != seen.dtype[0]))
    if len(others):
        row = int(others[0])
        raise DataError(
            f"{pairs[row].image} has {plural(int(seen.bands[row]), 'band')} of {seen.dtype[row]}, "
            f"but {pairs[0].image.name} has {plural(int(seen.bands[0]), 'band')} of "
            f"{seen.dtype[0]}. Convert all images to the same bands and type."
        )
    return FolderIndex(
        pairs=pairs,
        sizes=seen.sizes,
        pixels=seen.pixels,
        unknown=seen.unknown,
        low=seen.low[:, : seen.bands[0]],
        high=seen.high[:, : seen.bands[0]],
        dtype=np.dtype(str(seen.dtype[0])),
    )


def _cache_path(pairs: Sequence[Pair], reader: MaskReader, folder: Path) -> Path:
    meaning = {
        "format": _FORMAT,
        "folder": str(pairs[0].image.parent.absolute()),
        "palette": reader.palette.to_dict(),
        "mask_format": reader.mask_format,
        "unknown": reader.unknown,
    }
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()
    return folder / f"scan-{digest[:20]}.npz"


def check_sizes(index: FolderIndex, image_size: int) -> None:
    """Refuses images that a crop of `image_size` pixels does not fit in.

    Raises:
        DataError: Naming the smallest image and what to do.
    """
    shorter = index.sizes.min(1)
    if shorter.min() < image_size:
        row = int(shorter.argmin())
        count = int((shorter < image_size).sum())
        more = f" (and {plural(count - 1, 'more image')})" * (count > 1)
        height, width = index.sizes[row]
        raise DataError(
            f"{index.pairs[row].image} is {width}x{height}, smaller than the crop of "
            f"image_size={image_size}{more}. Set image_size={shorter.min()} or less, or "
            "data.fit=resize."
        )


def check_same_type(train: FolderIndex, other: FolderIndex) -> None:
    """Refuses images of other bands or another dtype than the training images.

    Raises:
        DataError: Naming an image of each.
    """
    if (train.bands, train.dtype) != (other.bands, other.dtype):
        raise DataError(
            f"{other.pairs[0].image} has {plural(other.bands, 'band')} of {other.dtype}, but "
            f"{train.pairs[0].image} has {plural(train.bands, 'band')} of {train.dtype}. Convert "
            "all to the same bands and type."
        )
