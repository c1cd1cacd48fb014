"""The same ground twice: copies, near-duplicates, and neighbouring tiles, in and across splits."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.audit.facts import ImageFacts, PairFacts, image_facts
from geoseg_gan.data.audit.findings import Findings, Severity, those
from geoseg_gan.data.audit.folders import Entry
from geoseg_gan.data.audit.similar import TURNS, near_duplicates
from geoseg_gan.data.pairs import TILES_CSV, group_of, known_groups, read_stems
from geoseg_gan.utils.errors import UserError

_SLACK = 0.51  # pixels between tiles that still touch
_LEAST_OVERLAP = 0.01  # of the smaller one's area; less is rounding
_MANY = 0.5  # share of validation tiles beside training tiles that makes scores worthless
_SPLIT = "Scores on them will be too good. Split by location group, as scripts/tile.py does"
_SERIES = {
    "grid": r"(?i)^(.*?)[ _-]*r(?:ow)?[_-]?(\d+)[ _-]*c(?:ol)?[_-]?(\d+)$",
    "offsets": r"^(.*?)[ _-](\d+)[ _-](\d+)$",
    "numbers": r"^(.*?)[ _-]*(\d+)$",
}
"""Names of tiles of one picture: what they share, then a row and column, or one number."""


class Footprint(NamedTuple):
    """The ground that a tile covers, in units of its frame."""

    frame: str  # a source image, or a coordinate reference system
    left: float
    top: float
    right: float
    bottom: float  # greater than top
    pixel: float  # side of a pixel


@dataclass(frozen=True)
class Relation:
    """Two pairs that show the same ground, or ground beside each other; why is in words."""

    kind: str  # "copies", "near_duplicates", "overlaps" or "neighbours"
    first: PairFacts
    second: PairFacts
    why: str

    def __str__(self) -> str:
        """Both in words."""
        return f"{self.first.entry.name} and {self.second.entry.name} ({self.why})"

    @property
    def is_across(self) -> bool:
        """Whether the two are in different splits."""
        return self.first.entry.split != self.second.entry.split


def find_copies(facts: Sequence[PairFacts]) -> list[Relation]:
    """Images with the same pixels, and those that show the same though pixels differ."""
    by_digest: dict[bytes, list[PairFacts]] = defaultdict(list)
    thumbnails: dict[bytes, npt.NDArray[np.uint8]] = {}
    for f, image in image_facts(facts):
        if image.empty < 1:  # empty tiles are alike, but no copies
            by_digest[image.digest].append(f)
            thumbnails.setdefault(image.digest, image.thumbnail)
    found = []
    for first, *copies in by_digest.values():
        # Of many copies, one is compared with the others.
        found += [Relation("copies", first, other, "the same pixels") for other in copies]
        others = (
            Relation("copies", *two, "the same pixels") for two in combinations(copies[:19], 2)
        )
        found += [relation for relation in others if relation.is_across]
    single = [copies[0] for copies in by_digest.values()]
    for match in near_duplicates(np.stack([*thumbnails.values()])) if len(single) > 1 else []:
        why = f"correlation {match.correlation:.3f}" + f", {TURNS[match.turn]}" * bool(match.turn)
        found.append(Relation("near_duplicates", single[match.first], single[match.second], why))
    return found


def find_neighbours(facts: Sequence[PairFacts], root: Path) -> tuple[list[Relation], str]:
    """Tiles of different splits beside each other, or of the same ground.

    Returns:
        The neighbours, and how they are known: "tiles.csv", "georeference" or "names".
    """
    splits: dict[str, list[PairFacts]] = defaultdict(list)
    for f in facts:
        splits[f.entry.split].append(f)
    windows = _windows(root, [f.entry.stem for f in facts])
    ways: dict[str, Callable[[PairFacts], Footprint | None]] = {
        "tiles.csv": lambda f: windows.get(f.entry.stem),
        "georeference": _place,
    }
    for source, footprint in ways.items():
        if any(map(footprint, facts)):
            return [
                Relation("overlaps", one[a], other[b], f"{share:.0%} the same ground")
                if share
                else Relation("neighbours", one[a], other[b], "side by side")
                for one, other in combinations(splits.values(), 2)
                for a, b, share in footprint_neighbours(
                    *([*map(footprint, s)] for s in (one, other))
                )
            ], source
    return [
        Relation("neighbours", one[a], other[b], "by their names")
        for one, other in combinations(splits.values(), 2)
        for a, b in name_neighbours(*([f.entry.stem for f in s] for s in (one, other)))
    ], "names"


def add_copy_findings(findings: Findings, copies: Sequence[Relation]) -> None:
    """Adds findings on copies and near-duplicates, across splits and within."""
    for kind, verb, what in (
        ("copies", "have", "the same pixels"),
        ("near_duplicates", "show", "the same but for small changes"),
    ):
        across, within = (
            _by_second(r for r in copies if r.kind == kind and r.is_across == wanted)
            for wanted in (True, False)
        )
        text = f"{those(across, 'image', verb)} {what} as one of another split"
        advice = "Scores on these prove nothing: remove them from one split."
        findings.add("error", f"{kind}_across", across, text, advice)
        text = f"{those(within, 'image', verb)} {what} as another one of the same split"
        advice = "They count double: remove one of each, if that is not meant."
        findings.add("note", f"{kind}_within", within, text, advice)


def add_neighbour_findings(
    findings: Findings, facts: Sequence[PairFacts], neighbours: Sequence[Relation], source: str
) -> None:
    """Adds findings on tiles of different splits that lie beside each other, or overlap."""
    same = _by_second(r for r in neighbours if r.kind == "overlaps")
    text = f"{those(same, 'tile', 'share')} ground with tiles of another split, by {source}"
    findings.add("error", "overlaps_across", same, text, f"{_SPLIT}.")
    near = [r for r in neighbours if r.kind == "neighbours"]
    if not near:
        return
    touched, split = _by_second(near), near[0].second.entry.split
    total = sum(f.entry.split == split for f in facts)
    text = f"{len(touched):,} of {total:,} tiles in {split} lie beside tiles of another split"
    advice = f"{_SPLIT}, and leave a gap between the parts."
    is_sure = source != "names" and len(touched) > _MANY * total
    text += f", by {source}" if source != "names" else ", by their names"
    severity: Severity = "error" if is_sure else "warning"
    findings.add(severity, "neighbours_across", touched, text, advice)


def add_group_findings(
    findings: Findings, facts: Sequence[PairFacts], root: Path, group_regex: str | None
) -> None:
    """Adds findings on location groups that stand in several splits, or are unknown."""
    stems = [f.entry.stem for f in facts]
    try:
        groups = known_groups(root, stems)
        if group_regex is not None:
            knob = "data.group_regex"
            groups = {s: groups.get(s) or group_of(s, group_regex, knob) for s in stems}
    except UserError as error:
        findings.add("error", "groups", 1, str(error))
        return
    splits: dict[str, set[str]] = defaultdict(set)
    for f in facts:
        splits[groups.get(f.entry.stem, f.entry.name)].add(f.entry.split)
    shared = sorted(group for group, names in splits.items() if len(names) > 1)
    text = f"{those(shared, 'location group', 'stand')} in more than one split"
    findings.add("error", "shared_groups", shared, text, f"{_SPLIT}.")


def _by_second(relations: Iterable[Relation]) -> list[Relation]:
    """One relation for each second pair, of which findings count the number."""
    return [*{id(relation.second): relation for relation in relations}.values()]


def _windows(root: Path, stems: Sequence[str]) -> dict[str, Footprint]:
    """The window of every tile in its source by tiles.csv, where that has them."""
    found: dict[str, Footprint] = {}
    # A table of the user's own may have groups alone.
    with suppress(UserError, OSError, ValueError):
        sources, windows = (
            read_stems(root / TILES_CSV, column, "", stems) for column in ("source", "window")
        )
        for stem, window in windows.items():
            left, top, width, height = map(float, window.split())
            found[stem] = Footprint(sources[stem], left, top, left + width, top + height, 1)
    return found


def _place(f: PairFacts) -> Footprint | None:
    """What an image covers by its georeference."""
    place = f.image.place if isinstance(f.image, ImageFacts) else None
    if place is None:
        return None
    corners = [place.point(x, y) for x in (0, place.width) for y in (0, place.height)]
    (left, *_, right), (top, *_, bottom) = (sorted(axis) for axis in zip(*corners, strict=True))
    return Footprint(place.name, left, top, right, bottom, place.pixel_size)


def footprint_neighbours(
    first: Sequence[Footprint | None], second: Sequence[Footprint | None]
) -> list[tuple[int, int, float]]:
    """Tiles of two lists whose footprints overlap, or touch along a side.

    Footprints of other frames are not compared; None stands for a tile whose place is not known.

    Returns:
        The positions of both, and the share of the smaller one that both cover; 0 where they touch.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, place in enumerate(second):
        if place is not None:
            rows[place.frame].append(row)
    boxes = {frame: np.array([second[row][1:] for row in its]) for frame, its in rows.items()}  # type: ignore[index]
    found = []
    for row, place in enumerate(first):
        if place is None or place.frame not in boxes:
            continue
        left, top, right, bottom, pixel = boxes[place.frame].T
        wide = np.minimum(right, place.right) - np.maximum(left, place.left)
        high = np.minimum(bottom, place.bottom) - np.maximum(top, place.top)
        slack = _SLACK * np.maximum(pixel, place.pixel)
        area = np.minimum(
            (right - left) * (bottom - top), (place.right - place.left) * (place.bottom - place.top)
        )
        share = wide.clip(0) * high.clip(0) / np.maximum(area, 1e-12)
        share[share < _LEAST_OVERLAP] = 0
        # Along a side, not at a corner alone.
        touch = (np.minimum(wide, high) >= -slack) & (np.maximum(wide, high) > slack)
        near = np.flatnonzero((share > 0) | touch)
        found += [(row, rows[place.frame][at], float(share[at])) for at in near]
    return found


def name_neighbours(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """Tiles of two lists of stems that stand beside each other by their names.

    These are equal but for row and column (`scene_r01_c02`) or two offsets (`scene_256_512`). A
    single number (`scene_17`) says nothing of the place.
    """
    grids: dict[tuple[str, str], dict[tuple[int, int], list[tuple[int, int]]]] = {}
    for part, stems in enumerate((first, second)):
        for row, stem in enumerate(stems):
            for kind in ("grid", "offsets"):
                if match := re.match(_SERIES[kind], stem):
                    grid = grids.setdefault((kind, match[1]), defaultdict(list))
                    grid[int(match[2]), int(match[3])].append((part, row))
                    break
    found = set()
    for grid in grids.values():
        # Offsets in pixels have the distance of tiles as their least difference.
        axes = [np.unique(axis) for axis in zip(*grid, strict=True)]
        down, right = (int(np.diff(axis).min()) if len(axis) > 1 else 0 for axis in axes)
        for (row, column), tiles in grid.items():
            for way in filter(any, ((down, 0), (0, right))):
                beside = grid.get((row + way[0], column + way[1]), [])
                pairs = ((one, other) for one in tiles for other in beside if one[0] != other[0])
                found |= {(min(pair)[1], max(pair)[1]) for pair in pairs}
    return sorted(found)


def group_pattern(entries: Sequence[Entry]) -> tuple[str, int] | None:
    """A regular expression by which stems fall into location groups, and how many these are.

    Of the patterns of `name_neighbours` it is the first that fits all stems and makes groups of two
    tiles each on average, none of which is in two splits, and two or more in one split.
    """
    for kind, pattern in _SERIES.items():
        matches = [re.match(pattern, entry.stem) for entry in entries]
        names = [match[1] for match in matches if match and match[1]]
        if len(names) < len(entries):
            continue
        places = {(name, entry.split) for name, entry in zip(names, entries, strict=True)}
        most = max(Counter(split for _, split in places).values(), default=0)
        if most >= 2 and len(places) == len(set(names)) <= len(entries) / 2:
            # Without groups of numbers, of which the location group would be none.
            return pattern.replace(r"(\d+)", r"\d+"), len(places)
        if kind == "grid":  # whose rows are no pictures
            break
    return None
