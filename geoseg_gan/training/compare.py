"""The compare command: the runs of a sweep as a table, best first."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markdown import Markdown

from geoseg_gan.config import stored_yaml
from geoseg_gan.training.runs import flat, read_outcome
from geoseg_gan.training.settings import MONITORS, CompareConfig
from geoseg_gan.training.train_segmenter import SCORES
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import atomic_path, held
from geoseg_gan.utils.reading import Number, read_json
from geoseg_gan.utils.tables import as_markdown, console, markdown_table, percent

REPORT = "sweep.md"
_PLACES = ("out_dir", "resume")  # settings that do not describe a run
_OF_SEGMENTERS = ("inner/miou", "val/miou")  # the first that a run has ranks it


@dataclass(frozen=True)
class Run:
    """A run of a sweep.

    Attributes:
        name: Its folder's name, which in a sweep lists the job's overrides.
        settings: By dotted key.
        outcome: What `result.json` holds, or `scores.json` in its form; None if the run has not
            finished.
    """

    name: str
    settings: dict[str, Any]
    outcome: dict[str, Any] | None

    @property
    def overrides(self) -> dict[str, str]:
        """The job's overrides by key; empty where the folder's name lists none."""
        parts = re.split(r",(?=[+~\w./@]+=)", self.name)
        return dict(part.split("=", 1) for part in parts) if "=" in parts[0] else {}


def compare(config: CompareConfig) -> dict[str, float]:
    """Writes `sweep.md` into a sweep's folder, over that of an earlier call.

    Returns:
        How many runs there are ("runs"), how many have finished ("finished"), and the "best"
        objective if there is one.

    Raises:
        UserError: If there are no runs, a result cannot be read, or the objectives of the runs are
            different figures.
    """
    folder = Path(config.folder)
    if not folder.is_dir():
        raise UserError(f"folder={folder} is not a folder. Give the out_dir of a sweep.")
    with held(folder, "folder"):
        return _compare(folder)


def _compare(folder: Path) -> dict[str, float]:
    runs, empty = [], []
    for place in sorted(folder.iterdir()):
        if (settings := stored_yaml(place)) is not None:
            runs.append(Run(place.name, flat(settings), _outcome(place, settings)))
        elif place.is_dir() and not place.name.startswith("."):
            empty.append(place.name)
    if not runs:
        raise UserError(
            f"folder={folder} holds no runs: none of its folders has a config.yaml. Give the "
            "out_dir of a sweep of train or train_segmenter."
        )
    finished = [(run, run.outcome) for run in runs if run.outcome is not None]
    ranked = [(run, found) for run, found in finished if found["objective"] is not None]
    monitors = {found.get("monitor", "objective") for _, found in ranked}
    if len(monitors) > 1:
        raise UserError(
            f"folder={folder}: the objectives of its runs are {' and '.join(sorted(monitors))}, "
            "which cannot be compared. Move the runs of one of them elsewhere."
        )
    monitor = min(monitors, default="objective")
    sign = MONITORS.get(monitor, 1.0)
    ranked.sort(key=lambda entry: -sign * entry[1]["objective"])
    title = f"{monitor} ({'higher' if sign > 0 else 'lower'} is better)"
    text = f"# {as_markdown(folder.name)}\n\n"
    text += f"{plural(len(finished), 'finished run')}, of {len(runs + empty)}."
    if ranked:
        text += f" The objective is {title}; the best run is the first.\n\n"
        text += "\n".join(_table(ranked, differing([run for run, _ in ranked])))
    rest = {
        "Finished without a figure to rank them by (as with evaluate_every=0)": [
            run.name for run, found in finished if found["objective"] is None
        ],
        "Not finished": [run.name for run in runs if run.outcome is None],
        "Failed, or not started": empty,
    }
    for kind, names in rest.items():
        if names:
            text += "\n".join([f"\n\n{kind}:\n", *(f"- `{name}`" for name in names)])
    with atomic_path(folder / REPORT) as scratch:
        scratch.write_text(f"{text}\n")
    console().print(Markdown(text))
    figures = {"runs": float(len(runs)), "finished": float(len(finished))}
    best = ""
    if ranked:
        run, found = ranked[0]
        figures["best"], best = found["objective"], f" The best run: {folder / run.name}"
    print(f"Wrote {folder / REPORT}.{best}")
    return figures


def _outcome(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run of train or train_segmenter says of itself; None if it has not finished."""
    if not (folder / SCORES).is_file():
        return read_outcome(folder)
    shape = {"*": (None, Number())}
    scores = read_json(folder / SCORES, shape, "Remove it, and repeat the run.")
    monitor = next((name for name in _OF_SEGMENTERS if scores.get(name) is not None), "objective")
    epochs = settings.get("epochs")
    return {"objective": scores.get(monitor), "monitor": monitor, "epochs": epochs}


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """What runs differ in: the overrides of a sweep's jobs, or all settings of other runs.

    Returns:
        The runs' values by setting, numbers as such; "" where a run has none.
    """
    settings: list[Mapping[str, Any]] = [run.settings for run in runs]
    if all(run.overrides for run in runs):
        settings = [run.overrides for run in runs]
    keys = dict.fromkeys(key for own in settings for key in own if key not in _PLACES)
    found = {key: [_number(own.get(key, "")) for own in settings] for key in keys}
    return {key: values for key, values in found.items() if len(set(map(_shown, values))) > 1}


def _number(value: Any) -> Any:
    """The number that an override stands for, if it is one."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _table(
    ranked: Sequence[tuple[Run, dict[str, Any]]], columns: Mapping[str, Sequence[Any]]
) -> list[str]:
    rows = []
    for number, (run, found) in enumerate(ranked):
        objective = found["objective"]
        if found.get("monitor") in ("agreement", *_OF_SEGMENTERS):
            objective = f"{percent(objective)} %"
        values = [objective, *(column[number] for column in columns.values())]
        minutes = round(found["seconds"] / 60, 1) if "seconds" in found else ""
        values += [found.get("epochs"), minutes]
        rows.append([*(as_markdown(_shown(value)) for value in values), f"`{run.name}`"])
    return markdown_table(["objective", *columns, "epochs", "minutes", "folder"], rows)
