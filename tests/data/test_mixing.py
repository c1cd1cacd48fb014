import re
import warnings
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch

from geoseg_gan.data.datamodule import DataSettings
from geoseg_gan.data.images import MaskReader, write_image
from geoseg_gan.data.jitter import FlipStep, JitterSettings
from geoseg_gan.data.mixing import SegmenterDataModule, hold_out
from geoseg_gan.data.pairs import DataError
from geoseg_gan.data.palette import IGNORE, PaletteClass
from geoseg_gan.data.transplant import TransplantStep
from geoseg_gan.errors import UserError

FLIPS = JitterSettings(flip=FlipStep(0.5))


@pytest.fixture
def settings(palette):
    return DataSettings(
        palette=list(palette.classes),
        ignore=[list(color) for color in palette.ignore],
        num_workers=0,
    )


@pytest.fixture
def root(make_folder, tmp_path):
    return make_folder(tmp_path / "data", train=12, val=3, size=(48, 40))


@pytest.fixture
def made(make_generated, tmp_path):
    return make_generated(tmp_path / "made", range(5))


def make(root, settings, **changes):
    knobs = {"image_size": 32, "batch_size": 4, "jitter": FLIPS, "seed": 0} | changes
    return SegmenterDataModule(root, settings, **knobs)


def ready(root, settings, rank=0, world=1, **changes):
    data = make(root, settings, **changes)
    data.prepare_data()
    data.setup()
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    return data


def stems(data, epoch=0):
    """Stems of an epoch's batches, a list each."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [batch["stem"] for batch in loader]


def synthetic_in(batches):
    return sum(stem.startswith("pair_") for batch in batches for stem in batch)


def pixels_of(loaders, classes=3):
    """Pixels of every class over all items of all loaders."""
    labels = [batch["label"].flatten() for loader in loaders for batch in loader]
    counts = torch.bincount(torch.cat(labels).long(), minlength=IGNORE + 1)
    return counts[:classes].tolist()


# Mixing


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (0.25, 3), (0.5, 6), (1.0, 12)])
def test_an_epoch_holds_exactly_the_asked_share_of_synthetic_pairs(
    root, settings, made, ratio, expected
):
    data = ready(root, settings, synthetic=[made], synthetic_ratio=ratio)
    for epoch in range(3):
        batches = stems(data, epoch)
        assert [len(batch) for batch in batches] == [4, 4, 4]
        assert synthetic_in(batches) == expected


def test_two_processes_share_the_batches_of_one_and_each_has_synthetic_pairs(root, settings, made):
    knobs = {"synthetic": [made], "synthetic_ratio": 0.5, "epoch_steps": 6}
    for epoch in range(2):
        single = stems(ready(root, settings, **knobs), epoch)
        parts = [stems(ready(root, settings, rank, 2, **knobs), epoch) for rank in range(2)]
        joined = [first + second for first, second in zip(*parts, strict=True)]
        assert joined == single
        assert [synthetic_in(part) for part in parts] == [6, 6]


def test_other_synthetic_pairs_are_drawn_in_other_epochs(root, settings, made):
    data = ready(root, settings, synthetic=[made], synthetic_ratio=0.25)
    epochs = [stems(data, epoch) for epoch in range(12)]
    drawn = [
        frozenset(s for batch in epoch for s in batch if s.startswith("pair_")) for epoch in epochs
    ]
    assert all(len(part) == 3 for part in drawn)
    assert len(set(drawn)) > 4 and frozenset.union(*drawn) == {f"pair_{i:05d}" for i in range(5)}
    assert stems(data, 3) == epochs[3]


def test_an_epoch_is_as_long_with_synthetic_pairs_as_without(root, settings, made):
    plain = ready(root, settings, synthetic_ratio=0.25)  # the share of nothing is nothing
    mixed = ready(root, settings, synthetic=[made], synthetic_ratio=0.25)
    assert plain.steps_per_epoch == mixed.steps_per_epoch == 3
    assert synthetic_in(stems(plain)) == 0 and len(stems(plain)) == len(stems(mixed)) == 3
    longer = ready(root, settings, synthetic=[made], synthetic_ratio=0.25, epoch_steps=5)
    assert longer.steps_per_epoch == len(stems(longer)) == 5
    assert synthetic_in(stems(longer)) == 5


def test_several_folders_are_mixed_each_with_its_own_reader(
    root, settings, made, make_generated, tmp_path
):
    other = make_generated(
        tmp_path / "other", [7, 8], size=64, layout="folders", mask_format="index"
    )
    data = ready(root, settings, synthetic=[made, other], synthetic_ratio=1.0, epoch_steps=7)
    counts = Counter(stem for batch in stems(data) for stem in batch)
    assert counts == {f"pair_{i:05d}": 4 for i in [*range(5), 7, 8]}
    assert [facts.folder for facts in data.synthetic_facts] == [made, other]
    for batch in data.train_dataloader():
        assert batch["image"].shape == (4, 3, 32, 32)
        assert set(batch["label"].unique().tolist()) <= {1, 2}


@pytest.mark.parametrize("changes", [{"cache": "ram"}, {"num_workers": 1}])
def test_neither_cache_nor_workers_change_a_batch(root, settings, made, changes):
    knobs = {"synthetic": [made], "synthetic_ratio": 0.5, "inner_share": 0.2}
    plain = ready(root, settings, **knobs)
    other = ready(root, replace(settings, **changes), **knobs)
    for loader in ("train_dataloader", "val_dataloader"):
        pairs = zip(getattr(plain, loader)(), getattr(other, loader)(), strict=True)
        for batch, expected in pairs:
            assert batch["stem"] == expected["stem"]
            assert torch.equal(batch["image"], expected["image"])
            assert torch.equal(batch["label"], expected["label"])


def test_pictures_are_resized_where_the_settings_say_so(root, settings, made):
    resized = replace(settings, fit="resize")
    data = ready(root, resized, synthetic=[made], synthetic_ratio=0.5, inner_share=0.2)
    assert next(iter(data.train_dataloader()))["image"].shape == (4, 3, 32, 32)
    assert len(data.inner_dataset) == 3 and len(data.val_dataset) == 3


# Rare classes


@pytest.fixture
def one_with_settlement(root, palette):
    """The data folder, of whose training masks only the first holds Settlement (2)."""
    reader = MaskReader(palette)
    for path in sorted((root / "train" / "masks").iterdir())[1:]:
        label, _ = reader.read(path)
        label[label == 2] = 0
        reader.write(path, label)
    return root


@pytest.mark.parametrize("classes", [["Settlement"], [2]])
def test_pairs_of_rare_classes_are_drawn_as_often_as_asked(one_with_settlement, settings, classes):
    data = ready(
        one_with_settlement, settings, oversample=classes, oversample_factor=4.0, epoch_steps=30
    )
    assert data.steps_per_epoch == 30
    counts = Counter(stem for batch in stems(data) for stem in batch)  # 120 of a pool of 15
    assert counts.pop("train_000") == 32 and set(counts.values()) == {8}


def test_oversampling_leaves_the_share_of_synthetic_pairs(one_with_settlement, settings, made):
    data = ready(
        one_with_settlement,
        settings,
        synthetic=[made],
        synthetic_ratio=0.25,
        oversample=["Settlement"],
        oversample_factor=2.5,
    )
    assert [synthetic_in(stems(data, epoch)) for epoch in range(4)] == [3] * 4


def test_regions_are_pasted_between_fitted_real_pairs_only(root, settings, made):
    step = TransplantStep(p=1.0, classes=["Settlement"], min_pixels=4)
    knobs = {"synthetic": [made], "inner_share": 0.25}
    plain = ready(root, settings, jitter=JitterSettings(), **knobs).train_dataset
    data = ready(root, settings, jitter=JitterSettings(transplant=step), **knobs)
    real, painted = data.train_dataset.parts
    assert painted.transplanter is None
    assert list(real.transplanter.stems) == [pair.stem for pair in data.train_index.pairs]
    same = [
        [torch.equal(part[i]["label"], before[i]["label"]) for i in range(len(part))]
        for part, before in zip((real, painted), plain.parts, strict=True)
    ]
    assert not all(same[0]) and all(same[1])


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
    with pytest.raises(UserError, match=r"inner_share=0\.2: .* one group .*inner_share=0 select="):
        ready(root, replace(settings, group_regex="(t)rain|val"), inner_share=0.2)


def test_held_out_tiles_are_watched_and_never_fitted(root, settings):
    data = ready(root, settings, inner_share=0.25, epoch_steps=6)
    held = {pair.stem for pair in data.inner_dataset.source.pairs}
    fitted = {pair.stem for pair in data.train_index.pairs}
    assert len(held) == 3 and len(fitted) == 9 and not held & fitted
    assert {stem for batch in stems(data) for stem in batch} == fitted
    assert {stem for batch in data.val_dataloader() for stem in batch["stem"]} == held
    assert {pair.stem for pair in data.fit_windows.source.pairs} == held | fitted
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
    assert data.train_index is index and len(data.synthetic_facts) == 1


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


# Refusals


def test_a_setup_that_failed_fails_again(root, settings, made):
    (made / "pair_00003_mask.png").unlink()
    data = make(root, settings, synthetic=[made])
    for _ in range(2):
        with pytest.raises(DataError, match="pair_00003 has no mask"):
            data.setup()


def test_a_generated_folder_as_validation_is_refused(
    make_folder, tmp_path, settings, make_generated
):
    root = make_folder(tmp_path / "data", val=0, size=32)
    make_generated(root / "val", [0], layout="folders")
    with pytest.raises(DataError, match=re.escape(f"{root / 'val'} holds generated pairs")):
        ready(root, settings)


def test_a_folder_that_was_not_generated_is_refused(root, settings, tmp_path):
    with pytest.raises(DataError, match=r"synthetic=\S+nowhere is not a generated folder"):
        ready(root, settings, synthetic=[tmp_path / "nowhere"])


def test_a_generated_folder_without_pairs_is_refused(root, settings, make_generated, tmp_path):
    with pytest.raises(DataError, match="holds no pairs"):
        ready(root, settings, synthetic=[make_generated(tmp_path / "none", [])])


@pytest.mark.filterwarnings("ignore:.*never occurs in the masks")
def test_other_classes_are_refused_with_both_shown(root, settings, made):
    more = [*settings.palette, PaletteClass("Water", [0, 0, 255])]
    with pytest.raises(DataError, match=r"holds 3 classes .* data\.palette has 4 .*'Water'"):
        ready(root, replace(settings, palette=more), synthetic=[made])


def test_another_resolution_is_a_warning(root, settings, make_generated, tmp_path):
    coarse = make_generated(tmp_path / "coarse", [0], gsd=1.0)
    with pytest.warns(UserWarning, match=r"shows 1 metres a pixel, but data\.gsd=0\.5"):
        ready(root, replace(settings, gsd=0.5), synthetic=[coarse])


@pytest.mark.parametrize(("bands", "dtype"), [(1, "uint8"), (3, "uint16")])
def test_images_of_another_kind_are_refused(root, settings, make_generated, tmp_path, bands, dtype):
    other = make_generated(tmp_path / "other", [0], bands=bands, dtype=dtype)
    message = rf"pair_00000_img\.\w+ has {bands} bands? of {dtype}, but \S+ has 3 bands of uint8"
    with pytest.raises(DataError, match=message):
        ready(root, settings, synthetic=[other])


def test_images_smaller_than_the_crop_are_refused(root, settings, make_generated, tmp_path):
    small = make_generated(tmp_path / "small", [0], size=16)
    with pytest.raises(DataError, match=r"is 16x16, smaller than the crop of image_size=32"):
        ready(root, settings, synthetic=[small])


def test_an_unknown_class_to_draw_more_often_is_refused(root, settings):
    with pytest.raises(UserError, match="oversample_classes: 'Setlement' is not a class"):
        ready(root, settings, oversample=["Setlement"])


@pytest.mark.filterwarnings("ignore:.*never occurs in the masks")
def test_an_absent_class_to_draw_more_often_is_refused(one_with_settlement, settings):
    reader = settings.reader()
    reader.write(
        one_with_settlement / "train" / "masks" / "train_000.png", np.zeros((48, 40), np.uint8)
    )
    with pytest.raises(UserError, match="oversample_classes: Settlement never occurs in the pairs"):
        ready(one_with_settlement, settings, oversample=["Settlement", "Background"])
