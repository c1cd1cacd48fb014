import runpy
from pathlib import Path

import numpy as np
import pytest

from geoseg_gan.trials.results import RunResult, write_result
from geoseg_gan.utils.confusion import TileConfusions, mean_iou

calibrate = runpy.run_path(
    str(Path(__file__).parents[2] / "scripts" / "dev" / "calibrate.py"), run_name="calibrate"
)


SUPPORT = {"pixels": [9, 9], "tiles": [1, 1], "groups": [1, 1], "total_tiles": 2}


def _tiles(rng):
    """Six tiles of six groups, of which some four fifths are predicted rightly."""
    wrong = rng.binomial(1000, 0.2, (6, 2))
    counts = np.stack([[[1000 - a, a], [b, 1000 - b]] for a, b in wrong])
    names = [f"tile_{number}" for number in range(6)]
    return TileConfusions(names, names, counts)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for seed in range(12):
        examples = np.zeros((0, 8, 8), np.uint8)
        facts = {"kept": None, "generated": None, "tau": None, "seconds": 1.0, "support": SUPPORT}
        write_result(tmp_path, RunResult("real", seed, _tiles(rng), _tiles(rng), examples, facts))
    return tmp_path


def test_chance_is_seldom_taken_for_a_gain_and_a_large_gain_is_found(folder, tmp_path, capsys):
    rows = calibrate["calibrate"](
        [str(folder), "--trials", "20", "--effect", "0.1", "--json", str(tmp_path / "shares.json")]
    )
    assert [row["seeds"] for row in rows] == [2, 3]
    assert all(row["null"]["use"]["share"] <= 0.1 for row in rows)
    assert rows[1]["effect"]["use"]["share"] == 1
    assert '| seeds | "Use it", nothing there |' in capsys.readouterr().out
    assert (tmp_path / "shares.json").is_file()


def test_a_lifted_run_is_better_by_the_effect():
    tiles = _tiles(np.random.default_rng(1))
    run = RunResult("real", 0, tiles, tiles, np.zeros((0, 8, 8), np.uint8), {})
    lifted = calibrate["lift"](run, 0.05).val.counts.sum(0)
    assert mean_iou(lifted) == pytest.approx(mean_iou(tiles.counts.sum(0)) + 0.05, abs=1e-6)
    with pytest.raises(SystemExit, match=r"--effect 0\.9: a run has mIoU"):
        calibrate["lift"](run, 0.9)


def test_too_few_runs_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        calibrate["calibrate"]([str(tmp_path)])
    assert "0 runs of real are too few" in capsys.readouterr().err
