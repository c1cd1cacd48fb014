import json
import re
import warnings
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from defaults import defaults
from geometry import FLIPS, OFF

from geoseg_gan.data.images import write_image
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.pairs import DataError
from geoseg_gan.data.palette import IGNORE, PaletteClass
from geoseg_gan.data.segmenter_datamodule import SegmenterDataModule
from geoseg_gan.data.settings import MixingSettings, TransplantStep
from geoseg_gan.data.split import hold_out
from geoseg_gan.utils.errors import UserError


def make(root, settings, **changes):
    knobs = {"image_size": 32, "batch_size": 4, "jitter": FLIPS, "seed": 0}
    knobs |= {"mixing": defaults(MixingSettings)} | changes
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


def pixels_of(loaders, classes=3):
    """Pixels of every class over all items of all loaders."""
    labels = [batch["label"].flatten() for loader in loaders for batch in loader]
    counts = torch.bincount(torch.cat(labels).long(), minlength=IGNORE + 1)
    return counts[:classes].tolist()


def test_whole_groups_are_held_out_until_they_hold_the_share():
    groups = [name for name in "abcdefghij" for _ in range(3)]
    drawn = [hold_out(groups, 0.15, seed) for seed in range(10)]
    assert drawn == [hold_out(groups, 0.15, seed) for seed in range(10)]
    assert len({tuple(rows) for rows in drawn}) > 5
    for rows in drawn:
        assert len(rows) == 6 and rows == sorted(rows) and len({groups[row] for row in rows}) == 2


@pytest.mark.parametrize(
    ("groups", "share", "count"),
    [
        ("abcdefghij", 0.0, 0), ("abcdefghij", 0.01, 1), ("abcdefghij", 0.3, 3),
        ("abcdefghij", 0.31, 4), ("abcdefghij", 0.9, 5), ("ab", 0.1, 1), ("aaaaaaaaab", 0.2, 1),
        ("aaabbb", 0.2, 3),
    ],
)  # fmt: skip
def test_at_least_one_group_and_at_most_half_of_the_pairs_are_held_out(groups, share, count):
    for seed in range(6):
        assert len(hold_out(list(groups), share, seed)) == count


def test_a_single_group_cannot_be_held_out(root, settings):
    message = r"inner_share=0\.2: .* one location group .*inner_share=0 select="
    with pytest.raises(UserError, match=message):
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


def test_scaling_is_that_of_the_fitted_images(make_folder, tmp_path, settings):
    root = make_folder(tmp_path / "data", train=4, val=1, size=32, bands=2, dtype="uint16")
    for path in (root / "train" / "images").iterdir():
        level = 1000 * (1 + int(path.stem[-1]))
        write_image(path, np.full((32, 32, 2), level, np.uint16))
    data = ready(root, settings, inner_share=0.25)
    held = int(data.inner_dataset.source.pairs[0].stem[-1])
    levels = [1000 * (1 + number) for number in range(4) if number != held]
    assert data.scaling().low == [min(levels)] * 2 and data.scaling().high == [max(levels)] * 2


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


def test_missing_validation_and_held_out_tiles_leave_nothing_to_load(
    make_folder, tmp_path, settings
):
    root = make_folder(tmp_path / "data", val=0, size=32)
    with pytest.warns(UserWarning, match=re.escape(f"{root / 'val'} is missing: there will be no")):
        data = ready(root, settings)
    assert data.val_dataset is None and data.val_dataloader() == []


def test_folders_that_are_right_are_opened_without_a_warning_and_once(root, settings, made):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ready(root, settings, synthetic=[made], inner_share=0.2)
    index = data.train_index
    data.setup("fit")
    assert data.train_index is index and len(data.synthetic_folders) == 1


def test_a_class_that_is_not_fitted_is_a_warning(one_with_settlement, settings):
    path = one_with_settlement / "split.csv"
    path.write_text("stem,part\ntrain_000,inner\ntrain_001,fit\n")
    message = "masks: Settlement. The segmenter cannot learn it."
    with pytest.warns(UserWarning, match=message) as caught:
        ready(one_with_settlement, replace(settings, split_file=str(path)))
    assert len(caught) == 1


def synthetic_in(batches):
    return sum(stem.startswith("pair_") for batch in batches for stem in batch)


def test_several_folders_are_mixed_each_with_its_own_reader(
    root, settings, made, make_generated, tmp_path
):
    form = {"layout": "folders", "mask_format": "index"}
    other = make_generated(tmp_path / "other", [7, 8], size=64, **form)
    data = ready(root, settings, synthetic=[made, other], synthetic_ratio=1.0, epoch_steps=7)
    counts = Counter(stem for batch in stems(data) for stem in batch)
    assert counts == {f"pair_{i:05d}": 4 for i in [*range(5), 7, 8]}
    assert [facts.folder for facts in data.synthetic_folders] == [made, other]
    for batch in data.train_dataloader():
        assert batch["image"].shape == (4, 3, 32, 32)
        assert set(batch["label"].unique().tolist()) <= {1, 2}


def test_pairs_that_were_dropped_by_hand_are_not_mixed_in(root, settings, made):
    lines = [json.dumps({"index": index, "kept": index != 2}) + "\n" for index in range(5)]
    (made / "manifest.jsonl").write_text("".join(lines))
    data = ready(root, settings, synthetic=[made], synthetic_ratio=1.0, epoch_steps=4)
    seen = {stem for batch in stems(data) for stem in batch}
    assert seen == {f"pair_{index:05d}" for index in (0, 1, 3, 4)}


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


def test_a_schedule_runs_over_the_epochs_of_the_training(root, settings, made):
    knobs = {"synthetic": [made], "synthetic_ratio": 0.25, "epochs": 4}
    data = ready(root, settings, mixing=defaults(MixingSettings, schedule="first"), **knobs)
    assert [synthetic_in(stems(data, epoch)) for epoch in range(4)] == [12, 0, 0, 0]
    data = ready(root, settings, mixing=defaults(MixingSettings, schedule="falling"), **knobs)
    assert [synthetic_in(stems(data, epoch)) for epoch in range(4)] == [6, 4, 2, 0]


def test_only_synthetic_pairs_lose_the_classes_that_do_not_count(root, settings, made):
    knobs = {"synthetic": [made], "synthetic_ratio": 0.5}
    mixing = defaults(MixingSettings, classes=["Settlement"])
    plain = ready(root, settings, **knobs).train_dataloader()
    gated = ready(root, settings, mixing=mixing, **knobs).train_dataloader()
    for batch, before in zip(gated, plain, strict=True):
        assert batch["stem"] == before["stem"]
        assert torch.equal(batch["image"], before["image"])
        made_here = torch.tensor([stem.startswith("pair_") for stem in batch["stem"]])
        assert torch.equal(batch["label"][~made_here], before["label"][~made_here])
        was, now = before["label"][made_here], batch["label"][made_here]
        assert {1, 2} <= set(was.unique().tolist())
        assert torch.equal(now, torch.where(was == 2, was, 255).to(torch.uint8))


@pytest.mark.parametrize("classes", [["Settlement"], [2]])
def test_pairs_of_rare_classes_are_drawn_as_often_as_asked(one_with_settlement, settings, classes):
    knobs = {"oversample": classes, "oversample_factor": 4.0, "epoch_steps": 30}
    data = ready(one_with_settlement, settings, **knobs)
    assert data.steps_per_epoch == 30
    counts = Counter(stem for batch in stems(data) for stem in batch)  # 120 of a pool of 15
    assert counts.pop("train_000") == 32 and set(counts.values()) == {8}


def test_regions_are_pasted_between_fitted_real_pairs_only(root, settings, made):
    step = defaults(TransplantStep, p=1.0, classes=["Settlement"], min_pixels=4)
    knobs = {"synthetic": [made], "inner_share": 0.25}
    plain = ready(root, settings, jitter=OFF, **knobs).train_dataset
    data = ready(root, settings, jitter=replace(OFF, transplant=step), **knobs)
    real, mixed_in = data.train_dataset.parts
    assert mixed_in.transplanter is None
    assert list(real.transplanter.stems) == [pair.stem for pair in data.train_index.pairs]
    same = [
        [torch.equal(part[i]["label"], before[i]["label"]) for i in range(len(part))]
        for part, before in zip((real, mixed_in), plain.parts, strict=True)
    ]
    assert not all(same[0]) and all(same[1])


def test_a_generated_folder_as_validation_is_refused(
    make_folder, tmp_path, settings, make_generated
):
    root = make_folder(tmp_path / "data", val=0, size=32)
    make_generated(root / "val", [0], layout="folders")
    with pytest.raises(DataError, match=re.escape(f"{root / 'val'} holds generated pairs")):
        ready(root, settings)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"bands": 1}, r"pair_00000_img\.\w+ has 1 band of uint8, but \S+ has 3 bands of uint8"),
        ({"dtype": "uint16"}, r"\.tif has 3 bands of uint16, but \S+ has 3 bands of uint8"),
        (
            {"size": 16},
            r"is 16x16, smaller than the crop of image_size=32. Generate with image_size=32 or "
            "more, or train with image_size=16.",
        ),
    ],
)
def test_images_of_another_kind_are_refused(
    root, settings, make_generated, tmp_path, form, message
):
    other = make_generated(tmp_path / "other", [0], **form)
    with pytest.raises(DataError, match=message):
        ready(root, settings, synthetic=[other])


@pytest.mark.filterwarnings("ignore:.*never occurs in the masks")
def test_generated_folders_are_compared_with_the_real_data(
    root, settings, made, make_generated, tmp_path
):
    more = [*settings.palette, PaletteClass("Water", [0, 0, 255])]
    with pytest.raises(DataError, match=r"holds 3 classes .* data\.palette has 4 .*'Water'"):
        ready(root, replace(settings, palette=more), synthetic=[made])
    coarse = make_generated(tmp_path / "coarse", [0], gsd=1.0)
    with pytest.warns(UserWarning, match=r"shows 1 metres a pixel, but data\.gsd=0\.5"):
        ready(root, replace(settings, gsd=0.5), synthetic=[coarse])


@pytest.mark.filterwarnings("ignore:.*never occurs in the masks")
def test_an_absent_class_to_draw_more_often_is_refused(one_with_settlement, settings):
    path = one_with_settlement / "train" / "masks" / "train_000.png"
    mask_reader(settings).write(path, np.zeros((48, 40), np.uint8))
    message = "oversample_classes: Settlement never occurs in the fitted"
    with pytest.raises(UserError, match=message):
        ready(one_with_settlement, settings, oversample=["Settlement", "Background"])
