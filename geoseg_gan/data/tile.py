"""The tile command: cuts large images and their masks into a training folder."""

import csv
import shlex
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track
from rich.table import Table

from geoseg_gan.config import as_override, command_line, is_made, plain, stored_yaml, write_yaml
from geoseg_gan.data.dataset import window_starts
from geoseg_gan.data.images import (
    MaskReader,
    count_pixels,
    mask_reader,
    write_image,
)
from geoseg_gan.data.pairs import (
    SEARCH_SECONDS,
    SPLITS,
    TOO_LONG,
    DataError,
    Pair,
    Split,
    find_folder_pairs,
    group_of,
    search,
)
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.scan import refuse_binary_masks, size_problem
from geoseg_gan.data.settings import TileSettings
from geoseg_gan.utils.device import free_memory
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import atomic_folder, check_apart, check_new_folder
from geoseg_gan.utils.messages import knob_texts
from geoseg_gan.utils.signals import limited
from geoseg_gan.utils.tables import console

_IMAGES_AT_ONCE = 4
_BYTES_PER_PIXEL = 20  # that an image takes while it is cut


@dataclass(frozen=True)
class Tile:
    """One row of tiles.csv."""

    stem: str  # file name of image and mask without ending
    split: Split
    source: str  # file name of the image it was cut from
    group: str  # location group; all tiles of a group are in one split
    row: int  # in the grid, from 0 at the top
    col: int  # in the grid, from 0 at the left
    window: str  # "left top width height" in pixels of the source


@dataclass
class SplitReport:
    """The result of one split."""

    images: int  # source images that were cut
    skipped: int  # source images smaller than a tile
    tiles: list[Tile]
    dropped: int  # tiles with too much ignore
    pixels: npt.NDArray[np.int64]  # of every class in the tiles, shape (C,)

    @property
    def groups(self) -> set[str]:
        """The location groups that have tiles."""
        return {tile.group for tile in self.tiles}


def tile(config: TileSettings) -> dict[Split, SplitReport]:
    """Cuts `source/{images,masks}` into `data_root/{train,val}/{images,masks}` and tiles.csv.

    Each location group goes to one split. Images smaller than a tile are skipped with a warning.
    `data_root` appears whole or not at all, with the settings in config.yaml.

    Returns:
        The result of each split; nothing where these settings have made the folder already.

    Raises:
        UserError: If the source is not as it must be, `data_root` exists, or a split gets no tile.
    """
    source, root = Path(config.source), Path(config.data_root)
    if is_made(root, plain(config), stored_yaml(root)):
        return {}
    check_new_folder("data_root", root)
    check_apart("data_root", root, source, [""])
    pairs = find_folder_pairs(
        source,
        lambda stems: [group_of(stem, config.group_regex, "group_regex") for stem in stems],
        f"source={source} must hold images/ and masks/ with files of the same stems.",
    )
    val_groups = choose_groups({pair.group for pair in pairs}, config)
    splits: list[Split] = ["val" if pair.group in val_groups else "train" for pair in pairs]
    reader = mask_reader(config.data)
    with atomic_folder(root, "data_root") as folder, _no_size_limit():
        largest = max(count_pixels(pair.image) for pair in pairs)
        fitting = int(0.8 * free_memory() / (_BYTES_PER_PIXEL * largest))
        for split in SPLITS:
            for part in ("images", "masks"):
                (folder / split / part).mkdir(parents=True)

        def cut(pair: Pair, split: Split) -> _Cut:
            return _cut(pair, split, folder, reader, config)

        with ThreadPoolExecutor(min(max(1, fitting), _IMAGES_AT_ONCE)) as pool:
            work = pool.map(cut, pairs, splits)
            cuts = list(track(work, f"Cutting {plural(len(pairs), 'picture')}", len(pairs)))
        refuse_binary_masks(np.stack([cut.whole for cut in cuts]), reader, source / "masks")
        reports = {split: _report(split, cuts, splits, config) for split in SPLITS}
        write_yaml(folder / "config.yaml", config)
        with (folder / "tiles.csv").open("w", newline="") as target:
            table = csv.writer(target)
            table.writerow([entry.name for entry in fields(Tile)])
            table.writerows(astuple(tile) for cut in cuts for tile in cut.tiles)
    _warn(cuts, reports, config)
    _summarise(config, reports)
    return reports


def choose_groups(groups: set[str], settings: TileSettings) -> set[str]:
    """The location groups to validate on: by val_regex or val_groups, else a random share.

    Raises:
        UserError: If that would be none of the groups or all of them.
    """
    names = sorted(groups)
    if len(names) == 1:
        raise UserError(
            f"all pictures belong to the group '{names[0]}': none is left to validate on. Add "
            "pictures from other places, or make groups smaller with group_regex."
        )
    known = f"The {plural(len(names), 'group')}: {', '.join(names[:5])}{' ...' * (len(names) > 5)}"
    if settings.val_regex is not None:
        setting = f"val_regex={settings.val_regex!r}"
        with limited(SEARCH_SECONDS, DataError(f"val_regex {TOO_LONG}")):
            chosen = {name for name in names if search(settings.val_regex, name, "val_regex")}
    elif settings.val_groups is not None:
        setting = f"val_groups={settings.val_groups}"
        chosen = set(settings.val_groups)
        if unknown := sorted(chosen - groups):
            raise UserError(f"{setting}: '{unknown[0]}' is not a group. {known}")
    else:
        setting = f"val_share={settings.val_share}"
        count = min(max(1, round(settings.val_share * len(names))), len(names) - 1)
        order = np.random.default_rng(settings.seed).permutation(len(names))
        chosen = {names[i] for i in order[:count]}
    if not chosen:
        raise UserError(f"{setting} leaves nothing to validate on. {known}")
    if chosen == groups:
        raise UserError(f"{setting} leaves nothing to train on. {known}")
    return chosen


def grid_starts(length: int, side: int, overlap: int, remainder: str) -> list[int]:
    """Where tiles start along one side of an image; all in pixels.

    The remainder, a strip too narrow for a tile, stays uncovered ("drop"), or is covered by a last
    tile that ends at the border and overlaps its neighbour more ("shift").
    """
    if remainder == "shift":
        return window_starts(length, side, overlap)
    return list(range(0, length - side + 1, side - overlap))


@dataclass(frozen=True)
class _Cut:
    """The result of one image; `too_small` describes it if it is smaller than a tile."""

    tiles: list[Tile]
    pixels: npt.NDArray[np.int64]  # of every class in the tiles, shape (C,)
    whole: npt.NDArray[np.int64]  # of every class and ignore in the image, shape (C + 1,)
    dropped: int = 0
    unknown: int = 0
    too_small: str | None = None


def _cut(
    pair: Pair, split: Split, folder: Path, reader: MaskReader, settings: TileSettings
) -> _Cut:
    image, label, unknown = reader.read_pair(pair.image, pair.mask)
    height, width = label.shape
    if problem := size_problem(pair, image, label):
        raise DataError(problem)
    suffix = _suffix(pair.image, image, settings.image_format)
    pixels = np.zeros(reader.palette.num_classes, np.int64)
    whole = np.bincount(label.ravel(), minlength=256)[[*range(len(pixels)), IGNORE]]
    side = settings.tile_size
    if min(height, width) < side:
        return _Cut([], pixels, whole, too_small=f"{pair.image.name} ({width}x{height})")
    tops = grid_starts(height, side, settings.overlap, settings.remainder)
    lefts = grid_starts(width, side, settings.overlap, settings.remainder)
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
    return _Cut(tiles, pixels, whole, len(tops) * len(lefts) - len(tiles), unknown)


def _suffix(path: Path, image: npt.NDArray[Any], image_format: str) -> str:
    fits_png = image.dtype == np.uint8 and image.shape[2] in (1, 3)
    if image_format == "auto":
        # Never JPEG: encoding a second time would add artefacts that a network can learn.
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
        images=len(mine) - skipped,
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


@contextmanager
def _no_size_limit() -> Iterator[None]:
    """Lifts Pillow's limit on the size of images, which guards servers against strangers."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _warn(cuts: Sequence[_Cut], reports: dict[Split, SplitReport], settings: TileSettings) -> None:
    if small := [cut.too_small for cut in cuts if cut.too_small]:
        named = ", ".join(small[:5]) + " ..." * (len(small) > 5)
        warnings.warn(
            f"left out {plural(len(small), 'picture')} smaller than "
            f"tile_size={settings.tile_size}: {named}",
            stacklevel=3,
        )
    if unknown := [cut.unknown for cut in cuts if cut.unknown]:
        warnings.warn(
            f"{plural(sum(unknown), 'pixel')} in {plural(len(unknown), 'mask')} had a colour "
            f"outside the palette; written as {settings.data.unknown} by data.unknown.",
            stacklevel=3,
        )
    names = np.array(settings.data.classes().names)
    for split, other in (SPLITS, SPLITS[::-1]):
        absent = names[(reports[split].pixels == 0) & (reports[other].pixels > 0)]
        if len(absent):
            warnings.warn(
                f"{split} has no pixel of what {other} has: {', '.join(absent)}. Choose other "
                "groups to validate on, so that both have all classes.",
                stacklevel=3,
            )


def _summarise(settings: TileSettings, reports: dict[Split, SplitReport]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for split in SPLITS:
        table.add_column(split, justify="right")
    splits = [reports[split] for split in SPLITS]
    tiles = f"tiles of {settings.tile_size}x{settings.tile_size}"
    table.add_row("pictures", *(f"{r.images:,}" for r in splits))
    table.add_row("skipped: smaller than a tile", *(f"{r.skipped:,}" for r in splits))
    table.add_row("groups", *(f"{len(r.groups):,}" for r in splits))
    table.add_row(tiles, *(f"{len(r.tiles):,}" for r in splits))
    table.add_row("dropped: too much ignore", *(f"{r.dropped:,}" for r in splits))
    shares = zip(*(r.pixels / max(1, r.pixels.sum()) for r in splits), strict=True)
    for name, row in zip(settings.data.classes().names, shares, strict=True):
        table.add_row(name, *(f"{share:.1%}" for share in row))
    words = [as_override("data_root", settings.data_root, TileSettings)]
    if settings.tile_size < int(knob_texts("train")["image_size"][0]):
        words.append(f"image_size={settings.tile_size}")
    shown = console(soft_wrap=True)  # so that the command below can be copied
    shown.print(table)
    shown.print(f"Wrote {settings.data_root}. Next: {train_command(words)}")


def train_command(words: Sequence[str]) -> str:
    """The training command with the data settings of this one, and `words` in place of theirs."""
    given = [word for word in command_line() if word.startswith(("data=", "data."))]
    replaced = {word.split("=")[0] for word in words}
    kept = [word for word in given if word.split("=")[0] not in replaced]
    return shlex.join(["python", "scripts/train.py", *kept, *words])
