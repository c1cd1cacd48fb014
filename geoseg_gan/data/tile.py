"""The tile command: cuts large images and their masks into a training folder."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import Progress, track

from geoseg_gan.config import as_override, is_made, plain, script_command, stored_yaml, write_yaml
from geoseg_gan.data.georeference import (
    aligned,
    georeference_problem,
    read_georeference,
    write_georeference,
)
from geoseg_gan.data.image_files import TIFF_SUFFIXES
from geoseg_gan.data.images import picture_size, write_image
from geoseg_gan.data.masks import MaskReader, mask_reader
from geoseg_gan.data.pairs import (
    SPLITS,
    TILES_CSV,
    UNLABELLED,
    DataError,
    PackedStrings,
    Pair,
    Split,
    find_folder_pairs,
    group_of,
    list_images,
)
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.scan import refuse_binary_masks, size_problem
from geoseg_gan.data.scene import Scene, little_memory
from geoseg_gan.data.settings import TileSettings
from geoseg_gan.data.tile_splits import (
    Blocks,
    Window,
    choose_groups,
    grid_windows,
    ground_grids,
    join_groups,
)
from geoseg_gan.data.vectors import Vectors, read_vectors
from geoseg_gan.data.windows import Parts, rows_of_windows
from geoseg_gan.utils.device import free_memory
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import atomic_folder, check_apart, check_new_folder, write_csv
from geoseg_gan.utils.messages import knob_texts
from geoseg_gan.utils.tables import console, print_table

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

    Images without masks in `source/unlabelled` are cut into `data_root/unlabelled`. Each location
    group goes to one split. Images smaller than a tile are skipped with a warning.
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
        unlabelled = source / UNLABELLED
        count = cut_unlabelled(unlabelled, folder, config) if unlabelled.is_dir() else None
        write_yaml(folder / "config.yaml", config)
    summarise(config, reports, count)
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
    head = [entry.name for entry in fields(Tile)]
    write_csv(folder / TILES_CSV, head, (astuple(tile) for cut in cuts for tile in cut.tiles))
    _warn(cuts, reports, settings)
    return reports


def cut_unlabelled(source: Path, folder: Path, settings: TileSettings) -> int:
    """Cuts the images of a folder, of which there are no masks, into `folder/unlabelled`.

    Tiles of which more than `max_ignore` has no data are dropped.

    Returns:
        How many tiles there are.

    Raises:
        UserError: If an image cannot be read, or no tile is left.
    """
    (folder / UNLABELLED).mkdir()
    nodata, side, count = mask_reader(settings.data).nodata, settings.tile_size, 0
    with _no_size_limit(), little_memory():
        for path in track(list_images(source), "Cutting unlabelled images"):
            image = Scene(path, nodata=nodata)
            windows = grid_windows(image.height, image.width, settings, path.stem, "train")
            suffix = _suffix(image, image.bands)

            def read(first: int, last: int, image: Scene = image) -> Parts:
                pixels, missing = image.masked_rows(first, last)
                return pixels, np.zeros(pixels.shape[:2], bool) if missing is None else missing

            for window, (shown, missing) in _tiles(windows, read, image.height, image.step, side):
                if missing.sum() > settings.max_ignore * side * side:
                    continue
                target = folder / UNLABELLED / f"{_stem(path.stem, window)}{suffix}"
                write_image(target, shown)
                _locate([target], image, window, side)
                count += 1
    if not count:
        raise UserError(
            f"no tile is left of the images in {source}: they are smaller than tile_size={side}, "
            f"or have less data than max_ignore={settings.max_ignore} asks for. Remove the folder, "
            "or lower tile_size."
        )
    return count


def _tiles(
    windows: Sequence[Window], read: Callable[[int, int], Parts], height: int, step: int, side: int
) -> Iterator[tuple[Window, Parts]]:
    """Windows with what they hold of both parts, by their first row; all rows are read."""
    rows: dict[int, list[Window]] = {}
    for window in windows:
        rows.setdefault(window.top, []).append(window)
    for top, (shown, other) in rows_of_windows(read, height, step, [*rows], side):
        for window in rows[top]:
            inside = np.s_[:, window.left : window.left + side]
            yield window, (shown[inside], other[inside])


def _stem(source: str, window: Window) -> str:
    return f"{source}_r{window.row:02d}_c{window.col:02d}"


def _locate(paths: Sequence[Path], image: Scene, window: Window, side: int) -> None:
    """Has the files of a tile say where it lies, if its image does."""
    if image.place:
        for path in paths:
            write_georeference(path, image.place.part(window.top, window.left, side, side))


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

    def tiles(self, windows: Sequence[Window], side: int) -> Iterator[tuple[Window, Parts]]:
        """Image (side, side, K) and label map (side, side) of each tile; all rows are read."""
        step = max(self.image.step, self._mask.step if self._mask else 1)
        return _tiles(windows, self._read, self.image.height, step, side)

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
    suffix = _suffix(image, bands)
    # Masks follow their image, so that both of a tile say where it lies.
    mask_suffix = ".tif" if image.place else ".png"
    tiles: list[Tile] = []
    pixels = {name: np.zeros(reader.palette.num_classes, np.int64) for name in splits}
    dropped: Counter[Split] = Counter()
    for window, (shown, label) in source.tiles(windows, side):
        counts = np.bincount(label.ravel(), minlength=256)
        if counts[IGNORE] > settings.max_ignore * side * side:
            dropped[window.split] += 1
            continue
        stem = _stem(pair.stem, window)
        paths = (
            folder / window.split / "images" / f"{stem}{suffix}",
            folder / window.split / "masks" / f"{stem}{mask_suffix}",
        )
        write_image(paths[0], shown.repeat(bands // image.bands, 2))
        reader.write(paths[1], label)
        _locate(paths, image, window, side)
        where = (window.row, window.col, f"{window.left} {window.top} {side} {side}")
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


def _suffix(image: Scene, bands: int) -> str:
    """That of GeoTIFFs for what says where it lies, or fits into no PNG.

    Never JPEG: encoding a second time would add artefacts that a network can learn.
    """
    fits_png = image.dtype == "uint8" and bands in (1, 3)
    return ".png" if fits_png and image.place is None else ".tif"


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


def summarise(
    settings: TileSettings, reports: dict[Split, SplitReport], unlabelled: int | None = None
) -> None:
    """Prints what was cut, and the command that trains on it; `unlabelled` counts such tiles."""
    splits = [reports[split] for split in SPLITS]
    counts = {
        "pictures": [r.images for r in splits],
        "skipped: smaller than a tile": [r.skipped for r in splits],
        "groups": [len(r.groups) for r in splits],
        f"tiles of {settings.tile_size}x{settings.tile_size}": [len(r.tiles) for r in splits],
        "dropped: too much ignore": [r.dropped for r in splits],
    }
    rows = [(title, *(f"{count:,}" for count in row)) for title, row in counts.items()]
    shares = zip(*(r.pixels / max(1, r.pixels.sum()) for r in splits), strict=True)
    for name, row in zip(settings.data.classes().names, shares, strict=True):
        rows.append((name, *(f"{share:.1%}" for share in row)))
    print_table(rows, ("", *SPLITS), right=len(SPLITS))
    words = [as_override("data_root", settings.data_root, TileSettings)]
    if settings.tile_size < int(knob_texts("train")["image_size"][0]):
        words.append(f"image_size={settings.tile_size}")
    shown = console(soft_wrap=True)  # so that the command below can be copied
    if unlabelled is not None:
        shown.print(
            f"Unlabelled: {plural(unlabelled, 'tile')} in {settings.data_root}/{UNLABELLED}."
        )
    shown.print(f"Wrote {settings.data_root}. Next: {script_command('train', words)}")
    if unlabelled is not None and settings.data.fit == "crop":
        words.append(as_override(UNLABELLED, f"{settings.data_root}/{UNLABELLED}", TileSettings))
        shown.print(f"Or, with {UNLABELLED}/: {script_command('train_segmenter', words)}")
