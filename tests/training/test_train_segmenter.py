"""The train_segmenter command."""

import copy
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
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
from torchmetrics.classification import MulticlassJaccardIndex

from geoseg_gan.config import plain
from geoseg_gan.data.images import read_image, write_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.synthetic import read_synthetic
from geoseg_gan.models.loaded import load_segmenter
from geoseg_gan.synthesis import pseudo_labels
from geoseg_gan.training import segmenter
from geoseg_gan.training.runs import FREE, find_run
from geoseg_gan.training.train_segmenter import (
    _against_first,
    _too_few,
    check,
    train_segmenter,
)
from geoseg_gan.utils.confusion import TileConfusions, mean_iou
from geoseg_gan.utils.errors import UserError


@pytest.fixture
def fit(tmp_path, make_folder, composed, tiny_segmenter):
    """Trains a tiny segmenter and returns its folder and figures: `fit("run", "epochs=3")`."""
    root = tmp_path / "data"
    if not root.exists():
        make_folder(root)

    def call(name, *overrides):
        paths = (f"data_root={root}", f"out_dir={tmp_path / name}")
        scores = train_segmenter(composed("train_segmenter", *tiny_segmenter, *paths, *overrides))
        return tmp_path / name, scores

    return call


@pytest.fixture
def made(make_generated, tmp_path):
    """A folder of three generated pairs."""
    return make_generated(tmp_path / "made", range(3))


def predictions(segmenter, pairs, palette):
    """Label and logits of whole pictures, computed the plain way."""
    reader = MaskReader(palette)
    for pair in pairs:
        image = torch.from_numpy(np.moveaxis(read_image(pair.image), -1, 0).copy())[None]
        logits = segmenter.network(segmenter.facts.scaling.to_network(image))[0]
        yield torch.from_numpy(reader.read(pair.mask)[0].astype(np.int64)), logits


def test_a_run_leaves_the_best_segmenter_its_figures_and_pictures(fit, capsys):
    folder, scores = fit("run", "epochs=4", "lr=0.02")
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events")}
    assert names == {
        "segmenter.pt", "scores.json", "tiles.npz", "last.ckpt", "config.yaml", ".lock",
        "predictions_inner.png", "predictions_val.png", "confusion_inner.png", "confusion_val.png",
    }  # fmt: skip
    stored = json.loads((folder / "scores.json").read_text())
    assert stored.pop("steps") == last_checkpoint(folder)["global_step"]
    assert {k: v for k, v in stored.items() if k != "epoch"} == scores
    assert {"val/miou", "inner/miou", "val_iou/Settlement", "inner_iou/Background"} <= set(scores)
    assert {"temperature", "inner/calibration_error", "val/calibration_error"} <= set(scores)
    with np.load(folder / "tiles.npz", allow_pickle=False) as arrays:
        for part, tiles in (("inner", 2), ("val", 2)):
            confusions = TileConfusions.from_arrays(arrays, part)
            assert len(confusions.stems) == tiles
            total = torch.from_numpy(confusions.counts.sum(0))
            assert mean_iou(total) == scores[f"{part}/miou"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["precision"] == "32-true"
    shown = capsys.readouterr().out
    for text in ("real training tiles", "held out", "Settlement", "val IoU", "segmenter.pt"):
        assert text in shown
    assert re.search(
        r"Confidence differs from accuracy by [\d.]+ points on held-out and by [\d.]+ points", shown
    )
    assert "precision 32-true" in shown
    board = board_of(folder)
    assert set(board.Tags()["scalars"]) >= {
        "train/ce", "train/dice", "inner/miou", "inner_iou/Settlement", "lr", "images_per_second",
        "val/miou", "val_iou/Forest land",
    }  # fmt: skip
    assert {"image, mask, prediction", "inner/confusion"} <= set(board.Tags()["images"])
    held_out = [event.value for event in board.Scalars("inner/miou")]
    stored = torch.load(folder / "segmenter.pt", weights_only=True)
    assert len(held_out) == 4 and stored["epoch"] == 1 + int(np.argmax(held_out))
    assert stored["judged"]["scores"]["inner/miou"] == pytest.approx(max(held_out), abs=1e-6)


@pytest.mark.slow
def test_it_learns_to_tell_the_classes_apart(fit):
    _, scores = fit("run", "epochs=2", "epoch_steps=60", "select=last", "lr=0.01")
    assert scores["val/miou"] > 0.7


def test_last_weights_can_be_kept_and_figures_are_those_of_an_independent_library(
    fit, palette, tmp_path
):
    folder, scores = fit("run", "epochs=2", "image_size=64", "select=last", "inner_share=0")
    stored = torch.load(folder / "segmenter.pt", weights_only=True)
    last = last_checkpoint(folder)["state_dict"]
    assert_same_weights(stored["weights"], {k.removeprefix("network."): v for k, v in last.items()})
    assert stored["epoch"] == 2 and stored["judged"]["held_out"] == []
    assert "inner/miou" not in scores
    loaded = load_segmenter(folder / "segmenter.pt")
    metric = MulticlassJaccardIndex(3, average=None, ignore_index=255)
    for label, logits in predictions(loaded, find_pairs(tmp_path / "data", "val"), palette):
        metric.update(logits.argmax(0), label)
    expected = metric.compute()
    for name, value in zip(palette.names, expected.tolist(), strict=True):
        assert scores[f"val_iou/{name}"] == pytest.approx(value, abs=1e-6)
    assert scores["val/miou"] == pytest.approx(expected.mean().item(), abs=1e-6)


def test_unlabelled_images_of_another_type_are_refused_before_anything_is_trained(fit, tmp_path):
    write_image(tmp_path / "new/z.tif", np.zeros((64, 64, 4), np.uint16))
    with pytest.raises(UserError, match=r"z.tif is 4-band uint16, but the labelled images are 3-"):
        fit("run", f"unlabelled={tmp_path / 'new'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*but is held out", "ignore:.*hardly tell classes apart")
def test_unlabelled_images_are_labelled_in_rounds_and_mixed_in(fit, tmp_path, capsys, monkeypatch):
    root = tmp_path / "data"
    asked = ("epochs=2", f"unlabelled={root / 'train/images'}", "rounds=2", "synthetic_ratio=0.5")
    asked += ("augment.match_colors.p=0.5", "samples=0")
    unsure = r"round_0/segmenter.pt is not sure enough of anything in .*train/images"
    with pytest.warns(UserWarning, match="held out"), pytest.raises(UserError, match=unsure):
        fit("unsure", *asked)
    with pytest.raises(UserError, match=r"holds round_0 of a run already.*resume=true"):
        fit("unsure", *asked)
    with pytest.warns(UserWarning, match="held out"), pytest.raises(UserError, match=unsure):
        fit("unsure", *asked, "resume=true", "epochs=3")  # as advised
    assert load_segmenter(tmp_path / "unsure/round_0/segmenter.pt").facts.config["epochs"] == 3
    monkeypatch.setattr(pseudo_labels, "_SURE", 0.0)
    folder, scores = fit("run", *asked)
    shown = capsys.readouterr().out
    assert f"Round 2 of 2: {folder / 'round_1'} labels {root / 'train/images'}." in shown
    assert shown.count("mIoU by the first segmenter") == 1
    made = [read_synthetic(folder / f"labelled_{number}") for number in (1, 2)]
    teachers = [load_segmenter(folder / f"round_{n}/segmenter.pt") for n in (0, 1)]
    assert [one.filter_digest for one in made] == [teacher.digest for teacher in teachers]
    last = load_segmenter(folder / "segmenter.pt")
    used = [one.facts.config["synthetic"] for one in (*teachers, last)]
    assert used == [None, [str(folder / "labelled_1")], [str(folder / "labelled_2")]]
    first, second = (one.facts.config["augment"]["match_colors"]["p"] for one in teachers)
    assert (first, second) == (0, 0.5)
    with pytest.raises(UserError, match="already holds a run"):
        fit("run", *asked)
    assert fit("run", *asked, "resume=true")[1] == scores
    first = weights(folder / "round_0/segmenter.pt")
    fit("run", *asked, "resume=true", "epochs=3")  # trains on what is labelled, and labels nothing
    assert_same_weights(first, weights(folder / "round_0/segmenter.pt"))
    with pytest.raises(UserError, match=r"rounds=3: the run in .*run has had fewer"):
        fit("run", *asked, "resume=true", "rounds=3")
    moved = folder.rename(tmp_path / "moved")
    fit("moved", *asked, "resume=true", "epochs=3")
    assert_same_weights(first, weights(moved / "round_0/segmenter.pt"))
    with pytest.raises(UserError, match=r"val_000.png is a validation image"):
        fit("other", f"unlabelled={root / 'val/images'}")
    assert not (tmp_path / "other").exists()
    for path in moved.iterdir():  # killed before its first checkpoint
        if path.is_file() and path.name != "config.yaml":
            path.unlink()
    with pytest.raises(UserError, match=r"round_0 has lr=.*, not 0.5"):
        fit("moved", *asked, "resume=true", "lr=0.5")
    next((root / "train/masks").iterdir()).unlink()
    for image in (root / "train/images").iterdir():
        if not (root / "train/masks" / image.name).exists():
            image.unlink()
    with pytest.raises(UserError, match=r"is not what the run in .*round_0 began with"):
        fit("moved", *asked, "resume=true")


def test_the_moving_average_of_the_weights_is_what_is_evaluated_and_saved(fit, monkeypatch):
    seen = []
    move = segmenter.move_average

    def watched(average, network, ema, batches):
        before = copy.deepcopy(average.state_dict())
        move(average, network, ema, batches)
        seen.append((batches, before, network.state_dict(), average.state_dict()))

    monkeypatch.setattr(segmenter, "move_average", watched)
    asked = ("epochs=1", "select=last", "inner_share=0", "optimizer.ema=0.9")
    folder, scores = fit("averaged", *asked)
    assert [batches for batches, *_ in seen] == list(range(1, len(seen) + 1))
    name = next(name for name, value in seen[0][1].items() if value.ndim == 4)
    _, before, _, _ = seen[0]
    state = last_checkpoint(folder)["state_dict"]
    average = {k.removeprefix("average."): v for k, v in state.items() if k.startswith("average.")}
    stored = weights(folder / "segmenter.pt")
    assert_same_weights(stored, average)
    assert not torch.equal(stored[name], state[f"network.{name}"])
    assert not torch.equal(stored[name], before[name])
    plain, others = fit("plain", *asked[:-1])
    assert_same_weights(
        weights(plain / "segmenter.pt"),
        {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")},
    )
    assert scores != others


@pytest.mark.slow
def test_held_out_tiles_are_checked_as_often_as_asked_and_nothing_else_changes(fit):
    trained, checks = [], []
    for every in (1, 3):
        folder, scores = fit(f"every_{every}", "epochs=4", "select=last", f"validate_every={every}")
        checks.append(len(board_of(folder).Scalars("inner/miou")))
        trained.append(weights(folder / "segmenter.pt"))
        assert "inner/miou" in scores
    assert checks == [4, 1]
    assert_same_weights(*trained)


@pytest.mark.slow
def test_a_run_that_signals_stop_ends_as_an_undisturbed_one(
    tmp_path, make_folder, make_generated, composed, tiny_segmenter
):
    make_folder(tmp_path / "data")
    make_generated(tmp_path / "made", range(6))
    settings = [o for o in tiny_segmenter if "segmenter" not in o and "augment" not in o]
    # The default number of workers, strong augmentation, and a network with dropout.
    settings += ["epochs=3", "data.num_workers=null", "resume=true", "segmenter=fpn_light"]
    settings += [f"data_root={tmp_path / 'data'}", "samples=0", "mixing.schedule=first"]
    settings += ["optimizer.ema=0.9", "augment.match_colors.p=0.5"]
    settings += [f"synthetic={tmp_path / 'made'}", "segmenter.encoder_weights=null"]

    def fit(name):
        out_dir = tmp_path / name
        return out_dir, train_segmenter(
            composed("train_segmenter", *settings, f"out_dir={out_dir}")
        )

    whole, scores = fit("whole")
    for step in (0, 4):
        with signal_at(step):
            fit("parts")
    parts, again = fit("parts")
    assert_same_weights(weights(whole / "segmenter.pt"), weights(parts / "segmenter.pt"))
    assert_same_state(whole, parts)
    assert scores == again
    assert (whole / "scores.json").read_text() == (parts / "scores.json").read_text()


@pytest.mark.slow
def test_a_run_is_not_overwritten_and_one_interrupted_while_it_is_evaluated_goes_on_with_that(
    fit, capsys
):
    folder, scores = fit("run", "epochs=2")
    times = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    with pytest.raises(UserError, match=r"already holds a run.*resume=true"):
        fit("run", "epochs=1")
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == times
    before = weights(folder / "segmenter.pt")
    for name in ("segmenter.pt", "scores.json"):
        (folder / name).unlink()
    assert fit("run", "epochs=2", "resume=true")[1] == scores
    assert_same_weights(weights(folder / "segmenter.pt"), before)
    changed = (folder / "segmenter.pt").stat().st_mtime_ns
    assert fit("run", "epochs=2", "resume=true")[1] == scores
    assert "has finished, in epoch 2" in capsys.readouterr().out
    assert (folder / "segmenter.pt").stat().st_mtime_ns == changed


def test_a_run_of_an_earlier_version_resumes_unless_it_uses_a_removed_knob(
    composed, tmp_path, trained
):
    content = last_checkpoint(trained[1])
    asked = (f"out_dir={tmp_path}", "resume=true")
    config = composed("train_segmenter", *asked)
    for value in ("shared", "apart"):
        stored = plain(config) | {"epochs": 30}
        del stored["segmenter"]["image_scale"]
        stored["mixing"]["batch_norm"] = value
        content["config"] = stored
        torch.save(content, tmp_path / "last.ckpt")
        if value == "shared":
            found, has_finished = find_run(config, FREE, "scores.json")
            assert found["config"]["mixing"] == stored["mixing"] and not has_finished
            with pytest.raises(UserError, match=r"has segmenter.image_scale=1.0, not 2.0"):
                find_run(composed("train_segmenter", *asked, "segmenter.image_scale=2"), FREE, "-")
        else:
            with pytest.raises(UserError, match=r"batch_norm=apart, which this version no longer"):
                find_run(config, FREE, "scores.json")


@pytest.mark.slow
def test_synthetic_pairs_are_mixed_in_without_changing_the_number_of_steps(
    fit, make_generated, made, tmp_path, capsys
):
    more = make_generated(tmp_path / "more", range(3, 5), layout="folders")
    real, _ = fit("real", "epochs=1")
    mixed, _ = fit("mixed", "epochs=1", f"synthetic=[{made},{more}]", "synthetic_ratio=0.5")
    assert "50% of every epoch from 5 pairs in" in " ".join(capsys.readouterr().out.split())
    steps = [last_checkpoint(folder)["global_step"] for folder in (real, mixed)]
    assert steps[0] == steps[1]
    expected = weights(real / "segmenter.pt")
    assert differ(expected, weights(mixed / "segmenter.pt"))
    unmixed, _ = fit("unmixed", "epochs=1", f"synthetic={made}", "synthetic_ratio=0")
    assert_same_weights(expected, weights(unmixed / "segmenter.pt"))


def test_unless_epochs_are_given_there_are_enough_for_so_many_steps(
    fit, tmp_path, monkeypatch, capsys
):
    for name, value in (("_EPOCHS", 2), ("_ENOUGH", 5), ("_TEST", 1)):
        monkeypatch.setattr(f"geoseg_gan.training.train_segmenter.{name}", value)

    def trained(*asked):
        folder, scores = fit(*asked, "samples=0")
        steps = last_checkpoint(folder)["global_step"]
        return scores, steps, load_segmenter(folder / "segmenter.pt").facts.config["epochs"]

    scores, *found = trained("run")
    assert found == [6, 3]  # two steps an epoch
    assert "are few" not in capsys.readouterr().out
    assert trained("run", "resume=true") == (scores, *found)
    assert "has finished, in epoch 3" in capsys.readouterr().out
    assert trained("long", "epoch_steps=3")[1:] == (6, 2)
    assert trained("short", "epochs=1")[1:] == (2, 1)
    assert "2 steps are few" in (shown := capsys.readouterr().out) and "epochs=3." in shown
    (tmp_path / "short/scores.json").unlink()
    assert trained("short", "resume=true")[1:] == (2, 1)  # as many as the run was begun with


def test_a_segmenter_of_labelled_images_is_compared_with_the_first(composed, tmp_path):
    config = composed("train_segmenter", f"out_dir={tmp_path}", "unlabelled=new")
    assert _against_first(config, {"inner/miou": 0.165}) is None
    first = tmp_path / "round_0"
    first.mkdir()
    (first / "scores.json").write_text('{"epoch": 3, "inner/miou": 0.172}')
    worse, better = (_against_first(config, {"inner/miou": miou}) for miou in (0.165, 0.2))
    assert "Held-out tiles: 17.2 mIoU by the first segmenter, 16.5 by this one" in worse
    assert worse.endswith(f"For maps of the labelled ground use {first / 'segmenter.pt'}.")
    assert "of the labelled ground" in better and "use " not in better


@pytest.mark.parametrize(
    ("steps", "advice"), [(30, None), (225, "epochs=143."), (999, "epochs=143."), (1000, None)]
)
def test_a_training_of_few_steps_is_told_how_long_would_do(steps, advice):
    text = _too_few(steps, 7)
    assert text is None if advice is None else text.endswith(advice)


def test_a_segmenter_that_enlarges_its_images_is_trained_and_used_at_their_size(fit):
    asked = ("epochs=1", "image_size=36", "samples=0")  # 72 px inside: 9 strides
    folder, _ = fit("run", *asked, "segmenter.image_scale=2")
    segmenter = load_segmenter(folder / "segmenter.pt")
    assert segmenter.facts.config["segmenter"]["image_scale"] == 2
    image = np.random.default_rng(0).integers(0, 256, (50, 61, 3), np.uint8)
    found = segmenter.probabilities(image)
    padded = np.pad(image, [(0, 2), (0, 3), (0, 0)], mode="reflect")
    assert found.shape == (3, 50, 61)
    expected = segmenter.probabilities(padded)[:, :50, :61]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(UserError, match=r"has segmenter.image_scale=2.0, not 4.0"):
        fit("run", *asked, "segmenter.image_scale=4", "resume=true")


def test_a_generated_folder_is_refused_as_validation(fit, make_generated, tmp_path):
    made = make_generated(tmp_path / "made", range(3), layout="folders")
    for name in ("images", "masks"):
        shutil.rmtree(tmp_path / "data" / "val" / name)
        (tmp_path / "data" / "val" / name).symlink_to(made / name)
    with pytest.raises(UserError, match=r"holds generated pairs.*must be real"):
        fit("run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_faster_precision_is_measured_where_asked_and_leaves_no_trace(fit, capsys, monkeypatch):
    monkeypatch.setattr("geoseg_gan.training.callbacks.precision._GAIN", 1e9)
    measured, _ = fit("measured", "epochs=1", "precision=auto")
    assert "Precision: 32-true (measured against 32-true: bf16-mixed" in capsys.readouterr().out
    plain, _ = fit("plain", "epochs=1")
    assert_same_weights(weights(measured / "segmenter.pt"), weights(plain / "segmenter.pt"))


def test_sixteen_bit_images_of_five_bands_train_in_bfloat16(tmp_path, make_folder, request):
    make_folder(tmp_path / "data", train=4, val=1, bands=5, dtype="uint16")
    asked = ("augment=strong", "oversample_classes=[Settlement]", "precision=bf16-mixed")
    folder, scores = request.getfixturevalue("fit")("run", "epochs=1", *asked)
    assert np.isfinite(list(scores.values())).all()
    dtypes = {value.dtype for value in weights(folder / "segmenter.pt").values()}
    assert dtypes <= {torch.float32, torch.int64}
    assert len(load_segmenter(folder / "segmenter.pt").facts.scaling.low) == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs=-1", "epochs=-1: use 0 or more"),
        ("augment=matched", "augment=matched, or augment.match_colors.p=0.5, takes colours"),
        ("bs=1", "batch normalisation"),
        ("trainer.num_nodes=3", "bs=8 is the batch.* devices=1, times trainer.num_nodes=3"),
        ("trainer.num_nodes=8", "leaves a device fewer than 2 images"),
        ("select=first", "select=first is not one of best, last"),
        ("inner_share=0.6", "inner_share=0.6: use 0 to 0.5"),
        ("validate_every=0", "validate_every=0"),
        ("validate_every=2", "skips epochs that select=best chooses from"),
        ("inner_share=0", "select=best needs held-out"),
        ("synthetic_ratio=1.5", "synthetic_ratio=1.5"),
        ("synthetic=[null]", "synthetic=.None.: None is not the name of a folder"),
        ("oversample_factor=0.5", "oversample_factor=0.5"),
        ("mixing.schedule=frist", "mixing.schedule=frist.*Did you mean 'first'"),
        ("mixing.classes=[]", r"mixing.classes=\[\] would ignore every synthetic pixel"),
        ("mixing.classes=[Tree]", "mixing.classes: 'Tree' is not a class"),
        ("epoch_steps=0", "epoch_steps=0"),
        ("image_size=50", "image_size=32"),
        ("segmenter.arch=unett", "Did you mean 'unet'"),
        ("segmenter.image_scale=8", "segmenter.image_scale=8.0: use 0.25 to 4"),
        ("loss.class_weights=[1,2]", "6 numbers"),
        ("augment.color.p=2", "augment.color.p=2"),
        ("optimizer.warm_up=1", "optimizer.warm_up=1"),
        ("data_root=nowhere", "nowhere is not a folder"),
    ],
)
def test_values_out_of_range_are_refused(override, message, composed, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        check(composed("train_segmenter", override))


@pytest.mark.slow
def test_two_processes_train_on_a_mix(tmp_path, make_folder, made, tiny_segmenter):
    root = make_folder(tmp_path / "data", train=10)
    common = [o for o in tiny_segmenter if not o.startswith(("bs=", "trainer="))]
    common += [f"data_root={root}", "bs=4", "epochs=1", f"synthetic={made}"]
    common += ["trainer=ddp", "trainer.accelerator=cpu"]
    folder = tmp_path / "two"
    shown = run_script("train_segmenter", *common, "devices=2", f"out_dir={folder}", cwd=tmp_path)
    assert shown.count("Saved the segmenter of epoch") == 1
    scores = json.loads((folder / "scores.json").read_text())
    logged = [event.value for event in board_of(folder).Scalars("inner/miou")]
    # Both processes' held-out windows are in the logged figure: it is what one process measures.
    assert scores["inner/miou"] == pytest.approx(max(logged), abs=1e-6)
