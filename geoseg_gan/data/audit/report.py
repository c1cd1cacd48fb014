"""The report of a check: `report.html` with pictures, `report.md`, `findings.json`, a config."""

import base64
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from markdown_it import MarkdownIt
from PIL import Image

from geoseg_gan.config import plain
from geoseg_gan.data.audit.checks import MOSTLY_IGNORED, exposure_outliers
from geoseg_gan.data.audit.examine import Check
from geoseg_gan.data.audit.facts import Values
from geoseg_gan.data.audit.findings import SEVERITIES
from geoseg_gan.data.audit.folders import Entry
from geoseg_gan.data.audit.relations import Relation
from geoseg_gan.data.images import read_image, read_stored
from geoseg_gan.data.masks import MaskReader, mask_colors
from geoseg_gan.data.palette import IGNORE, colors_of
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path, held, is_unused, write_json
from geoseg_gan.utils.pictures import RGB, beside, evenly_spaced
from geoseg_gan.utils.reading import read_json
from geoseg_gan.utils.tables import as_markdown, markdown_table

HTML, MARKDOWN, FINDINGS = "report.html", "report.md", "findings.json"
CONFIGS = "data"
"""The folder of proposed configs, so that `--config-dir out_dir data=proposed` finds one."""

Figure = tuple[RGB | None, str]
"""A picture, None where a file does not decode, and its caption."""

_FORMAT = 1
_CONTENT = {"format": {_FORMAT}, "command": {"check_data"}}
_VALUES = 24  # colours or numbers that the report lists
_SIDE = 240  # pixels of a picture's longer side
_OVERLAY = 0.45  # weight of the mask's colours over the image
_MARK = (255, 0, 255)  # of ignored pixels
_QUALITY = 85  # of JPEGs
_BAR = 20  # characters that stand for 100 %


@contextmanager
def held_for_report(folder: Path) -> Iterator[None]:
    """Holds a folder for a report, in place of an earlier one.

    Raises:
        UserError: If it holds anything else, or another process writes there.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out_dir={folder} is a file. Choose a folder for the report.")
    with held(folder):
        try:
            if not is_unused(folder):
                read_json(folder / FINDINGS, _CONTENT, "")
        except (OSError, UserError):
            raise UserError(
                f"out_dir={folder} holds something that check_data has not written. Choose "
                "another out_dir."
            ) from None
        yield


def write_report(folder: Path, check: Check) -> tuple[str, list[str]]:
    """Writes all files, each whole or not at all; findings.json, by which it is known, first.

    Returns:
        What the proposed config is called, empty where there is none, and the next commands.
    """
    # No other file of the folder of configs is overwritten.
    for number in count(1):
        name = "proposed" if number == 1 else f"proposed_{number}"
        path = folder / CONFIGS / f"{name}.yaml"
        config = check.proposed_config(folder, name)
        if not path.exists() or path.read_text() == config:
            break
    commands = check.next_commands(folder, name)
    names = [*check.reader.palette.names, "ignore"]
    content = {
        "format": _FORMAT,
        "command": "check_data",
        "summary": check.summary,
        **{f"{severity}s": check.count(severity) for severity in SEVERITIES},
        "findings": [asdict(finding) for finding in check.findings],
        "pairs": dict(Counter(entry.split for entry in check.folder.pairs())),
        "pixels": dict(zip(names, check.pixels.sum(0).tolist(), strict=True)),
        "config": plain(check.config),
    }
    write_json(folder / FINDINGS, content)
    blocks = [*_page(check, config, commands)]
    texts = [block for block in blocks if isinstance(block, str)]
    files = {
        folder / HTML: _as_html(check, blocks),
        folder / MARKDOWN: "\n\n".join([*texts, f"Pictures are in {HTML}.\n"]),
    }
    for file, text in (files | ({path: config} if config else {})).items():
        with atomic_path(file) as scratch:
            scratch.write_text(text)
    return name if config else "", commands


def _page(check: Check, config: str, commands: Sequence[str]) -> Iterator[str | list[Figure]]:
    """The page: Markdown, and pictures in between."""
    yield f"# Data check: {as_markdown(check.config.data_root)}"
    yield f"**{as_markdown(check.summary)}**"
    yield "## Findings"
    for f in check.findings:
        examples = "".join(f"\n  - {as_markdown(example)}" for example in f.examples)
        yield f"- **{f.severity}**: {as_markdown(f.text)}. {as_markdown(f.advice)}{examples}"
    if config:
        yield f"## Proposed config\n\n```yaml\n{config}```"
    if commands:
        lines = "\n".join(commands)
        yield f"{check.lead}:\n\n```\n{lines}\n```"
    yield "## Files"
    yield "\n".join(markdown_table(["", *check.folder.splits], _files(check)))
    if check.facts.masks:
        of = [mask.entry.split for mask in check.facts.masks]
        splits = [*dict.fromkeys(of)]
        yield "## Classes"
        head = ["class", "colour", *(f"share of {s}" for s in splits), "pixels", "tiles with it"]
        yield "\n".join(markdown_table(head, _classes(check, splits, np.array(of))))
        yield "## Colours and numbers in the masks"
        head = ["value", "read as", "pixels", "share", "masks"]
        yield "\n".join(markdown_table(head, _values(check)))
    for title, figures in _figures(check).items():
        if shown := [figure for figure in figures if figure[0] is not None]:
            yield f"## {title}"
            yield shown


def _files(check: Check) -> Iterator[list[str]]:
    images, masks, _ = check.facts
    rows: dict[str, list[tuple[str, str]]] = {
        "pairs": [(entry.split, "pairs") for entry in check.folder.pairs()],
        "width x height": [(i.entry.split, f"{i.size[1]}x{i.size[0]}") for i in images],
        "bands and type": [(i.entry.split, f"{i.bands} x {i.dtype}") for i in images],
        "masks": [(mask.entry.split, mask.kind) for mask in masks],
        "reference system": [(i.entry.split, i.place.name) for i in images if i.place],
        "resolution": [(i.entry.split, i.place.resolution) for i in images if i.place],
    }
    for title, row in rows.items():
        cells = []
        for split in check.folder.splits:
            found = Counter(text for its_split, text in row if its_split == split)
            texts = [f"{as_markdown(text)} ({count:,})" for text, count in found.most_common(4)]
            cells.append(", ".join(texts + [f"{len(found) - 4} more"] * (len(found) > 4)) or "-")
        if {*cells} != {"-"}:
            yield [title, *cells]


def _classes(check: Check, splits: Sequence[str], of: Any) -> Iterator[list[str]]:
    palette = check.reader.palette
    for label, name in enumerate([*palette.names, "ignored, of all pixels"]):
        is_ignore = label == palette.num_classes
        color = "-" if is_ignore else _color(palette.color_table[label].tolist())
        cells = [as_markdown(name if is_ignore else f"{label} {name}"), color]
        for split in splits:
            mine = check.pixels[of == split]
            whole = mine.sum() if is_ignore else mine[:, :-1].sum()
            share = float(mine[:, label].sum() / max(1, whole))
            cells.append(f"{share:.2%} {'█' * max(round(share * _BAR), int(share > 0))}")
        column = check.pixels[:, label]
        yield [*cells, f"{int(column.sum()):,}", f"{int((column > 0).sum()):,}"]


def _values(check: Check) -> Iterator[list[str]]:
    in_color = check.reader.mask_format == "rgb"
    values = Values.joined(mask.read_as(in_color) for mask in check.facts.masks)
    names = (
        [*map(_color, colors_of(values.values).tolist())] if in_color else values.values.tolist()
    )
    labels = replace(check.reader, unknown="ignore").labels_of(values.values).tolist()
    shares, classes = values.shares, dict(enumerate(check.reader.palette.names))
    for n in range(min(_VALUES, len(names))):
        counts = f"{values.pixels[n]:,}", f"{shares[n]:.3%}", f"{values.masks[n]:,}"
        yield [str(names[n]), as_markdown(classes.get(labels[n], "ignore, or unknown")), *counts]
    if (more := len(names) - _VALUES) > 0:
        yield [f"and {more:,} more", "", "", "", ""]


def _figures(check: Check) -> dict[str, list[Figure]]:
    """Pictures by the title of their section."""
    most, reader = check.config.examples, replace(check.reader, unknown="ignore")
    images, masks, _ = check.facts
    examples = []
    for split in check.folder.splits:
        mine = [entry for entry in check.folder.entries if entry.split == split]
        mine = [entry for entry in mine if entry.image and entry.mask] or mine
        examples += [mine[row] for row in evenly_spaced(len(mine), most)]
    unknown = sorted((mask for mask in masks if mask.unknown), key=lambda mask: -mask.unknown)
    ignored = check.pixels[:, -1] / np.maximum(1, check.pixels.sum(1))
    void = [row for row in np.argsort(-ignored, kind="stable") if ignored[row] > MOSTLY_IGNORED]
    return {
        "Examples: image, mask, both with ignored pixels in magenta": [
            (_triple(entry, reader), entry.name) for entry in examples
        ],
        "Masks with values that are not in the data config": [
            (_triple(mask.entry, reader), f"{mask.entry.name}: {mask.unknown:,} pixels")
            for mask in unknown[:most]
        ],
        "Mostly ignored tiles": [
            (_triple(masks[n].entry, reader), f"{masks[n].entry.name}: {ignored[n]:.0%} ignored")
            for n in void[:most]
        ],
        "Unusual exposure": [
            (_shown(image.entry), f"{image.entry.name}: {why}")
            for image, why in exposure_outliers(images)[:most]
        ],
        "Copies and near-duplicates": _pairs(check.copies, most),
        "Neighbours across splits": _pairs(check.neighbours, most),
    }


def _shown(entry: Entry) -> RGB | None:
    """An image as people look at it; None where there is none, or it does not decode."""
    try:
        return None if entry.image is None else _picture(read_image(entry.image))
    except UserError:
        return None


def _picture(pixels: npt.NDArray[Any]) -> RGB:
    """An image of bands (H, W, K) as a small picture.

    Of other types than 8 bit, each band is stretched from its 2nd to its 98th percentile.
    """
    pixels = np.ascontiguousarray(pixels[..., [0, 1, 2] if pixels.shape[2] >= 3 else [0, 0, 0]])
    scale = min(1.0, _SIDE / max(pixels.shape[:2]))
    size = [max(1, round(length * scale)) for length in pixels.shape[1::-1]]
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    if pixels.dtype != np.uint8:
        low, high = np.percentile(pixels.reshape(-1, 3), (2, 98), axis=0)
        pixels = ((pixels - low) * (255 / np.maximum(high - low, 1e-9))).clip(0, 255)
    return pixels.astype(np.uint8, copy=False)


def _triple(entry: Entry, reader: MaskReader) -> RGB | None:
    """Image, mask, and the mask over the image; the image alone where there is no mask.

    The mask has its own colours. Over the image, ignored pixels are magenta.
    """
    if entry.image is None or entry.mask is None:
        return _shown(entry)
    try:
        stored = read_stored(entry.mask)
        pixels, label, _ = reader.read_pair(entry.image, entry.mask)
    except UserError:
        return None
    picture = _picture(pixels)
    own = reader.palette.color_table[label]
    size, nearest = picture.shape[1::-1], cv2.INTER_NEAREST_EXACT
    mask = mask_colors(stored) if reader.mask_format == "rgb" else own
    small, mask_small = (cv2.resize(part, size, interpolation=nearest) for part in (own, mask))
    over = (1 - _OVERLAY) * picture + _OVERLAY * small
    # Averaged, so that single pixels are seen too.
    over[cv2.resize((label == IGNORE) * 1.0, size, interpolation=cv2.INTER_AREA) > 0] = _MARK
    return beside([picture, mask_small.astype(np.uint8), over.astype(np.uint8)])


def _pairs(relations: Sequence[Relation], most: int) -> list[Figure]:
    """Two images each, those across splits first."""
    figures: list[Figure] = []
    for relation in sorted(relations, key=lambda relation: not relation.is_across)[:most]:
        squares = []
        for entry in (relation.first, relation.second):
            if (picture := _shown(entry)) is not None:
                squares.append(np.full((_SIDE, _SIDE, 3), 255, np.uint8))
                squares[-1][: picture.shape[0], : picture.shape[1]] = picture
        figures.append((beside(squares) if len(squares) == 2 else None, str(relation)))
    return figures


def _color(rgb: Sequence[int]) -> str:
    return f"■ {', '.join(map(str, rgb))}"


def _as_html(check: Check, blocks: Sequence[str | list[Figure]]) -> str:
    """The page as HTML that needs no other file and runs no script."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = ""
    for block in blocks:
        if isinstance(block, str):
            body += markdown.render(block)
            continue
        figures = (
            f'<figure><img src="{_data(picture)}" alt=""><figcaption>'
            f"{markdown.renderInline(as_markdown(caption))}</figcaption></figure>"
            for picture, caption in block
            if picture is not None
        )
        body += f'<div class="figures">{"".join(figures)}</div>'
    for severity in SEVERITIES:
        strong = f"<strong>{severity}</strong>"
        body = body.replace(strong, strong.replace(">", f' class="{severity}">', 1))
    swatch = r'<i style="background:rgb(\1,\2,\3)"></i>\1, \2, \3'
    body = re.sub(r"■ (\d+), (\d+), (\d+)", swatch, body)
    worst = next((severity for severity in SEVERITIES if check.count(severity)), "note")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data check</title><style>{_STYLE}</style></head>"
        f'<body><main class="{worst}">{body}</main></body></html>\n'
    )


def _data(picture: RGB) -> str:
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "JPEG", quality=_QUALITY, optimize=True)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


_STYLE = """
:root{color-scheme:light dark;--line:#8884;--error:#c0392b;--warning:#c77c0a;--note:#2d72b8}
body{margin:0;font:15px/1.55 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px;border-top:6px solid var(--note)}
main.error{border-color:var(--error)}main.warning{border-color:var(--warning)}
h1,p,li,figcaption{overflow-wrap:anywhere}h1+p{font-size:18px}
h2{margin:32px 0 10px;padding-top:10px;border-top:1px solid var(--line)}
strong.error{color:var(--error)}strong.warning{color:var(--warning)}strong.note{color:var(--note)}
li li{font:12.5px/1.5 ui-monospace,monospace;opacity:.8}
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:14px}
th,td{text-align:left;padding:5px 12px;border-bottom:1px solid var(--line);white-space:nowrap}
td i{display:inline-block;width:14px;height:14px;border-radius:3px;margin-right:8px;
border:1px solid #8886;vertical-align:-2px}
pre{border:1px solid var(--line);border-radius:8px;padding:12px;overflow-x:auto;font-size:12.5px}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:18px}
figure{margin:0}img{width:100%;display:block}figcaption{font-size:12.5px;opacity:.8}
"""
