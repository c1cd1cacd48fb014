"""The tile command: from big pictures to a training folder."""

import csv
import re
import shlex
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from geoseg_gan.config import command_line, knob_texts
from geoseg_gan.data.dataset import window_starts
from geoseg_gan.data.images import MaskReader, mask_reader, read_image, write_image
from geoseg_gan.data.pairs import DataError, Pair, Split, find_folder_pairs, group_of
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.settings import Remainder, TileSettings
from geoseg_gan.utils.errors import UserError, plural


def choose_groups(groups: set[str], settings: TileSettings) -> set[str]:
    """The groups that validate: those that val_regex or val_groups name, else a random share.

    Args:
        groups: All groups.
        settings: Which of them validate.

    Raises:
        UserError: If that would be none of the groups or all of them.
    """
    names = sorted(groups)
    if len(names) == 1:
        raise UserError(
            f"all pictures belong to the group '{names[0]}': no other ground is left to validate "
            "on. Add pictures, or make groups smaller with group_regex."
        )
    known = f"The {plural(len(names), 'group')}: {', '.join(names[:5])}{' ...' * (len(names) > 5)}"
    if settings.val_regex is not None:
        told = f"val_regex={settings.val_regex!r}"
        try:
            chosen = {name for name in names if re.search(settings.val_regex, name)}
        except re.error as error:
            raise UserError(f"{told} is not a regular expression: {error}.") from None
    elif settings.val_groups is not None:
        told = f"val_groups={settings.val_groups}"
        chosen = set(settings.val_groups)
        if strays := sorted(chosen - groups):
            raise UserError(f"{told}: '{strays[0]}' is not a group. {known}")
    else:
        told = f"val_share={settings.val_share}"
        count = min(max(1, round(settings.val_share * len(names))), len(names) - 1)
        order = np.random.default_rng(settings.seed).permutation(len(names))
        chosen = {names[i] for i in order[:count]}
    if not chosen:
        raise UserError(f"{told} leaves nothing to validate on. {known}")
    if chosen == groups:
        raise UserError(f"{told} leaves nothing to train on. {known}")
    return chosen


SPLITS: tuple[Split, ...] = get_args(Split)


# A picture of 10,000 x 10,000 pixels takes 2 GB while it is cut.
_PICTURES_AT_ONCE = 4


@dataclass(frozen=True)
class Tile:
    """One row of tiles.csv.

    Attributes:
        stem: File name of image and mask without ending.
        split: Which split it belongs to.
        source: File name of the image it was cut from.
        group: The ground it shows; all tiles of a group are in one split.
        row: Row in the grid, from 0 at the top.
        col: Column in the grid, from 0 at the left.
        window: "left top width height" in pixels of the source.
    """

    stem: str
    split: Split
    source: str
    group: str
    row: int
    col: int
    window: str


@dataclass
class SplitReport:
    """What became of one split.

    Attributes:
        pictures: How many pictures were cut.
        skipped: How many pictures were smaller than a tile.
        tiles: The tiles written.
        dropped: How many tiles had too much ignore.
        pixels: Pixels of every class in the tiles written, shape (C,), int64.
    """

    pictures: int
    skipped: int
    tiles: list[Tile]
    dropped: int
    pixels: npt.NDArray[np.int64]

    @property
    def groups(self) -> set[str]:
        """The groups that have tiles."""
        return {tile.group for tile in self.tiles}

    def class_shares(self) -> npt.NDArray[np.float64]:
        """Share of every class in the labelled pixels, shape (C,), summing to 1."""
        shares: npt.NDArray[np.float64] = self.pixels / max(1, self.pixels.sum())
        return shares


def cut_folder(settings: TileSettings) -> dict[Split, SplitReport]:
    """Cuts `source/{images,masks}` into `data_root/{train,val}/{images,masks}` and tiles.csv.

    Groups of pictures go to one split whole. Pictures smaller than a tile are left out with a
    warning. `data_root` appears whole or not at all.

    Args:
        settings: What to cut, how, and where to.

    Returns:
        What became of each split.

    Raises:
        UserError: If settings or source are not as they must be, or a split gets no tile.
    """
    settings.check()
    source = Path(settings.source)
    pairs = find_folder_pairs(
        source,
        lambda stem: group_of(stem, settings.group_regex, "group_regex"),
        f"source={source} must hold images/ and masks/ with files of the same stems.",
    )
    validating = choose_groups({pair.group for pair in pairs}, settings)
    splits: list[Split] = ["val" if pair.group in validating else "train" for pair in pairs]
    reader = mask_reader(settings.data)
    root = Path(settings.data_root).resolve()
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        # One level down, since the scratch folder itself is private to the user.
        folder = Path(scratch) / root.name
        for split in SPLITS:
            for part in ("images", "masks"):
                (folder / split / part).mkdir(parents=True)

        def cut(pair: Pair, split: Split) -> _Cut:
            return _cut(pair, split, folder, reader, settings)

        with _big_pictures(), ThreadPoolExecutor(_PICTURES_AT_ONCE) as pool:
            work = pool.map(cut, pairs, splits)
            cuts = list(track(work, f"Cutting {plural(len(pairs), 'picture')}", len(pairs)))
        reports = {split: _report(split, cuts, splits, settings) for split in SPLITS}
        _write_table(folder / "tiles.csv", [tile for cut in cuts for tile in cut.tiles])
        folder.replace(root)
    _warn(cuts, reports, settings)
    return reports


def grid_starts(length: int, side: int, overlap: int, remainder: Remainder) -> list[int]:
    """Where tiles start along one side of a picture, in pixels.

    Args:
        length: Length of the picture's side in pixels; at least `side`.
        side: Length of a tile in pixels.
        overlap: How far neighbours overlap, in pixels.
        remainder: A rest too narrow for a tile is left out ("drop") or covered by a last tile that
            ends at the border and overlaps its neighbour more ("shift").
    """
    if remainder == "shift":
        return window_starts(length, side, overlap)
    return list(range(0, length - side + 1, side - overlap))


@dataclass(frozen=True)
class _Cut:
    """What became of one picture; `too_small` describes it if it is smaller than a tile."""

    tiles: list[Tile]
    pixels: npt.NDArray[np.int64]
    dropped: int = 0
    unknown: int = 0
    too_small: str | None = None


def _cut(
    pair: Pair, split: Split, folder: Path, reader: MaskReader, settings: TileSettings
) -> _Cut:
    image = read_image(pair.image)
    label, unknown = reader.read(pair.mask)
    height, width = label.shape
    if image.shape[:2] != label.shape:
        raise DataError(
            f"{pair.image} is {image.shape[1]}x{image.shape[0]} but {pair.mask} is "
            f"{width}x{height} (width x height). Export both from the same window, or remove the "
            "pair."
        )
    suffix = _suffix(pair.image, image, settings.image_format)
    pixels = np.zeros(reader.palette.num_classes, np.int64)
    side = settings.tile_size
    if min(height, width) < side:
        return _Cut([], pixels, too_small=f"{pair.image.name} ({width}x{height})")
    remainder = cast(Remainder, settings.remainder)
    tops = grid_starts(height, side, settings.overlap, remainder)
    lefts = grid_starts(width, side, settings.overlap, remainder)
    tiles = []
    for row, top in enumerate(tops):
        for col, left in enumerate(lefts):
            inside = np.s_[top : top + side, left : left + side]
            counts = np.bincount(label[inside].ravel(), minlength=256)
            if counts[IGNORE] > settings.max_ignore * side * side:
                continue
            stem = f"{pair.stem}_r{row:02d}_c{col:02d}"
            write_image(folder / split / "images" / f"{stem}{suffix}", image[inside])
            reader.write(folder / split / "masks" / f"{stem}.png", label[inside])
            window = f"{left} {top} {side} {side}"
            tiles.append(Tile(stem, split, pair.image.name, pair.group, row, col, window))
            pixels += counts[: len(pixels)]
    return _Cut(tiles, pixels, len(tops) * len(lefts) - len(tiles), unknown)


def _suffix(path: Path, image: npt.NDArray[Any], image_format: str) -> str:
    fits_png = image.dtype == np.uint8 and image.shape[2] in (1, 3)
    if image_format == "auto":
        # Never JPEG: encoding a second time would add marks that a network can learn.
        return ".png" if fits_png else ".tif"
    if not fits_png and image_format != "tif":
        raise UserError(
            f"image_format={image_format} holds 8-bit images of 1 or 3 bands, but {path} has "
            f"{plural(image.shape[2], 'band')} of {image.dtype}. Use image_format=tif."
        )
    return f".{image_format}"


def _report(
    split: Split, cuts: Sequence[_Cut], splits: Sequence[Split], settings: TileSettings
) -> SplitReport:
    mine = [cut for cut, its_split in zip(cuts, splits, strict=True) if its_split == split]
    skipped = sum(cut.too_small is not None for cut in mine)
    report = SplitReport(
        pictures=len(mine) - skipped,
        skipped=skipped,
        tiles=[tile for cut in mine for tile in cut.tiles],
        dropped=sum(cut.dropped for cut in mine),
        pixels=np.sum([cut.pixels for cut in mine], axis=0),
    )
    if not report.tiles:
        raise UserError(
            f"no tile is left for {split}: of its {plural(len(mine), 'picture')} {skipped} are "
            f"smaller than tile_size={settings.tile_size}, and {plural(report.dropped, 'tile')} "
            f"have more ignore than max_ignore={settings.max_ignore}. Lower tile_size, raise "
            "max_ignore, or choose other groups to validate on."
        )
    return report


def _write_table(path: Path, tiles: list[Tile]) -> None:
    with path.open("w", newline="") as target:
        table = csv.writer(target)
        table.writerow([entry.name for entry in fields(Tile)])
        table.writerows(astuple(tile) for tile in tiles)


def _warn(cuts: Sequence[_Cut], reports: dict[Split, SplitReport], settings: TileSettings) -> None:
    if small := [cut.too_small for cut in cuts if cut.too_small]:
        named = ", ".join(small[:5]) + " ..." * (len(small) > 5)
        warnings.warn(
            f"left out {plural(len(small), 'picture')} smaller than "
            f"tile_size={settings.tile_size}: {named}",
            stacklevel=3,
        )
    if strays := [cut.unknown for cut in cuts if cut.unknown]:
        warnings.warn(
            f"{plural(sum(strays), 'pixel')} in {plural(len(strays), 'mask')} had a colour outside "
            f"the palette; written as {settings.data.unknown} by data.unknown.",
            stacklevel=3,
        )
    names = settings.data.classes().names
    for split, other in (SPLITS, SPLITS[::-1]):
        lacks = (reports[split].pixels == 0) & (reports[other].pixels > 0)
        if lacks.any():
            absent = ", ".join(
                name for name, is_absent in zip(names, lacks, strict=True) if is_absent
            )
            warnings.warn(
                f"{split} has no pixel of what {other} has: {absent}. Choose other groups to "
                "validate on, so that both have all classes.",
                stacklevel=3,
            )


@contextmanager
def _big_pictures() -> Iterator[None]:
    """Lifts Pillow's limit on the size of pictures, which guards servers against strangers."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def tile(config: TileSettings) -> dict[Split, SplitReport]:
    """Cuts pictures and masks into a training folder, and prints what became of them.

    Args:
        config: What to cut, how, and where to.

    Returns:
        What became of each split.

    Raises:
        UserError: If settings or source are not as they must be, or a split gets no tile.
    """
    reports = cut_folder(config)
    _summarise(config, reports)
    return reports


def _summarise(config: TileSettings, reports: dict[Split, SplitReport]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for split in SPLITS:
        table.add_column(split, justify="right")
    splits = [reports[split] for split in SPLITS]
    table.add_row("pictures", *(f"{r.pictures:,}" for r in splits))
    table.add_row("skipped: smaller than a tile", *(f"{r.skipped:,}" for r in splits))
    table.add_row("groups", *(f"{len(r.groups):,}" for r in splits))
    table.add_row(
        f"tiles of {config.tile_size}x{config.tile_size}", *(f"{len(r.tiles):,}" for r in splits)
    )
    table.add_row("dropped: too much ignore", *(f"{r.dropped:,}" for r in splits))
    shares = zip(*(r.class_shares() for r in splits), strict=True)
    for name, row in zip(config.data.classes().names, shares, strict=True):
        table.add_row(name, *(f"{share:.1%}" for share in row))
    console = Console(soft_wrap=True)  # so that the command below can be copied
    console.print(table)
    console.print(f"Wrote {config.data_root}. Next: {_next_command(config)}", markup=False)


def _next_command(config: TileSettings) -> str:
    """The training command with the same data settings."""
    words = [o for o in command_line() if o.startswith(("data=", "data."))]
    words.append(f"data_root={config.data_root}")
    if config.tile_size < int(knob_texts("train")["image_size"][0]):
        words.append(f"image_size={config.tile_size}")
    return shlex.join(["python", "scripts/train.py", *words])
