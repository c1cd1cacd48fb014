"""What a check found: mistakes of one kind are one finding, however many files have it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from geoseg_gan.utils.errors import plural

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""From the gravest: with an error, training would be a mistake."""

EXAMPLES = 6
"""How many examples a finding names."""


@dataclass(frozen=True)
class Finding:
    """One kind of problem or peculiarity of a data folder."""

    severity: Severity
    kind: str  # a name for programs, as in "unknown_colors"
    text: str  # what it is, and where: one sentence
    advice: str  # what to do
    count: int  # files, pairs or classes that it concerns
    examples: list[str]

    def line(self) -> str:
        """The finding in a line, with its first example."""
        example = f" (e.g. {self.examples[0]})" if self.examples else ""
        return f"{self.text}{example}. {self.advice}".strip()


class Findings(list[Finding]):
    """Findings in the order in which they were made."""

    def add(
        self,
        severity: Severity,
        kind: str,
        concerned: Sequence[Any] | int,
        text: str,
        advice: str = "",
        count: int | None = None,
    ) -> None:
        """Adds a finding, unless it concerns nothing.

        Args:
            severity: How grave it is.
            kind: A name for programs.
            concerned: What it concerns, of which the first are its examples; or how many.
            text: One sentence.
            advice: What to do.
            count: How many it concerns, where examples are of another kind.
        """
        if count is None:
            count = concerned if isinstance(concerned, int) else len(concerned)
        examples = [] if isinstance(concerned, int) else [*map(str, concerned[:EXAMPLES])]
        if count:
            self.append(Finding(severity, kind, text.rstrip("."), advice, count, examples))


def those(concerned: Sequence[Any] | int, noun: str, verb: str) -> str:
    """A count with its noun and verb, which is given in the plural: "3 images have"."""
    count = concerned if isinstance(concerned, int) else len(concerned)
    single = {"have": "has", "are": "is", "cannot": "cannot"}.get(verb, f"{verb}s")
    return f"{plural(count, noun)} {single if count == 1 else verb}"
