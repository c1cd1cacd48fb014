"""Image-mask pairs of a data folder, and their location groups."""

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args, overload

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.image_files import IMAGE_SUFFIXES, MASK_SUFFIXES
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.reading import read_bytes, read_table

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)

STREAM = "stream.json"
"""The file that identifies a stream."""


UNLABELLED = "unlabelled"
"""The folder of a data folder with images that have no masks."""

TILES_CSV = "tiles.csv"
"""The file that names the location group of each pair."""

_TILES_ADVICE = "It names the location group of each pair: correct it, or remove it."
_LABELMAP = "labelmap.txt"  # of CVAT's masks
_SUFFIXES = tuple({*IMAGE_SUFFIXES, *MASK_SUFFIXES})


class DataError(UserError):
    """A data folder that is not as training expects it."""


class PackedStrings(Sequence[str]):
    """Strings in a single piece of memory.

    A list of 100,000 strings is as many objects, each of which every loader process would copy as
    soon as it counts a reference to it. Here they are one object. File names that are not valid
    text are kept as they are.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        """Packs the strings."""
        packed = [os.fsencode(string) for string in strings]
        self._bytes = b"".join(packed)
        self._ends = np.cumsum([0, *map(len, packed)])

    def __len__(self) -> int:
        """How many strings there are."""
        return len(self._ends) - 1

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> "PackedStrings": ...
    def __getitem__(self, position: int | slice) -> "str | PackedStrings":
        """One string, or some of them."""
        if isinstance(position, slice):
            return self.rows(range(len(self))[position])
        place = range(len(self))[position]
        return os.fsdecode(self._bytes[self._ends[place] : self._ends[place + 1]])

    def __iter__(self) -> Iterator[str]:
        """The strings in order."""
        for start, end in pairwise(self._ends.tolist()):
            yield os.fsdecode(self._bytes[start:end])

    def __eq__(self, other: object) -> bool:
        """Whether the other holds the same strings."""
        if not isinstance(other, PackedStrings):
            return NotImplemented
        return self._bytes == other._bytes and np.array_equal(self._ends, other._ends)

    __hash__ = None  # type: ignore[assignment]

    def rows(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> "PackedStrings":
        """Some of the strings, in the order asked for."""
        starts, ends = self._ends[:-1][rows].tolist(), self._ends[1:][rows].tolist()
        chosen = PackedStrings()
        parts = zip(starts, ends, strict=True)
        chosen._bytes = b"".join(self._bytes[start:end] for start, end in parts)
        chosen._ends = np.cumsum([0, *np.diff(self._ends)[rows].tolist()])
        return chosen

    def arrays(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The bytes and where each string ends, as `from_arrays` takes them."""
        return np.frombuffer(self._bytes, np.uint8), self._ends

    @classmethod
    def from_arrays(
        cls, data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]
    ) -> "PackedStrings":
        """The strings that `arrays` gave; a ValueError if it cannot have given these."""
        lengths = np.diff(ends)
        if len(ends) == 0 or (ends[0], ends[-1]) != (0, len(data)) or (lengths < 0).any():
            raise ValueError("the ends of the strings do not fit their bytes")
        names = cls()
        names._bytes, names._ends = data.tobytes(), ends
        return names


@dataclass(frozen=True)
class Pair:
    """One image with its mask."""

    stem: str  # the file name without ending, which image and mask share, in normal form C
    image: Path
    mask: Path
    group: str  # location group; no group may be both in training and in validation


@dataclass(frozen=True, eq=False)
class PairList(Sequence[Pair]):
    """The pairs of one folder; a `Pair` is created only when it is asked for."""

    images: Path  # folder of the images
    masks: Path  # folder of the masks
    stems: PackedStrings
    image_names: PackedStrings
    mask_names: PackedStrings
    groups: PackedStrings

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.stems)

    @overload
    def __getitem__(self, position: int) -> Pair: ...
    @overload
    def __getitem__(self, position: slice) -> "PairList": ...
    def __getitem__(self, position: int | slice) -> "Pair | PairList":
        """One pair, or some of them."""
        if isinstance(position, slice):
            return self.rows(range(len(self))[position])
        image = self.images / self.image_names[position]
        mask = self.masks / self.mask_names[position]
        return Pair(self.stems[position], image, mask, self.groups[position])

    def __iter__(self) -> Iterator[Pair]:
        """The pairs in order."""
        names = zip(self.stems, self.image_names, self.mask_names, self.groups, strict=True)
        for stem, image, mask, group in names:
            yield Pair(stem, self.images / image, self.masks / mask, group)

    def __eq__(self, other: object) -> bool:
        """Whether a sequence holds the same pairs."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def rows(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> "PairList":
        """Some of the pairs, in the order asked for."""
        names = (self.stems, self.image_names, self.mask_names, self.groups)
        return PairList(self.images, self.masks, *(part.rows(rows) for part in names))


def some_pairs(pairs: Sequence[Pair], rows: Sequence[int]) -> Sequence[Pair]:
    """Some of the pairs, in the order asked for."""
    return pairs.rows(rows) if isinstance(pairs, PairList) else [pairs[row] for row in rows]


def stems_of(pairs: Sequence[Pair]) -> Sequence[str]:
    """Every pair's stem."""
    return pairs.stems if isinstance(pairs, PairList) else [pair.stem for pair in pairs]


def groups_of(pairs: Sequence[Pair]) -> Sequence[str]:
    """Every pair's location group."""
    return pairs.groups if isinstance(pairs, PairList) else [pair.group for pair in pairs]


def find_pairs(root: Path, split: Split, group_regex: str | None = None) -> PairList:
    """Lists the pairs of `root/split/{images,masks}`, sorted by stem.

    Groups come from `root/tiles.csv` where it names the stem, else from the first group (or the
    whole match) of `group_regex` in the stem, else each pair is a group of its own.

    Raises:
        DataError: If a folder is missing or empty, a file has no partner, or a stem stands twice.
    """
    if (root / STREAM).is_file():
        raise DataError(
            f"data_root={root} is a stream that scripts/pack.py wrote. Training reads it with "
            "data.format=stream; give other commands the folder that it was packed from."
        )

    def groups(stems: Sequence[str]) -> list[str]:
        known = known_groups(root, stems)
        return [
            known.get(stem) or group_of(stem, group_regex, "data.group_regex") for stem in stems
        ]

    return find_folder_pairs(
        root / split,
        groups,
        f"data_root={root} must hold {split}/images and {split}/masks. Point data_root at such a "
        "folder, make one with scripts/tile.py, or try data=demo.",
    )


def find_folder_pairs(
    folder: Path,
    groups: Callable[[Sequence[str]], list[str]],
    advice: str,
    polygons: Path | None = None,
) -> PairList:
    """Lists the pairs of `folder/{images,masks}`, sorted by stem.

    Args:
        folder: The folder.
        groups: Returns the location groups of stems.
        advice: What the folder must be and what to do otherwise, for messages.
        polygons: What stands for all masks, if there is no folder of masks.

    Raises:
        DataError: If a folder is missing or empty, a file has no partner, or a stem stands twice.
    """
    for part in ("images", "masks") if polygons is None else ("images",):
        if not (folder / part).is_dir():
            raise DataError(f"{folder / part} is missing: {advice}{export_advice(folder)}")
    mask_folder = folder / "masks" if polygons is None else polygons.parent
    images = _by_stem(folder / "images", IMAGE_SUFFIXES)
    if polygons is None:
        masks = _by_stem(mask_folder, MASK_SUFFIXES)
    else:
        masks = dict.fromkeys(images, polygons.name)
    if not images and not masks:
        raise DataError(
            f"{folder / 'images'} holds no images ({', '.join(IMAGE_SUFFIXES)}). "
            f"Put image-mask pairs there: {advice}"
        )
    _check_partners(images, masks, folder, "image", "mask", MASK_SUFFIXES)
    _check_partners(masks, images, folder, "mask", "image", IMAGE_SUFFIXES)
    stems = sorted(images)
    names = ([part[stem] for stem in stems] for part in (images, masks))
    columns = map(PackedStrings, (stems, *names, groups(stems)))
    return PairList(folder / "images", mask_folder, *columns)


def export_advice(folder: Path) -> str:
    """What to do with CVAT's 'Segmentation mask' export; empty for another folder.

    Its labelmap.txt has lines such as `road:128,64,0::`.
    """
    table = next((t for t in (folder / _LABELMAP, folder.parent / _LABELMAP) if t.is_file()), None)
    if table is None or table.stat().st_size > 2**20:
        return ""
    entries = re.findall(
        r"^([^#:\n][^:\n]*):(\d{1,3},\d{1,3},\d{1,3})(?::|$)",
        read_bytes(table, 2**20).decode(errors="replace"),
        re.MULTILINE,
    )
    listed = ",".join(f"{{name: {name!r}, color: [{color}]}}" for name, color in entries)
    return (
        f" {table} is of CVAT's export of masks: name its folder SegmentationClass masks, put the "
        f'pictures into images beside it, and set "data.palette=[{listed}]" "data.ignore=[]".'
    )


def list_images(folder: Path) -> list[Path]:
    """The images of a folder, sorted by stem; a DataError if it has none, or two of one stem."""
    names = _by_stem(folder, IMAGE_SUFFIXES)
    if not names:
        raise DataError(
            f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}). Folders in it are not "
            "searched."
        )
    return [folder / names[stem] for stem in sorted(names)]


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, str]:
    # File names rather than paths: 100,000 paths take seconds and much memory.
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):  # noqa: PTH208
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if suffix.lower() not in suffixes or name.startswith("."):
            continue
        stem = normal(stem)
        if stem in found:
            one, other = str(folder / name), found[stem]
            if normal(name) == normal(other):  # they look alike
                one, other = ascii(one), ascii(other)
            raise DataError(
                f"{one} and {other} share the stem '{stem}', by which images and masks are "
                "paired. Rename or remove one."
            )
        found[stem] = name
    return found


def _check_partners(
    here: dict[str, str],
    there: dict[str, str],
    folder: Path,
    what: str,
    partner: str,
    suffixes: Sequence[str],
) -> None:
    lonely = sorted(here.keys() - there.keys())
    if lonely:
        more = f" (and {plural(len(lonely) - 1, f'more {what}')} without one)" * (len(lonely) > 1)
        raise DataError(
            f"{folder / f'{what}s' / here[lonely[0]]} has no {partner}: expected "
            f"{folder / f'{partner}s' / lonely[0]} with one of {', '.join(suffixes)}{more}. "
            f"Add the {partner} or remove the {what}."
        )


def known_groups(root: Path, stems: Sequence[str]) -> dict[str, str]:
    """The groups that `root/tiles.csv` names; a DataError if it is of other pairs altogether."""
    table = root / TILES_CSV
    if not table.is_file():
        return {}
    known = read_stems(table, "group", _TILES_ADVICE, stems)
    if known and known.keys().isdisjoint(stems):
        # It may name those of one split only.
        folders = (root / split / "images" for split in SPLITS)
        every = [s for folder in folders if folder.is_dir() for s in _by_stem(folder, _SUFFIXES)]
        if read_stems(table, "group", _TILES_ADVICE, every).keys().isdisjoint(every):
            raise DataError(
                f"{table} names '{min(known)}' and others, but none of the pairs, such as "
                f"'{stems[0]}'. {_TILES_ADVICE}"
            )
    return known


def read_stems(table: Path, column: str, advice: str, stems: Collection[str]) -> dict[str, str]:
    """What a column of a CSV file says of each stem.

    Args:
        table: The file, with a column "stem", in which names may have their ending.
        column: Another column of it.
        advice: What to do if it is wrong, for messages.
        stems: The stems that there are.

    Returns:
        The column's value by stem; for names that are no stem, by the name.

    Raises:
        OSError: If it cannot be read.
        UserError: If it is no such file, or says two things of a stem.
    """
    found: dict[str, str] = {}
    known = set(stems)
    for row in read_table(table, ("stem", column), advice):
        name = normal(row["stem"])
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if name not in known and suffix.lower() in _SUFFIXES:
            name = stem
        if found.setdefault(name, row[column]) != row[column]:
            raise DataError(f"{table} says two things of the stem '{name}'. {advice}")
    return found


def normal(name: str) -> str:
    """A name in Unicode's normal form C: systems write an ä as one character or as two."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def group_of(name: str, regex: str | None, knob: str) -> str:
    """The location group of a file name: what the regex matches, else the name itself.

    Args:
        name: A file's stem.
        regex: Its first group, or the whole match, names the location group.
        knob: What the regex is called in the configuration, for messages.

    Raises:
        DataError: If the regex is malformed or does not match.
    """
    if regex is None:
        return name
    match = search(regex, name, knob)
    if match is None:
        raise DataError(f"{knob}={regex!r} does not match '{name}'. Widen it.")
    # A first group may be optional and stay empty.
    return (match.group(1) if match.re.groups else None) or match.group(0)


def search(regex: str, name: str, knob: str) -> re.Match[str] | None:
    """What a regex of the setting `knob` finds first in a name.

    Raises:
        DataError: If the regex is malformed.
    """
    try:
        return re.search(regex, name)
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(f"{knob}={regex[:100]!r} is not a regular expression: {error}.") from None
