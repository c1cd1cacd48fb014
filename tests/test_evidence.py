"""The figures in the tables of docs/experiments are those of the results stored beside them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoseg_gan.trials.results import RunResult
from geoseg_gan.trials.statistics import Comparison, tally
from geoseg_gan.trials.verdict import reach_verdict
from geoseg_gan.utils.confusion import TileConfusions

DOCS = Path(__file__).parents[1] / "docs"
EXPERIMENTS = DOCS / "experiments"
TRIALS = sorted(path.parent for path in EXPERIMENTS.glob("*/trial.json"))
NUMBER = re.compile(r"[+-]?\d[\d,]*\.?\d*")
# Columns of the tables of generators: what the header begins with, and how a run's figure is shown.
SCALES = {"KID": 1000, "agreement": 100, "diversity": 1, "high": 1, "checkerboard": 1}


def test_every_experiment_is_in_a_page_and_every_page_and_trial_in_the_results():
    pages = list(EXPERIMENTS.glob("*.md"))
    shown = set(re.findall(r"\]\((\w+)/", "".join(page.read_text() for page in pages)))
    assert {path.name for path in EXPERIMENTS.iterdir() if path.is_dir()} == shown
    linked = re.findall(r"\(experiments/(\w+\.md)(#[\w-]+)?\)", (DOCS / "results.md").read_text())
    assert {page for page, _ in linked} == {page.name for page in pages}
    trials = _sections()
    assert {trials[page + section] for page, section in linked if page + section in trials} == {
        folder.name for folder in TRIALS
    }


@pytest.mark.parametrize("folder", TRIALS, ids=lambda folder: folder.name)
def test_statistics_of_a_stored_trial_follow_from_its_confusion_matrices(folder):
    stored = json.loads((folder / "trial.json").read_text())
    runs = _runs(folder / "runs.npz")
    classes = list(stored["support"])
    rare = [classes.index(name) for name in stored.get("rare") or []]
    comparison = Comparison([tally(run) for run in runs], rare=rare)
    for arm, figures in stored["arms"].items():
        level, gain = comparison.level(arm), comparison.difference(arm)
        assert _bounds(level.miou) == pytest.approx(figures["miou"])
        assert _bounds(gain.miou) == pytest.approx(figures["difference"])
        assert gain.by_seed == pytest.approx(figures["difference_by_seed"])
        for name, estimate in zip(classes, gain.classes, strict=True):
            assert _bounds(estimate) == pytest.approx(
                _bounds_of(figures["class_differences"][name]), nan_ok=True
            )
    kept = {run.arm: {} for run in runs}
    for run in runs:
        kept[run.arm][run.seed] = run.facts["kept"]
    verdict = reach_verdict(comparison, kept)
    assert verdict.arm == stored["verdict"]["arm"]
    assert verdict.kind == stored["verdict"]["kind"]


@pytest.mark.parametrize("folder", TRIALS, ids=lambda folder: folder.name)
def test_tables_of_a_trial_show_its_stored_figures(folder):
    arms = json.loads((folder / "trial.json").read_text())["arms"]
    place = next(place for place, name in _sections().items() if name == folder.name)
    page, section = place.split("#")
    text = dict(_headed((EXPERIMENTS / page).read_text()))[section]
    seen = set()
    for name, row in _rows(text):
        seen.add(name)
        for column, cell in row.items():
            if figures := _trial_figures(arms[name], column):
                expected = [100 * figure for figure in figures][: len(_numbers(cell))]
                assert _shows(cell, expected), (name, column)
                assert expected or not cell, (name, column)
    assert seen == set(arms)


@pytest.mark.parametrize("page", ["docs/results.md", "README.md"])
def test_a_summary_shows_the_differences_of_stored_trials(page):
    checked, sections = 0, _sections()
    for line in (DOCS.parent / page).read_text().replace("*", "").splitlines():
        places = re.findall(r"experiments/(\w+\.md#[\w-]+)", line)
        trials = [sections[place] for place in places if place in sections]
        for arm, cell in re.findall(r"`(\w[\w.]*)` ([+-]\d+\.\d \[[^]]*\])", line):
            arms = json.loads((EXPERIMENTS / trials[0] / "trial.json").read_text())["arms"]
            difference = arms[arm]["difference"]
            assert _shows(cell, [100 * difference[part] for part in ("value", "low", "high")])
            checked += 1
    assert checked


@pytest.mark.parametrize(
    ("page", "results"),
    [
        ("generators", "generators/avx512.json"),
        ("generators", "generators/avx2.json"),
        ("knobs", "knobs/knobs.json"),
        ("refine", "refine/evaluations.json"),
        ("sharper", "sharper/evaluations.json"),
        ("sharper", "sharper/short.json"),
    ],
    ids=lambda part: Path(part).stem,
)
def test_tables_of_generators_show_stored_figures(page, results):
    runs = _generators(EXPERIMENTS / results)
    real = 100 * next(iter(runs.values()))[0]["val"]["agreement_real"]
    seen = set()
    for name, row in _rows((EXPERIMENTS / f"{page}.md").read_text()):
        # Two machines share row names; what real images reach, in the header, tells them apart.
        if f"agreement ({real:.1f})" not in row or name not in runs:
            continue
        seen.add(name)
        for column, cell in row.items():
            assert _shows(cell, _generator_figures(runs[name], column, cell)), (name, column)
    assert seen == set(runs)


@pytest.mark.parametrize(
    "path", sorted(EXPERIMENTS.glob("calibration/*.json")), ids=lambda path: path.stem
)
def test_tables_of_the_calibration_show_stored_shares(path):
    rows = {row["seeds"]: row for row in json.loads(path.read_text())["rows"]}
    page = (EXPERIMENTS / "calibration.md").read_text()
    cells = [(int(name), row[path.stem]) for name, row in _rows(page)]
    assert cells
    for seeds, cell in cells:
        if cell != "-":
            use = rows[seeds]["effect"]["use"]
            assert _shows(cell, [100 * use[part] for part in ("share", "low", "high")])


def _runs(path: Path) -> list[RunResult]:
    """The runs of a trial; matrices are summed by location group, which is all statistics need."""
    with np.load(path) as stored:
        groups = stored["groups"].tolist()
        return [
            RunResult(
                str(arm),
                int(seed),
                TileConfusions(groups, groups, val.astype(np.int64)),
                TileConfusions(["all"], ["all"], inner[None].astype(np.int64)),
                np.zeros((0, 1, 1), np.uint8),
                {"kept": None if kept < 0 else int(kept)},
            )
            for arm, seed, kept, val, inner in zip(
                *(stored[key] for key in ("arms", "seeds", "kept", "val", "inner")), strict=True
            )
        ]


def _bounds(estimate: Any) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _bounds_of(stored: dict[str, float | None]) -> dict[str, float]:
    return {key: np.nan if value is None else value for key, value in stored.items()}


def _headed(text: str) -> Iterator[tuple[str, str]]:
    """The sections of a page, by the anchor of their heading."""
    for section in text.split("\n## ")[1:]:
        heading = section.partition("\n")[0].lower().replace(" ", "-")
        yield re.sub(r"[^\w-]", "", heading), section


def _sections() -> dict[str, str]:
    """Where the trials are shown, as page.md#section, and their folders."""
    return {
        f"{page.name}#{section}": folder
        for page in sorted(EXPERIMENTS.glob("*.md"))
        for section, text in _headed(page.read_text())
        for folder in re.findall(r"\((\w+)/trial\.png\)", text)
    }


def _rows(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a text's tables: the name in the first cell, and the others by column."""
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip().replace("*", "") for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
        elif not set(line) <= set("|- "):
            name = re.match(r"`([^`]+)`|(\d+)$", cells[0])
            if name:
                yield name[1] or name[2], dict(zip(header[1:], cells[1:], strict=True))


def _numbers(cell: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(cell)]


def _shows(cell: str, expected: list[float]) -> bool:
    """Whether a cell shows these figures, rounded to as many decimals as it has."""
    decimals = len(match[1]) if (match := re.search(r"\.(\d+)", cell)) else 0
    return _numbers(cell) == pytest.approx(expected, rel=0, abs=0.5001 * 10**-decimals)


def _trial_figures(arm: dict[str, Any], column: str) -> list[float]:
    """What a cell of a trial's table may show, in this order; nothing for columns of words."""
    if column == "mIoU":
        return [arm["miou"][part] for part in ("value", "low", "high")]
    if column == "by seed":
        return list(arm["difference_by_seed"])
    if column.startswith("held-out "):
        return [arm["inner_class_differences"][column.removeprefix("held-out ")]]
    estimate = {"difference": arm["difference"], "rare classes": arm.get("rare_difference")}.get(
        column, arm["class_differences"].get(column)
    )
    if column in arm["classes"] and estimate["value"] == 0:  # real only shows its own IoU
        estimate = arm["classes"][column]
    return [estimate[part] for part in ("value", "low", "high")] if estimate else []


def _generators(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Stored evaluations by row, in the order of their seeds."""
    stored = json.loads(path.read_text())
    if "runs" not in stored:
        return {name: [{"val": figures}] for name, figures in stored.items()}
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(stored["runs"], key=lambda run: run["seed"]):
        runs.setdefault(run["row"], []).append(run)
    return runs


def _generator_figures(runs: list[dict[str, Any]], column: str, cell: str) -> list[float]:
    """What a cell shows: a figure of one run, of every seed, with its error, or two figures."""
    figures = [run["held_out" if "held-out" in column else "val"] for run in runs]
    if column == "images":
        return [runs[0]["images"]] if "images" in runs[0] else _numbers(cell)
    if column.startswith("precision"):
        return [figures[0][key] for key in ("precision", "recall")]
    key = column.split()[0]
    values = [SCALES[key] * each[key.lower()] for each in figures]
    if "±" in cell:
        return [values[0], SCALES[key] * figures[0]["kid_error"]]
    return values if "," in cell else values[:1]
