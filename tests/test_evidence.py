"""What the documents say of trials follows from the results that stand beside it."""

import json
import shutil
from pathlib import Path

import pytest
from geoseg_gan.DELETED import ladder

from geoseg_gan.trials.results import read_results
from geoseg_gan.trials.statistics import Comparison, tally
from geoseg_gan.trials.verdict import judge

ROOT = Path(__file__).parents[1]
TRIALS = sorted(path.parent for path in ROOT.glob("docs/trials/*/trial.json"))
LADDERS = sorted(path.parent for path in ROOT.glob("docs/ladders/*/ladder.md"))
EVALUATIONS = sorted(ROOT.glob("docs/evaluations/*.json"))


def test_there_are_trials_ladders_and_evaluations_in_the_documents():
    assert TRIALS and LADDERS and EVALUATIONS


@pytest.mark.parametrize("folder", TRIALS, ids=lambda folder: folder.name)
def test_a_verdict_in_the_documents_is_that_of_its_results(folder):
    results = read_results(folder)
    kept = {arm: {} for arm in {r.arm for r in results}}
    for result in results:
        kept[result.arm][result.seed] = result.facts["kept"]
    verdict = judge(Comparison([tally(result) for result in results]), kept)
    stored = json.loads((folder / "trial.json").read_text())["verdict"]
    assert stored["sentence"] == verdict.sentence and stored["rival"] == verdict.rival
    assert verdict.sentence in (folder / "trial.md").read_text()
    assert verdict.sentence in (ROOT / "docs/results.md").read_text().replace("\n", " ")


@pytest.mark.parametrize("folder", LADDERS, ids=lambda folder: folder.name)
def test_a_ladder_in_the_documents_is_that_of_its_results(folder, composed, tmp_path):
    stored = (folder / "ladder.md").read_text()
    runs = [json.loads(path.read_text()) for path in folder.glob("results/*.json")]
    runs.sort(key=lambda run: stored.index(f"\n| {run['row']} |"))  # as its configuration had them
    common = f"common={_listed(runs[0]['common'])}"
    rows = [f"++ladder.{run['row']}={_listed(run['overrides'])}" for run in runs]
    shutil.copytree(folder, tmp_path / "ladder")
    ladder(composed("ladder", f"out_dir={tmp_path / 'ladder'}", "report_only=true", common, *rows))
    assert (tmp_path / "ladder/ladder.md").read_text() == stored


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_rows_of_an_evaluation_in_the_documents_are_what_it_stored(path):
    figures = json.loads(path.read_text())["figures"]
    painted = figures["fidelity"]["painted"]
    text = (ROOT / "docs/results.md").read_text().splitlines()
    rows = [line.replace("*", "") for line in text if f"(evaluations/{path.name})" in line]
    assert rows
    for row in rows:
        assert f"| {1000 * painted['kid']:.0f} ± {1000 * painted['kid_error']:.0f} |" in row
        assert f"| {100 * figures['agreement']['painted']['miou']:.1f} |" in row
        assert f"| {figures['diversity']['painted']['layers']:.2f} |" in row


def _listed(settings):
    return "[" + ",".join(f"'{setting}'" for setting in settings) + "]"
