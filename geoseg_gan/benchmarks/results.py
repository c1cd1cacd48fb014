"""Figures by name, and the tables that show them."""

from dataclasses import dataclass, field


@dataclass
class Results:
    """What was measured.

    Attributes:
        figures: By name, such as "unet_light/lightning_over_bare".
        tables: Markdown, one for each part.
    """

    figures: dict[str, float] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)

    def add(self, title: str, rows: dict[str, dict[str, float]]) -> None:
        """Takes in a table.

        Args:
            title: Its heading.
            rows: By the row's name, figures by the column's.
        """
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        lines = [
            f"### {title}",
            "",
            f"| | {' | '.join(columns)} |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for name, row in rows.items():
            cells = (_shown(row[column]) if column in row else "" for column in columns)
            lines.append(f"| {name} | {' | '.join(cells)} |")
            self.figures |= {f"{name}/{column}": value for column, value in row.items()}
        self.tables.append("\n".join([*lines, ""]))


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
