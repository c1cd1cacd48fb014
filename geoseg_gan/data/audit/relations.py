"""The same ground twice: copies, near-duplicates, and neighbouring tiles, in and across splits."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.audit.facts import ImageFacts, PairFacts, image_facts
from geoseg_gan.data.audit.findings import Findings, Severity, those
from geoseg_gan.data.audit.neighbours import Footprint, footprint_neighbours, name_neighbours
from geoseg_gan.data.audit.similar import TURNS, continue_each_other, near_duplicates
from geoseg_gan.data.pairs import TILES_CSV, group_of, known_groups, read_stems
from geoseg_gan.utils.errors import UserError

_MANY = 0.5  # share of validation tiles beside training tiles that makes scores worthless
_CONFIRMED = 0.3  # share of neighbours by name whose borders fit, above which names are believed
_SPLIT = "Scores on them will be too good. Split by location group, as scripts/tile.py does"


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
    severity: Severity = "error" if len(touched) > _MANY * total else "warning"
    if source == "names":
        fitting = [r for r in near if _borders_fit(r)]
        share, severity = len(fitting) / len(near), "warning"
        text += f" by their names; the borders of {share:.0%} of these fit"
        if share < _CONFIRMED:
            severity = "note"
            advice = "Probably numbers without meaning; if they are places, split by them."
        else:
            touched = _by_second(fitting)
    else:
        text += f", by {source}"
    findings.add(severity, "neighbours_across", touched, text, advice)


def add_group_findings(
    findings: Findings, facts: Sequence[PairFacts], root: Path, group_regex: str | None
) -> None:
    """Adds findings on location groups that stand in several splits, or that cannot be told."""
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


def _borders_fit(relation: Relation) -> bool:
    one, other = relation.first.image, relation.second.image
    if not (isinstance(one, ImageFacts) and isinstance(other, ImageFacts)):
        return False
    return continue_each_other(one.borders, other.borders)


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
