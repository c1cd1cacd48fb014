"""Sweeps: the folders of jobs, failing jobs, going on, and the sweepers and launchers."""

import functools
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from geoseg_gan.config import _JobError, command_line
from geoseg_gan.training.compare import compare
from geoseg_gan.training.runs import read_outcome
from geoseg_gan.training.settings import CompareConfig, train_command
from geoseg_gan.utils.errors import UserError

SCRIPT = Path(__file__).parents[1] / "scripts" / "train.py"


@pytest.fixture
def sweep(run_command):
    """Calls train with -m in a folder, and returns its exit code: `sweep("lr=1,2")`."""
    return functools.partial(run_command, train_command, "-m", "out_dir=sweep")


@pytest.fixture
def jobs(monkeypatch):
    """Replaces training; holds the configurations of the jobs that were run."""
    seen = []

    def train(config):
        seen.append(config)
        if config.lr > 5:
            raise UserError(f"lr={config.lr} is too high.")
        if config.seed == 13:
            raise ZeroDivisionError("ours")
        return {"objective": config.lr}

    monkeypatch.setattr("geoseg_gan.training.train.train", train)
    return seen


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["epochs=3", "lr=0.1,0.2"], ["lr=0.1", "lr=0.2"]),
        (["data_root=a/b,c", "seed=1"], ["data_root=a_b", "data_root=c"]),
        (["experiment=demo,cpu"], ["experiment=cpu", "experiment=demo"]),
        (["model/generator=unet,spade"], ["model_generator=spade", "model_generator=unet"]),
        (["lr=1,2", "bs=choice(4)"], ["bs=4,lr=1", "bs=4,lr=2"]),
    ],
)
def test_job_folders_are_named_by_what_differs_between_jobs(arguments, names, sweep, jobs):
    assert sweep(*arguments) == 0
    assert sorted(Path(config.out_dir).name for config in jobs) == names
    assert {Path(config.out_dir).parent.name for config in jobs} == {"sweep"}


@pytest.mark.slow
def test_a_failing_job_prints_its_line_and_the_others_run(sweep, jobs, capsys):
    assert sweep("lr=9,1,2") == 1
    assert [config.lr for config in jobs] == [9, 1, 2]
    assert capsys.readouterr().err == "error: lr=9.0 is too high. (In the job lr=9.)\n"
    assert sweep("seed=13,14", "hydra.sweeper.max_batch_size=1") == 1
    assert len(jobs) == 5
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "error: ZeroDivisionError: ours (In the job seed=13.)" in shown
    assert sweep("lr=1,2") == 0


def test_a_setting_that_no_job_has_stops_the_sweep_before_it_starts(sweep, jobs, capsys):
    assert sweep("learn=1,2") == 1
    assert sweep("model=unet,unit") == 1
    assert jobs == []
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2 and "no setting 'learn'" in shown[0] and "model=unit" in shown[1]


def test_a_job_fails_where_only_its_type_is_wrong(sweep, jobs, capsys):
    assert sweep("epochs=1,many") == 1
    assert "error: epochs=many: use a whole number.\n" in capsys.readouterr().err


@pytest.mark.slow
def test_only_jobs_with_a_checkpoint_are_resumed(sweep, jobs, tmp_path):
    assert sweep("lr=1,2") == 0
    (tmp_path / "sweep" / "lr=1" / "last.ckpt").touch()
    assert sweep("lr=1,2", "resume=true") == 0
    assert [config.resume for config in jobs] == [False, False, True, False]


def test_a_job_knows_its_command_line(sweep, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "geoseg_gan.training.train.train", lambda config: seen.append(command_line())
    )
    assert sweep("lr=1,2") == 0
    assert seen == [["out_dir=sweep", "lr=1"], ["out_dir=sweep", "lr=2"]]
    assert command_line() == []


def test_a_job_s_error_is_counted_where_a_launcher_brings_it():
    packed = pickle.dumps(_JobError("lr is wrong."))
    before = _JobError.count
    assert str(pickle.loads(packed)) == "lr is wrong."
    assert _JobError.count == before + 1


@pytest.mark.slow
def test_a_search_goes_by_the_objective_and_over_failing_jobs(sweep, jobs, tmp_path, capfd):
    search = ["experiment=sweep_hinge", "jitter=none", "crops=uniform", "optimizer.d_lr_ratio=1"]
    search += ["loss.feature_matching.weight=1", "hydra.sweeper.n_trials=6"]
    assert sweep(*search, "lr=choice(9.0,8.0,1.0)") == 1
    found = (tmp_path / "sweep" / "optimization_results.yaml").read_text()
    assert f"best_value: {min(config.lr for config in jobs)}" in found
    shown = capfd.readouterr().err
    assert shown.count(" is too high.") == sum(config.lr > 5 for config in jobs) > 0
    assert "Failed experiment" not in shown and "Warning" not in shown
    assert sweep(*search, "lr=choice(9.0,8.0)") == 1
    assert capfd.readouterr().err.endswith("error: No trials are completed yet.\n")


@pytest.fixture
def common(tmp_path, make_folder, tiny):
    """Overrides of a tiny training."""
    root = make_folder(tmp_path / "data", train=8)
    return [*tiny, f"data_root={root}", "epochs=1", "samples=0"]


@pytest.mark.slow
def test_optuna_searches_goes_on_and_is_compared(common, sweep, tmp_path, capfd):
    held = ["experiment=sweep_hinge", "inner_share=0.4", "evaluate_samples=4"]
    assert sweep(*common, *held, "hydra.sweeper.n_trials=2") == 0
    runs = sorted((tmp_path / "sweep").glob("*lr=*"))
    found = [read_outcome(run) for run in runs]
    assert [run["monitor"] for run in found] == ["kid", "kid"] and found[0]["epochs"] == 1
    best = min(run["objective"] for run in found)
    summary = (tmp_path / "sweep" / "optimization_results.yaml").read_text()
    assert f"best_value: {best}" in summary

    before = [(run / "G_best.pt").stat().st_mtime_ns for run in runs]
    assert sweep(*common, *held, "hydra.sweeper.n_trials=3", "resume=true") == 0
    assert capfd.readouterr().out.count("has finished, in epoch 1") == 2
    assert [(run / "G_best.pt").stat().st_mtime_ns for run in runs] == before
    assert len(list((tmp_path / "sweep").glob("*lr=*/result.json"))) == 3

    figures = compare(CompareConfig(str(tmp_path / "sweep")))
    assert figures == {"runs": 3, "finished": 3, "best": pytest.approx(figures["best"])}
    assert figures["best"] <= best
    table = (tmp_path / "sweep" / "sweep.md").read_text().splitlines()
    head = next(line for line in table if line.startswith("| objective"))
    assert "| lr |" in head and "data_root" not in head


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_jobs_of_two_processes_follow_each_other(launcher, common, tmp_path):
    more = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    arguments = ["-m", "out_dir=sweep", f"hydra/launcher={launcher}", *more, *common, "devices=2"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "lr=-1,1e-3,2e-3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    if launcher != "submitit_local":  # whose jobs print into files of their own
        assert done.stderr.count("lr=-1.0: use more than 0, up to 10. (In the job lr=-1.)") == 1
    ended = sorted(path.parent.name for path in (tmp_path / "sweep").glob("*/result.json"))
    assert ended == ["lr=0.001", "lr=0.002"]
    inside = {path.name for path in tmp_path.iterdir()}
    assert inside == {"data", "sweep"}


def test_the_slurm_launcher_keeps_its_files_inside_the_sweep():
    from hydra import compose, initialize_config_module

    with initialize_config_module("geoseg_gan.configs", version_base="1.3"):
        config = compose("train", ["hydra/launcher=submitit_slurm"], return_hydra_config=True)
    assert config.hydra.launcher.submitit_folder == "runs/label2img/.submitit/%j"
