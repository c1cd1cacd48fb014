"""Where tiles lie, and which split each location group is in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from geoseg_gan.data.georeference import Georeference, overlapping
from geoseg_gan.data.pairs import DataError, Pair, Split, search
from geoseg_gan.data.settings import TileSettings
from geoseg_gan.data.windows import window_starts
from geoseg_gan.utils.errors import UserError, plural


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
