"""Finding the image-mask pairs of a folder."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from geoseg_gan.data.images import IMAGE_SUFFIXES, MASK_SUFFIXES
from geoseg_gan.errors import UserError, plural

Split = Literal["train", "val"]


class DataError(UserError):
    """A data folder that is not as training expects it."""


@dataclass(frozen=True)
class Pair:
    """One image with its mask.

    Attributes:
        stem: The file name without ending, which image and mask share.
        image: Path of the image.
        mask: Path of the mask.
        group: What ground it shows: pairs of one group must not stand in train and validation.
    """

    stem: str
    image: Path
    mask: Path
    group: str


def find_pairs(root: Path, split: Split, group_regex: str | None = None) -> list[Pair]:
    """Lists the pairs of `root/split/{images,masks}`, sorted by stem.

    Groups come from `root/tiles.csv` where it names the stem, else from the first group (or the
    whole match) of `group_regex` in the stem, else each pair is its own group.

    Raises:
        DataError: If a folder is missing or empty, a file has no partner, or a stem stands twice.
    """
    known = _known_groups(root)
    return find_folder_pairs(
        root / split,
        lambda stem: known.get(stem) or group_of(stem, group_regex, "data.group_regex"),
        f"data_root={root} must hold {split}/images and {split}/masks. Point data_root at such a "
        "folder, make one with scripts/tile.py, or try data=demo.",
    )


def find_folder_pairs(folder: Path, group: Callable[[str], str], advice: str) -> list[Pair]:
    """Lists the pairs of `folder/{images,masks}`, sorted by stem.

    Args:
        folder: Holds images/ and masks/.
        group: Tells the group of a stem.
        advice: What the folder must be and what to do if it is not, for messages.

    Raises:
        DataError: If a folder is missing or empty, a file has no partner, or a stem stands twice.
    """
    for part in ("images", "masks"):
        if not (folder / part).is_dir():
            raise DataError(f"{folder / part} is missing: {advice}")
    images = _by_stem(folder / "images", IMAGE_SUFFIXES)
    masks = _by_stem(folder / "masks", MASK_SUFFIXES)
    if not images and not masks:
        raise DataError(
            f"{folder / 'images'} holds no images ({', '.join(IMAGE_SUFFIXES)}). "
            f"Put image-mask pairs there: {advice}"
        )
    _check_partners(images, masks, folder, "image", "mask", MASK_SUFFIXES)
    _check_partners(masks, images, folder, "mask", "image", IMAGE_SUFFIXES)
    return [Pair(stem, images[stem], masks[stem], group(stem)) for stem in sorted(images)]


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(
                f"{path} and {found[path.stem].name} share the stem '{path.stem}', by which images "
                "and masks are paired. Rename or remove one."
            )
        found[path.stem] = path
    return found


def _check_partners(
    here: dict[str, Path],
    there: dict[str, Path],
    folder: Path,
    what: str,
    partner: str,
    suffixes: Sequence[str],
) -> None:
    lonely = sorted(here.keys() - there.keys())
    if lonely:
        more = f" (and {plural(len(lonely) - 1, f'more {what}')} without one)" * (len(lonely) > 1)
        raise DataError(
            f"{here[lonely[0]]} has no {partner}: expected "
            f"{folder / f'{partner}s' / lonely[0]} with one of {', '.join(suffixes)}{more}. "
            f"Add the {partner} or remove the {what}."
        )


def _known_groups(root: Path) -> dict[str, str]:
    table = root / "tiles.csv"
    if not table.is_file():
        return {}
    with table.open(newline="") as lines:
        rows = csv.DictReader(lines)
        if not {"stem", "group"} <= set(rows.fieldnames or ()):
            raise DataError(
                f"{table} lacks the columns 'stem' and 'group', which say what ground each pair "
                "shows. Add them, or remove the file."
            )
        return {row["stem"]: row["group"] for row in rows}


def group_of(name: str, regex: str | None, knob: str) -> str:
    """The group of a file name: the regex's first group or whole match, else the name itself.

    Args:
        name: A file's stem.
        regex: A regular expression, searched for in `name`.
        knob: What the regex is called in the configuration, for messages.

    Raises:
        DataError: If the regex is malformed or does not match.
    """
    if regex is None:
        return name
    try:
        match = re.search(regex, name)
    except re.error as error:
        raise DataError(f"{knob}={regex!r} is not a regular expression: {error}.") from None
    if match is None:
        raise DataError(f"{knob}={regex!r} does not match '{name}'. Widen it.")
    # A first group may be optional and stay empty.
    return (match.group(1) if match.re.groups else None) or match.group(0)
