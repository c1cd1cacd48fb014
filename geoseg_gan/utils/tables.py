"""What is shown on the terminal, and Markdown."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from geoseg_gan.utils.errors import one_line


def percent(share: float) -> str:
    """An IoU or agreement, stored as a share of 1, as people read it: "63.3"; "-" for NaN."""
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table.

    Args:
        head: The columns' titles.
        rows: The cells of every row.
    """
    first, *rest = (
        "| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |"
        for line in [head, *rows]
    )
    return [first, "|" + "---|" * len(head), *rest]


def as_markdown(text: str) -> str:
    """A text in Markdown, without what that or HTML would take for a sign."""
    return re.sub(r"([\\`*\[\]<>&~#]|\b_\B|\B_\b|\B_\B)", r"\\\1", one_line(text))


def print_table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), right: int = 0) -> None:
    """Shows a table on the terminal, of which so many columns on the right are of numbers."""
    table = Table(show_header=bool(head), box=None, padding=(0, 3, 0, 0))
    for number, title in enumerate(head):
        table.add_column(title, justify="right" if number >= len(head) - right else "left")
    for row in rows:
        table.add_row(*row)
    console(soft_wrap=not head or right > 0).print(table)


def console(*, soft_wrap: bool = False) -> Console:
    """The terminal, for rich's tables and texts: shown as they are, since names may hold markup."""
    return Console(soft_wrap=soft_wrap, markup=False, emoji=False)
