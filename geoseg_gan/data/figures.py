"""What a scan has seen of pairs, as arrays, and the file that keeps it."""

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.names import Names
from geoseg_gan.data.pairs import Pair, PairList
from geoseg_gan.files import atomic_path


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


def stamps_of(pairs: Sequence[Pair]) -> Names:
    """A name, size and time stamp for both files of every pair."""
    if not isinstance(pairs, PairList):
        return Names(f"{_stamp(str(p.image))}|{_stamp(str(p.mask))}" for p in pairs)
    # Of 100,000 files, making paths would take longer than asking for their stamps.
    images, masks = f"{pairs.images}{os.sep}", f"{pairs.masks}{os.sep}"
    names = zip(pairs.image_names, pairs.mask_names, strict=True)
    return Names(f"{_stamp(images + image)}|{_stamp(masks + mask)}" for image, mask in names)


def _stamp(path: str) -> str:
    try:
        seen = os.stat(path)  # noqa: PTH116
    except OSError:
        return ""  # a link to nothing: no stamp is known, and reading will say what is wrong
    return f"{path.rpartition(os.sep)[2]}:{seen.st_size}:{seen.st_mtime_ns}"


def save_figures(path: Path, stamps: Names, figures: Figures) -> None:
    """Keeps what was seen, with a stamp for every pair; where there is no room, nothing."""
    text, ends = stamps.arrays()
    columns = {entry.name: getattr(figures, entry.name) for entry in fields(figures)}
    try:
        with atomic_path(path) as scratch, scratch.open("wb") as target:
            np.savez(target, allow_pickle=False, stamps=text, stamp_ends=ends, **columns)
    except OSError:
        return  # a home without room costs the next start its speed, and nothing else


def load_figures(path: Path) -> tuple[Names, Figures] | None:
    """Stamps and figures that were kept; None where there are none, or they are not whole."""
    try:
        with path.open("rb") as source, np.load(source, allow_pickle=False) as stored:
            columns = {entry.name: stored[entry.name] for entry in fields(Figures)}
            stamps = Names.of_arrays(stored["stamps"], stored["stamp_ends"])
            whole = all(len(column) == len(stamps) for column in columns.values())
            return (stamps, Figures(**columns)) if whole else None
    except (OSError, EOFError, KeyError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return None
