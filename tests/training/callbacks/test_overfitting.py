import math

import pytest
import torch
from defaults import defaults
from lightning.pytorch.loggers import Logger
from run_folders import board_of, last_checkpoint, run_script
from small_gan import PROJECTED, SPADE, build, fit, samples, settings

from geoseg_gan.data.dataset import PairDataset, PairSource
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.sampler import SampleIndex
from geoseg_gan.data.settings import JitterSettings
from geoseg_gan.losses.objective import Objective
from geoseg_gan.losses.settings import DiffAugmentSettings
from geoseg_gan.training.callbacks.overfitting import Overfitting
from geoseg_gan.training.train import train
from geoseg_gan.utils.errors import UserError

FIGURES = ("train", "held_out", "fake", "gap", "augment_p")


@pytest.fixture
def crops(tmp_path, make_folder, palette):
    """Held-out crops of 32 px of three pictures of 48."""
    pairs = find_pairs(make_folder(tmp_path / "held_out", train=3, val=0, size=48), "train")
    reader = MaskReader(palette)
    return PairDataset(PairSource(pairs, reader), 32, "crop", defaults(JitterSettings), 0)


class Recorder(Logger):
    """Keeps the figures by the batch after which they were logged."""

    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.figures = {}

    def log_hyperparams(self, *_):
        pass

    def log_metrics(self, metrics, step=None):
        found = {n.split("/")[1]: v for n, v in metrics.items() if n.startswith("overfitting/")}
        if found:
            self.figures[step] = found


def adaptive(**changes):
    augment = defaults(DiffAugmentSettings, adaptive=True, images=40, **changes)
    return Objective(settings(augment=augment), bands=3, seed=0)


def test_it_measures_every_so_many_batches(crops):
    recorder, module = Recorder(), build(batch=2, objective=adaptive(p=0.5))
    fit(module, callbacks=[Overfitting(crops, every=2)], logger=recorder)
    assert list(recorder.figures) == [2, 4]
    for figures in recorder.figures.values():
        assert tuple(figures) == FIGURES
        assert all(math.isfinite(value) for value in figures.values())
    strength = module.objective.strength
    assert recorder.figures[4]["gap"] == strength.gap
    assert recorder.figures[4]["augment_p"] == strength.p != 0.5


def test_realness_is_that_of_training_held_out_and_generated_images(crops, monkeypatch):
    monkeypatch.setattr(
        Objective, "realness", lambda self, discriminator, image, batch: image.mean().detach()
    )
    recorder, module = Recorder(), build(batch=8)
    fit(module, callbacks=[Overfitting(crops, every=1)], logger=recorder)
    figures = recorder.figures[1]
    real = torch.stack([sample["image"] for sample in samples()])
    assert figures["train"] == pytest.approx(module.scaling.to_network(real).mean().item())
    means = [
        module.scaling.to_network(crops[SampleIndex(n % 3, n)]["image"][None]).mean().item()
        for n in range(64)
    ]
    assert min(means) <= figures["held_out"] <= max(means)
    assert figures["fake"] not in (figures["train"], figures["held_out"])


def test_the_probability_grows_by_images_over_the_pace(crops, monkeypatch):
    monkeypatch.setattr(Overfitting, "_realness", lambda *_: torch.tensor([1.0, -1.0, -1.0]))
    recorder, module = Recorder(), build(batch=2, objective=adaptive())
    fit(module, callbacks=[Overfitting(crops, every=2)], logger=recorder)
    # Two batches of two images, over 40.
    assert [f["augment_p"] for f in recorder.figures.values()] == pytest.approx([0.1, 0.2])
    assert recorder.figures[4]["gap"] == 1


@pytest.mark.parametrize("network", [{}, {"discriminator": PROJECTED}])
def test_the_measurement_leaves_the_networks_as_they_were(crops, network):
    runs = []
    for callbacks in ([], [Overfitting(crops, every=1)]):
        module = build(generator=SPADE, **network)
        fit(module, callbacks=callbacks)
        assert module.discriminator.training and module.average.training
        runs.append(module.state_dict())
    first, second = runs
    assert second.pop("objective._extra_state")["strength"]["gap"] is not None
    del first["objective._extra_state"]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_crops_of_all_tiles_are_drawn_from(crops):
    kept = Overfitting(crops).kept
    assert len(kept) == 64
    assert len({sample["stem"] for sample in kept}) == 3
    assert not torch.equal(kept[0]["label"], kept[3]["label"])


@pytest.fixture
def run(tmp_path, make_folder, composed, tiny):
    """Trains with held-out tiles and adaptive augmentation: `run("name", "setting=value")`."""
    root = make_folder(tmp_path / "data")

    def call(name, *more):
        knobs = (
            f"data_root={root}", f"out_dir={tmp_path / name}", "epochs=2", "epoch_steps=16",
            "inner_share=0.3", "loss.augment.adaptive=true", "loss.augment.images=400",
            "loss.augment.target=0", "samples=0", "optimizer.schedule=constant", *more,
        )  # fmt: skip
        train(composed("train", *tiny, *knobs))
        return tmp_path / name

    return call


def strength_of(out_dir):
    return last_checkpoint(out_dir)["state_dict"]["objective._extra_state"]["strength"]


@pytest.mark.slow
def test_a_run_logs_its_overfitting_and_a_resumed_one_goes_on_with_it(run):
    whole, parts = run("whole"), run("parts", "epochs=1")
    tags = board_of(whole).Tags()["scalars"]
    assert {f"overfitting/{name}" for name in FIGURES} <= set(tags)
    once = strength_of(parts)
    assert once["gap"] is not None
    run("parts", "resume=true")
    assert strength_of(parts) == strength_of(whole)
    assert strength_of(parts)["gap"] != once["gap"]


def test_without_held_out_tiles_adaptive_strength_is_refused(run, tmp_path, composed, tiny):
    with pytest.raises(UserError, match=r"adaptive=true follows .*: set inner_share=") as refusal:
        run("run", "inner_share=0")
    assert "\n" not in str(refusal.value)
    split = tmp_path / "split.csv"
    split.write_text("stem,part\ntrain_000,fit\ntrain_001,fit\n")
    with pytest.raises(UserError, match=r"split\.csv names none: give some the part inner"):
        run("run", "inner_share=0", f"data.split_file={split}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_end_with_one_strength(tmp_path, make_folder, tiny):
    root, out_dir = make_folder(tmp_path / "data"), tmp_path / "run"
    # Each process writes what it ends with to a file of its own: lines of two processes on one
    # output can run into one another. Spawned processes import this file too.
    (tmp_path / "train.py").write_text(
        "from pathlib import Path\n"
        "from geoseg_gan.training.gan import GAN\n"
        "from geoseg_gan.training.settings import train_command\n"
        "def write(self):\n"
        "    state = str(self.objective.strength.state())\n"
        "    (Path(__file__).parent / f'rank{self.global_rank}.txt').write_text(state)\n"
        "GAN.on_train_end = write\n"
        "if __name__ == '__main__':\n"
        "    train_command()\n"
    )
    knobs = [o for o in tiny if not o.startswith("trainer=")]
    run_script(
        tmp_path / "train", *knobs, f"data_root={root}", f"out_dir={out_dir}", "trainer=ddp",
        "devices=2", "trainer.accelerator=cpu", "epochs=1", "epoch_steps=16", "inner_share=0.3",
        "loss.augment.adaptive=true", "loss.augment.p=0.5", "loss.augment.images=400",
        cwd=tmp_path,
    )  # fmt: skip
    states = [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert states[0] == states[1]
    assert strength_of(out_dir)["p"] in (pytest.approx(0.58), pytest.approx(0.42))
