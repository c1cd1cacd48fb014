"""The first look at a folder: every pair is read once, and what was seen is remembered."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track

from geoseg_gan.data.images import MaskReader, UnreadableError, read_image
from geoseg_gan.data.pairs import DataError, Pair
from geoseg_gan.data.palette import IGNORE, UnknownColorError
from geoseg_gan.errors import plural
from geoseg_gan.files import atomic_path

_FORMAT = 1
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

    pairs: list[Pair]
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
            pairs=[self.pairs[row] for row in some],
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


def scan(pairs: list[Pair], reader: MaskReader, cache_folder: Path | None = None) -> FolderIndex:
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
    stamps = _stamps(pairs)
    known = _load(store)
    rows: list[_Row | None] = [known.get(stamp) for stamp in stamps]
    missing = [i for i, row in enumerate(rows) if row is None]
    problems: list[str] = []
    results = _read_all([pairs[i] for i in missing], reader)
    for position, result in zip(missing, results, strict=True):
        if isinstance(result, str):
            problems.append(result)
        else:
            rows[position] = result
    good = [(stamp, row) for stamp, row in zip(stamps, rows, strict=True) if row is not None]
    if missing and good:
        _save(store, good)
    if problems:
        more = f" ({plural(len(problems) - 1, 'more pair')} with problems)"
        raise DataError(problems[0] + more * (len(problems) > 1))
    return _index(pairs, [row for _, row in good])


def default_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/geoseg_gan`, or `~/.cache/geoseg_gan`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geoseg_gan"


@dataclass(frozen=True)
class _Row:
    size: tuple[int, int]
    pixels: list[int]
    unknown: int
    low: list[float]
    high: list[float]
    dtype: str


def _read_all(pairs: list[Pair], reader: MaskReader) -> Iterator[_Row | str]:
    # Threads rather than processes: decoding releases the interpreter lock, and nothing is pickled.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        if len(pairs) < _BAR_FROM:
            yield from pool.map(lambda pair: _read(pair, reader), pairs)
            return
        waiting = iter(pairs)
        with_bar = track(range(0, len(pairs), 512), f"Reading {plural(len(pairs), 'pair')} once")
        for _ in with_bar:
            yield from pool.map(lambda pair: _read(pair, reader), list(islice(waiting, 512)))


def _read(pair: Pair, reader: MaskReader) -> _Row | str:
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
    return _Row(
        (image.shape[0], image.shape[1]),
        [*counts[: reader.palette.num_classes].tolist(), int(counts[IGNORE])],
        unknown,
        low.tolist(),
        high.tolist(),
        image.dtype.name,
    )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _index(pairs: list[Pair], rows: list[_Row]) -> FolderIndex:
    first = rows[0]
    for pair, row in zip(pairs, rows, strict=True):
        if (len(row.low), row.dtype) != (len(first.low), first.dtype):
            raise DataError(
                f"{pair.image} has {plural(len(row.low), 'band')} of {row.dtype}, but "
                f"{pairs[0].image.name} has {plural(len(first.low), 'band')} of {first.dtype}. "
                "Convert all images to the same bands and type."
            )
    return FolderIndex(
        pairs=pairs,
        sizes=np.array([row.size for row in rows], np.int64),
        pixels=np.array([row.pixels for row in rows], np.int64),
        unknown=np.array([row.unknown for row in rows], np.int64),
        low=np.array([row.low for row in rows], np.float64),
        high=np.array([row.high for row in rows], np.float64),
        dtype=np.dtype(first.dtype),
    )


def _stamps(pairs: list[Pair]) -> list[str]:
    """A name, size and time stamp for both files of every pair."""
    return [f"{_stamp(pair.image)}|{_stamp(pair.mask)}" for pair in pairs]


def _stamp(path: Path) -> str:
    try:
        seen = path.stat()
    except OSError:
        return ""  # a link to nothing: no stamp is known, and reading will say what is wrong
    return f"{path.name}:{seen.st_size}:{seen.st_mtime_ns}"


def _cache_path(pairs: list[Pair], reader: MaskReader, folder: Path) -> Path:
    meaning = {
        "format": _FORMAT,
        "folder": str(pairs[0].image.parent.absolute()),
        "palette": reader.palette.to_dict(),
        "mask_format": reader.mask_format,
        "unknown": reader.unknown,
    }
    digest = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()
    return folder / f"scan-{digest[:20]}.npz"


def _save(path: Path, rows: list[tuple[str, _Row]]) -> None:
    columns = {
        "stamp": "\n".join(stamp for stamp, _ in rows),
        "dtype": "\n".join(row.dtype for _, row in rows),
        "bands": [len(row.low) for _, row in rows],
        "size": [row.size for _, row in rows],
        "pixels": [row.pixels for _, row in rows],
        "unknown": [row.unknown for _, row in rows],
        "low": np.concatenate([row.low for _, row in rows]),
        "high": np.concatenate([row.high for _, row in rows]),
    }
    try:
        with atomic_path(path) as scratch, scratch.open("wb") as target:
            np.savez(target, allow_pickle=False, **{k: np.asarray(v) for k, v in columns.items()})
    except OSError:
        return  # a home without room costs the next start its speed, and nothing else


def _load(path: Path) -> dict[str, _Row]:
    try:
        with path.open("rb") as source, np.load(source, allow_pickle=False) as stored:
            return _rows({name: stored[name] for name in stored.files})
    except (OSError, EOFError, KeyError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return {}  # none yet, or not whole: everything is read again


def _rows(columns: dict[str, npt.NDArray[Any]]) -> dict[str, _Row]:
    ends = np.cumsum(columns["bands"])
    rows = zip(
        str(columns["stamp"]).split("\n"),
        columns["size"].tolist(),
        columns["pixels"].tolist(),
        columns["unknown"].tolist(),
        np.split(columns["low"], ends[:-1]),
        np.split(columns["high"], ends[:-1]),
        str(columns["dtype"]).split("\n"),
        strict=True,
    )
    return {
        stamp: _Row(tuple(size), pixels, unknown, low.tolist(), high.tolist(), dtype)
        for stamp, size, pixels, unknown, low, high, dtype in rows
    }


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
