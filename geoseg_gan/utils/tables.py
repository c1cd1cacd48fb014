"""Markdown tables."""

from collections.abc import Iterable, Sequence
from typing import Any


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
