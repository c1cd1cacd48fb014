"""The report of a check: `report.html` with pictures, `report.md`, `findings.json`, a config."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from geoseg_gan.config import plain
from geoseg_gan.data.audit.checks import (
    MOSTLY_IGNORED,
    exposure_outliers,
    image_facts,
    mask_facts,
    resolution_of,
)
from geoseg_gan.data.audit.examine import Check
from geoseg_gan.data.audit.findings import SEVERITIES, Severity
from geoseg_gan.data.audit.measure import ImageFacts, MaskFacts
from geoseg_gan.data.audit.overlaps import Relation
from geoseg_gan.data.audit.page import (
    Block,
    Cell,
    Code,
    Color,
    Figure,
    Notice,
    Page,
    Section,
    Share,
    Table,
    Text,
    as_html,
    as_markdown,
)
from geoseg_gan.data.audit.pictures import marked, shown, triple, two
from geoseg_gan.data.audit.values import Values, rgb_of
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path, held, is_unused, write_json
from geoseg_gan.utils.pictures import evenly_spaced
from geoseg_gan.utils.reading import read_json

HTML, MARKDOWN, FINDINGS = "report.html", "report.md", "findings.json"
CONFIGS = "data"
"""The folder of the proposed config, so that `--config-dir out_dir data=proposed` finds it."""

_FORMAT = 1
_CONTENT = {"format": {_FORMAT}, "command": {"check_data"}, "proposed?": {"*": str}}
_VALUES = 24  # colours or numbers that the report lists


@contextmanager
def open_report(folder: Path) -> Iterator["Report"]:
    """Holds a folder for a report, in place of an earlier one.

    Raises:
        UserError: If it holds anything else, or another process writes there.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out_dir={folder} is a file. Choose a folder for the report.")
    with held(folder):
        known: dict[str, str] = {}
        if not is_unused(folder):
            try:
                advice = "Choose another out_dir."
                content = read_json(folder / FINDINGS, _CONTENT, advice)
            except (OSError, UserError):
                raise UserError(
                    f"out_dir={folder} holds something that check_data has not written. Choose "
                    "another out_dir."
                ) from None
            known = content.get("proposed", {})
        yield Report(folder, known)


@dataclass
class Report:
    """A folder that a report is written to; `proposed` are digests of configs by their name."""

    folder: Path
    proposed: dict[str, str] = field(default_factory=dict)
    config_name: str | None = None

    def write(self, check: Check) -> str | None:
        """Writes all files, each whole or not at all; findings.json, by which it is known, first.

        Returns:
            The name of the proposed config; None where there is none.
        """
        config = self._config(check)
        write_json(self.folder / FINDINGS, _facts(check) | {"proposed": self.proposed})
        if config is not None:
            with atomic_path(self.folder / CONFIGS / f"{self.config_name}.yaml") as scratch:
                scratch.write_text(config)
        page = _page(check, None if config is None else config.splitlines())
        for name, text in ((HTML, as_html(page)), (MARKDOWN, as_markdown(page))):
            with atomic_path(self.folder / name) as scratch:
                scratch.write_text(text)
        return self.config_name

    def _config(self, check: Check) -> str | None:
        """The text of the proposed config; a file that the user has changed keeps its name."""
        if check.proposal is None:
            return None
        number = 1
        while True:
            self.config_name = "proposed" if number == 1 else f"proposed_{number}"
            path = self.folder / CONFIGS / f"{self.config_name}.yaml"
            if not path.exists() or self.proposed.get(self.config_name) == _digest(path):
                break
            number += 1
        words = f"--config-dir {self.folder} data={self.config_name}"
        root = check.config.data_root
        head = [
            f"Proposed by scripts/check_data.py for {root}. Fill in the names, then:",
            f"  python scripts/check_data.py {words} data_root={root}",
            f"  python scripts/train.py {words} data_root={root}",
        ]
        if not check.folder.is_ready:
            head[2] = f"  python scripts/tile.py {words} source={root} data_root=..."
        text = "\n".join([*check.proposal.lines(head), ""])
        self.proposed[self.config_name] = hashlib.sha256(text.encode()).hexdigest()
        return text


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _facts(check: Check) -> dict[str, Any]:
    """What findings.json holds."""
    names = check.reader.palette.names
    totals = check.pixels.sum(0) if len(check.rows) else np.zeros(len(names) + 1)
    return {
        "format": _FORMAT,
        "command": "check_data",
        "summary": check.summary,
        **{f"{severity}s": check.count(severity) for severity in SEVERITIES},
        "findings": [asdict(finding) for finding in check.findings],
        "pairs": dict(Counter(entry.split for entry in check.folder.pairs())),
        "pixels": dict(zip([*names, "ignore"], totals.tolist(), strict=True)),
        "config": plain(check.config),
    }


def _page(check: Check, config: Sequence[str] | None) -> Page:
    severity: Severity | str = "good"
    if check.findings and check.findings[0].severity != "note":
        severity = check.findings[0].severity
    notices: list[Block] = [
        Notice(f.severity, f.text, f.advice, f.examples) for f in check.findings
    ]
    sections = [
        Section("Findings", notices or [Text("None.")]),
        Section("Proposed config", [Code(config)] if config else []),
        Section("Files", _files(check)),
        Section("Classes", _classes(check)),
        Section("Colours and numbers in the masks", _values(check)),
        Section("Examples: image, mask, both", _examples(check)),
        Section("Masks with unknown values, in magenta", _unknown(check)),
        Section("Mostly ignored tiles", _ignored(check)),
        Section("Unusual exposure", _exposure(check)),
        Section("Copies and near-duplicates", _related(check, check.copies)),
        Section("Neighbours across splits", _related(check, check.neighbours)),
    ]
    return Page(f"Data check: {check.config.data_root}", severity, check.summary, sections)


def _files(check: Check) -> list[Block]:
    head = ["", *check.folder.splits]
    rows: list[list[Cell]] = []

    def row(title: str, of: Any) -> None:
        cells = [", ".join(of(split)) or "-" for split in check.folder.splits]
        if any(cell != "-" for cell in cells):
            rows.append([title, *cells])

    images = image_facts(check.facts)
    masks = mask_facts(check.facts)

    def counted(pairs: Sequence[tuple[Any, Any]], key: Any) -> Any:
        def of(split: str) -> list[str]:
            found = Counter(key(facts) for f, facts in pairs if f.entry.split == split)
            found.pop(None, None)
            usual = [f"{name} ({count:,})" for name, count in found.most_common(4)]
            return usual + [f"{len(found) - 4} more"] * (len(found) > 4)

        return of

    def pairs_of(split: str) -> list[str]:
        return [f"{sum(e.split == split for e in check.folder.pairs()):,}"]

    row("pairs", pairs_of)
    row("width x height", counted(images, lambda i: f"{i.size[1]}x{i.size[0]}"))
    row("bands and type", counted(images, lambda i: f"{i.bands} x {i.dtype}"))
    row("masks", counted(masks, lambda m: m.kind))
    row("reference system", counted(images, lambda i: i.place and i.place.name))
    row("resolution", counted(images, lambda i: i.place and resolution_of(i.place)))
    return [Table(head, rows)]


def _classes(check: Check) -> list[Block]:
    if not len(check.rows):
        return []
    palette = check.reader.palette
    splits = np.array([check.facts[row].entry.split for row in check.rows])
    names = [split for split in check.folder.splits if (splits == split).any()]
    rows: list[list[Cell]] = []
    for label in range(palette.num_classes + 1):
        is_ignore = label == palette.num_classes
        color = (128, 128, 128) if is_ignore else palette.color_table[label].tolist()
        name = "ignored, of all pixels" if is_ignore else f"{label} {palette.names[label]}"
        cells: list[Cell] = [Color(color, name)]
        for split in names:
            mine = check.pixels[splits == split]
            whole = mine.sum() if is_ignore else mine[:, :-1].sum()
            cells.append(Share(float(mine[:, label].sum() / max(1, whole)), color))
        cells.append(f"{int(check.pixels[:, label].sum()):,}")
        cells.append(f"{int((check.pixels[:, label] > 0).sum()):,}")
        rows.append(cells)
    head = ["class", *(f"share of {split}" for split in names), "pixels", "tiles with it"]
    return [Table(head, rows)]


def _values(check: Check) -> list[Block]:
    masks = [mask for _, mask in mask_facts(check.facts)]
    if not masks:
        return []
    reader, palette = check.reader, check.reader.palette
    rows: list[list[Cell]] = []
    if reader.mask_format == "rgb":
        values = Values.joined(mask.colors() for mask in masks)
        known = {tuple(c.color): c.name for c in palette.classes}
        known |= {tuple(color): "ignore" for color in palette.ignore}
        for number, rgb in enumerate(rgb_of(values.values[:_VALUES]).tolist()):
            meaning = known.get(tuple(rgb), "not in the palette")
            shown_color = ", ".join(map(str, rgb))
            rows.append([Color(rgb, shown_color), meaning, *_counts(values, number)])
    else:
        values = Values.joined(mask.numbers() for mask in masks)
        own = [(label, label) for label in range(palette.num_classes)]
        labels = {IGNORE: IGNORE} | dict(reader.index_map or own)
        names = dict(enumerate(palette.names)) | {IGNORE: "ignore"}
        for number, value in enumerate(values.values[:_VALUES].tolist()):
            meaning = names[labels[value]] if value in labels else "not in the config"
            rows.append([str(value), meaning, *_counts(values, number)])
    head = ["value", "read as", "pixels", "share", "masks"]
    blocks: list[Block] = [Table(head, rows)]
    more = len(values.values) - _VALUES
    if more > 0:
        blocks.append(Text(f"And {more:,} more values, each with fewer pixels."))
    return blocks


def _counts(values: Values, number: int) -> list[Cell]:
    held = f"{int(values.masks[number]):,}"
    return [f"{int(values.pixels[number]):,}", f"{values.share(number):.3%}", held]


def _examples(check: Check) -> list[Block]:
    figures = []
    for split in check.folder.splits:
        pairs = [entry for entry in check.folder.pairs() if entry.split == split]
        for place in evenly_spaced(len(pairs), check.config.examples) if pairs else []:
            entry = pairs[place]
            assert entry.image is not None and entry.mask is not None, "pairs have both"
            picture = triple(entry.image, entry.mask, check.reader)
            if picture is not None:
                figures.append(Figure(picture, entry.name))
        alone = [e for e in check.folder.entries if e.split == split and e.mask is None]
        if not pairs:
            for place in evenly_spaced(len(alone), check.config.examples) if alone else []:
                image = alone[place].image
                picture = None if image is None else shown(image)
                if picture is not None:
                    figures.append(Figure(picture, alone[place].name))
    return list(figures)


def _unknown(check: Check) -> list[Block]:
    """The masks with most pixels that the settings do not know."""
    reader = mask_reader(check.config.data)
    worst = sorted(
        (f for f in check.facts if isinstance(f.mask, MaskFacts) and f.mask.unknown),
        key=lambda f: -f.mask.unknown if isinstance(f.mask, MaskFacts) else 0,
    )
    figures: list[Block] = []
    for f in worst[: check.config.examples]:
        if f.entry.image is not None and f.entry.mask is not None:
            picture = marked(f.entry.image, f.entry.mask, reader)
            count = f.mask.unknown if isinstance(f.mask, MaskFacts) else 0
            if picture is not None:
                figures.append(Figure(picture, f"{f.entry.name}: {count:,} pixels"))
    return figures


def _ignored(check: Check) -> list[Block]:
    if not len(check.rows):
        return []
    shares = check.pixels[:, -1] / np.maximum(1, check.pixels.sum(1))
    figures: list[Block] = []
    for place in np.argsort(-shares, kind="stable")[: check.config.examples]:
        entry = check.facts[check.rows[place]].entry
        if shares[place] <= MOSTLY_IGNORED or entry.image is None or entry.mask is None:
            continue
        picture = triple(entry.image, entry.mask, check.reader)
        if picture is not None:
            figures.append(Figure(picture, f"{entry.name}: {shares[place]:.0%} ignored"))
    return figures


def _exposure(check: Check) -> list[Block]:
    figures: list[Block] = []
    for row, why in exposure_outliers(check.facts)[: check.config.examples]:
        entry = check.facts[row].entry
        picture = None if entry.image is None else shown(entry.image)
        if picture is not None:
            figures.append(Figure(picture, f"{entry.name}: {why}"))
    return figures


def _related(check: Check, relations: Sequence[Relation]) -> list[Block]:
    """The first relations across splits, then those within, as two images each."""
    facts = check.facts
    ordered = sorted(
        relations, key=lambda r: facts[r.first].entry.split == facts[r.second].entry.split
    )
    figures: list[Block] = []
    for relation in ordered[: check.config.examples]:
        one, other = (facts[row] for row in (relation.first, relation.second))
        if not (isinstance(one.image, ImageFacts) and isinstance(other.image, ImageFacts)):
            continue
        assert one.entry.image is not None and other.entry.image is not None, "they were read"
        picture = two(one.entry.image, other.entry.image)
        if picture is not None:
            caption = f"{one.entry.name} and {other.entry.name}: {relation.why}"
            figures.append(Figure(picture, caption))
    return figures
