"""What is shown on the terminal, and Markdown tables."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console


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


def console(*, soft_wrap: bool = False) -> Console:
    """The terminal, for rich's tables and texts: shown as they are, since names may hold markup."""
    return Console(soft_wrap=soft_wrap, markup=False, emoji=False)
