import json
from dataclasses import replace

import numpy as np
import pytest

from geoseg_gan.calibrate import calibrate
from geoseg_gan.errors import UserError
from geoseg_gan.metrics.tiles import TileConfusions
from geoseg_gan.trials.results import RunResult, write_result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trial's folder with 20 runs of real only, and one of another arm."""
    folder = tmp_path_factory.mktemp("trial")
    rng = np.random.default_rng(0)
    for seed in range(20):
        right = np.rint(1000 * rng.normal(0.7, 0.02, (6, 1))).astype(np.int64)
        counts = np.stack([right, 1000 - right, 1000 - right, right], -1).reshape(6, 2, 2)
        tiles = TileConfusions([f"t{i}" for i in range(6)], [f"g{i}" for i in range(6)], counts)
        result = RunResult("real", seed, tiles, tiles, np.zeros((1, 2, 2), np.uint8), {})
        write_result(folder, result)
    write_result(folder, replace(result, arm="copy_paste"))
    return folder


@pytest.fixture
def run(tmp_path, composed, folder):
    def call(*overrides):
        settings = [f"folder={folder}", f"out_dir={tmp_path / 'out'}", "trials=20", *overrides]
        return calibrate(composed("calibrate", *settings))

    return call


def test_errors_and_power_are_measured_by_number_of_seeds(run, tmp_path, capsys):
    figures = run("effect=0.1")
    assert set(figures) == {f"{kind}/{n}" for kind in ("null", "power") for n in (2, 3, 4, 5)}
    assert max(figures[f"null/{n}"] for n in (2, 3, 4, 5)) <= 0.1
    assert figures["power/5"] >= 0.9
    stored = json.loads((tmp_path / "out/calibration.json").read_text())
    assert stored["runs"] == 20 and stored["validation"] == {"tiles": 6, "groups": 6}
    row = stored["rows"][-1]
    assert row["seeds"] == 5 and row["effect"]["use"]["share"] == figures["power/5"]
    assert row["null"]["use"]["low"] <= figures["null/5"] <= row["null"]["use"]["high"]
    text = (tmp_path / "out/calibration.md").read_text()
    assert "| 5 | " in text and "+10.0 mIoU" in text
    out = capsys.readouterr().out
    assert out.startswith("Dealing 20 runs of real only") and "calibration.md" in out


def test_seeds_and_ratios_are_free_as_far_as_there_are_runs(run):
    assert set(run("seeds=[10]", "ratios=1")) == {"null/10", "power/10"}


def test_a_finished_calibration_is_not_overwritten(run):
    run("seeds=[2]", "trials=1")
    with pytest.raises(UserError, match=r"calibration\.json exists"):
        run("seeds=[2]")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trials=0", "trials=0 must be 1 or more"),
        ("seed=-1", "seed=-1 must be 0 or more"),
        ("seeds=[1]", r"seeds=\[1\]: use different numbers"),
        ("seeds=[2,2]", r"seeds=\[2, 2\]: use different numbers"),
        ("seeds=[6]", "20 runs are enough for 5 seeds"),
        ("ratios=10", "20 runs are enough for 1 seed"),
        ("effect=0", "effect=0.0: use a share"),
        ("folder=nowhere", "folder=nowhere is not a folder"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(run, tmp_path, setting, message):
    with pytest.raises(UserError, match=message):
        run(setting)
    assert not (tmp_path / "out").exists()


def test_too_few_runs_are_told_with_the_remedy(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"0 results of arm real, and it takes 20\. Add runs"):
        run(f"folder={tmp_path / 'empty'}")
