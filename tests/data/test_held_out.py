import re
import warnings
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from mixed import make, ready, stems

from geoseg_gan.data.images import write_image
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.split import hold_out
from geoseg_gan.utils.errors import UserError


def pixels_of(loaders, classes=3):
    """Pixels of every class over all items of all loaders."""
    labels = [batch["label"].flatten() for loader in loaders for batch in loader]
    counts = torch.bincount(torch.cat(labels).long(), minlength=IGNORE + 1)
    return counts[:classes].tolist()


# The tiles that are held out


def test_whole_groups_are_held_out_until_they_hold_the_share():
    groups = [name for name in "abcdefghij" for _ in range(3)]
    for seed in range(10):
        rows = hold_out(groups, 0.15, seed)
        assert len(rows) == 6 and rows == sorted(rows)
        held = {groups[row] for row in rows}
        assert len(held) == 2 and hold_out(groups, 0.15, seed) == rows
    assert len({tuple(hold_out(groups, 0.15, seed)) for seed in range(10)}) > 5


@pytest.mark.parametrize(
    ("groups", "share", "count"),
    [
        ("abcdefghij", 0.0, 0),
        ("abcdefghij", 0.01, 1),
        ("abcdefghij", 0.3, 3),
        ("abcdefghij", 0.31, 4),
        ("abcdefghij", 0.9, 5),
        ("ab", 0.1, 1),
        ("aaaaaaaaab", 0.2, 1),
        ("aaabbb", 0.2, 3),
    ],
)
def test_at_least_one_group_and_at_most_half_of_the_pairs_are_held_out(groups, share, count):
    for seed in range(6):
        assert len(hold_out(list(groups), share, seed)) == count


def test_ground_of_one_group_cannot_be_held_out(root, settings):
    with pytest.raises(
        UserError, match=r"inner_share=0\.2: .* one location group .*inner_share=0 select="
    ):
        ready(root, replace(settings, group_regex="(t)rain|val"), inner_share=0.2)


def test_held_out_tiles_are_watched_and_never_fitted(root, settings):
    data = ready(root, settings, inner_share=0.25, epoch_steps=6)
    held = {pair.stem for pair in data.inner_dataset.source.pairs}
    fitted = {pair.stem for pair in data.train_index.pairs}
    assert len(held) == 3 and len(fitted) == 9 and not held & fitted
    assert {stem for batch in stems(data) for stem in batch} == fitted
    assert {stem for batch in data.val_dataloader() for stem in batch["stem"]} == held
    assert data.split_summary() == "9 pairs of 9 groups fitted, 3 pairs of 3 groups held out"
    other = ready(root, settings, inner_share=0.25, seed=1)
    assert {pair.stem for pair in other.inner_dataset.source.pairs} != held


def test_nothing_is_held_out_where_nothing_is_asked(root, settings):
    data = ready(root, settings)
    assert data.inner_dataset is None and data.val_dataloader() == []
    assert len(data.train_index.pairs) == 12 and data.steps_per_epoch == 3
    assert data.split_summary().endswith("0 pairs of 0 groups held out")


def test_scaling_is_that_of_the_fitted_images(make_folder, tmp_path, settings):
    root = make_folder(tmp_path / "data", train=4, val=1, size=32, bands=2, dtype="uint16")
    for path in (root / "train" / "images").iterdir():
        level = 1000 * (1 + int(path.stem[-1]))
        write_image(path, np.full((32, 32, 2), level, np.uint16))
    data = ready(root, settings, inner_share=0.25)
    held = int(data.inner_dataset.source.pairs[0].stem[-1])
    levels = [1000 * (1 + number) for number in range(4) if number != held]
    assert data.scaling().low == [min(levels)] * 2 and data.scaling().high == [max(levels)] * 2


# Validation


@pytest.mark.parametrize("world", [1, 2, 3, 4, 16])
def test_all_processes_together_see_every_pixel_once(root, settings, world):
    data = ready(root, settings, batch_size=16, inner_share=0.2)
    dataset, loaders = data.inner_dataset, []
    for rank in range(world):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        loaders.append(data.val_dataloader())
    assert len({len(loader) for loader in loaders}) == 1
    expected = np.zeros(3, int)
    for row in range(len(dataset.source.pairs)):
        _, label = dataset.source.read(row)
        expected += np.bincount(label.ravel(), minlength=256)[:3]
    assert pixels_of(loaders) == expected.tolist()
    assert expected.sum() > 0.9 * 3 * 48 * 40
    # Dealt out in turn: what a single process sees in order.
    seen = [[stem for batch in loader for stem in batch["stem"]] for loader in loaders]
    dealt = [stem for turn in zip(*seen, strict=True) for stem in turn]
    order = [dataset[i]["stem"] for i in range(len(dataset))]
    assert dealt[: len(order)] == order


def test_a_missing_validation_split_is_a_warning(make_folder, tmp_path, settings):
    root = make_folder(tmp_path / "data", val=0, size=32)
    with pytest.warns(UserWarning, match=re.escape(f"{root / 'val'} is missing: there will be no")):
        data = ready(root, settings)
    assert data.val_dataset is None


class Watcher(L.LightningModule):
    """Counts what Lightning shows it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False
        self.seen = Counter()

    def training_step(self, sample, batch_idx):
        self.seen["train"] += len(sample["stem"])

    def validation_step(self, sample, batch_idx):
        self.seen["val"] += len(sample["stem"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(("share", "windows"), [(0.0, 0), (0.2, 3 * 4)])
def test_lightning_trains_with_and_without_held_out_tiles(root, settings, made, share, windows):
    data = make(root, settings, inner_share=share, synthetic=[made], synthetic_ratio=0.25)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    module = Watcher()
    trainer.fit(module, datamodule=data)
    assert module.seen == Counter(train=2 * 4 * data.steps_per_epoch) + Counter(val=2 * windows)


# Opening


def test_folders_that_are_right_are_opened_without_a_warning_and_once(root, settings, made):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ready(root, settings, synthetic=[made], inner_share=0.2)
    index = data.train_index
    data.setup("fit")
    assert data.train_index is index and len(data.synthetic_folders) == 1


def test_a_class_that_is_not_fitted_is_a_warning(one_with_settlement, settings):
    messages = set()
    for seed in range(12):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = ready(one_with_settlement, settings, inner_share=0.25, seed=seed)
        held = "train_000" in {pair.stem for pair in data.inner_dataset.source.pairs}
        assert len(caught) == held
        messages |= {str(warning.message) for warning in caught}
    (message,) = messages
    assert message.endswith("masks: Settlement. The segmenter cannot learn it.")


def test_the_demo_world_is_drawn_where_the_settings_name_one(tmp_path, settings, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "geoseg_gan.data.datamodule.write_world", lambda *arguments: calls.append(arguments)
    )
    data = make(tmp_path, replace(settings, demo="a world"))
    data.prepare_data()
    assert calls == [(tmp_path, data.palette, "a world")]
