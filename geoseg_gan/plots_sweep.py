"""The picture of a sweep. matplotlib takes a second to import, so plots.py does it late."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.pictures import RGB
from geoseg_gan.plots import drawn, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3


def sweep_picture(
    settings: Mapping[str, Sequence[Any]], objective: Sequence[float], name: str
) -> RGB:
    """Draws an objective against every setting that differs.

    Args:
        settings: The runs' values by setting; numbers get an axis, anything else a strip a value.
        objective: The runs' objective, best first, which is marked.
        name: What the objective is called.
    """
    rows = -(-len(settings) // _COLUMNS)
    columns = min(_COLUMNS, len(settings))
    sheet = figure(1 + 3.6 * columns, 0.5 + 3 * rows)
    sheet.suptitle(f"{name}; the star is the best run", fontsize=10)
    grid = sheet.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(settings) :]:
        axes.set_visible(False)
    for axes, (key, values) in zip(grid.flat, settings.items(), strict=False):
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            places = np.array(values, float)
            if places.min() > 0 and places.max() > 10 * places.min():
                _scale(axes, places)
        else:
            places = _strips(axes, values, objective)
        axes.scatter(places, objective, s=22, alpha=0.7)
        axes.scatter(places[:1], objective[:1], s=130, marker="*", color="tab:red", zorder=3)
        axes.set_xlabel(key)
        axes.grid(alpha=0.3)
    return drawn(sheet)


def _scale(axes: "Axes", places: npt.NDArray[np.float64]) -> None:
    """Makes an axis logarithmic, with as many numbers as have room."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    near = places.max() < 300 * places.min()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if near else (1.0,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)


def _strips(axes: "Axes", values: Sequence[Any], objective: Sequence[float]) -> Any:
    """Places of values that are no numbers, with a line at each one's median."""
    shown = [v if isinstance(v, str) else json.dumps(v) for v in values]
    kinds = sorted(set(shown))
    axes.set_xticks(range(len(kinds)), [k if len(k) <= 16 else f"{k[:15]}…" for k in kinds])
    axes.set_xlim(-0.5, len(kinds) - 0.5)
    for place, kind in enumerate(kinds):
        own = [o for o, s in zip(objective, shown, strict=True) if s == kind]
        axes.hlines(float(np.median(own)), place - 0.25, place + 0.25, color="gray")
    return np.array([kinds.index(s) for s in shown], float)
