"""The first scan of a folder: every pair is read once, and its statistics are cached."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from rich.progress import track

from geoseg_gan.data.georeference import georeference_problem
from geoseg_gan.data.image_files import UnreadableError
from geoseg_gan.data.images import DTYPES
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import DataError, PackedStrings, Pair, PairList, some_pairs
from geoseg_gan.data.palette import IGNORE, UnknownColorError, index_map_text
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import atomic_path, held
from geoseg_gan.utils.reading import Array, read_arrays

T = TypeVar("T")
R = TypeVar("R")

SMALLER = "Set image_size={}, or data.fit=resize."
"""What to do about images that are too small, in training."""

_FORMAT = 6  # of the cache
_CACHE = {
    "keys": Array("u", ("bytes",)),
    "key_ends": Array("i", ("ends",)),
    "sizes": Array("i", ("pairs", 2), 1, 2**31),
    "pixels": Array("i", ("pairs", "classes"), 0, 2**62),
    "unknown": Array("i", ("pairs",), 0, 2**62),
    "bands": Array("i", ("pairs",), 1, 2**31),
    "low": Array("f", ("pairs", "most bands")),
    "high": Array("f", ("pairs", "most bands")),
    "dtype": Array("U", ("pairs",)),
    "filler": Array("f", ("pairs",)),
    "filled": Array("f", ("pairs",), 0, 1),
}
_FILLED = 0.001  # share of the pixels from which one value far from all others is warned of
_APART = 0.5  # how far from them, as a share of their range
_VALUES = 16  # fewer different values are no measured ones
_BLOCK = 512  # pairs whose statistics are separate arrays at a time
_BAR_FROM = 200  # fewer pairs take a moment, which needs no progress bar


@dataclass(frozen=True)
class FolderIndex:
    """Sizes and statistics of the N pairs of one split, in the order of `pairs`."""

    pairs: Sequence[Pair]
    sizes: npt.NDArray[np.int64]  # height and width, shape (N, 2)
    pixels: npt.NDArray[np.int64]  # of every class and, last, of ignore: shape (N, C + 1)
    unknown: npt.NDArray[np.int64]  # pixels of unknown colour, shape (N,)
    low: npt.NDArray[np.float64]  # 1st percentile of labelled pixels in each band, shape (N, K)
    high: npt.NDArray[np.float64]  # 99th percentile of them, shape (N, K)
    dtype: np.dtype[Any]  # that all images share

    @property
    def bands(self) -> int:
        """How many bands (K) every image has."""
        return int(self.low.shape[1])

    def rows(self, rows: Sequence[int]) -> "FolderIndex":
        """The index of some of the pairs, in the order asked for."""
        names = ("sizes", "pixels", "unknown", "low", "high")
        columns = {name: getattr(self, name)[np.asarray(rows, np.int64)] for name in names}
        return replace(self, pairs=some_pairs(self.pairs, rows), **columns)

    def class_shares(self) -> npt.NDArray[np.float64]:
        """Share of every class in the labelled pixels, shape (C,), summing to 1."""
        totals = self.pixels[:, :-1].sum(0)
        shares: npt.NDArray[np.float64] = totals / max(1, totals.sum())
        return shares


def scan(
    pairs: Sequence[Pair], reader: MaskReader, cache_folder: Path | None = None
) -> FolderIndex:
    """Reads every pair once, in parallel, with a progress bar for long lists.

    Statistics are cached by file name, size and modification time, so that a later call reads only
    new or changed pairs.

    Args:
        pairs: What to read.
        reader: How masks become label maps.
        cache_folder: Where the cache is; by default outside of the data, which may be read-only.

    Raises:
        DataError: Naming the first pair that does not decode, holds an unknown colour, or differs
            in size, bands or dtype, and how many more there are.
    """
    path = _cache_path(pairs, reader, cache_folder or default_cache_folder())
    keys = _cache_keys(pairs)
    cached = _load(path)
    if cached is not None and cached[0] == keys:  # the usual case, which needs no look-up
        return _index(pairs, cached[1])
    places = {key: row for row, key in enumerate(cached[0])} if cached else {}
    found = np.array([places.get(key, -1) for key in keys], np.int64)
    hits, missing = np.flatnonzero(found >= 0), np.flatnonzero(found < 0)
    parts, positions, problems = [], [hits], []
    if cached is not None and len(hits):
        parts.append(cached[1].rows(found[hits]))
    done = 0
    unread = some_pairs(pairs, missing.tolist())
    title = f"Reading {plural(len(unread), 'pair')} once"
    for results in in_blocks(unread, lambda pair: _read(pair, reader), title):
        good = [n for n, result in enumerate(results, done) if not isinstance(result, str)]
        problems += [result for result in results if isinstance(result, str)]
        if good:
            parts.append(_Statistics.joined([r for r in results if not isinstance(r, str)]))
            positions.append(missing[good])
        done += len(results)
    known = np.concatenate(positions)
    if parts:
        statistics = _Statistics.joined(parts).rows(known.argsort())
        if len(missing):
            _save(path, keys.rows(np.sort(known)), statistics)
    if problems:
        more = f" ({plural(len(problems) - 1, 'more pair')} with problems)"
        raise DataError(problems[0] + more * (len(problems) > 1))
    return _index(pairs, statistics)


def default_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/geoseg_gan`, or `~/.cache/geoseg_gan`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geoseg_gan"


def check_sizes(
    index: FolderIndex, image_size: int, advice: str = SMALLER, stride: int = 1
) -> None:
    """Refuses, with a DataError, images that a crop of `image_size` pixels does not fit in.

    `advice` says what to do, with {} for the largest multiple of `stride` that fits. Where none
    does, only larger images help, or a training that enlarges them.
    """
    shorter = index.sizes.min(1)
    if shorter.min() < image_size:
        row = int(shorter.argmin())
        count = int((shorter < image_size).sum())
        more = f" (and {plural(count - 1, 'more image')})" * (count > 1)
        height, width = index.sizes[row]
        largest = shorter[row] // stride * stride
        if not largest:
            advice = (
                f"The networks need {stride} px: train with image_size={stride} data.fit=resize, "
                "or with larger images."
            )
        raise DataError(
            f"{index.pairs[row].image} is {width}x{height}, smaller than the crop of "
            f"image_size={image_size}{more}. {advice.format(largest)}"
        )


def check_same_type(train: FolderIndex, other: FolderIndex) -> None:
    """Refuses, with a DataError, images of other bands or dtype than the training images."""
    if (train.bands, train.dtype) != (other.bands, other.dtype):
        raise DataError(
            f"{other.pairs[0].image} has {plural(other.bands, 'band')} of {other.dtype}, but "
            f"{train.pairs[0].image} has {plural(train.bands, 'band')} of {train.dtype}. Convert "
            "all to the same bands and type."
        )


@dataclass(frozen=True)
class _Statistics:
    """Statistics of N pairs of whatever dtypes and bands; `low` and `high` fit the most bands."""

    sizes: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]
    unknown: npt.NDArray[np.int64]
    bands: npt.NDArray[np.int64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    dtype: npt.NDArray[np.str_]
    filler: npt.NDArray[np.float64]  # a value that may mean no data; NaN for none
    filled: npt.NDArray[np.float64]  # the share of the pixels that have it

    @classmethod
    def joined(cls, parts: Sequence["_Statistics"]) -> "_Statistics":
        """The rows of all parts, at least one, one after another."""
        width = max(part.low.shape[1] for part in parts)

        def column(name: str) -> npt.NDArray[Any]:
            arrays = [getattr(part, name) for part in parts]
            if name in ("low", "high"):
                arrays = [np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays]
            return np.concatenate(arrays)

        return cls(**{entry.name: column(entry.name) for entry in fields(cls)})

    def rows(self, rows: npt.NDArray[np.int64]) -> "_Statistics":
        """Some of the rows, in the order asked for."""
        return _Statistics(**{name: column[rows] for name, column in vars(self).items()})


def in_blocks(items: Sequence[T], read: Callable[[T], R], title: str) -> Iterator[list[R]]:
    """What `read` returns for all items in order, block by block: by threads, with a progress bar.

    The bar has a title, and is shown for long lists.
    """
    starts: Any = range(0, len(items), _BLOCK)
    if len(items) >= _BAR_FROM:
        starts = track(starts, title)
    # Threads rather than processes: decoding releases the interpreter lock, and nothing is pickled.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in starts:
            yield list(pool.map(read, items[start : start + _BLOCK]))


def _read(pair: Pair, reader: MaskReader) -> _Statistics | str:
    """Statistics of one pair, or what is wrong with it."""
    try:
        image, label, unknown = reader.read_pair(pair.image, pair.mask)
        problem = size_problem(pair, image.shape[:2], label.shape)
        problem = problem or georeference_problem(pair.image, pair.mask)
    except (UnreadableError, UnknownColorError) as error:
        return str(error)
    if problem:
        return problem
    counts = np.bincount(label.ravel(), minlength=256)
    labelled = image[label != IGNORE]
    if image.dtype == np.uint8 or not len(labelled):
        # 8 bits are scaled by their range, and no scaling is fitted to what has no label.
        low, high = np.zeros(image.shape[2]), np.full(image.shape[2], 255.0)
    else:
        low, high = np.percentile(labelled, (1, 99), axis=0)
    filler, filled = _filler(image)
    return _Statistics(
        sizes=np.array([label.shape]),
        pixels=np.array([[*counts[: reader.palette.num_classes], counts[IGNORE]]]),
        unknown=np.array([unknown]),
        bands=np.array([image.shape[2]]),
        low=low[None],
        high=high[None],
        dtype=np.array([image.dtype.name]),
        filler=np.array([filler]),
        filled=np.array([filled]),
    )


def _filler(image: npt.NDArray[Any]) -> tuple[float, float]:
    """A value that many pixels of a band have, far from all others, and their share; or NaN."""
    if image.dtype == np.uint8:
        return np.nan, 0.0
    for band in range(image.shape[2]):
        values = image[..., band]
        for extreme in (values.min(), values.max()):
            has_it = values == extreme
            share = float(has_it.mean())
            if not _FILLED <= share < 1:
                continue
            others = values[~has_it]
            low, high, found = float(others.min()), float(others.max()), float(extreme)
            is_apart = max(low - found, found - high) > _APART * (high - low)
            if is_apart and len(np.unique(others[: 2**16])) >= _VALUES:
                return found, share
    return np.nan, 0.0


def refuse_binary_masks(pixels: npt.NDArray[np.int64], reader: MaskReader, where: Path) -> None:
    """Refuses, with a DataError, masks of 0 and 255, of which one class would be ignored.

    Args:
        pixels: Pixels of every class and, last, of ignore in each mask: shape (N, C + 1), int64.
        reader: What read them; one with an index map is told what 255 means.
        where: Their folder.
    """
    totals = pixels.sum(0)
    if reader.mask_format != "index" or reader.index_map is not None:
        return
    if totals[0] and totals[-1] and not totals[1:-1].any():
        first, second = reader.palette.names[:2]
        raise DataError(
            f"{where}: masks hold 0 and 255 alone, and 255 is ignore, so that only '{first}' would "
            f"be left. Set {index_map_text({0: first, 255: second})} if 255 is a class, or "
            f"{index_map_text({0: first, 255: 'ignore'})} if it is not."
        )


def size_problem(pair: Pair, image: tuple[int, ...], mask: tuple[int, ...]) -> str | None:
    """What is wrong with a pair whose heights and widths differ; None where they do not."""
    if image == mask:
        return None
    image_size, mask_size = (f"{width}x{height}" for height, width in (image, mask))
    return (
        f"{pair.image} is {image_size} but {pair.mask} is {mask_size} (width x height). Export "
        "both from the same window, or remove the pair."
    )


def _index(pairs: Sequence[Pair], statistics: _Statistics) -> FolderIndex:
    bands, dtype = statistics.bands, statistics.dtype
    others = np.flatnonzero((bands != bands[0]) | (dtype != dtype[0]))
    if len(others):
        row = int(others[0])
        raise DataError(
            f"{pairs[row].image} has {plural(int(bands[row]), 'band')} of {dtype[row]}, but "
            f"{pairs[0].image.name} has {plural(int(bands[0]), 'band')} of {dtype[0]}. Convert all "
            "images to the same bands and type."
        )
    _warn_of_fillers(pairs, statistics)
    counts = (statistics.sizes, statistics.pixels, statistics.unknown)
    low, high = statistics.low[:, : bands[0]], statistics.high[:, : bands[0]]
    return FolderIndex(pairs, *counts, low, high, np.dtype(str(dtype[0])))


def _warn_of_fillers(pairs: Sequence[Pair], statistics: _Statistics) -> None:
    rows = np.flatnonzero(~np.isnan(statistics.filler))
    if not len(rows):
        return
    row = int(rows[statistics.filled[rows].argmax()])
    value, more = statistics.filler[row], ""
    if len(rows) > 1:
        more = f", and so do {plural(len(rows) - 1, 'other image')}"
    warnings.warn(
        f"{pairs[row].image} has the value {value:.9g} in {statistics.filled[row]:.1%} of its "
        f"pixels, far from all others{more}. It sets the scaling; if it means no data, set "
        f"data.nodata={value:.9g}.",
        stacklevel=4,
    )


def _cache_path(pairs: Sequence[Pair], reader: MaskReader, folder: Path) -> Path:
    folder_name = str(pairs[0].image.parent.absolute())
    meaning = {"format": _FORMAT, "folder": folder_name, **reader.to_dict()}
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()
    return folder / f"scan-{digest[:20]}.npz"


def _cache_keys(pairs: Sequence[Pair]) -> PackedStrings:
    """Name, size and modification time of both files of every pair."""
    if not isinstance(pairs, PairList):
        return PackedStrings(f"{_file_key(str(p.image))}|{_file_key(str(p.mask))}" for p in pairs)
    # Joined as strings: making 100,000 paths would take longer than asking for the files' status.
    images, masks = f"{pairs.images}{os.sep}", f"{pairs.masks}{os.sep}"
    names = zip(pairs.image_names, pairs.mask_names, strict=True)
    return PackedStrings(f"{_file_key(images + i)}|{_file_key(masks + m)}" for i, m in names)


def _file_key(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return ""  # a broken link: it has no key, and reading it will report the problem
    return f"{path.rpartition(os.sep)[2]}:{status.st_size}:{status.st_mtime_ns}"


def _save(path: Path, keys: PackedStrings, statistics: _Statistics) -> None:
    text, ends = keys.arrays()
    try:
        with (
            held(path.parent, "XDG_CACHE_HOME", wait=True),
            atomic_path(path) as scratch,
            scratch.open("wb") as target,
        ):
            np.savez(target, allow_pickle=False, keys=text, key_ends=ends, **vars(statistics))
    except (OSError, UserError):
        return  # without room for a cache the next start is slower, and nothing else


def _load(path: Path) -> tuple[PackedStrings, _Statistics] | None:
    """Keys and statistics of the cache; None where there is none, or it is damaged."""
    try:
        columns = read_arrays(path, _CACHE, "")
        keys = PackedStrings.from_arrays(columns.pop("keys"), columns.pop("key_ends"))
    except (OSError, UserError, ValueError):
        return None
    statistics = _Statistics(**columns)
    fits = len(keys) == len(statistics.bands) and set(statistics.dtype.tolist()) <= set(DTYPES)
    is_whole = fits and (statistics.bands <= statistics.low.shape[1]).all()
    return (keys, statistics) if is_whole else None
