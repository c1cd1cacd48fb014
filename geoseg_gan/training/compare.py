"""The compare command: the runs of a sweep as a table and a picture, best first."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markdown import Markdown

from geoseg_gan.config import read_yaml
from geoseg_gan.training.callbacks.evaluation import MONITORS
from geoseg_gan.training.runs import flat, read_result
from geoseg_gan.training.settings import CompareConfig
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import atomic_path
from geoseg_gan.utils.pictures import RGB, write_picture
from geoseg_gan.utils.plots import drawn, figure

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


REPORT, PICTURE = "sweep.md", "sweep.png"


_OWN = ("out_dir", "resume")

"""Settings that tell nothing of what a run was."""


@dataclass(frozen=True)
class Run:
    """A run of a sweep.

    Attributes:
        name: Its folder's name.
        settings: By dotted key.
        result: What `result.json` holds; None if the run has not ended well.
    """

    name: str
    settings: dict[str, Any]
    result: dict[str, Any] | None

    @property
    def objective(self) -> float | None:
        """The figure that is compared; None if there is none (yet)."""
        return None if self.result is None else self.result["objective"]


def compare(config: CompareConfig) -> dict[str, float]:
    """Writes `sweep.md` and `sweep.png` into a sweep's folder, anew with every call.

    Args:
        config: Where the runs are.

    Returns:
        How many runs there are ("runs"), have ended well ("finished"), and the "best" objective if
        there is one.

    Raises:
        UserError: If there are no runs, or they were judged by different figures.
    """
    folder = Path(config.folder)
    if not folder.is_dir():
        raise UserError(f"folder={folder} is not a folder. Give the out_dir of a sweep.")
    runs, empty = read_runs(folder)
    if not runs:
        raise UserError(
            f"folder={folder} holds no runs: none of its folders has a config.yaml. Give the "
            "out_dir of a sweep of train."
        )
    judged = [run for run in runs if run.objective is not None]
    monitors = {(run.result or {}).get("monitor", "objective") for run in judged}
    if len(monitors) > 1:
        raise UserError(
            f"folder={folder}: runs were judged by {' and '.join(sorted(monitors))}, which cannot "
            "be compared. Move those of one kind elsewhere."
        )
    monitor = min(monitors, default="objective")
    sign = MONITORS.get(monitor, 1.0)
    judged.sort(key=lambda run: -sign * (run.objective or 0.0))
    columns = differing(judged)
    text = _markdown(folder, runs, judged, empty, columns, monitor, sign)
    with atomic_path(folder / REPORT) as scratch:
        scratch.write_text(text)
    Console().print(Markdown(text))
    written = f"Wrote {folder / REPORT}"
    if columns:
        values = [run.objective or 0.0 for run in judged]
        write_picture(folder / PICTURE, sweep_picture(columns, values, _called(monitor, sign)))
        written += f" and {PICTURE}"
    print(f"{written}." + (f" The best run: {folder / judged[0].name}" if judged else ""))
    figures = {"runs": float(len(runs)), "finished": float(sum(r.result is not None for r in runs))}
    return figures | ({"best": judged[0].objective or 0.0} if judged else {})


def read_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """Reads the runs whose folders stand in a folder.

    Returns:
        The runs by name, and the names of the folders in which nothing was begun.

    Raises:
        UserError: If a result cannot be read.
    """
    runs, empty = [], []
    for place in sorted(folder.iterdir()):
        if not place.is_dir() or place.name.startswith("."):
            continue
        if (place / "config.yaml").is_file():
            settings = flat(read_yaml(place / "config.yaml"))
            runs.append(Run(place.name, settings, read_result(place)))
        else:
            empty.append(place.name)
    return runs, empty


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """What runs differ in: of jobs of a sweep the overrides, of others all settings.

    Returns:
        The runs' values by setting; numbers as such, "" where a run has none.
    """
    results = [run.result or {} for run in runs]
    settings = [run.settings for run in runs]
    if all("overrides" in result for result in results):
        settings = [result["overrides"] for result in results]
    keys = dict.fromkeys(key for own in settings for key in own if key not in _OWN)
    found = {key: [_value(own.get(key, "")) for own in settings] for key in keys}
    return {key: values for key, values in found.items() if len(set(map(_shown, values))) > 1}


def _value(text: Any) -> Any:
    """What an override stands for, where it is a number."""
    try:
        return float(text) if isinstance(text, str) else text
    except ValueError:
        return text


def _markdown(
    folder: Path,
    runs: Sequence[Run],
    judged: Sequence[Run],
    empty: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    monitor: str,
    sign: float,
) -> str:
    lines = [f"# {folder.name}", ""]
    lines += [f"{plural(len(judged), 'finished run')}, of {len(runs) + len(empty)}."]
    if judged:
        lines[-1] += f" The objective is {_called(monitor, sign)}; the best run stands first."
        head = ["objective", *columns, "epochs", "minutes", "folder"]
        lines += ["", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for number, run in enumerate(judged):
        result = run.result or {}
        cells = [_shown(run.objective)]
        cells += [_shown(values[number]) for values in columns.values()]
        cells += [_shown(result.get("epochs")), _shown(round(result.get("seconds", 0) / 60, 1))]
        lines.append(f"| {' | '.join(cells)} | `{run.name}` |")
    rest = {
        "Without an objective (evaluate_every=0)": [
            run.name for run in runs if run.result is not None and run.objective is None
        ],
        "Not finished": [run.name for run in runs if run.result is None],
        "Failed, or not begun": list(empty),
    }
    for kind, names in rest.items():
        if names:
            lines += ["", f"{kind}:", "", *(f"- `{name}`" for name in names)]
    return "\n".join(lines) + "\n"


def _called(monitor: str, sign: float) -> str:
    return f"{monitor} ({'higher' if sign > 0 else 'lower'} is better)"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|")
