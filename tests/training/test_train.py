"""The train command, and how its runs are resumed."""

import errno
import os
import re
import shutil
import signal
import sys
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from run_folders import (
    assert_same_state,
    assert_same_weights,
    board_of,
    differ,
    last_checkpoint,
    run_script,
    signal_at,
    weights,
)

from geoseg_gan.models.loaded import load_generator
from geoseg_gan.training.callbacks import samples
from geoseg_gan.training.callbacks.timing import TimeBudget
from geoseg_gan.training.gan import GAN
from geoseg_gan.training.runs import differences, read_outcome
from geoseg_gan.training.settings import train_command
from geoseg_gan.training.train import check_networks, train
from geoseg_gan.training.train_segmenter import train_segmenter
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import LOCK


@pytest.fixture
def run(tmp_path, make_folder, composed, tiny):
    """Trains tiny networks: `out_dir, figures = run("name", "setting=value")`."""
    root = make_folder(tmp_path / "data")

    def call(name, *more):
        paths = (f"data_root={root}", f"out_dir={tmp_path / name}")
        return tmp_path / name, train(composed("train", *tiny, *paths, *more))

    return call


@pytest.fixture
def go_on(trained, composed, tiny):
    """Resumes the trained run, or starts another on its data: `go_on("setting=value")`."""
    root, out_dir = trained
    paths = (f"data_root={root}", f"out_dir={out_dir}")
    return lambda *more: train(composed("train", *tiny, *paths, *more))


def test_a_run_leaves_samples_checkpoints_logs_and_says_so(run, capsys):
    out_dir, metrics = run("run", "epochs=2", "samples=3", "precision=null")
    shown = capsys.readouterr().out
    assert "Epoch 1: saved samples and checkpoints.\n" in shown
    assert "Epoch 2: saved samples and checkpoints.\n" in shown
    flowing = " ".join(shown.split())  # a narrow terminal breaks lines
    for text in ("6 training pairs", "Settlement", "tensorboard --logdir", "Estimate: "):
        assert text in flowing
    assert re.search("data: python scripts/check_data.py data_root=.* image_size=32\n", shown)
    names = {path.name for path in out_dir.iterdir() if not path.name.startswith("events")}
    expected = {f"epoch{e:03d}_{i}.jpg" for e in (1, 2) for i in range(3)}
    expected |= {f"{n}_e{e:03d}.pt" for e in (1, 2) for n in "GD"}
    assert names == expected | {"last.ckpt", "config.yaml", "result.json", ".lock"}
    assert metrics["lr/g"] >= 0
    with Image.open(out_dir / "epoch002_0.jpg") as triple:
        assert triple.size == (3 * 32 + 2 * 2, 32)
    # The default precision is resolved where it is stored and shown.
    stored = yaml.safe_load((out_dir / "config.yaml").read_text())
    assert stored["lr"] == 2e-4 and stored["precision"] == "32-true"
    assert last_checkpoint(out_dir)["config"]["precision"] == "32-true"
    assert "precision 32-true" in flowing


def test_a_sample_shows_mask_real_and_generated(trained_once, palette):
    triple = np.asarray(Image.open(trained_once / "run" / "epoch002_0.jpg")).astype(int)
    mask, real = triple[:, :32], triple[:, 34:66]
    colours = np.array([*(c.color for c in palette.classes), [0, 0, 0]])
    distance = np.abs(mask[:, :, None] - colours).sum(-1).min(-1)
    assert np.median(distance) < 10
    assert np.median(np.abs(real[:, :, None] - colours).sum(-1).min(-1)) > 30


def test_tensorboard_shows_every_scalar_and_the_samples_on_one_step_axis(trained_once):
    board = board_of(trained_once / "run")
    scalars = set(board.Tags()["scalars"])
    assert scalars >= {
        "d/hinge_real", "d/hinge_fake", "d/accuracy_real", "d/accuracy_fake",
        "g/adversarial", "g/feature_matching", "lr/d", "lr/g", "images_per_second",
    }  # fmt: skip
    # Two epochs of three batches: pictures at 3 and 6, scalars no later.
    assert [event.step for event in board.Images("samples")] == [3, 6]
    assert all(event.step <= 6 for name in scalars for event in board.Scalars(name))


def test_the_generator_s_average_is_what_is_saved_and_shown(trained, tmp_path, go_on):
    _, out_dir = trained
    state = last_checkpoint(out_dir)["state_dict"]
    average, learning = (
        {name.removeprefix(f"{part}."): value for name, value in state.items() if part in name}
        for part in ("average", "generator")
    )
    saved = weights(out_dir / "G_e002.pt")
    assert_same_weights(saved, average)
    assert differ(saved, learning)
    go_on(f"out_dir={tmp_path / 'plain'}", "epochs=2", "optimizer.ema=0")
    assert_same_weights(weights(tmp_path / "plain" / "G_e002.pt"), learning)
    shown = [np.asarray(Image.open(o / "epoch002_0.jpg")) for o in (out_dir, tmp_path / "plain")]
    # Blocks of 16 px of a JPEG: those that hold mask and real image alone.
    assert np.array_equal(shown[0][:, :64], shown[1][:, :64])
    assert not np.array_equal(shown[0][:, 68:], shown[1][:, 68:])


def test_checkpoints_are_enough_by_themselves_and_hold_nothing_that_runs(trained_once):
    out_dir = trained_once / "run"
    loaded = load_generator(out_dir / "G_e002.pt")
    assert loaded.epoch == 2
    assert loaded.facts.palette.names == ["Background", "Forest land", "Settlement"]
    assert loaded.facts.config["image_size"] == 32
    assert not any(p.requires_grad for p in loaded.network.parameters())
    for path in [*out_dir.glob("*.pt"), out_dir / "last.ckpt"]:
        torch.load(path, weights_only=True)


def test_the_same_seed_trains_the_same_networks(trained, tmp_path, go_on):
    _, out_dir = trained
    again, other = tmp_path / "again", tmp_path / "other"
    go_on(f"out_dir={again}", "epochs=2", "data.num_workers=2", "data.cache=ram")
    assert_same_weights(weights(out_dir / "G_e002.pt"), weights(again / "G_e002.pt"))
    go_on(f"out_dir={other}", "epochs=1", "seed=1")
    assert differ(weights(out_dir / "G_e001.pt"), weights(other / "G_e001.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("crops", ["uniform", "rare"])
def test_a_run_that_trains_on_ends_as_one_that_was_longer(crops, tmp_path, make_folder, run):
    make_folder(tmp_path / "data", train=7, size=48)
    # A constant rate, since the linear one depends on the planned number of epochs.
    common = ("optimizer.schedule=constant", f"crops={crops}", "data.num_workers=null")
    whole, _ = run("whole", *common, "epochs=3")
    parts, _ = run("parts", *common, "epochs=2")
    run("parts", *common, "epochs=3", "resume=true")
    assert_same_state(whole, parts)
    assert last_checkpoint(parts)["global_step"] == 9


ADAPTIVE = ("inner_share=0.3", "loss.augment.adaptive=true", "loss.augment.color=true")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "steps", "number", "settings"),
    [
        ("null", (1, 5), signal.SIGTERM, ()),  # inside of epochs
        ("2", (2, 3), signal.SIGINT, ADAPTIVE),  # in the last step of one, and the first of another
        ("0", (4,), signal.SIGHUP, ("accumulate=2",)),
    ],
)
def test_a_run_that_a_signal_stops_ends_as_an_undisturbed_one(
    workers, steps, number, settings, run, capsys
):
    common = ("epochs=3", "epoch_steps=3", f"data.num_workers={workers}", *settings)
    whole, figures = run("whole", *common)
    for step in steps:
        with signal_at(step, number):
            run("parts", *common, "resume=true")
        path = whole.with_name("parts") / "last.ckpt"
        assert last_checkpoint(path.parent)["global_step"] == step + 1
        shown = capsys.readouterr().out
        assert f"Stopped in epoch {step // 3 + 1}: saved {path}, resume=true continues" in shown
    parts, again = run("parts", *common, "resume=true")
    done = (steps[-1] + 1) % 3
    after = f" after {done} of 3 steps" if done else ""
    assert f"Going on in epoch {(steps[-1] + 1) // 3 + 1}{after}." in capsys.readouterr().out
    assert_same_state(whole, parts)
    assert {p.name for p in whole.iterdir()} - {p.name for p in parts.iterdir()} <= {
        p.name for p in whole.glob("events*")
    }
    for path in (p for p in whole.iterdir() if p.suffix in (".pt", ".jpg")):
        if path.suffix == ".pt":
            assert_same_weights(weights(path), weights(parts / path.name))
        else:
            assert path.read_bytes() == (parts / path.name).read_bytes()
    assert figures | {"images_per_second": 0} == again | {"images_per_second": 0}


@pytest.mark.slow
def test_what_the_end_of_an_epoch_lacks_is_written_on_resume(run, monkeypatch):
    whole, figures = run("whole", "epochs=2")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for part in ("_save_samples", "_remove_old_networks"):  # before all and after all files
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(samples.RunExporter, part, full)
            run("parts", "epochs=2", "resume=true")
    for name in ("G_e002.pt", "epoch002_1.jpg", "result.json"):  # of a run that was at its end
        shutil.copytree(whole, tmp := whole.with_name(name))
        (tmp / name).unlink()
        (tmp / "result.json").unlink(missing_ok=True)
    for name in ("parts", "G_e002.pt", "epoch002_1.jpg", "result.json"):
        out_dir, again = run(name, "epochs=2", "resume=true")
        assert {p.name for p in whole.iterdir()} - {p.name for p in out_dir.iterdir()} <= {
            p.name for p in whole.glob("events*")
        }
        assert_same_state(whole, out_dir)
        assert again["lr/g"] == figures["lr/g"]
        assert read_outcome(out_dir)["steps"] == 6


def test_a_run_is_saved_inside_of_an_epoch_every_few_minutes(run, monkeypatch):
    steps, save = [], L.Trainer.save_checkpoint

    def noted(self, *arguments):
        steps.append(self.global_step)
        save(self, *arguments)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", noted)
    run("often", "epochs=2", "checkpoint_minutes=0")
    assert steps == [1, 2, 3, 4, 5, 6]
    run("seldom", "epochs=2")
    assert steps[6:] == [3, 6]


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(run, monkeypatch):
    step = GAN.step

    def spoilt(self, *arguments):
        d_terms, g_terms = step(self, *arguments)
        if self.global_step == 5:
            g_terms["adversarial"] = g_terms["adversarial"] * float("nan")
        return d_terms, g_terms

    monkeypatch.setattr(GAN, "step", spoilt)
    with pytest.raises(UserError, match=r"not finite at step 5, in epoch 2 \(.* of step 3 is"):
        run("run", "epochs=3")


def test_weights_that_the_last_step_made_not_finite_are_not_saved(run, monkeypatch):
    step = GAN.step

    def spoilt(self, *arguments):
        terms = step(self, *arguments)
        if self.global_step == 6:  # a finite loss whose gradient is not finite
            next(self.generator.parameters()).data.fill_(torch.nan)
        return terms

    monkeypatch.setattr(GAN, "step", spoilt)
    with pytest.raises(UserError, match=r"a weight is not finite at step 6, .* of step 3 is good"):
        run("run", "epochs=2")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("epoch",), -5, "has 'epoch', which is -5"),
        (("loops",), None, "lacks 'loops'"),
        (("loops", "fit_loop", "epoch_progress", "current", "processed"), "1", "is '1'"),
        (
            ("state_dict", "generator.stem.bias"),
            torch.zeros(3),
            "not a state.*stem.bias",
        ),
        (("callbacks", "TimeBudget"), {"x": 1}, "not a state.*seconds"),
        (("optimizer_states",), [], "holds no optimizer_states"),
        (("lr_schedulers",), [], "holds no lr_schedulers"),
        (
            ("loops", "fit_loop", "epoch_progress", "current", "processed"),
            9,
            "has 9 epochs already",
        ),
        (
            ("optimizer_states", 0, "state", 0, "exp_avg"),
            torch.zeros(3),
            "optimizer's state",
        ),
    ],
)
def test_a_state_of_another_run_is_refused(place, value, message, trained, go_on):
    path = trained[1] / "last.ckpt"
    content = inner = last_checkpoint(path.parent)
    for key in place[:-1]:
        inner = inner[key]
    if value is None:
        del inner[place[-1]]
    else:
        assert place[-1] in inner or isinstance(inner, list)
        inner[place[-1]] = value
    torch.save(content, path)
    before = path.read_bytes()
    (path.parent / "result.json").unlink()
    with pytest.raises(UserError, match=message):
        go_on("epochs=3", "resume=true")
    assert path.read_bytes() == before


def test_slurm_s_signal_saves_the_run_and_requeues_its_job(run, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "asked"}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    common = ("epochs=2", "trainer.requeue=true")
    with pytest.raises(UserError, match="add resume=true"):
        run("run", *common)
    with signal_at(1, signal.SIGUSR1):
        run("run", *common, "resume=true")
    assert (tmp_path / "asked").read_text() == "requeue 1234\n"
    assert last_checkpoint(run("run", *common, "resume=true")[0])["global_step"] == 6


def test_crops_change_the_training_and_the_summary_names_their_classes(
    trained, tmp_path, go_on, capsys
):
    balanced = tmp_path / "balanced"
    go_on(f"out_dir={balanced}", "epochs=1", "crops=balanced")
    shown = " ".join(capsys.readouterr().out.split())
    assert "100% placed on these classes in turn: Background, Forest land, Settlement" in shown
    assert differ(weights(trained[1] / "G_e001.pt"), weights(balanced / "G_e001.pt"))
    with pytest.raises(UserError, match="has crops=balanced, not rare"):
        go_on(f"out_dir={balanced}", "epochs=2", "crops=rare", "resume=true")


def test_resume_with_other_settings_is_refused_naming_both_values(go_on):
    for key, old, new in (("lr", "0.0002", "0.001"), ("model.generator.width", "4", "8")):
        with pytest.raises(UserError, match=f"has {key}={old}, not {new}"):
            go_on("resume=true", "epochs=3", f"{key}={new}")


def test_a_run_does_not_go_on_with_other_data(trained, go_on):
    root, out_dir = trained
    before = (out_dir / "last.ckpt").read_bytes()
    found = load_generator(out_dir / "G_e002.pt").facts.data
    assert found == last_checkpoint(out_dir)["data"] and found["train"]["pairs"] == 6
    for part in ("images", "masks"):
        (root / f"train/{part}/train_005.png").unlink()
    with pytest.raises(UserError, match="began with, but other data: train had 6 pairs, now 5"):
        go_on("resume=true", "epochs=3")
    assert (out_dir / "last.ckpt").read_bytes() == before
    for path in root.glob("*/images/*"):  # whose bands its networks do not fit
        Image.open(path).convert("L").save(path)
    with pytest.raises(UserError, match="other data"):
        go_on("resume=true", "epochs=3")
    # A run of an earlier version does not tell what its data were.
    content = last_checkpoint(out_dir)
    del content["data"]
    torch.save(content, out_dir / "last.ckpt")
    for path in root.glob("*/images/*"):
        Image.open(path).convert("RGB").save(path)
    go_on("resume=true", "epochs=3")


def test_a_setting_that_was_null_and_becomes_a_group_differs(trained, tmp_path, composed, tiny):
    paths = (f"data_root={tmp_path / 'world'}", f"out_dir={trained[1]}")
    config = composed("train", *tiny, *paths, "resume=true", "epochs=3")
    config.data.demo = composed("train", "data=demo").data.demo
    with pytest.raises(UserError, match=r"has data.demo=null, not \{\"train_tiles"):
        train(config)
    # A knob that is newer than the run does not count.
    stored = {"lr": 1.0, "segmenter": {"options": {}, "depth": 3}, "demo": {"seed": 1}}
    now = {"lr": 1.0, "segmenter": {"options": {"a": 1}, "depth": 4}, "demo": None, "new": 1}
    assert list(differences(stored, now)) == [
        ("segmenter.options", {}, {"a": 1}),
        ("segmenter.depth", 3, 4),
        ("demo", {"seed": 1}, None),
    ]


def test_a_finished_run_is_not_overwritten_and_returns_its_figures(trained, go_on, capsys):
    _, out_dir = trained
    before = {path: path.stat().st_mtime_ns for path in out_dir.glob("[!.]*")}
    with pytest.raises(UserError, match=r"already holds a run.*resume=true"):
        go_on()
    figures = go_on("epochs=2", "resume=true")
    assert figures == read_outcome(out_dir)["figures"] and figures["lr/g"] >= 0
    assert {path: path.stat().st_mtime_ns for path in out_dir.glob("[!.]*")} == before
    assert "has finished, in epoch 2. Raise epochs" in capsys.readouterr().out


def test_a_run_that_goes_on_is_not_finished_until_it_ends(trained, go_on):
    _, out_dir = trained

    with signal_at(7):
        go_on("epochs=3", "resume=true")
    assert read_outcome(out_dir) is None
    metrics = go_on("epochs=4", "resume=true", "keep_checkpoints=2")
    assert read_outcome(out_dir)["epochs"] == 4
    # The rate is taken up: the last but one of twelve batches ran at progress 11/12.
    assert metrics["lr/g"] == pytest.approx(0.0, abs=2e-4 * 2 / 12 + 1e-9)
    assert [event.step for event in board_of(out_dir).Images("samples")] == [3, 6, 9, 12]
    # Old networks are removed, their samples stay.
    assert sorted(p.name for p in out_dir.glob("*.pt")) == [
        "D_e003.pt", "D_e004.pt", "G_e003.pt", "G_e004.pt",
    ]  # fmt: skip
    assert len(list(out_dir.glob("epoch*.jpg"))) == 4 * 4


def test_an_epoch_that_was_cut_short_does_not_count(run, monkeypatch, capsys):
    def stop(_, trainer, *__):
        trainer.should_stop = trainer.global_step == 6

    monkeypatch.setattr(TimeBudget, "on_train_batch_end", stop)
    out_dir, _ = run("run", "epochs=3", "epoch_steps=4", "max_minutes=1000")
    assert (
        f"Trained 1 epoch and 2 steps: the checkpoints are in {out_dir}." in capsys.readouterr().out
    )
    run("run", "epochs=2", "epoch_steps=4", "max_minutes=1000", "resume=true")
    assert "has finished, in epoch 2. Raise epochs" in capsys.readouterr().out


@pytest.mark.slow
def test_a_time_budget_ends_training_after_saving(run):
    out_dir, _ = run("run", "epochs=100000", "max_minutes=0.03")
    epoch = last_checkpoint(out_dir)["epoch"] + 1
    assert epoch < 100000
    assert (out_dir / f"G_e{epoch:03d}.pt").is_file()
    # The budget is used up, so that the same command again has nothing to do.
    figures = run("run", "epochs=100000", "max_minutes=0.03", "resume=true")[1]
    assert last_checkpoint(out_dir)["epoch"] + 1 == epoch and "lr/g" in figures
    # An epoch that the budget cut short counts as done, so that a resume begins the next one.
    run("run", f"epochs={epoch + 1}", "resume=true")
    assert (out_dir / f"G_e{epoch + 1:03d}.pt").is_file()


@pytest.mark.slow
def test_the_rate_of_a_resumed_run_follows_the_time_used(run):
    common = ("epoch_steps=1", "max_minutes=1000", "data.num_workers=null")
    out_dir, _ = run("run", *common, "epochs=1")
    last = last_checkpoint(out_dir)
    assert last["callbacks"]["TimeBudget"]["seconds"] > 0
    last["callbacks"]["TimeBudget"]["seconds"] = 60 * 750.0
    torch.save(last, out_dir / "last.ckpt")
    run("run", *common, "epochs=4", "resume=true")
    rates = [event.value for event in board_of(out_dir).Scalars("lr/g")]
    # By their count the second and third of four batches are at progress 0.5 and 0.75.
    assert rates == pytest.approx([0, 1e-4, 1e-4, 0], abs=1e-7)
    assert last_checkpoint(out_dir)["callbacks"]["TimeBudget"]["seconds"] > 60 * 750.0


def test_sixteen_bit_images_of_five_bands_train_resized_to_fit(tmp_path, make_folder, run):
    shutil.rmtree(tmp_path / "data")
    make_folder(tmp_path / "data", 2, 1, (50, 70), bands=5, dtype="uint16")
    out_dir, _ = run("run", "epochs=1", "data.fit=resize")
    loaded = load_generator(out_dir / "G_e001.pt")
    assert loaded.facts.scaling.dtype == "uint16"
    assert len(loaded.facts.scaling.low) == 5


def test_networks_that_do_not_take_the_image_size_are_refused(composed):
    config = composed("train")
    for size, fitting in ((150, "128."), (40, "64, with data.fit=resize where tiles are smaller.")):
        message = f"need a multiple of 64, at least 64. Use e.g. image_size={fitting}"
        with pytest.raises(UserError, match=message):
            check_networks(config.model, config.loss, 6, size)
    small = composed("train", "model.generator.depth=2", "model.discriminator.layers=5").model
    with pytest.raises(UserError, match=r"a multiple of 4, at least 256. Use e.g. image_size=256"):
        check_networks(small, config.loss, 6, 64)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("epochs=0", "epochs=0: use 1 or more"),
        ("epoch_steps=0", "epoch_steps=0"),
        ("inner_share=0.6", "inner_share=0.6"),
        ("max_minutes=0", "max_minutes=0"),
        ("keep_checkpoints=0", "keep_checkpoints=0: use all, or a number from 1"),
        ("crops=central", "crops=central"),
        ("precision=half", "precision=half is not one of"),
        ("precision=16", "precision=16-mixed needs a GPU"),
        ("scale_lr=root", "scale_lr=root"),
        ("base_bs=0", "base_bs=0: use 1 or more"),
        ("speed.compile=[segmenter]", "speed.compile=segmenter"),
        ("speed.recompute=[segmenter]", "speed.recompute=segmenter"),
        ("trainer.num_nodes=0", "trainer.num_nodes=0: use 1 or more"),
        ("init_from=nowhere/G_e001.pt", "init_from=nowhere/G_e001.pt does not exist"),
        ("checkpoint_minutes=-1", "checkpoint_minutes=-1"),
        ("accumulate=4", "bs=2 is .* multiple of devices=1, times accumulate=4"),
        ("trainer.num_nodes=4", "multiple of devices=1, times trainer.num_nodes=4"),
    ],
)
def test_a_value_out_of_range_is_refused(asked, message, tmp_path, run):
    with pytest.raises(UserError, match=message):
        run("run", asked)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_generated_pairs_is_no_place_for_a_run(composed, make_generated, tmp_path):
    made = make_generated(tmp_path / "made", range(2))
    place = (f"out_dir={made}", f"data_root={tmp_path}", "trainer=cpu")
    for name, command in (("train", train), ("train_segmenter", train_segmenter)):
        with pytest.raises(UserError, match=r"out_dir=.*made holds generated pairs\. Choose"):
            command(composed(name, *place))


@pytest.mark.parametrize(
    ("name", "strange"),
    [
        ("train", "D_e001.pt"),
        ("train", "epoch001_0.jpg"),
        ("train", "result.json"),
        ("train", "config.yaml"),
        ("train_segmenter", "scores.json"),
        ("train_segmenter", "config.yaml"),
    ],
)
@pytest.mark.parametrize("resume", ["false", "true"])
def test_what_is_not_of_a_run_is_not_overwritten(name, strange, resume, composed, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / strange).write_text("recipes: {}\n")
    place = (f"out_dir={tmp_path}/run", f"data_root={tmp_path}", "trainer=cpu")
    run = {"train": train, "train_segmenter": train_segmenter}[name]
    with pytest.raises(UserError, match=rf"run holds {strange} of something else, which this run"):
        run(composed(name, *place, f"resume={resume}"))
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name != LOCK] == [strange]


def test_a_run_that_was_killed_early_begins_again_with_other_settings(trained, run, tmp_path):
    _, out_dir = trained
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("config.yaml", "notes.txt"):  # and what a user has put there
        (begun / name).write_bytes((out_dir / "config.yaml").read_bytes())
    run("begun", "lr=1e-3")
    assert "lr: 0.001" in (begun / "config.yaml").read_text()


def test_synthetic_folders_are_names(composed):
    config = composed("train", "synthetic=[1,2]")
    assert config.synthetic == ["1", "2"]
    for given, wrong in ((3, "3"), ([1, 2], "1"), (["a", None], "None")):
        with pytest.raises(UserError) as caught:
            replace(config, synthetic=given)
        assert str(caught.value) == (
            f"synthetic={given}: {wrong} is not the name of a folder. Use a folder that generate "
            "wrote, a list of them, as in [pairs,'2024'], or null."
        )


@pytest.mark.slow
def test_a_sweep_gives_each_job_its_folder_and_outlives_a_failing_one(
    tmp_path, make_folder, tiny, monkeypatch, capsys
):
    root = make_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    arguments = [*tiny, f"data_root={root}", "out_dir=runs/sweep", "epochs=1", "lr=-1,1e-4,1e-3"]
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *arguments])
    with pytest.raises(SystemExit) as stop:
        train_command()
    assert stop.value.code == 1
    assert "lr=-1.0: use more than 0, up to 10." in capsys.readouterr().err
    done = sorted(path.parent.name for path in (tmp_path / "runs/sweep").glob("*/G_e001.pt"))
    assert [name.split("lr=")[1].split(",")[0] for name in done] == ["0.0001", "0.001"]


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path, make_folder, composed, tiny):
    root = make_folder(tmp_path / "data", train=8)
    common = [o for o in tiny if not o.startswith(("bs=", "trainer="))]
    common += [f"data_root={root}", "bs=4", "epochs=2"]
    train(composed("train", *common, f"out_dir={tmp_path / 'one'}", "trainer=cpu"))
    # A sweep of one value, since the processes of a job must not start the sweep again.
    extra = ("-m", "trainer=ddp", "trainer.accelerator=cpu", "devices=2")
    two = f"out_dir={tmp_path / 'two'}"
    shown = run_script("train", *extra, two, *common, cwd=tmp_path)
    assert shown.count("Epoch 2: saved samples and checkpoints.") == 1
    for network in ("G_e002.pt", "D_e002.pt"):
        (two,) = (tmp_path / "two").rglob(network)
        first, second = weights(tmp_path / "one" / network), weights(two)
        for name in first:
            # While every logit is within the hinge, a discriminator's bias has a gradient of zero
            # but for rounding, and Adam takes full steps along the sign of the rounding.
            if network.startswith("G") or not name.endswith("bias"):
                torch.testing.assert_close(first[name], second[name], atol=2e-6, rtol=0)


def test_tiles_that_are_too_small_are_refused_with_a_size_that_trains(
    tmp_path, make_folder, composed, tiny, tiny_segmenter
):
    places = f"data_root={make_folder(tmp_path / 'data', size=45)}", f"out_dir={tmp_path / 'run'}"
    for command, words in ((train, tiny), (train_segmenter, tiny_segmenter)):
        config = composed(command.__name__, *words, *places, "image_size=64")
        with pytest.raises(UserError, match=r"Set image_size=\d+, or data.fit=resize") as caught:
            command(config)
        size = int(re.search(r"image_size=(\d+), or", str(caught.value))[1])
        assert size < 45
        command(replace(config, image_size=size, epochs=1, epoch_steps=1))
        shutil.rmtree(tmp_path / "run")


def test_tiles_smaller_than_one_stride_are_refused_with_settings_that_train(
    tmp_path, make_folder, composed, tiny
):
    places = f"data_root={make_folder(tmp_path / 'data', size=13)}", f"out_dir={tmp_path / 'run'}"
    words = [*tiny, *places, "epochs=1", "epoch_steps=1", "image_size=64"]
    with pytest.raises(UserError, match="train with image_size=") as caught:
        train(composed("train", *words))
    fitting = re.search(r"image_size=\d+ data.fit=resize", str(caught.value))[0].split()
    assert train(composed("train", *words, *fitting))


def test_data_mistakes_stop_before_anything_is_written(tmp_path, run):
    shutil.rmtree(tmp_path / "data" / "train" / "masks")
    with pytest.raises(UserError, match=r"train/masks is missing"):
        run("run")
    assert not (tmp_path / "run").exists()
