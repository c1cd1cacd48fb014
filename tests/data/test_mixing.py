import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from defaults import defaults
from mixed import make, ready, stems

from geoseg_gan.data.images import mask_reader
from geoseg_gan.data.pairs import DataError
from geoseg_gan.data.palette import PaletteClass
from geoseg_gan.data.settings import JitterSettings, MixingSettings, TransplantStep
from geoseg_gan.utils.errors import UserError


def synthetic_in(batches):
    return sum(stem.startswith("pair_") for batch in batches for stem in batch)


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
    assert [facts.folder for facts in data.synthetic_folders] == [made, other]
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


def test_a_schedule_runs_over_the_epochs_of_the_training(root, settings, made):
    knobs = {"synthetic": [made], "synthetic_ratio": 0.25, "epochs": 4}
    data = ready(root, settings, mixing=defaults(MixingSettings, schedule="first"), **knobs)
    assert [synthetic_in(stems(data, epoch)) for epoch in range(4)] == [12, 0, 0, 0]
    data = ready(root, settings, mixing=defaults(MixingSettings, schedule="falling"), **knobs)
    assert [synthetic_in(stems(data, epoch)) for epoch in range(4)] == [6, 4, 2, 0]


def test_only_synthetic_pairs_are_marked_and_lose_the_classes_that_do_not_count(
    root, settings, made
):
    knobs = {"synthetic": [made], "synthetic_ratio": 0.5}
    mixing = defaults(MixingSettings, batch_norm="apart", classes=["Settlement"])
    plain = ready(root, settings, **knobs).train_dataloader()
    gated = ready(root, settings, mixing=mixing, **knobs).train_dataloader()
    for batch, before in zip(gated, plain, strict=True):
        assert "synthetic" not in before and batch["stem"] == before["stem"]
        assert torch.equal(batch["image"], before["image"])
        made_here = batch["synthetic"]
        assert made_here.tolist() == [stem.startswith("pair_") for stem in batch["stem"]]
        assert torch.equal(batch["label"][~made_here], before["label"][~made_here])
        was, now = before["label"][made_here], batch["label"][made_here]
        assert {1, 2} <= set(was.unique().tolist())
        assert torch.equal(now, torch.where(was == 2, was, 255).to(torch.uint8))


# Rare classes


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
    step = defaults(TransplantStep, p=1.0, classes=["Settlement"], min_pixels=4)
    knobs = {"synthetic": [made], "inner_share": 0.25}
    plain = ready(root, settings, jitter=defaults(JitterSettings), **knobs).train_dataset
    data = ready(root, settings, jitter=defaults(JitterSettings, transplant=step), **knobs)
    real, painted = data.train_dataset.parts
    assert painted.transplanter is None
    assert list(real.transplanter.stems) == [pair.stem for pair in data.train_index.pairs]
    same = [
        [torch.equal(part[i]["label"], before[i]["label"]) for i in range(len(part))]
        for part, before in zip((real, painted), plain.parts, strict=True)
    ]
    assert not all(same[0]) and all(same[1])


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
    reader = mask_reader(settings)
    reader.write(
        one_with_settlement / "train" / "masks" / "train_000.png", np.zeros((48, 40), np.uint8)
    )
    with pytest.raises(
        UserError, match="oversample_classes: Settlement never occurs in the fitted"
    ):
        ready(one_with_settlement, settings, oversample=["Settlement", "Background"])
