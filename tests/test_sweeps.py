import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from geoseg_gan.sweeps import JobFailure, job_folder, job_processes, launcher_errors

from geoseg_gan.training.compare import compare
from geoseg_gan.training.runs import read_outcome
from geoseg_gan.training.settings import CompareConfig
from geoseg_gan.training.settings import train_command as main
from geoseg_gan.utils.errors import UserError

SCRIPT = Path(__file__).parents[1] / "scripts" / "train.py"


def call(*arguments, patch):
    """Runs the train command here, and returns its exit code."""
    patch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def common(tmp_path, make_folder, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = make_folder(tmp_path / "data", train=8)
    return [*tiny, f"data_root={root}", "out_dir=sweep", "epochs=1", "samples=0"]


def test_optuna_searches_goes_on_and_is_compared(common, tmp_path, monkeypatch, capfd):
    held = ["experiment=sweep_hinge", "inner_share=0.4", "evaluate_samples=4"]
    bad = "loss.feature_matching.weight=-1"
    trials = "hydra.sweeper.n_trials=2"
    assert call("-m", *common, *held, trials, "out_dir=bad", bad, patch=monkeypatch) == 1
    shown = capfd.readouterr().err
    assert "feature_matching.weight=-1" in shown and "no job has given the sweeper a fig" in shown

    assert call("-m", *common, *held, trials, patch=monkeypatch) == 0
    runs = sorted((tmp_path / "sweep").glob("lr=*"))
    found = [read_outcome(run) for run in runs]
    assert [run["monitor"] for run in found] == ["kid", "kid"] and found[0]["epochs"] == 1
    best = min(run["objective"] for run in found)
    summary = (tmp_path / "sweep" / "optimization_results.yaml").read_text()
    assert f"best_value: {best}" in summary
    assert hparams_objective(runs[0]) == pytest.approx(found[0]["objective"], rel=1e-6)

    before = [(run / "G_best.pt").stat().st_mtime_ns for run in runs]
    trials = "hydra.sweeper.n_trials=3"
    assert call("-m", *common, *held, trials, "resume=true", patch=monkeypatch) == 0
    assert capfd.readouterr().out.count("has ended well before") == 2
    assert [(run / "G_best.pt").stat().st_mtime_ns for run in runs] == before
    assert len(list((tmp_path / "sweep").glob("lr=*/result.json"))) == 3

    figures = compare(CompareConfig("sweep"))
    assert figures == {"runs": 3, "finished": 3, "best": pytest.approx(figures["best"])}
    assert figures["best"] <= best
    table = (tmp_path / "sweep" / "sweep.md").read_text().splitlines()
    head = next(line for line in table if line.startswith("| objective"))
    assert "| lr |" in head and "data_root" not in head
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 1000


def hparams_objective(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(run)).Reload()
    content = events.PluginTagToContent("hparams")
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["hp/objective"]
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    assert "loss.feature_matching.weight" in start.session_start_info.hparams
    return events.Scalars("hp/objective")[0].value


def test_a_job_that_fails_in_another_process_is_counted(common, tmp_path, monkeypatch, capfd):
    from joblib.externals.loky import get_reusable_executor

    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    try:
        assert call("-m", *common, *launcher, "lr=-1", patch=monkeypatch) == 1
    finally:
        get_reusable_executor().shutdown(wait=True)
    shown = capfd.readouterr().err
    assert shown.count("error: lr=-1.0 must be positive. (In the job ") == 1
    assert "Traceback" not in shown and "Warning" not in shown
    assert "GEOSEG_GAN_CONSTANT" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_jobs_of_two_processes_follow_each_other(launcher, common, tmp_path):
    more = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    arguments = ["-m", f"hydra/launcher={launcher}", *more, *common, "devices=2", "lr=-1,1e-3,2e-3"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("lr=-1.0 must be positive") == 1 and "Traceback" not in done.stderr
    ended = sorted(path.parent.name for path in (tmp_path / "sweep").glob("*/result.json"))
    assert ended == ["lr=0.001", "lr=0.002"]
    inside = {path.name for path in tmp_path.iterdir()}
    assert inside == {"data", "sweep"}


def test_the_slurm_launcher_keeps_its_files_inside_the_sweep(composed):
    from hydra import compose, initialize_config_module

    with initialize_config_module("geoseg_gan.configs", version_base="1.3"):
        config = compose("train", ["hydra/launcher=submitit_slurm"], return_hydra_config=True)
    assert config.hydra.launcher.submitit_folder == "runs/label2img/.submitit/%j"


def test_a_failure_is_heard_in_the_command_s_process_only(capsys):
    packed = pickle.dumps(JobFailure("lr is wrong."))
    assert capsys.readouterr().err == ""
    with JobFailure.heard() as failures:
        assert len(pickle.dumps(pickle.loads(packed))) == len(packed)
        pickle.loads(packed)
        JobFailure.of(ValueError("unforeseen"), "a=1")
    assert list(map(str, failures)) == [
        "lr is wrong.",
        "lr is wrong.",
        "ValueError: unforeseen (In the job a=1.)",
    ]
    shown = capsys.readouterr().err
    assert shown.count("error: lr is wrong.\n") == 1
    assert "Traceback" not in shown.split("error:")[0]
    assert not JobFailure.is_heard()


def test_what_lightning_leaves_behind_does_not_meet_the_next_job(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with JobFailure.heard(), job_processes("train.py"):
        os.environ |= {"LOCAL_RANK": "0", "MASTER_PORT": "2"}
    assert "LOCAL_RANK" not in os.environ and "MASTER_PORT" in os.environ


def test_what_plugins_raise_becomes_a_line():
    with pytest.raises(UserError, match="no job has given"), launcher_errors():
        raise ValueError("No trials are completed yet.")
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    with (
        pytest.raises(UserError, match=r"ended from outside.*killed.*resume=true"),
        launcher_errors(),
    ):
        raise TerminatedWorkerError("killed\nby whom")
    with pytest.raises(ValueError, match="ours"), launcher_errors():
        raise ValueError("ours")


def test_numbers_that_a_sweeper_has_drawn_are_shortened_in_folder_names():
    names = [job_folder([f"lr=0.00025881702149379{end}", "loss.weight=11.5"]) for end in (1, 2)]
    assert names[0].startswith("lr=0.0002588,loss.weight=11.5-") and names[0] != names[1]
