"""The same ground twice: copies, near-duplicates, and neighbouring tiles, in and across splits."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from geoseg_gan.data.audit.facts import ImageFacts
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

    frame: str  # a source image, a coordinate reference system, or what names share
    left: float
    top: float
    right: float
    bottom: float  # greater than top
    pixel: float  # side of a pixel


@dataclass(frozen=True)
class Relation:
    """Two pairs that show the same ground, or ground beside each other; why is in words."""

    kind: str  # "copies", "near_duplicates", "overlaps" or "neighbours"
    first: Entry
    second: Entry
    why: str

    def __str__(self) -> str:
        """Both in words."""
        return f"{self.first.name} and {self.second.name} ({self.why})"

    @property
    def is_across(self) -> bool:
        """Whether the two are in different splits."""
        return self.first.split != self.second.split


def find_copies(images: Sequence[ImageFacts]) -> list[Relation]:
    """Images with the same pixels, and those that show the same though pixels differ."""
    by_digest: dict[bytes, list[ImageFacts]] = defaultdict(list)
    for image in images:
        if image.empty < 1:  # empty tiles are alike, but no copies
            by_digest[image.digest].append(image)
    found = []
    for first, *copies in by_digest.values():
        # Of many copies, one is compared with the others.
        pairs = [(first, other) for other in copies]
        pairs += [two for two in combinations(copies[:19], 2)
                  if two[0].entry.split != two[1].entry.split]  # fmt: skip
        found += [Relation("copies", a.entry, b.entry, "the same pixels") for a, b in pairs]
    single = [copies[0] for copies in by_digest.values()]
    thumbnails = [image.thumbnail for image in single]
    for match in near_duplicates(np.stack(thumbnails)) if len(single) > 1 else []:
        why = f"correlation {match.correlation:.3f}" + f", {TURNS[match.turn]}" * bool(match.turn)
        two = single[match.first].entry, single[match.second].entry
        found.append(Relation("near_duplicates", *two, why))
    return found


def find_neighbours(
    entries: Sequence[Entry], images: Sequence[ImageFacts], root: Path
) -> tuple[list[Relation], str]:
    """Tiles of different splits beside each other, or of the same ground.

    Returns:
        The neighbours, and how they are known: "tiles.csv", "georeference" or "names".
    """
    source, places = "tiles.csv", _windows(root, entries)
    if not places:
        source, places = "georeference", _georeferenced(images)
    if not places:
        source, places = "names", named_places(entries)
    found = []
    for one, other in combinations(dict.fromkeys(entry.split for entry in entries), 2):
        parts = ({e: p for e, p in places.items() if e.split == split} for split in (one, other))
        for first, second, share in footprint_neighbours(*parts):
            if not share:
                why = "by their names" if source == "names" else "side by side"
                found.append(Relation("neighbours", first, second, why))
            elif source != "names":  # of which equal ones say nothing of the ground
                found.append(Relation("overlaps", first, second, f"{share:.0%} the same ground"))
    return found, source


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
    findings: Findings, entries: Sequence[Entry], neighbours: Sequence[Relation], source: str
) -> None:
    """Adds findings on tiles of different splits that lie beside each other, or overlap."""
    same = _by_second(r for r in neighbours if r.kind == "overlaps")
    text = f"{those(same, 'tile', 'share')} ground with tiles of another split, by {source}"
    findings.add("error", "overlaps_across", same, text, f"{_SPLIT}.")
    near = [r for r in neighbours if r.kind == "neighbours"]
    if not near:
        return
    touched, split = _by_second(near), near[0].second.split
    total = sum(entry.split == split for entry in entries)
    text = f"{len(touched):,} of {total:,} tiles in {split} lie beside tiles of another split"
    advice = f"{_SPLIT}, and leave a gap between the parts."
    is_sure = source != "names" and len(touched) > _MANY * total
    text += f", by {source}" if source != "names" else ", by their names"
    severity: Severity = "error" if is_sure else "warning"
    findings.add(severity, "neighbours_across", touched, text, advice)


def add_group_findings(
    findings: Findings, entries: Sequence[Entry], root: Path, group_regex: str | None
) -> None:
    """Adds findings on location groups that stand in several splits, or are unknown."""
    stems = [entry.stem for entry in entries]
    try:
        groups = known_groups(root, stems)
        if group_regex is not None:
            knob = "data.group_regex"
            groups = {s: groups.get(s) or group_of(s, group_regex, knob) for s in stems}
    except UserError as error:
        findings.add("error", "groups", 1, str(error))
        return
    splits: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        splits[groups.get(entry.stem, entry.name)].add(entry.split)
    shared = sorted(group for group, names in splits.items() if len(names) > 1)
    text = f"{those(shared, 'location group', 'stand')} in more than one split"
    findings.add("error", "shared_groups", shared, text, f"{_SPLIT}.")


def _by_second(relations: Iterable[Relation]) -> list[Relation]:
    """One relation for each second pair, of which findings count the number."""
    return [*{relation.second: relation for relation in relations}.values()]


def _windows(root: Path, entries: Sequence[Entry]) -> dict[Entry, Footprint]:
    """The window of every tile in its source by tiles.csv, where that has them."""
    found: dict[Entry, Footprint] = {}
    stems = [entry.stem for entry in entries]
    # A table of the user's own may have groups alone.
    with suppress(UserError, OSError, ValueError):
        sources, windows = (
            read_stems(root / TILES_CSV, column, "", stems) for column in ("source", "window")
        )
        for entry in entries:
            if window := windows.get(entry.stem):
                left, top, width, height = map(float, window.split())
                box = left, top, left + width, top + height
                found[entry] = Footprint(sources[entry.stem], *box, 1)
    return found


def _georeferenced(images: Sequence[ImageFacts]) -> dict[Entry, Footprint]:
    """What images cover by their georeferences."""
    found = {}
    for image in images:
        if (place := image.place) is not None:
            left, bottom, right, top = place.box
            found[image.entry] = Footprint(place.name, left, bottom, right, top, place.pixel_size)
    return found


def named_places(entries: Sequence[Entry]) -> dict[Entry, Footprint]:
    """Where tiles lie in a grid by their names; a frame is what names of one grid share.

    They differ in row and column (`scene_r01_c02`) or in two offsets (`scene_256_512`). A single
    number (`scene_17`) says nothing of the place.
    """
    grids: dict[str, dict[Entry, tuple[int, int]]] = defaultdict(dict)
    for entry in entries:
        for kind in ("grid", "offsets"):
            if match := re.match(_SERIES[kind], entry.stem):
                grids[f"{kind} {match[1]}"][entry] = int(match[2]), int(match[3])
                break
    found = {}
    for frame, cells in grids.items():
        # Offsets in pixels have the distance of tiles as their least difference.
        axes = [np.unique(axis) for axis in zip(*cells.values(), strict=True)]
        high, wide = (int(np.diff(axis).min()) if len(axis) > 1 else 1 for axis in axes)
        for entry, (row, column) in cells.items():
            found[entry] = Footprint(frame, column, row, column + wide, row + high, 0)
    return found


def footprint_neighbours(
    first: Mapping[Entry, Footprint], second: Mapping[Entry, Footprint]
) -> list[tuple[Entry, Entry, float]]:
    """Tiles of two splits whose footprints overlap, or touch along a side.

    Footprints of other frames are not compared.

    Returns:
        Both, and the share of the smaller one that both cover; 0 where they touch.
    """
    frames: dict[str, list[Entry]] = defaultdict(list)
    for entry, place in second.items():
        frames[place.frame].append(entry)
    boxes = {frame: np.array([second[e][1:] for e in its]).T for frame, its in frames.items()}
    found = []
    for entry, place in first.items():
        if place.frame not in boxes:
            continue
        left, top, right, bottom, pixel = boxes[place.frame]
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
        found += [(entry, frames[place.frame][at], float(share[at])) for at in near]
    return found


def group_pattern(entries: Sequence[Entry]) -> tuple[str, int] | None:
    """A regular expression by which stems fall into location groups, and how many these are.

    Of the patterns of `named_places` it is the first that fits all stems and makes groups of two
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
