"""The picture of a ladder."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geoseg_gan.pictures import RGB
from geoseg_gan.plots import drawn, figure

_COLUMNS = 3


@dataclass(frozen=True)
class Panel:
    """A figure of all rows.

    Attributes:
        title: What it is, and which way is better.
        values: Of every row its seeds' figures; a row without any has an empty one.
        floor: What real images reach; None if there is none.
    """

    title: str
    values: Sequence[Sequence[float]]
    floor: float | None = None


def ladder_picture(rows: Sequence[str], panels: Sequence[Panel]) -> RGB:
    """Draws figures by row: a bar for the mean, a dot a seed, and a line for real images.

    Args:
        rows: Names of the rows, the base first.
        panels: The figures.
    """
    lines = -(-len(panels) // _COLUMNS)
    sheet = figure(2 + 3.8 * _COLUMNS, (1.1 + 0.3 * len(rows)) * lines)
    grid = sheet.subplots(lines, _COLUMNS, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for place, values in enumerate(panel.values):
            if len(values):
                color = "tab:gray" if place == 0 else "tab:blue"
                axes.barh(place, float(np.mean(values)), color=color, height=0.7)
                axes.plot(values, [place] * len(values), "k.", markersize=4)
        if panel.floor is not None:
            axes.axvline(panel.floor, color="tab:red", linewidth=2)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    grid[0, 0].set_yticks(range(len(rows)), rows)
    grid[0, 0].invert_yaxis()
    return drawn(sheet)
