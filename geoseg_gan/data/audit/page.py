"""A page of headings, texts, tables and pictures, written as one HTML file and as Markdown."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from geoseg_gan.utils.pictures import RGB
from geoseg_gan.utils.tables import markdown_table

_QUALITY = 85  # of JPEGs


@dataclass(frozen=True)
class Color:
    """A cell that shows a colour beside its text."""

    rgb: Sequence[int]
    text: str


@dataclass(frozen=True)
class Share:
    """A cell that shows a share, 0 to 1, as a bar of a colour."""

    value: float
    rgb: Sequence[int]

    def __str__(self) -> str:
        """In percent."""
        return f"{self.value:.2%}" if 0 < self.value < 0.1 else f"{self.value:.1%}"


Cell = str | Color | Share


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Notice:
    """A finding: its severity, a sentence, what to do, and examples."""

    severity: str
    text: str
    advice: str
    examples: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table; the first column is a name, the others are aligned to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """A picture with its caption; Markdown has the caption alone."""

    picture: RGB
    caption: str


Block = Text | Notice | Table | Code | Figure


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """A page: title, verdict and sections."""

    title: str
    severity: str  # of the verdict
    verdict: str
    sections: Sequence[Section]


def as_html(page: Page) -> str:
    """The page as HTML that needs no other file and runs no script."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(page.title)}</title><style>{_STYLE}</style></head><body><main>",
        f'<header class="{page.severity}"><h1>{_text(page.title)}</h1>',
        f'<p class="verdict">{_text(page.verdict)}</p></header>',
    ]
    sections = [section for section in page.sections if section.blocks]
    links = (f'<a href="#s{n}">{_text(s.title)}</a>' for n, s in enumerate(sections))
    parts.append(f"<nav>{' '.join(links)}</nav>")
    for number, section in enumerate(sections):
        parts.append(f'<section id="s{number}"><h2>{_text(section.title)}</h2>')
        figures: list[Block] = []
        for block in section.blocks:
            if not isinstance(block, Figure) and figures:
                parts.append(_figures(figures))
                figures = []
            if isinstance(block, Figure):
                figures.append(block)
            else:
                parts.append(_html(block))
        if figures:
            parts.append(_figures(figures))
        parts.append("</section>")
    return "\n".join([*parts, "</main></body></html>", ""])


def as_markdown(page: Page) -> str:
    """The page as Markdown, without its pictures."""
    lines = [f"# {page.title}", "", f"**{page.verdict}**", "", "Pictures are in report.html.", ""]
    for section in page.sections:
        if section.blocks:
            lines += [f"## {section.title}", ""]
            for block in section.blocks:
                lines += [*_markdown(block), ""]
    return "\n".join(lines)


def _html(block: Block) -> str:
    match block:
        case Text():
            return f"<p>{_text(block.text)}</p>"
        case Code():
            return f"<pre>{_text(chr(10).join(block.lines))}</pre>"
        case Notice():
            examples = "".join(f"<li>{_text(example)}</li>" for example in block.examples)
            return (
                f'<div class="notice {block.severity}"><b>{block.severity}</b>'
                f"<p>{_text(block.text)}.</p>"
                + (f"<p class=advice>{_text(block.advice)}</p>" if block.advice else "")
                + (f"<ul>{examples}</ul>" if examples else "")
                + "</div>"
            )
        case Table():
            head = "".join(f"<th>{_text(title)}</th>" for title in block.head)
            rows = "".join(
                "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>"
                for row in block.rows
            )
            return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
        case Figure():
            return _figures([block])


def _figures(figures: Sequence[Block]) -> str:
    shown = [
        f'<figure><img src="{_data(figure.picture)}" alt="{_text(figure.caption)}">'
        f"<figcaption>{_text(figure.caption)}</figcaption></figure>"
        for figure in figures
        if isinstance(figure, Figure)
    ]
    return f'<div class="figures">{"".join(shown)}</div>'


def _cell(cell: Cell) -> str:
    match cell:
        case Color():
            return f'<i style="background:rgb{tuple(map(int, cell.rgb))}"></i>{_text(cell.text)}'
        case Share():
            color, width = tuple(map(int, cell.rgb)), 100 * min(1.0, max(0.0, cell.value))
            bar = f'<s><u style="width:{width:.1f}%;background:rgb{color}"></u></s>'
            return f"{bar}{cell}"
        case _:
            return _text(cell)


def _markdown(block: Block) -> list[str]:
    match block:
        case Text():
            return [_plain(block.text)]
        case Code():
            return ["```yaml", *block.lines, "```"]
        case Notice():
            lines = [
                f"- **{block.severity}**: {_plain(block.text)}. {_plain(block.advice)}".strip()
            ]
            return lines + [f"  - {_plain(example)}" for example in block.examples]
        case Table():
            rows = [
                [_plain(cell.text if isinstance(cell, Color) else str(cell)) for cell in row]
                for row in block.rows
            ]
            return markdown_table([_plain(title) for title in block.head], rows)
        case Figure():
            return [f"*{_plain(block.caption)}*"]


def _text(text: str) -> str:
    # Names of files may hold bytes that are no text.
    return html.escape(text.encode(errors="backslashreplace").decode())


def _plain(text: str) -> str:
    """A text without what Markdown or HTML would take for a sign."""
    safe = text.encode(errors="backslashreplace").decode()
    for sign in ("\\", "`", "*", "_", "[", "]", "<", ">"):
        safe = safe.replace(sign, f"\\{sign}")
    return safe


def _data(picture: RGB) -> str:
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "JPEG", quality=_QUALITY, optimize=True)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


_STYLE = """
:root{--ink:#1d2733;--soft:#5b6876;--line:#dde3ea;--card:#fff;--page:#f4f6f9;--error:#c0392b;
--warning:#c77c0a;--note:#2d72b8;--good:#2e8b57}
@media (prefers-color-scheme:dark){:root{--ink:#e4e9ef;--soft:#9aa7b5;--line:#33404d;--card:#1f2933;
--page:#151c23;--error:#ef7365;--warning:#e8a849;--note:#6fb0ec;--good:#63c08b}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 22px 60px}
header{border-left:6px solid var(--note);padding:2px 0 2px 18px}
header.error{border-color:var(--error)}header.warning{border-color:var(--warning)}
header.good{border-color:var(--good)}
h1{font-size:26px;margin:0;overflow-wrap:anywhere}h2{font-size:19px;margin:0 0 12px}
.verdict{font-size:17px;margin:6px 0 0}header.error .verdict{color:var(--error)}
header.warning .verdict{color:var(--warning)}header.good .verdict{color:var(--good)}
nav{margin:20px 0;display:flex;flex-wrap:wrap;gap:8px}
nav a{color:var(--note);text-decoration:none;border:1px solid var(--line);border-radius:14px;
padding:2px 12px;background:var(--card);font-size:13px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;
margin:0 0 18px}
p{margin:0 0 10px}
.notice{border-left:4px solid var(--note);padding:4px 0 4px 14px;margin:0 0 14px}
.notice>b{text-transform:uppercase;font-size:11px;letter-spacing:.06em;color:var(--note)}
.notice.error{border-color:var(--error)}.notice.error>b{color:var(--error)}
.notice.warning{border-color:var(--warning)}.notice.warning>b{color:var(--warning)}
.notice p{margin:0;overflow-wrap:anywhere}.notice .advice{color:var(--soft)}
.notice ul{margin:4px 0 0;padding:0;list-style:none;display:flex;flex-wrap:wrap;gap:2px 18px;
font:12.5px/1.5 ui-monospace,monospace;color:var(--soft);overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;margin:0 0 10px;font-size:14px}
th,td{text-align:right;padding:5px 10px;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--soft);font-weight:600;font-size:12.5px}
th:first-child,td:first-child{text-align:left}
td i{display:inline-block;width:14px;height:14px;border-radius:3px;margin-right:8px;
vertical-align:-2px;border:1px solid #8886}
td s{display:inline-block;width:110px;height:10px;background:var(--line);border-radius:5px;
margin-right:10px;overflow:hidden;text-decoration:none}td u{display:block;height:10px;min-width:1px}
pre{background:var(--page);border:1px solid var(--line);border-radius:8px;padding:12px 14px;
overflow-x:auto;font:12.5px/1.55 ui-monospace,monospace}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:18px;
margin:10px 0}
figure{margin:0}img{max-width:100%;border-radius:6px;display:block;image-rendering:auto}
figcaption{font-size:12.5px;color:var(--soft);margin-top:5px;overflow-wrap:anywhere}
"""
