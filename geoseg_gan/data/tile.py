"""The tile command: cuts large images and their masks into a training folder."""

import csv
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import Progress
from rich.table import Table

from geoseg_gan.config import as_override, is_made, plain, script_command, stored_yaml, write_yaml
from geoseg_gan.data.georeference import (
    Georeference,
    aligned,
    georeference_problem,
    overlapping,
    read_georeference,
    write_georeference,
)
from geoseg_gan.data.images import TIFF_SUFFIXES, picture_size, write_image
from geoseg_gan.data.masks import MaskReader, mask_reader
from geoseg_gan.data.pairs import (
    SEARCH_SECONDS,
    SPLITS,
    TOO_LONG,
    DataError,
    PackedStrings,
    Pair,
    Split,
    find_folder_pairs,
    group_of,
    search,
)
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.scan import refuse_binary_masks, size_problem
from geoseg_gan.data.scene import Scene, little_memory
from geoseg_gan.data.settings import TileSettings
from geoseg_gan.data.vectors import Vectors, read_vectors
from geoseg_gan.data.windows import Parts, rows_of_windows, window_starts
from geoseg_gan.utils.device import free_memory
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import atomic_folder, check_apart, check_new_folder
from geoseg_gan.utils.messages import knob_texts
from geoseg_gan.utils.signals import limited
from geoseg_gan.utils.tables import console

_IMAGES_AT_ONCE = 4
_BYTES_PER_PIXEL = 20  # that an image takes while it is cut
_ROWS_HELD = 1024  # of a GeoTIFF, beside those of a tile, if its blocks are not higher
_STRIPS_KEPT = 8  # of a mask that is aligned


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
    polygons = None if config.masks is None else Path(config.masks)
    wanted = "and masks/ with files of the same stems" if polygons is None else "beside masks"
    pairs = find_folder_pairs(
        source,
        lambda stems: [group_of(stem, config.group_regex, "group_regex") for stem in stems],
        f"source={source} must hold images/ {wanted}.",
        polygons,
    )
    places = [read_georeference(pair.image) for pair in pairs]
    reader = mask_reader(config.data)
    vectors = None
    if polygons is not None:
        vectors = read_vectors(
            polygons, config.class_field, config.background, reader, config.layer
        )
        vectors.check(pairs, places)
    groups = (
        join_groups(pairs, places) if config.join_overlaps else {p.group: p.group for p in pairs}
    )
    splits: list[Split] | Blocks
    if config.split == "spatial":
        grounds = ground_grids(pairs, places, groups)
        blocks = Blocks(config.block_size or 4 * config.tile_size, config.gap, grounds)
        found = {
            window.group
            for pair in pairs
            for window in blocks.windows(pair, *_size(pair.image), config)
        }
        val = choose_groups({name: name for name in found}, config)
        splits = replace(blocks, val=frozenset(val))
    else:
        val_groups = choose_groups(groups, config)
        pairs = replace(pairs, groups=PackedStrings(groups[pair.group] for pair in pairs))
        splits = ["val" if pair.group in val_groups else "train" for pair in pairs]
    with atomic_folder(root, "data_root") as folder:
        reports = cut_pairs(pairs, splits, folder, config, vectors)
        write_yaml(folder / "config.yaml", config)
    summarise(config, reports)
    return reports


def cut_pairs(
    pairs: Sequence[Pair],
    splits: "Sequence[Split] | Blocks",
    folder: Path,
    settings: TileSettings,
    vectors: Vectors | None = None,
    grey_bands: int = 1,
) -> dict[Split, SplitReport]:
    """Cuts pairs into `folder/{train,val}/{images,masks}` and tiles.csv, and warns of what is odd.

    GeoTIFFs are read a few rows at a time; pictures of other formats are decoded at once.

    Args:
        pairs: Images and masks; their stems begin the names of the tiles.
        splits: The split of each pair, or the blocks that are in one split each.
        folder: An empty folder.
        settings: How they are cut; source and data_root are not used.
        vectors: The polygons that stand for masks; None where there are masks.
        grey_bands: To how many equal bands images of one band are widened.

    Returns:
        The result of each split.

    Raises:
        UserError: If a file is not as it must be, or a split gets no tile.
    """
    reader = mask_reader(settings.data)
    for split in SPLITS:
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True)

    sizes = [_size(pair.image) for pair in pairs]
    held = max(
        _pixels_held(pair, *size, settings, vectors)
        for pair, size in zip(pairs, sizes, strict=True)
    )
    fitting = int(0.8 * free_memory() / (_BYTES_PER_PIXEL * held))
    with (
        _no_size_limit(),
        little_memory(),
        Progress() as bar,
        ThreadPoolExecutor(min(max(1, fitting), _IMAGES_AT_ONCE)) as pool,
    ):
        total = sum(height * width for height, width in sizes)
        task = bar.add_task(f"Cutting {plural(len(pairs), 'picture')}", total=total)

        def cut(pair: Pair, split: "Split | Blocks") -> _Cut:
            source = _Source(pair, reader, settings, vectors, partial(bar.advance, task))
            return _cut(source, split, folder, reader, settings, grey_bands)

        each = [splits] * len(pairs) if isinstance(splits, Blocks) else splits
        cuts = list(pool.map(cut, pairs, each))
    if vectors is None:
        refuse_binary_masks(np.stack([cut.whole for cut in cuts]), reader, pairs[0].mask.parent)
    reports = {split: _report(split, cuts, settings) for split in SPLITS}
    with (folder / "tiles.csv").open("w", newline="") as target:
        table = csv.writer(target)
        table.writerow([entry.name for entry in fields(Tile)])
        table.writerows(astuple(tile) for cut in cuts for tile in cut.tiles)
    _warn(cuts, reports, settings)
    return reports


def choose_groups(groups: Mapping[str, str], settings: TileSettings) -> set[str]:
    """The location groups to validate on: by val_regex or val_groups, else a random share.

    Args:
        groups: The groups by the names that they are known by; joined ones have several.
        settings: The settings.

    Raises:
        UserError: If that would be none of the groups or all of them.
    """
    names = sorted(set(groups.values()))
    if len(names) < 2 and settings.split == "spatial":
        raise UserError(
            f"split=spatial makes {plural(len(names), 'block')} of the pictures: none is left to "
            "validate on. Lower block_size or gap, or tile_size."
        )
    if len(names) == 1:
        raise UserError(
            f"all pictures belong to the group '{names[0]}': none is left to validate on. Add "
            "pictures from other places, make groups smaller with group_regex, or give blocks of "
            "each picture to validation with split=spatial."
        )
    known = f"The {plural(len(names), 'group')}: {', '.join(names[:5])}{' ...' * (len(names) > 5)}"
    if settings.val_regex is not None:
        setting = f"val_regex={settings.val_regex!r}"
        with limited(SEARCH_SECONDS, DataError(f"val_regex {TOO_LONG}")):
            chosen = {groups[n] for n in groups if search(settings.val_regex, n, "val_regex")}
    elif settings.val_groups is not None:
        setting = f"val_groups={settings.val_groups}"
        if unknown := sorted(set(settings.val_groups) - groups.keys()):
            raise UserError(f"{setting}: '{unknown[0]}' is not a group. {known}")
        chosen = {groups[name] for name in settings.val_groups}
    else:
        setting = f"val_share={settings.val_share}"
        count = min(max(1, round(settings.val_share * len(names))), len(names) - 1)
        order = np.random.default_rng(settings.seed).permutation(len(names))
        chosen = {names[i] for i in order[:count]}
    if not chosen:
        raise UserError(f"{setting} leaves nothing to validate on. {known}")
    if chosen == set(names):
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
class Window:
    """Where a tile lies in its picture."""

    row: int  # of the grid, from 0 at the top
    col: int  # of the grid, from 0 at the left
    top: int  # in pixels
    left: int  # in pixels
    group: str  # its location group
    split: Split  # that of the group


def grid_windows(
    height: int, width: int, settings: TileSettings, group: str, split: Split
) -> list[Window]:
    """The tiles of a picture of one location group."""
    grid = (settings.tile_size, settings.overlap, settings.remainder)
    rows, cols = (list(enumerate(grid_starts(length, *grid))) for length in (height, width))
    return [Window(row, col, top, left, group, split) for row, top in rows for col, left in cols]


@dataclass(frozen=True)
class Blocks:
    """Square blocks of ground with gaps between them, each a location group of its own.

    Attributes:
        side: Of a block in pixels.
        gap: Between blocks in pixels; no tile reaches into it.
        grounds: For each picture's stem, the ground it shows, and row and column of its upper left
            pixel there. Pictures of one ground share its blocks.
        val: The blocks to validate on.
    """

    side: int
    gap: int
    grounds: Mapping[str, tuple[str, int, int]]
    val: frozenset[str] = field(default=frozenset())

    def windows(self, pair: Pair, height: int, width: int, settings: TileSettings) -> list[Window]:
        """The tiles of a picture, none of which reaches out of its block."""
        ground, top, left = self.grounds[pair.stem]
        rows, cols = (self._starts(*ends, settings) for ends in ((height, top), (width, left)))
        windows = []
        for row, (block, start) in enumerate(rows):
            for col, (other_block, other) in enumerate(cols):
                group = f"{ground}_b{block}_{other_block}"
                split: Split = "val" if group in self.val else "train"
                windows.append(Window(row, col, start, other, group, split))
        return windows

    def _starts(self, length: int, offset: int, settings: TileSettings) -> list[tuple[int, int]]:
        """Along one side of a picture that begins at `offset`: the block and start of each tile."""
        step = self.side + self.gap
        starts = []
        for block in range(offset // step, (offset + length - 1) // step + 1):
            begin = max(0, block * step - offset)
            inside = min(length, block * step + self.side - offset) - begin
            if inside >= settings.tile_size:
                grid = (settings.tile_size, settings.overlap, settings.remainder)
                starts += [(block, begin + start) for start in grid_starts(inside, *grid)]
        return starts


def join_groups(pairs: Sequence[Pair], places: Sequence[Georeference | None]) -> dict[str, str]:
    """Joins location groups whose pictures overlap on the ground, such as those of two years.

    Returns:
        For each group the first name, in the alphabet, of those that it is joined with.
    """
    joined = {pair.group: pair.group for pair in pairs}
    for pair, first in zip(pairs, overlapping(places), strict=True):
        if pair.group == pairs[first].group:
            continue
        names = {joined[pair.group], joined[pairs[first].group]}
        joined = {name: min(names) if to in names else to for name, to in joined.items()}
    others = sorted(name for name, to in joined.items() if to != name)
    if others:
        left = plural(len(set(joined.values())), "group")
        print(
            f"Pictures overlap on the ground: '{others[0]}' joins the group "
            f"'{joined[others[0]]}'{' and so on' * (len(others) > 1)}, and {left} of "
            f"{len(joined)} are left."
        )
    return joined


def ground_grids(
    pairs: Sequence[Pair], places: Sequence[Georeference | None], groups: Mapping[str, str]
) -> dict[str, tuple[str, int, int]]:
    """For each picture's stem the ground it shows, and row and column of its first pixel there.

    Pictures of a location group that say where they lie share a ground, which has the name of the
    group; each of the others is a ground of its own.

    Raises:
        DataError: If pictures of one ground differ in CRS or pixels.
    """
    firsts: dict[str, tuple[Pair, Georeference]] = {}
    grounds = {}
    for pair, place in zip(pairs, places, strict=True):
        if place is None:
            grounds[pair.stem] = pair.stem, 0, 0
            continue
        name = groups[pair.group]
        first, its_place = firsts.setdefault(name, (pair, place))
        ours, theirs = (
            np.array([t.a, t.b, t.d, t.e]) for t in (its_place.transform, place.transform)
        )
        if its_place.crs != place.crs or not np.allclose(ours, theirs, rtol=1e-6, atol=0):
            raise DataError(
                f"split=spatial lays one grid of blocks over the pictures of a group, but "
                f"{first.image} and {pair.image} differ in CRS or pixel size. Reproject one, as "
                "gdalwarp does, or tell them apart with group_regex and join_overlaps=false."
            )
        col, row = its_place.pixel(*place.point(0, 0))
        grounds[pair.stem] = name, round(row), round(col)
    return grounds


class _Source:
    """A pair that is read a few rows at a time.

    Attributes:
        pair: The pair.
        image: Its image.
        pixels: Of every class and, last, of ignore in the rows that have been read, shape (C + 1,).
    """

    def __init__(
        self,
        pair: Pair,
        reader: MaskReader,
        settings: TileSettings,
        vectors: Vectors | None,
        moved: Callable[[float], None],
    ) -> None:
        """Opens image and mask.

        Args:
            pair: The pair.
            reader: What reads masks.
            settings: Whether masks are aligned.
            vectors: The polygons that stand for masks; None where there are masks.
            moved: Called with the number of pixels that have been read.

        Raises:
            UserError: If one of them cannot be read, or they do not belong together.
        """
        self.pair, self.image, self._moved = pair, Scene(pair.image, nodata=reader.nodata), moved
        self.pixels = np.zeros(reader.palette.num_classes + 1, np.int64)
        size, place = (self.image.height, self.image.width), self.image.place
        self._mask = mask = None if vectors else Scene(pair.mask, reader)
        self._labels: Callable[[int, int], npt.NDArray[np.uint8]]
        if vectors is not None:
            self._labels = partial(vectors.burn, pair, place, size)
            return
        assert mask is not None
        if settings.align and place and (mask_place := mask.place):
            strips = lru_cache(_STRIPS_KEPT)(mask.rows)
            self._labels = lambda first, last: aligned(
                strips, mask_place, place.part(first, 0, last - first, size[1])
            )
            return
        problem = size_problem(pair, size, (mask.height, mask.width))
        if problem := problem or georeference_problem(pair.image, pair.mask):
            raise DataError(problem)
        self._labels = mask.rows

    @property
    def unknown(self) -> int:
        """Pixels of the mask of unknown colours or values."""
        return self._mask.unknown if self._mask else 0

    def windows(self, tops: Sequence[int], side: int) -> Iterator[tuple[int, Parts]]:
        """Image (side, W, K) and label map (side, W) of each row of tiles; all rows are read."""
        step = max(self.image.step, self._mask.step if self._mask else 1)
        return rows_of_windows(self._read, self.image.height, step, tops, side)

    def _read(self, first: int, last: int) -> Parts:
        image, missing = self.image.masked_rows(first, last)
        label = self._labels(first, last)
        if missing is not None:
            label[missing] = IGNORE
        counts = np.bincount(label.ravel(), minlength=256)
        self.pixels += counts[[*range(len(self.pixels) - 1), IGNORE]]
        self._moved(label.size)
        return image, label


@dataclass(frozen=True)
class _Cut:
    """The result of one image; `too_small` describes it if it is smaller than a tile."""

    splits: tuple[Split, ...]  # that its tiles may be in
    tiles: list[Tile]
    pixels: dict[Split, npt.NDArray[np.int64]]  # of every class in the tiles, shape (C,)
    dropped: Counter[Split]
    whole: npt.NDArray[np.int64]  # of every class and ignore in the image, shape (C + 1,)
    unknown: int
    too_small: str | None


def _cut(
    source: _Source,
    split: "Split | Blocks",
    folder: Path,
    reader: MaskReader,
    settings: TileSettings,
    grey_bands: int,
) -> _Cut:
    pair, image, side = source.pair, source.image, settings.tile_size
    size = (image.height, image.width)
    if isinstance(split, Blocks):
        splits, windows = SPLITS, split.windows(pair, *size, settings)
    else:
        splits, windows = (split,), grid_windows(*size, settings, pair.group, split)
    bands = grey_bands if image.bands == 1 else image.bands
    suffix = _suffix(image, bands, settings.image_format)
    # Masks follow their image, so that both of a tile say where it lies.
    mask_suffix = suffix if image.place and suffix == ".tif" else ".png"
    tiles: list[Tile] = []
    pixels = {name: np.zeros(reader.palette.num_classes, np.int64) for name in splits}
    dropped: Counter[Split] = Counter()
    rows: dict[int, list[Window]] = {}
    for window in windows:
        rows.setdefault(window.top, []).append(window)
    for top, (shown, labels) in source.windows([*rows], side):
        for window in rows[top]:
            inside = np.s_[:, window.left : window.left + side]
            counts = np.bincount(labels[inside].ravel(), minlength=256)
            if counts[IGNORE] > settings.max_ignore * side * side:
                dropped[window.split] += 1
                continue
            stem = f"{pair.stem}_r{window.row:02d}_c{window.col:02d}"
            paths = (
                folder / window.split / "images" / f"{stem}{suffix}",
                folder / window.split / "masks" / f"{stem}{mask_suffix}",
            )
            write_image(paths[0], shown[inside].repeat(bands // image.bands, 2))
            reader.write(paths[1], labels[inside])
            if image.place:
                for path in paths:
                    write_georeference(path, image.place.part(top, window.left, side, side))
            where = (window.row, window.col, f"{window.left} {top} {side} {side}")
            tiles.append(Tile(stem, window.split, pair.image.name, window.group, *where))
            pixels[window.split] += counts[: reader.palette.num_classes]
    small = f"{pair.image.name} ({image.width}x{image.height})" if min(size) < side else None
    tiles.sort(key=lambda tile: SPLITS.index(tile.split))
    return _Cut(splits, tiles, pixels, dropped, source.pixels, source.unknown, small)


def _size(path: Path) -> tuple[int, int]:
    """Height and width of an image of any size."""
    with _no_size_limit():
        return picture_size(path)


def _pixels_held(
    pair: Pair, height: int, width: int, settings: TileSettings, vectors: Vectors | None
) -> int:
    """How many pixels of a pair are in memory at once, about."""
    files = (pair.image,) if vectors else (pair.image, pair.mask)
    if all(file.suffix.lower() in TIFF_SUFFIXES for file in files):
        height = min(height, settings.tile_size + _ROWS_HELD)
    return height * width


def _suffix(image: Scene, bands: int, image_format: str) -> str:
    fits_png = image.dtype == "uint8" and bands in (1, 3)
    if image_format == "auto" and image.place is not None:
        return ".tif"
    if image_format == "auto":
        # Never JPEG: encoding a second time would add artefacts that a network can learn.
        return ".png" if fits_png else ".tif"
    if not fits_png and image_format != "tif":
        raise UserError(
            f"image_format={image_format} holds 8-bit images of 1 or 3 bands, but {image.path} has "
            f"{plural(bands, 'band')} of {image.dtype}. Use image_format=tif."
        )
    return f".{image_format}"


def _report(split: Split, cuts: Sequence[_Cut], settings: TileSettings) -> SplitReport:
    mine = [cut for cut in cuts if split in cut.splits]
    skipped = sum(cut.too_small is not None for cut in mine)
    report = SplitReport(
        images=len(mine) - skipped,
        skipped=skipped,
        tiles=[tile for cut in mine for tile in cut.tiles if tile.split == split],
        dropped=sum(cut.dropped[split] for cut in mine),
        pixels=np.sum([cut.pixels[split] for cut in mine], axis=0),
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


def summarise(settings: TileSettings, reports: dict[Split, SplitReport]) -> None:
    """Prints what was cut, and the command that trains on it."""
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
    shown.print(f"Wrote {settings.data_root}. Next: {script_command('train', words)}")
