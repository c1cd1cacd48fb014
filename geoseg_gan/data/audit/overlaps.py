"""The same ground twice: copies, near-duplicates, and neighbouring tiles, in and across splits."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from geoseg_gan.data.audit.checks import image_facts, mask_facts, pixel_size
from geoseg_gan.data.audit.findings import Finding, Severity, some, those
from geoseg_gan.data.audit.measure import ImageFacts, PairFacts
from geoseg_gan.data.audit.neighbours import (
    Footprint,
    footprint_neighbours,
    name_neighbours,
)
from geoseg_gan.data.audit.similar import TURNS, continue_each_other, near_duplicates
from geoseg_gan.data.georeference import Georeference

_MANY = 0.5  # share of validation tiles beside training tiles that makes scores worthless
_CONFIRMED = 0.3  # share of neighbours by name whose borders fit, above which names are believed
_TOUCHING = "scores on them will be too good"
_SPLIT = "Split by location group, as scripts/tile.py does"


@dataclass(frozen=True)
class Relation:
    """Two pairs that show the same ground, or ground beside each other; why is in words."""

    kind: str  # "copy", "near-duplicate" or "neighbour"
    first: int
    second: int
    why: str


def find_copies(facts: Sequence[PairFacts]) -> list[Relation]:
    """Images with the same pixels, and those that show the same though pixels differ."""
    rows = [row for row, f in enumerate(facts) if isinstance(f.image, ImageFacts)]
    images = [image for _, image in image_facts(facts)]
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for row, image in zip(rows, images, strict=True):
        if image.blank + image.missing < 1:  # empty tiles are alike, but no copies
            by_digest[image.digest].append(row)
    found = []
    for copies in by_digest.values():
        # Of many copies, one is compared with the others.
        found += [Relation("copy", copies[0], row, "the same pixels") for row in copies[1:]]
        found += [
            Relation("copy", a, b, "the same pixels")
            for a, b in combinations(copies[1:20], 2)
            if facts[a].entry.split != facts[b].entry.split
        ]
    single = [copies[0] for copies in by_digest.values()]
    thumbnails = {row: image.thumbnail for row, image in zip(rows, images, strict=True)}
    if len(single) > 1:
        for match in near_duplicates(np.stack([thumbnails[row] for row in single])):
            turned = f", {TURNS[match.turn]}" if match.turn else ""
            why = f"correlation {match.correlation:.3f}{turned}"
            first, second = sorted((single[match.first], single[match.second]))
            found.append(Relation("near-duplicate", first, second, why))
    return found


def find_neighbours(
    facts: Sequence[PairFacts], windows: Sequence[Footprint | None]
) -> tuple[list[Relation], str]:
    """Tiles of different splits beside each other, or of the same ground.

    Args:
        facts: All pairs.
        windows: The window of each in its source image, where tiles.csv tells it.

    Returns:
        The neighbours, and how they are known: "tiles.csv", "georeference" or "names".
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, f in enumerate(facts):
        rows_of[f.entry.split].append(row)
    places = [_footprint(f.image.place) if isinstance(f.image, ImageFacts) else None for f in facts]
    for source, prints in (("tiles.csv", windows), ("georeference", places)):
        if any(place is not None for place in prints):
            found = []
            for one, other in combinations(rows_of.values(), 2):
                near = footprint_neighbours([prints[r] for r in one], [prints[r] for r in other])
                found += [
                    Relation(
                        "neighbour",
                        one[n.first],
                        other[n.second],
                        f"{n.overlap:.0%} the same ground" if n.overlap else "side by side",
                    )
                    for n in near
                ]
            return found, source
    found = []
    for one, other in combinations(rows_of.values(), 2):
        stems = [[facts[row].entry.stem for row in rows] for rows in (one, other)]
        found += [
            Relation("neighbour", one[a], other[b], "by their names")
            for a, b in name_neighbours(*stems)
        ]
    return found, "names"


def copy_findings(facts: Sequence[PairFacts], copies: Sequence[Relation]) -> list[Finding]:
    """Findings on copies and near-duplicates, and on masks that several images share."""
    findings = []
    for kind in ("copy", "near-duplicate"):
        mine = [relation for relation in copies if relation.kind == kind]
        across = [r for r in mine if facts[r.first].entry.split != facts[r.second].entry.split]
        within = [r for r in mine if r not in set(across)]
        verb, what = ("have", "the same pixels")
        if kind != "copy":
            verb, what = ("show", "the same but for small changes")
        name = "copies" if kind == "copy" else "near_duplicates"
        if across:
            count = len({r.second for r in across})
            text = f"{those(count, 'image', verb)} {what} as one of another split"
            advice = f"Scores on these prove nothing: remove them from one split. {_SPLIT}."
            examples = some(_two(facts, r) for r in across)
            findings.append(Finding("error", f"{name}_across", text, advice, count, examples))
        if within:
            count = len({r.second for r in within})
            text = f"{those(count, 'image', verb)} {what} as another one of the same split"
            advice = "They count double: remove one of each, if that is not meant."
            examples = some(_two(facts, r) for r in within)
            findings.append(Finding("note", f"{name}_within", text, advice, count, examples))
    return findings + _shared_masks(facts, copies)


def _shared_masks(facts: Sequence[PairFacts], copies: Sequence[Relation]) -> list[Finding]:
    """A finding on masks of several classes that different images share."""
    alike = {frozenset((r.first, r.second)) for r in copies}
    rows = {id(f): row for row, f in enumerate(facts)}
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for f, mask in mask_facts(facts):
        if np.count_nonzero(mask.pixels) >= 2 and f.image is not None:
            by_digest[mask.digest].append(rows[id(f)])
    shared = [
        (mine[0], row)
        for mine in by_digest.values()
        for row in mine[1:]
        if frozenset((mine[0], row)) not in alike
    ]
    if not shared:
        return []
    text = f"{those(len(shared), 'mask', 'are')} the same as that of another image"
    examples = some(f"{facts[a].entry.name} and {facts[b].entry.name}" for a, b in shared)
    advice = "One of each two was probably exported under a wrong name."
    return [Finding("warning", "shared_masks", text, advice, len(shared), examples)]


def neighbour_findings(
    facts: Sequence[PairFacts], neighbours: Sequence[Relation], source: str
) -> list[Finding]:
    """Findings on tiles of different splits that lie beside each other."""
    if not neighbours:
        return []
    findings = []
    same = [r for r in neighbours if "same ground" in r.why]
    beside = [r for r in neighbours if "same ground" not in r.why]
    if same:
        count = len({r.second for r in same})
        text = f"{those(count, 'tile', 'share')} ground with tiles of another split, by {source}"
        advice = f"{_TOUCHING[0].upper()}{_TOUCHING[1:]}. {_SPLIT}."
        examples = some(_two(facts, r) for r in same)
        findings.append(Finding("error", "overlaps_across", text, advice, count, examples))
    if not beside:
        return findings
    touched = {r.second for r in beside}
    split = facts[beside[0].second].entry.split
    total = sum(f.entry.split == split for f in facts)
    text = f"{len(touched):,} of {total:,} tiles in {split} lie beside tiles of another split"
    advice = f"{_TOUCHING[0].upper()}{_TOUCHING[1:]}. {_SPLIT}, and leave a gap between the parts."
    severity: Severity = "error" if len(touched) > _MANY * total else "warning"
    if source == "names":
        fitting = [r for r in beside if _borders_fit(facts, r)]
        share = len(fitting) / len(beside)
        text += f" by their names; the borders of {share:.0%} of these fit"
        if share < _CONFIRMED:
            severity = "note"
            advice = (
                "Probably numbers without meaning; if they are places, split by location group."
            )
        else:
            severity = "warning"
            beside = fitting
    else:
        text += f", by {source}"
    examples = some(_two(facts, r) for r in beside)
    findings.append(Finding(severity, "neighbours_across", text, advice, len(touched), examples))
    return findings


def group_findings(facts: Sequence[PairFacts], groups: Sequence[str]) -> list[Finding]:
    """A finding on location groups that stand in several splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for f, group in zip(facts, groups, strict=True):
        splits[group].add(f.entry.split)
    shared = sorted(group for group, names in splits.items() if len(names) > 1)
    if not shared:
        return []
    text = f"{those(len(shared), 'location group', 'stand')} in more than one split"
    advice = f"{_TOUCHING[0].upper()}{_TOUCHING[1:]}. {_SPLIT}."
    return [Finding("error", "shared_groups", text, advice, len(shared), some(shared))]


def _borders_fit(facts: Sequence[PairFacts], relation: Relation) -> bool:
    images = [facts[row].image for row in (relation.first, relation.second)]
    one, other = (i.borders if isinstance(i, ImageFacts) else None for i in images)
    return one is not None and other is not None and continue_each_other(one, other)


def _two(facts: Sequence[PairFacts], relation: Relation) -> str:
    names = (facts[row].entry.name for row in (relation.first, relation.second))
    return f"{' and '.join(names)} ({relation.why})"


def _footprint(place: Georeference | None) -> Footprint | None:
    if place is None:
        return None
    corners = [place.point(x, y) for x in (0, place.width) for y in (0, place.height)]
    (left, *_, right), (top, *_, bottom) = (sorted(axis) for axis in zip(*corners, strict=True))
    return Footprint(place.name, left, top, right, bottom, pixel_size(place))
