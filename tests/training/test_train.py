import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from geoseg_gan.models.checkpoints import load_generator
from geoseg_gan.training.train import check_networks, main, train
from geoseg_gan.utils.errors import UserError

SCRIPT = Path(__file__).parents[1] / "scripts" / "train.py"


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_run_leaves_samples_checkpoints_logs_and_says_so(
    tmp_path, make_folder, composed, tiny, capsys
):
    root, out_dir = make_folder(tmp_path / "data"), tmp_path / "run"
    paths = (f"data_root={root}", f"out_dir={out_dir}")
    metrics = train(composed("train", *tiny, *paths, "epochs=2", "samples=3"))
    shown = capsys.readouterr().out
    assert "Epoch 1: saved samples and checkpoints.\n" in shown
    assert "Epoch 2: saved samples and checkpoints.\n" in shown
    for text in ("6 training pairs", "Settlement", "tensorboard --logdir", "Estimate: "):
        assert text in " ".join(shown.split())  # a narrow terminal breaks lines
    names = {path.name for path in out_dir.iterdir() if not path.name.startswith("events")}
    expected = {f"epoch{e:03d}_{i}.jpg" for e in (1, 2) for i in range(3)}
    expected |= {f"{n}_e{e:03d}.pt" for e in (1, 2) for n in "GD"}
    assert names == expected | {"last.ckpt", "config.yaml", "hparams.yaml", "result.json"}
    assert yaml.safe_load((out_dir / "config.yaml").read_text())["lr"] == 2e-4
    assert metrics["lr/g"] >= 0
    with Image.open(out_dir / "epoch002_0.jpg") as triple:
        assert triple.size == (3 * 32 + 2 * 2, 32)


def test_a_sample_shows_mask_real_and_generated(trained, palette):
    _, out_dir = trained
    triple = np.asarray(Image.open(out_dir / "epoch002_0.jpg")).astype(int)
    mask, real = triple[:, :32], triple[:, 34:66]
    colours = np.array([*(c.color for c in palette.classes), [0, 0, 0]])
    distance = np.abs(mask[:, :, None] - colours).sum(-1).min(-1)
    assert np.median(distance) < 10
    assert np.median(np.abs(real[:, :, None] - colours).sum(-1).min(-1)) > 30


def test_tensorboard_shows_every_scalar_and_the_samples_on_one_step_axis(trained):
    _, out_dir = trained
    board = EventAccumulator(str(out_dir))
    board.Reload()
    scalars = set(board.Tags()["scalars"])
    assert scalars >= {
        "d/hinge_real", "d/hinge_fake", "d/accuracy_real", "d/accuracy_fake",
        "g/adversarial", "g/feature_matching", "lr/d", "lr/g", "images_per_second",
    }  # fmt: skip
    # Two epochs of three batches: pictures at 3 and 6, scalars no later.
    assert [event.step for event in board.Images("samples")] == [3, 6]
    assert all(event.step <= 6 for name in scalars for event in board.Scalars(name))


def test_an_epoch_has_as_many_steps_as_asked_for(trained, tmp_path, composed, tiny):
    root, _ = trained
    paths = (f"data_root={root}", f"out_dir={tmp_path / 'long'}")
    train(composed("train", *tiny, *paths, "epochs=1", "epoch_steps=5", "inner_share=0.3"))
    last = torch.load(tmp_path / "long" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 5
    for setting in ("epoch_steps=0", "inner_share=0.6"):
        with pytest.raises(UserError, match=setting):
            train(composed("train", *tiny, *paths, setting))


def test_the_generator_s_average_is_what_is_saved_and_shown(trained, tmp_path, composed, tiny):
    root, out_dir = trained
    state = torch.load(out_dir / "last.ckpt", weights_only=True)["state_dict"]
    average, learning = (
        {name.removeprefix(f"{part}."): value for name, value in state.items() if part in name}
        for part in ("average", "generator")
    )
    saved = weights(out_dir / "G_e002.pt")
    assert_same_weights(saved, average)
    assert any(not torch.equal(saved[name], learning[name]) for name in saved)
    paths = (f"data_root={root}", f"out_dir={tmp_path / 'plain'}")
    train(composed("train", *tiny, *paths, "epochs=2", "optimizer.ema=0"))
    assert_same_weights(weights(tmp_path / "plain" / "G_e002.pt"), learning)
    shown = [np.asarray(Image.open(o / "epoch002_0.jpg")) for o in (out_dir, tmp_path / "plain")]
    # Blocks of 16 px of a JPEG: those that hold mask and real image alone.
    assert np.array_equal(shown[0][:, :64], shown[1][:, :64])
    assert not np.array_equal(shown[0][:, 68:], shown[1][:, 68:])


def test_checkpoints_are_enough_by_themselves_and_hold_nothing_that_runs(trained):
    _, out_dir = trained
    loaded = load_generator(out_dir / "G_e002.pt")
    assert loaded.epoch == 2
    assert loaded.facts.palette.names == ["Background", "Forest land", "Settlement"]
    assert loaded.facts.config["image_size"] == 32
    assert not any(p.requires_grad for p in loaded.network.parameters())
    for path in out_dir.glob("*.pt"):
        torch.load(path, weights_only=True)
    torch.load(out_dir / "last.ckpt", weights_only=True)


def test_the_same_seed_trains_the_same_networks(trained, tmp_path, composed, tiny):
    root, out_dir = trained
    again = tmp_path / "again"
    paths = (f"data_root={root}", f"out_dir={again}")
    train(composed("train", *tiny, *paths, "epochs=2", "data.num_workers=2", "data.cache=ram"))
    assert_same_weights(weights(out_dir / "G_e002.pt"), weights(again / "G_e002.pt"))
    other = tmp_path / "other"
    train(composed("train", *tiny, f"data_root={root}", f"out_dir={other}", "epochs=1", "seed=1"))
    first, second = weights(out_dir / "G_e001.pt"), weights(other / "G_e001.pt")
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("crops", ["uniform", "rare"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(crops, tmp_path, make_folder, composed, tiny):
    root = make_folder(tmp_path / "data", train=7, size=48)
    # A constant rate, since the linear one depends on the planned number of epochs.
    common = (*tiny, f"data_root={root}", "optimizer.schedule=constant", f"crops={crops}")
    train(composed("train", *common, f"out_dir={tmp_path / 'whole'}", "epochs=3"))
    train(composed("train", *common, f"out_dir={tmp_path / 'parts'}", "epochs=2"))
    train(composed("train", *common, f"out_dir={tmp_path / 'parts'}", "epochs=3", "resume=true"))
    for name in ("G_e003.pt", "D_e003.pt"):
        assert_same_weights(weights(tmp_path / "whole" / name), weights(tmp_path / "parts" / name))
    whole, parts = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert_same_weights(
        {name: value for name, value in whole["state_dict"].items() if torch.is_tensor(value)},
        {name: value for name, value in parts["state_dict"].items() if torch.is_tensor(value)},
    )
    assert whole["global_step"] == parts["global_step"] == 9
    assert whole["lr_schedulers"] == parts["lr_schedulers"]


def test_resume_takes_up_the_learning_rate(tmp_path, make_folder, composed, tiny):
    root, out_dir = make_folder(tmp_path / "data"), tmp_path / "run"
    common = (*tiny, f"data_root={root}", f"out_dir={out_dir}")
    train(composed("train", *common, "epochs=2"))
    metrics = train(composed("train", *common, "epochs=4", "resume=true"))
    # Twelve batches in all: the last but one ran at progress 11/12.
    assert metrics["lr/g"] == pytest.approx(0.0, abs=2e-4 * 2 / 12 + 1e-9)
    board = EventAccumulator(str(out_dir))
    board.Reload()
    assert [event.step for event in board.Images("samples")] == [3, 6, 9, 12]


def test_crops_change_the_training_and_the_summary_names_their_classes(
    trained, tmp_path, composed, tiny, capsys
):
    root, out_dir = trained
    paths = (f"data_root={root}", f"out_dir={tmp_path / 'balanced'}")
    train(composed("train", *tiny, *paths, "epochs=1", "crops=balanced"))
    shown = " ".join(capsys.readouterr().out.split())
    assert "100% placed on these classes in turn: Background, Forest land, Settlement" in shown
    uniform, balanced = weights(out_dir / "G_e001.pt"), weights(tmp_path / "balanced/G_e001.pt")
    assert any(not torch.equal(uniform[name], balanced[name]) for name in uniform)
    with pytest.raises(UserError, match="has crops=balanced, not rare"):
        train(composed("train", *tiny, *paths, "epochs=2", "crops=rare", "resume=true"))


def test_a_run_is_not_overwritten(trained, composed, tiny):
    root, out_dir = trained
    before = {p: p.stat().st_mtime_ns for p in out_dir.iterdir()}
    with pytest.raises(UserError, match=r"already holds a run.*resume=true"):
        train(composed("train", *tiny, f"data_root={root}", f"out_dir={out_dir}"))
    assert {p: p.stat().st_mtime_ns for p in out_dir.iterdir()} == before


def test_resume_without_a_run_is_refused(tmp_path, make_folder, composed, tiny):
    root = make_folder(tmp_path / "data")
    with pytest.raises(UserError, match=r"last.ckpt does not exist"):
        train(composed("train", *tiny, f"data_root={root}", f"out_dir={tmp_path}", "resume=true"))


def test_resume_with_other_settings_is_refused_naming_both_values(trained, composed, tiny):
    root, out_dir = trained
    common = (*tiny, f"data_root={root}", f"out_dir={out_dir}", "resume=true", "epochs=3")
    with pytest.raises(UserError, match=r"has lr=0.0002, not 0.001"):
        train(composed("train", *common, "lr=0.001"))
    with pytest.raises(UserError, match=r"has model.generator.width=4, not 8"):
        train(composed("train", *common, "model.generator.width=8"))


def test_resume_of_a_finished_run_says_how_to_go_on(trained, composed, tiny):
    root, out_dir = trained
    with pytest.raises(UserError, match=r"has all its 2 epochs. Give epochs=12"):
        train(
            composed(
                "train", *tiny, f"data_root={root}", f"out_dir={out_dir}", "epochs=2", "resume=true"
            )
        )


def test_old_networks_are_thinned(tmp_path, make_folder, composed, tiny):
    root, out_dir = make_folder(tmp_path / "data"), tmp_path / "run"
    paths = (f"data_root={root}", f"out_dir={out_dir}")
    train(composed("train", *tiny, *paths, "epochs=4", "keep_checkpoints=2"))
    assert sorted(p.name for p in out_dir.glob("*.pt")) == [
        "D_e003.pt", "D_e004.pt", "G_e003.pt", "G_e004.pt",
    ]  # fmt: skip
    assert len(list(out_dir.glob("epoch*.jpg"))) == 4 * 4


def test_a_time_budget_ends_training_after_saving(tmp_path, make_folder, composed, tiny):
    root, out_dir = make_folder(tmp_path / "data"), tmp_path / "run"
    common = (*tiny, f"data_root={root}", f"out_dir={out_dir}")
    train(composed("train", *common, "epochs=100000", "max_minutes=0.03"))
    last = torch.load(out_dir / "last.ckpt", weights_only=True)
    epoch = last["epoch"] + 1
    assert epoch < 100000
    assert (out_dir / f"G_e{epoch:03d}.pt").is_file()
    # An epoch that the budget cut short counts as done, so that a resume begins the next one.
    train(composed("train", *common, f"epochs={epoch + 1}", "resume=true"))
    assert (out_dir / f"G_e{epoch + 1:03d}.pt").is_file()


def test_sixteen_bit_images_of_five_bands_train(tmp_path, make_folder, composed, tiny):
    root, out_dir = tmp_path / "data", tmp_path / "run"
    make_folder(root, train=2, val=1, bands=5, dtype="uint16")
    train(composed("train", *tiny, f"data_root={root}", f"out_dir={out_dir}", "epochs=1"))
    loaded = load_generator(out_dir / "G_e001.pt")
    assert loaded.facts.scaling.dtype == "uint16"
    assert len(loaded.facts.scaling.low) == 5


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_both_fits_train(fit, tmp_path, make_folder, composed, tiny):
    root, out_dir = make_folder(tmp_path / "data", size=(50, 70)), tmp_path / "run"
    paths = (f"data_root={root}", f"out_dir={out_dir}")
    train(composed("train", *tiny, *paths, "epochs=1", f"data.fit={fit}"))
    assert (out_dir / "G_e001.pt").is_file()


def test_networks_that_do_not_take_the_image_size_are_refused(composed):
    config = composed("train")
    with pytest.raises(UserError, match=r"not a multiple of 64.*image_size=128"):
        check_networks(config.model, config.loss, 6, 150)
    small = composed("train", "model.generator.depth=2", "model.discriminator.layers=5").model
    with pytest.raises(UserError, match="too small for the discriminator"):
        check_networks(small, config.loss, 6, 64)


def test_a_sweep_gives_each_job_its_folder_and_outlives_a_failing_one(
    tmp_path, make_folder, tiny, monkeypatch, capsys
):
    root = make_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    arguments = [*tiny, f"data_root={root}", "out_dir=runs/sweep", "epochs=1", "lr=-1,1e-4,1e-3"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "-m", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "error: lr=-1.0 must be positive." in capsys.readouterr().err
    done = sorted(path.parent.name for path in (tmp_path / "runs/sweep").glob("*/G_e001.pt"))
    assert len(done) == 2
    assert done == ["lr=0.0001", "lr=0.001"]
    # What distributed jobs of this sweep were told is not left for the next command.
    assert "GEOSEG_GAN_JOB" not in os.environ


def run_script(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], cwd=cwd, capture_output=True, text=True
    )


def test_two_processes_train_what_one_does(tmp_path, make_folder, tiny):
    root = make_folder(tmp_path / "data", train=8)
    common = [o for o in tiny if not o.startswith(("bs=", "trainer="))]
    common += [f"data_root={root}", "bs=4", "epochs=2"]
    # A sweep of one value, since Lightning's child processes must not start the sweep again.
    for name, extra in (("one", ["trainer=cpu"]), ("two", ["-m", "trainer=ddp", "devices=2"])):
        done = run_script(*extra, *common, f"out_dir={tmp_path / name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Epoch 2: saved samples and checkpoints.") == 1
    for network in ("G_e002.pt", "D_e002.pt"):
        two = next((tmp_path / "two").glob(f"*/{network}"))
        first, second = weights(tmp_path / "one" / network), weights(two)
        for name in first:
            # While every logit is within the hinge, a discriminator's bias has a gradient of zero
            # but for rounding, and Adam takes full steps along the sign of the rounding.
            if network.startswith("G") or not name.endswith("bias"):
                torch.testing.assert_close(first[name], second[name], atol=2e-6, rtol=0)
    assert len(list((tmp_path / "two").glob("**/G_e002.pt"))) == 1


def test_data_mistakes_stop_before_anything_is_written(tmp_path, make_folder, composed, tiny):
    root = make_folder(tmp_path / "data")
    shutil.rmtree(root / "train" / "masks")
    with pytest.raises(UserError, match=r"train/masks is missing"):
        train(composed("train", *tiny, f"data_root={root}", f"out_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()
