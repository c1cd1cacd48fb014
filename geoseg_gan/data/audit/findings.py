"""What a check found: mistakes of one kind are one finding, however many files have it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

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
    advice: str = ""  # what to do
    count: int = 1  # files, pairs or classes that it concerns
    examples: Sequence[str] = field(default=())

    def line(self) -> str:
        """The finding in a line, with its first example."""
        example = f" (e.g. {self.examples[0]})" if self.examples else ""
        return f"{self.text.rstrip('.')}{example}. {self.advice}".strip()


def those(count: int, noun: str, verb: str) -> str:
    """A count with its noun and verb, which is given in the plural: "3 images have"."""
    single = {"have": "has", "are": "is", "cannot": "cannot"}.get(verb, f"{verb}s")
    return f"{plural(count, noun)} {single if count == 1 else verb}"


def some(names: Iterable[object]) -> list[str]:
    """The first names as a finding lists them."""
    return [str(name) for name, _ in zip(names, range(EXAMPLES), strict=False)]


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """The findings from the gravest to the least; the order within a severity stays."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
