"""The compare command: the runs of a sweep as a table and a picture, best first."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from geoseg_gan.callbacks.evaluation import MONITORS
from geoseg_gan.config import command, read_yaml
from geoseg_gan.errors import UserError, plural
from geoseg_gan.files import atomic_path
from geoseg_gan.pictures import write_picture
from geoseg_gan.plots_sweep import sweep_picture
from geoseg_gan.resume import flat
from geoseg_gan.schemas import CompareConfig
from geoseg_gan.sweeps import read_result

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


main = command(CompareConfig)(compare)


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
