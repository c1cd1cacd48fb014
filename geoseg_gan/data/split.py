"""Which training pairs are fitted and which are held out, and checks that splits are disjoint."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from rich.progress import track

from geoseg_gan.data.images import picture_size, read_image
from geoseg_gan.data.pairs import (
    DataError,
    Pair,
    find_pairs,
    groups_of,
    list_images,
    read_stems,
    stems_of,
)
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import write_csv

FIT, INNER = "fit", "inner"
"""Parts of a split file: pairs that are trained on, and pairs by which choices are made."""

_BAR_FROM = 200  # fewer images take a moment, which needs no progress bar


def split_rows(
    pairs: Sequence[Pair], split_file: str | None, share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Divides training pairs into those that are fitted and those that are held out.

    Args:
        pairs: All training pairs.
        split_file: A file that `write_split` wrote; pairs that it does not name are dropped.
        share: Share of the pairs to hold out where there is no file, in whole location groups.
        seed: Fixes the choice.

    Returns:
        Positions of the fitted and of the held-out pairs, ascending.

    Raises:
        UserError: If the file does not fit the pairs, or all pairs are of one group.
    """
    if split_file is not None:
        return _read_split(Path(split_file), pairs)
    held_out = hold_out(list(groups_of(pairs)), share, seed)
    return sorted(set(range(len(pairs))) - set(held_out)), held_out


def hold_out(groups: Sequence[str], share: float, seed: int) -> list[int]:
    """Chooses whole location groups to hold out of training.

    Groups are taken in random order until they hold the share of the pairs. A group with which
    more than half of the pairs would be held out is skipped.

    Above a share of 0, at least one group is held out.

    Returns:
        The pairs' positions, ascending.

    Raises:
        UserError: If all pairs are of one group.
    """
    if not share:
        return []
    names, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise UserError(
            f"inner_share={share}: all training pairs are of one location group "
            f"('{names[0]}'), so that none can be held out. Set inner_share=0 select=last, or tell "
            "groups apart with data.group_regex."
        )
    taken: list[int] = []
    count = 0
    for group in np.random.default_rng(seed).permutation(len(names)).tolist():
        if count < share * len(groups) and count + sizes[group] <= len(groups) / 2:
            taken.append(group)
            count += int(sizes[group])
    return np.flatnonzero(np.isin(group_of, taken)).tolist()


def split_pairs(root: Path, trained: Mapping[str, Any]) -> tuple[list[Pair], list[Pair]]:
    """The training pairs that a run fitted, and those that it held out.

    Pairs that a generator was not trained on must not serve generation either, masks included.

    Args:
        root: The data folder.
        trained: The run's configuration, as its checkpoints keep it.

    Raises:
        UserError: If the folder is not as the configuration says.
    """
    data = trained["data"]
    pairs = find_pairs(root, "train", data["group_regex"])
    # Old checkpoints have neither key: nothing was held out.
    parts = split_rows(
        pairs, data.get("split_file"), trained.get("inner_share", 0.0), trained["seed"]
    )
    fitted, held_out = ([pairs[row] for row in rows] for rows in parts)
    return fitted, held_out


def write_split(path: Path, fitted: Sequence[Pair], held_out: Sequence[Pair]) -> None:
    """Writes a split as a CSV of stem and part, for `data.split_file`."""
    rows = [(pair.stem, FIT) for pair in fitted] + [(pair.stem, INNER) for pair in held_out]
    write_csv(path, ("stem", "part"), sorted(rows))


def _read_split(path: Path, pairs: Sequence[Pair]) -> tuple[list[int], list[int]]:
    if not path.is_file():
        raise UserError(
            f"data.split_file={path} does not exist. Give a CSV with the columns stem and part "
            f"({FIT} or {INNER}), or null for all training pairs."
        )
    advice = "Correct it, or set data.split_file=null."
    parts = read_stems(path, "part", advice, stems_of(pairs))
    wrong = sorted(stem for stem, part in parts.items() if part not in (FIT, INNER))
    if wrong:
        raise DataError(
            f"{path}: '{wrong[0]}' has the part '{parts[wrong[0]]}'; use {FIT} or {INNER}."
        )
    missing = sorted(parts.keys() - set(stems_of(pairs)))
    if missing:
        raise DataError(
            f"{path} names '{missing[0]}', which is not among the training pairs. Correct "
            "data_root or data.split_file."
        )
    chosen: dict[str, list[int]] = {FIT: [], INNER: []}
    for row, stem in enumerate(stems_of(pairs)):
        if stem in parts:
            chosen[parts[stem]].append(row)
    if not chosen[FIT]:
        raise DataError(f"{path} names no pair to fit. Give some the part {FIT}.")
    return chosen[FIT], chosen[INNER]


def refuse_shared_images(train: Sequence[Pair], val: Sequence[Pair]) -> None:
    """Refuses, with a DataError, validation images that are in training, under whatever name."""
    known = _by_pixels([pair.image for pair in train], "Hashing training images")
    _refuse_copies([pair.image for pair in val], known)


def check_unlabelled(images: Sequence[Path], root: Path, held_out: Sequence[Pair] = ()) -> None:
    """Refuses unlabelled images that are validated on, and warns of those that are held out.

    Args:
        images: The unlabelled images.
        root: The data folder, which may have no validation split, or not be there.
        held_out: Training pairs by which choices are made.

    Raises:
        DataError: Naming the first validation image that is among them, and how many there are.
    """
    folder = root / "val" / "images"
    val, inner = list_images(folder) if folder.is_dir() else [], [pair.image for pair in held_out]
    sizes = {picture_size(path) for path in (*val, *inner)}
    alike = [path for path in images if picture_size(path) in sizes]  # others cannot be the same
    known = _by_pixels(alike, "Hashing unlabelled images")
    given = {path.resolve() for path in known.values()}
    if own := [path for path in val if path.resolve() in given]:
        raise DataError(
            f"{own[0]} is a validation image: if it were trained on, scores on it would prove "
            "nothing. Give a folder of other images."
        )
    _refuse_copies(val, known)
    if same := _copies(inner, known, "Hashing held-out images"):
        rank_zero_warn(
            f"{same}, but is held out of training: scores on it will be too good. Remove it from "
            "the unlabelled images."
        )


def shared_groups(
    train: Sequence[Pair],
    val: Sequence[Pair],
    held_out: Sequence[Pair] = (),
    kind: str = "validation",
) -> str | None:
    """A warning of location groups in both training and validation; None where there are none.

    Held-out pairs count as if they were trained on; `kind` is what the warning calls `val`.
    """
    shared = {*groups_of(train), *groups_of(held_out)} & set(groups_of(val))
    if not shared:
        return None
    return (
        f"{plural(len(shared), 'location group')} (e.g. '{min(shared)}') in train and in {kind}: "
        f"{kind} scores will be too good. Split by group with scripts/tile.py."
    )


def _refuse_copies(val: Sequence[Path], known: Mapping[str, Path]) -> None:
    if same := _copies(val, known, "Hashing validation images"):
        raise DataError(
            f"{same}: scores on it would prove nothing. Remove one of the two, or split by "
            "location group with scripts/tile.py."
        )


def _copies(images: Sequence[Path], known: Mapping[str, Path], title: str) -> str | None:
    """Which of the images is known by its pixels, in words; None where none is."""
    digests = _digests(images, title)
    copies = [(path, known[d]) for path, d in zip(images, digests, strict=True) if d in known]
    more = f" (and {plural(len(copies) - 1, 'more image')})" * (len(copies) > 1)
    return f"{copies[0][0]} has the same pixels as {copies[0][1]}{more}" if copies else None


def _by_pixels(images: Sequence[Path], title: str) -> dict[str, Path]:
    return dict(zip(_digests(images, title), images, strict=True))


def _digests(images: Sequence[Path], title: str) -> list[str]:
    # Threads rather than processes: decoding and hashing release the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests: Iterable[str] = pool.map(_digest, images)
        if len(images) >= _BAR_FROM:
            digests = track(digests, title, total=len(images))
        return list(digests)


def _digest(image: Path) -> str:
    # Of the pixels, not of the file: a copy saved in another format is the same image.
    pixels = read_image(image)
    header = f"{pixels.shape}{pixels.dtype}".encode()
    return hashlib.sha256(header + pixels.tobytes()).hexdigest()
