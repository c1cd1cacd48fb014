"""What a data folder holds, what is wrong with it, and how its masks are to be read."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.config import compose
from geoseg_gan.data.audit.checks import (
    class_findings,
    file_findings,
    image_findings,
    mask_facts,
    mask_kind_findings,
    meters_of,
    place_findings,
)
from geoseg_gan.data.audit.findings import Finding, Severity, by_severity, some, those
from geoseg_gan.data.audit.folders import Folder, find_entries
from geoseg_gan.data.audit.measure import (
    ImageFacts,
    MaskFacts,
    PairFacts,
    count_labels,
    measure,
)
from geoseg_gan.data.audit.neighbours import Footprint, group_pattern
from geoseg_gan.data.audit.overlaps import (
    Relation,
    copy_findings,
    find_copies,
    find_neighbours,
    group_findings,
    neighbour_findings,
)
from geoseg_gan.data.audit.propose import Proposal, propose_colors, propose_numbers
from geoseg_gan.data.audit.values import Values, rgb_of, shared_colors
from geoseg_gan.data.masks import MaskReader, mask_reader
from geoseg_gan.data.pairs import TILES_CSV, group_of, known_groups, read_stems
from geoseg_gan.data.palette import Palette, PaletteClass
from geoseg_gan.data.settings import CheckDataSettings, DataSettings
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.messages import choices

_NEAR = 48.0  # distance in RGB of a damaged colour and that of its class
_MANY = 64  # unknown colours that no palette was written for, but damage has made
_SHOWN = 8  # unknown colours that a finding names
_MISFIT = 0.5  # share of pixels far from the palette above which another config is proposed


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        config: The settings.
        folder: The files.
        facts: What every pair holds.
        reader: How masks are read: as the proposal says where there is one, else as set.
        rows: The pairs whose mask was read, as places in `facts`.
        pixels: Pixels of every class and, last, of ignore of these: shape (N, C + 1).
        proposal: A data config for masks that the set one does not fit.
        copies: Pairs that show the same.
        neighbours: Pairs of different splits beside each other.
        findings: From the gravest to the least.
    """

    config: CheckDataSettings
    folder: Folder
    facts: list[PairFacts]
    reader: MaskReader
    rows: list[int]
    pixels: npt.NDArray[np.int64]
    proposal: Proposal | None
    copies: list[Relation]
    neighbours: list[Relation]
    findings: list[Finding]

    def count(self, severity: Severity) -> int:
        """How many findings are of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def summary(self) -> str:
        """The verdict in a line."""
        errors, warnings = self.count("error"), self.count("warning")
        pairs = plural(len(self.folder.pairs()), "pair")
        if errors:
            more = f" and {plural(warnings, 'warning')}" if warnings else ""
            return f"{pairs}: training would be a mistake ({plural(errors, 'error')}{more})"
        if warnings:
            return f"{pairs}: can be trained on, with {plural(warnings, 'warning')}"
        return f"{pairs}: nothing speaks against training"


def examine(config: CheckDataSettings) -> Check:
    """Reads a data folder and finds what is wrong with it; nothing is written.

    Raises:
        DataError: If the folder holds no images.
    """
    root = Path(config.data_root)
    folder = find_entries(root)
    facts = measure(folder.entries, mask_reader(config.data))
    masks = mask_facts(facts)
    reader = mask_reader(config.data)
    rows = [row for row, f in enumerate(facts) if isinstance(f.mask, MaskFacts)]
    pixels = np.array([mask.pixels for _, mask in masks], np.int64)
    pixels = pixels.reshape(len(rows), reader.palette.num_classes + 1)
    misfit = misfit_findings(masks, reader)
    proposal = None
    # A single class among all masks is a sign of numbers that are read as ignore.
    is_misfit = (
        any(finding.severity != "note" for finding in misfit)
        or np.count_nonzero(pixels[:, :-1].sum(0)) < 2
    )
    if masks and (config.propose == "always" or (config.propose == "auto" and is_misfit)):
        proposal = _propose(masks, config.data)
    findings = [*folder.findings]
    findings += file_findings(facts, config.image_size, config.data.fit, folder.is_ready)
    findings += mask_kind_findings(facts, config.data.mask_format)
    if proposal is not None:
        proposal = _completed(proposal, facts, config)
        reader = mask_reader(proposed_settings(config.data, proposal))
        counted = count_labels([facts[row].entry for row in rows], reader)
        read = [(row, c) for row, c in zip(rows, counted, strict=True) if not isinstance(c, str)]
        rows = [row for row, _ in read]
        classes = reader.palette.num_classes + 1
        pixels = np.array([c[0] for _, c in read], np.int64).reshape(len(read), classes)
        if proposal.unknown == "nearest":
            proposal = proposal.counted(pixels)
        proposal = replace(proposal, repaired=sum(c[1] for _, c in read))
        misfit = [replace(finding, advice=_advice(proposal)) for finding in misfit]
        findings += [*misfit, _about(proposal, "error" if is_misfit and not misfit else "note")]
    else:
        findings += misfit
    if len(rows):
        read_pairs = [facts[row] for row in rows]
        names = reader.palette.names
        if proposal is not None or not any(finding.severity == "error" for finding in misfit):
            findings += class_findings(read_pairs, pixels, names, folder.is_ready)
        findings += ignored_colors(masks, reader)
    findings += image_findings(facts)
    findings += place_findings(facts, config.data.gsd)
    copies = find_copies(facts)
    findings += copy_findings(facts, copies)
    neighbours: list[Relation] = []
    try:
        windows, groups = _tiles(root, facts, config.data.group_regex)
    except UserError as error:
        findings.append(Finding("error", "groups", str(error).rstrip(".")))
    else:
        if len(folder.splits) > 1:
            neighbours, source = find_neighbours(facts, windows)
            findings += neighbour_findings(facts, neighbours, source)
            findings += group_findings(facts, groups)
    return Check(
        config=config,
        folder=folder,
        facts=facts,
        reader=reader,
        rows=rows,
        pixels=pixels,
        proposal=proposal,
        copies=copies,
        neighbours=neighbours,
        findings=by_severity(findings),
    )


def misfit_findings(
    masks: Sequence[tuple[PairFacts, MaskFacts]], reader: MaskReader
) -> list[Finding]:
    """Findings on masks that the settings cannot read, or with colours or numbers they lack."""
    findings = []
    refused = [mask for _, mask in masks if mask.refusal is not None]
    if refused:
        text = f"{those(len(refused), 'mask', 'cannot')} be read with these data settings"
        examples = some(mask.refusal for mask in refused)
        advice = "Correct data.mask_format, or use the proposed config."
        findings.append(Finding("error", "refused_masks", text, advice, len(refused), examples))
    strange = [(f, mask) for f, mask in masks if mask.unknown]
    if not strange:
        return findings
    pixels = sum(mask.unknown for _, mask in strange)
    total = sum(int(mask.pixels.sum()) for _, mask in masks)
    what = "colours" if reader.mask_format == "rgb" else "numbers"
    text = (
        f"{pixels:,} pixels ({pixels / max(1, total):.2%}) in {len(strange):,} of "
        f"{those(len(masks), 'mask', 'have')} {what} that are not in the data config"
    )
    listed = unknown_values(strange, reader)
    examples = [text for _, text, _ in listed[:_SHOWN]]
    near = sum(count for count, _, distance in listed if distance <= _NEAR)
    whole = sum(count for count, _, _ in listed)
    severity: Severity = "error"
    if reader.unknown != "error":
        strange_pixels = pixels if reader.unknown == "ignore" else pixels - near
        severity = "warning" if strange_pixels > _MISFIT * total else "note"
        advice = f"data.unknown={reader.unknown} reads them as {_meaning(reader)}."
    elif reader.mask_format == "rgb" and len(listed) > _MANY and near > 0.5 * whole:
        advice = (
            f"{near:,} of them are near to a class's colour, as JPEG and smoothed edges make them: "
            "repair them with data.unknown=nearest."
        )
    else:
        advice = "Add them to data.palette or data.ignore, or choose another data config."
        if reader.mask_format == "index":
            advice = "Say in data.index_map what they mean."
    kind = "unknown_colors" if reader.mask_format == "rgb" else "unknown_numbers"
    findings.append(Finding(severity, kind, text, advice, len(strange), examples))
    return findings


def unknown_values(
    masks: Sequence[tuple[PairFacts, MaskFacts]], reader: MaskReader
) -> list[tuple[int, str, float]]:
    """What masks hold that the settings do not know, the most frequent first.

    Returns:
        Pixels, a description, and the distance in RGB from the nearest colour of the palette;
        infinite for numbers.
    """
    if reader.mask_format == "index":
        values = Values.joined(mask.numbers() for _, mask in masks)
        known = {value for value, _ in reader.index_map or ()} | {255}
        if reader.index_map is None:
            known |= set(range(reader.palette.num_classes))
        return [
            (int(count), f"{value}: {int(count):,} pixels in {plural(int(held), 'mask')}", np.inf)
            for value, count, held in zip(
                values.values.tolist(), values.pixels, values.masks, strict=True
            )
            if value not in known
        ]
    values = Values.joined(mask.colors() for _, mask in masks)
    palette = reader.palette
    colors = np.array([c.color for c in palette.classes] + [list(c) for c in palette.ignore])
    names = [palette.describe(label) for label in range(palette.num_classes)]
    names += [f"'ignore' {tuple(color)}" for color in palette.ignore]
    listed = []
    for number, rgb in enumerate(rgb_of(values.values)):
        distances = np.sqrt(((colors - rgb) ** 2).sum(1))
        best = int(distances.argmin())
        if distances[best] == 0:
            continue
        count, held = int(values.pixels[number]), int(values.masks[number])
        color = tuple(int(v) for v in rgb)
        text = f"{color}: {count:,} pixels in {plural(held, 'mask')}, nearest is {names[best]}"
        listed.append((count, text, float(distances[best])))
    return listed


def ignored_colors(
    masks: Sequence[tuple[PairFacts, MaskFacts]], reader: MaskReader
) -> list[Finding]:
    """Findings on colours that are read as ignore: each in how many masks."""
    if reader.mask_format != "rgb":
        return []
    values = Values.joined(mask.colors() for _, mask in masks)
    findings = []
    for color in reader.palette.ignore:
        code = int(np.dot(color, (1, 1 << 8, 1 << 16)))
        place = np.flatnonzero(values.values == code)
        if not len(place):
            continue
        number = int(place[0])
        held = int(values.masks[number])
        found = (f.entry.mask_name for f, mask in masks if code in mask.colors().values)
        text = (
            f"The colour {tuple(map(int, color))} is no class, but ignored: in {held:,} of "
            f"{plural(len(masks), 'mask')}, {values.share(number):.2%} of all pixels"
        )
        advice = "If it stands for something, give it a class."
        findings.append(Finding("note", "ignored_color", text, advice, held, some(found)))
    return findings


def proposed_settings(settings: DataSettings, proposal: Proposal) -> DataSettings:
    """Data settings with what a proposal says of masks."""
    classes = [PaletteClass(entry.name, list(entry.color)) for entry in proposal.classes]
    return replace(
        settings,
        palette=classes,
        ignore=[list(color) for color in proposal.ignore_colors],
        mask_format=proposal.mask_format,
        index_map=proposal.index_map,
        unknown=proposal.unknown,
    )


def _propose(
    masks: Sequence[tuple[PairFacts, MaskFacts]], settings: DataSettings
) -> Proposal | None:
    """A config by what the masks hold."""
    is_lossy = any(mask.is_lossy for _, mask in masks)
    count = len(masks)
    if any(mask.shows_colors() for _, mask in masks):
        values, even = (
            Values.joined(mask.colors(part) for _, mask in masks) for part in (False, True)
        )
        return propose_colors(values, even, is_lossy, count, _known_palettes(settings))
    values, even = (
        Values.joined(mask.numbers(part) for _, mask in masks) for part in (False, True)
    )
    colors = shared_colors(mask.table for _, mask in masks) or {}
    nodata = {mask.nodata for _, mask in masks if mask.nodata is not None}
    return propose_numbers(values, even, is_lossy, count, colors, nodata)


def _known_palettes(settings: DataSettings) -> dict[str, Palette]:
    """The palettes of all data configs of colours; "" is that which is set."""
    known = {"": settings.classes()} if settings.mask_format == "rgb" else {}
    own = settings.classes()
    return known | {name: other for name, other in _package_palettes().items() if other != own}


@cache
def _package_palettes() -> dict[str, Palette]:
    """The palettes of the data configs of the package whose masks are coloured, by name."""
    found = {name: compose(CheckDataSettings, [f"data={name}"]).data for name in choices("data")}
    return {name: data.classes() for name, data in found.items() if data.mask_format == "rgb"}


def _completed(
    proposal: Proposal, facts: Sequence[PairFacts], config: CheckDataSettings
) -> Proposal:
    """A proposal with groups, resolution and fit, where these are plain to see."""
    more: dict[str, tuple[Any, str]] = {}
    settings = config.data
    stems = [f.entry.stem for f in facts]
    has_table = (Path(config.data_root) / TILES_CSV).is_file()
    is_known = bool(proposal.source)
    found = None if settings.group_regex or has_table or is_known else group_pattern(stems)
    if found and not _straddles(found[0], facts):
        more["group_regex"] = found[0], f"by the names: {plural(found[1], 'location group')}"
    images = [f.image for f in facts if isinstance(f.image, ImageFacts)]
    places = [image.place for image in images if image.place is not None]
    known = {meters for place in places if (meters := meters_of(place)) is not None}
    if settings.gsd is None and len(known) == 1:
        more["gsd"] = known.pop(), "metres a pixel, by the georeference"
    if len({image.size for image in images}) > 1 and settings.fit == "crop":
        least = min(min(image.size) for image in images)
        if least < config.image_size // 2:
            more["fit"] = "resize", f"sizes differ, and the smallest is {least} pixels"
    return replace(proposal, more=more)


def _straddles(group_regex: str, facts: Sequence[PairFacts]) -> bool:
    """Whether a pattern makes groups that are in more than one split."""
    groups = [group_of(f.entry.stem, group_regex, "data.group_regex") for f in facts]
    pairs = {(group, f.entry.split) for group, f in zip(groups, facts, strict=True)}
    return len(pairs) > len(set(groups))


def _about(proposal: Proposal, severity: Severity) -> Finding:
    """The finding that a proposal was made, and what is in it."""
    count = len(proposal.classes)
    what = "colours" if proposal.mask_format == "rgb" else "numbers"
    if proposal.source is None:
        text = f"The masks hold {count} classes by their {what}"
    else:
        named = f"data={proposal.source}" if proposal.source else "the data config"
        new = sum(entry.remark == "new" for entry in proposal.classes)
        text = f"The masks have the classes of {named}" + f", and {new} more" * bool(new)
    if proposal.repaired:
        share = proposal.repaired / max(1, proposal.total)
        meaning = "as ignore" if proposal.unknown == "ignore" else "as the class of the nearest"
        text += f"; {proposal.repaired:,} pixels ({share:.2%}) of other {what} are read {meaning}"
    text = " ".join([f"{text}.", *proposal.notes]).rstrip(".")
    return Finding(severity, "proposal", text, _advice(proposal), count)


def _advice(proposal: Proposal) -> str:
    """Which config to use."""
    fits = all(entry.remark != "new" for entry in proposal.classes) and not proposal.repaired
    if proposal.source and fits:
        rivals = [f"data={name}" for name in proposal.rivals if name]
        same = f" ({', '.join(rivals)} has the same colours)" if rivals else ""
        return f"Use data={proposal.source}{same}."
    if any(entry.name.startswith("class_") for entry in proposal.classes):
        return "Fill in the names in the proposed config, and use it."
    return "Use the proposed config."


def _meaning(reader: MaskReader) -> str:
    return "ignore" if reader.unknown == "ignore" else "the class of the nearest colour"


def _tiles(
    root: Path, facts: Sequence[PairFacts], group_regex: str | None
) -> tuple[list[Footprint | None], list[str]]:
    """The window of every tile by tiles.csv, and its location group; its own name for none."""
    stems = [f.entry.stem for f in facts]
    groups = known_groups(root, stems)
    table = root / TILES_CSV
    places: list[dict[str, str]] = [{}, {}]
    if table.is_file():
        with suppress(UserError):  # a table of the user's own, of groups alone
            places = [read_stems(table, column, "", stems) for column in ("source", "window")]
    windows = [_window(places[0].get(stem, ""), places[1].get(stem, "")) for stem in stems]
    if group_regex is not None:
        groups = {s: groups.get(s) or group_of(s, group_regex, "data.group_regex") for s in stems}
    return windows, [groups.get(f.entry.stem, f.entry.name) for f in facts]


def _window(source: str, window: str) -> Footprint | None:
    try:
        left, top, width, height = (float(part) for part in window.split())
    except ValueError:
        return None
    return Footprint(source, left, top, left + width, top + height, 1.0)
