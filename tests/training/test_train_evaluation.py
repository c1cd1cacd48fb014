"""Evaluation while a generator trains."""

import math
import sys

import pytest
import torch
from run_folders import assert_same_weights, board_of, weights

from geoseg_gan.evaluation.monitor import QuickEvaluation
from geoseg_gan.training.settings import train_command
from geoseg_gan.training.train import train
from geoseg_gan.utils.errors import UserError

FIGURES = {
    "kid", "fid", "precision", "recall", "high_frequency", "checkerboard", "repetition",
    "diversity", "copying", "agreement",
}  # fmt: skip


@pytest.fixture
def run(tmp_path, make_folder, segmenter, composed, tiny):
    """Trains with an evaluation after every epoch: `run("name", "setting=value")`."""
    root = make_folder(tmp_path / "data")

    def call(name, *more):
        settings = (
            f"data_root={root}", f"out_dir={tmp_path / name}", "epochs=3", "epoch_steps=1",
            "inner_share=0.3", "evaluate_every=1", f"segmenter_ckpt={segmenter()}", *more,
        )  # fmt: skip
        return tmp_path / name, train(composed("train", *tiny, *settings))

    return call


def logged(out_dir, name):
    return [event.value for event in board_of(out_dir).Scalars(f"evaluation/{name}")]


@pytest.mark.slow
def test_figures_are_logged_the_best_epoch_is_kept_and_nothing_else_changes(run, capsys):
    out_dir, figures = run("run")
    tags = board_of(out_dir).Tags()["scalars"]
    names = {tag for tag in tags if tag.startswith("evaluation/")}
    assert names == {f"evaluation/{name}" for name in FIGURES}
    kids = logged(out_dir, "kid")
    assert len(kids) == 3 and len(set(kids)) == 3
    assert figures["objective"] == pytest.approx(min(kids))
    best = torch.load(out_dir / "G_best.pt", weights_only=True)
    assert best["epoch"] == 1 + kids.index(min(kids))
    assert_same_weights(best["weights"], weights(out_dir / f"G_e{best['epoch']:03d}.pt"))
    assert "Epoch 1: kid " in capsys.readouterr().out
    without, figures = run("without", "evaluate_every=0")
    assert "objective" not in figures and not (without / "G_best.pt").exists()
    assert_same_weights(weights(out_dir / "G_e003.pt"), weights(without / "G_e003.pt"))


def test_a_sweeper_is_given_the_best_figure(make_folder, tmp_path, tiny, monkeypatch):
    (tmp_path / "keeping.py").write_text(
        "from pathlib import Path\n"
        "from hydra.experimental.callback import Callback\n"
        "class Keep(Callback):\n"
        "    def on_job_end(self, config, job_return, **kwargs):\n"
        "        Path('returned.txt').write_text(str(job_return.return_value))\n"
    )
    root = make_folder(tmp_path / "data")
    settings = (
        f"data_root={root}", "out_dir=run", "epochs=1", "epoch_steps=1", "inner_share=0.3",
        "evaluate_every=1", "+hydra.callbacks.keep._target_=keeping.Keep",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *tiny, *settings])
    train_command()
    returned = float((tmp_path / "returned.txt").read_text())
    assert [returned] == pytest.approx(logged(tmp_path / "run", "kid"))


def test_any_figure_that_is_a_number_may_choose_in_its_direction(run, monkeypatch):
    agreed = iter([math.nan, 0.5, 0.4])
    monkeypatch.setattr(
        QuickEvaluation, "__call__", lambda *_: {"kid": 1.0, "agreement": next(agreed)}
    )
    out_dir, figures = run("run", "monitor=agreement")
    assert figures["objective"] == 0.5
    assert torch.load(out_dir / "G_best.pt", weights_only=True)["epoch"] == 2


@pytest.mark.slow
def test_the_last_epoch_is_evaluated_and_a_resumed_run_knows_the_best(run, monkeypatch):
    values = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(QuickEvaluation, "__call__", lambda *_: {"kid": next(values)})
    out_dir, figures = run("run", "evaluate_every=2")
    assert logged(out_dir, "kid") == pytest.approx([0.3, 0.1])  # after epochs 2 and 3
    _, figures = run("run", "resume=true", "epochs=4", "evaluate_every=2")
    assert figures["objective"] == 0.1
    assert torch.load(out_dir / "G_best.pt", weights_only=True)["epoch"] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["inner_share=0"], "evaluate_every=1 needs training tiles that are held out"),
        (["monitor=loss"], "monitor=loss is not one of"),
        (["monitor=agreement", "segmenter_ckpt=null"], "monitor=agreement needs a segmenter"),
        (["evaluate_every=-1"], "evaluate_every=-1: use 0 or more"),
        (["evaluate_samples=1"], "evaluate_samples=1: use 2 or more"),
        (["image_size=16"], "needs image_size=32 or more, not 16"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(run, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        run("run", *settings)
    assert not (tmp_path / "run").exists()


def test_too_few_held_out_windows_are_refused(run, tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("stem,part\ntrain_000,fit\ntrain_001,fit\n")
    with pytest.raises(UserError, match=r"make no two windows of 32 px\. Hold out more"):
        run("run", f"data.split_file={path}")
