import re
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from defaults import defaults
from geometry import TURNS

from geoseg_gan.data import datamodule as module
from geoseg_gan.data.datamodule import GanDataModule
from geoseg_gan.data.demo.world import MARKER
from geoseg_gan.data.images import write_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import DataError
from geoseg_gan.data.palette import PaletteClass
from geoseg_gan.data.settings import DataSettings, DemoSettings
from geoseg_gan.utils.errors import UserError


@pytest.fixture
def root(make_folder, tmp_path):
    return make_folder(tmp_path / "data", train=6, val=2, size=48)


def make(root, settings, **changes):
    knobs = {"image_size": 32, "batch_size": 2, "jitter": TURNS, "seed": 0} | changes
    return GanDataModule(root, settings, **knobs)


def ready(root, settings, **changes):
    data = make(root, settings, **changes)
    data.prepare_data()
    data.setup()
    return data


def paint_stray(root, palette, pixels, split="train", number=1):
    """Gives the first pixels of a mask a colour near 'Forest land' that the palette lacks."""
    path = root / split / "masks" / f"{split}_{number:03d}.png"
    mask = palette.decode(MaskReader(palette).read(path)[0])
    mask[10, :pixels] = 165, 230, 80
    write_image(path, mask)
    return path


def test_training_batches_hold_stored_values_of_the_asked_size(root, settings):
    data = ready(root, settings)
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    for batch in batches:
        assert batch["image"].shape == (2, 3, 32, 32) and batch["image"].dtype == torch.uint8
        assert batch["label"].shape == (2, 32, 32) and batch["label"].dtype == torch.uint8
        assert set(batch["label"].unique().tolist()) <= {0, 1, 2, 255}
    stems = [stem for batch in batches for stem in batch["stem"]]
    assert sorted(stems) == [f"train_{number:03d}" for number in range(6)]


def test_a_split_that_is_right_is_opened_without_a_warning(root, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ready(root, settings)
    assert data.train_index.class_shares().min() > 0
    assert data.palette.names == ["Background", "Forest land", "Settlement"]


def test_a_split_file_says_which_tiles_are_used_and_how(root, settings, tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("stem,part\ntrain_001,fit\ntrain_004,fit\ntrain_002,inner\n")
    data = ready(root, replace(settings, split_file=str(path), cache="ram"), inner_share=0.5)
    stems = {stem for batch in data.train_dataloader() for stem in batch["stem"]}
    assert stems == {"train_001", "train_004"}
    assert [pair.stem for pair in data.inner_dataset.source.pairs] == ["train_002"]
    assert len(data.train_dataset.parts[0].source.decoded) == 2


def test_an_epoch_may_be_longer_than_the_pairs(root, settings):
    data = ready(root, settings, epoch_steps=7)
    batches = list(data.train_dataloader())
    assert data.steps_per_epoch == len(batches) == 7
    stems = [stem for batch in batches for stem in batch["stem"]]
    assert min(stems.count(f"train_{number:03d}") for number in range(6)) == 2


def test_held_out_groups_that_are_in_validation_too_are_a_warning(root, settings):
    shared = replace(settings, group_regex="[0-9]+")
    with pytest.warns(UserWarning, match="2 location groups"):
        ready(root, shared, inner_share=0.5)


def test_the_cache_changes_no_batch(root, settings):
    plain, cached = (ready(root, replace(settings, cache=c)) for c in ("none", "ram"))
    assert plain.train_dataset.parts[0].source.decoded is None
    assert cached.train_dataset.parts[0].source.decoded is not None
    for batch, expected in zip(cached.train_dataloader(), plain.train_dataloader(), strict=True):
        assert batch["stem"] == expected["stem"]
        assert torch.equal(batch["image"], expected["image"])


def test_16_bit_images_are_scaled_by_the_training_split(make_folder, tmp_path, settings):
    root = make_folder(tmp_path / "data", train=2, val=1, size=32, bands=5, dtype="uint16")
    data = ready(root, settings)
    scaling = data.scaling()
    assert scaling.dtype == "uint16" and len(scaling.low) == 5
    scaled = scaling.to_network(next(iter(data.train_dataloader()))["image"])
    assert scaled.shape == (2, 5, 32, 32) and scaled.min() == -1 and scaled.max() == 1


def test_a_setup_that_failed_fails_again(root, settings):
    for path in (root / "val" / "images").iterdir():
        path.unlink()
    data = make(root, settings)
    for _ in range(2):
        with pytest.raises(DataError, match=r"val_000\.png has no image"):
            data.setup()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_persist_keep_to_one_core_and_change_nothing(make_folder, tmp_path, settings):
    root = make_folder(tmp_path / "data", train=4, size=32, bands=5, dtype="uint16")
    alone = list(ready(root, settings).train_dataloader())
    loader = ready(root, replace(settings, num_workers=2)).train_dataloader()
    assert loader.persistent_workers and loader.worker_init_fn is module.start_worker
    for _ in range(2):  # the same epoch twice, by the same workers
        for batch, expected in zip(loader, alone, strict=True):
            assert batch["stem"] == expected["stem"] and batch["image"].dtype == torch.uint16
            assert torch.equal(batch["image"], expected["image"])


@pytest.mark.parametrize(
    ("cores", "world", "on_gpu", "workers"),
    [(16, 1, False, 1), (16, 1, True, 8), (8, 2, True, 3), (2, 1, True, 1), (4, 8, True, 1)],
)
def test_workers_follow_the_machine(root, settings, monkeypatch, cores, world, on_gpu, workers):
    monkeypatch.setattr(module.os, "cpu_count", lambda: cores)
    data = make(root, replace(settings, num_workers=None), on_gpu=on_gpu)
    data.trainer = SimpleNamespace(num_devices=world)
    assert data._workers() == workers


def test_a_missing_validation_split_is_a_warning_and_training_pictures_stand_in(
    make_folder, tmp_path, settings
):
    root = make_folder(tmp_path / "data", val=0, size=32)
    with pytest.warns(UserWarning, match=re.escape(f"{root / 'val'} is missing: sample pictures")):
        data = ready(root, settings)
    assert {data.val_dataset[i]["stem"] for i in range(6)} == {f"train_{i:03d}" for i in range(6)}


def test_a_class_that_never_occurs_is_a_warning_that_names_it(root, settings, palette):
    more = [*palette.classes, PaletteClass("Water", [0, 0, 255]), PaletteClass("Ice", [9, 9, 9])]
    with pytest.warns(UserWarning, match="never occurs in the masks: Water, Ice") as caught:
        ready(root, replace(settings, palette=more))
    assert len(caught) == 1 and "Forest" not in str(caught[0].message)


def test_masks_without_any_class_are_refused(root, settings, palette):
    ignored = [*(list(entry.color) for entry in palette.classes), [0, 0, 0]]
    other = [PaletteClass("Water", [0, 0, 255]), PaletteClass("Ice", [9, 9, 9])]
    with pytest.raises(UserError, match=r"train: all pixels of the masks are ignore"):
        ready(root, replace(settings, palette=other, ignore=ignored))


@pytest.mark.parametrize(("policy", "value"), [("ignore", 255), ("nearest", 1)])
def test_unknown_colours_that_are_allowed_are_counted(root, settings, palette, policy, value):
    paint_stray(root, palette, 7, number=1)
    paint_stray(root, palette, 4, number=3)
    message = f"{root / 'train'}: 11 pixels in 2 masks are outside the palette; read as {policy}"
    for _ in range(2):  # also when the scan is remembered
        with pytest.warns(UserWarning, match=re.escape(message)):
            data = ready(root, replace(settings, unknown=policy))
    _, label = data.train_dataset.parts[0].source.read(1)
    assert (label[10, :7] == value).all()


def test_groups_in_both_splits_are_a_warning(root, settings):
    with pytest.warns(UserWarning, match=r"1 location group \(e\.g\. '0'\) in train and in val"):
        ready(root, replace(settings, group_regex="[0-9]"))
    (root / "tiles.csv").write_text("stem,group\ntrain_001,north\nval_000,south\nval_001,north\n")
    with pytest.warns(UserWarning, match=r"1 location group \(e\.g\. 'north'\)"):
        data = ready(root, settings)
    groups = {pair.stem: pair.group for pair in data.train_index.pairs}
    assert groups["train_001"] == "north" and groups["train_002"] == "train_002"
    assert data.val_dataset[0]["group"] == "south"


def test_a_folder_without_training_images_is_refused(tmp_path, settings):
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'train' / 'images'} is missing")):
        ready(tmp_path, settings)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_smaller_than_the_crop_is_refused_in_either_split(root, settings, palette, split):
    write_image(root / split / "images" / f"{split}_001.png", np.zeros((40, 48, 3), np.uint8))
    MaskReader(palette).write(
        root / split / "masks" / f"{split}_001.png", np.zeros((40, 48), np.uint8)
    )
    assert ready(root, settings, image_size=40).index is not None
    with pytest.raises(DataError, match=rf"{split}_001\.png is 48x40.*image_size=48\. Set"):
        ready(root, settings, image_size=48)
    assert ready(root, replace(settings, fit="resize"), image_size=48).index is not None


def test_splits_of_different_bands_are_refused(root, settings):
    for path in (root / "val" / "images").iterdir():
        write_image(path, np.zeros((48, 48, 1), np.uint8))
    with pytest.raises(
        DataError, match=r"val_000\.png has 1 band of uint8, but \S+train_000\.png has 3 bands"
    ):
        ready(root, settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_format": "rgbb"}, r"data\.mask_format=rgbb .* Did you mean 'rgb'\?"),
        ({"unknown": "skip"}, r"data\.unknown=skip is not one of error, ignore, nearest"),
        ({"fit": "pad"}, r"data\.fit=pad is not one of crop, resize"),
        ({"cache": "disk"}, r"data\.cache=disk is not one of ram, none"),
        ({"format": "tar"}, r"data\.format=tar is not one of folder, stream"),
        ({"num_workers": -1}, r"data\.num_workers=-1: use 0 or more"),
        ({"gsd": 0.0}, r"data\.gsd=0\.0: use more than 0"),
        ({"palette": []}, r"data\.palette: 0 classes"),
        ({"ignore": [], "unknown": "ignore"}, r"data\.unknown=ignore needs a colour"),
        ({"mask_format": "index", "unknown": "nearest"}, r"data\.unknown=nearest compares"),
    ],
)
def test_settings_out_of_range_are_refused_by_their_key(settings, changes, message):
    with pytest.raises(UserError, match=message):
        replace(settings, **changes)


@pytest.mark.filterwarnings("ignore:.*never occurs in the masks")
def test_the_demo_world_is_drawn_once_and_then_used(tmp_path):
    world = defaults(DemoSettings, train_tiles=2, val_tiles=1, tile_size=64, seed=4)
    demo = defaults(DataSettings, num_workers=0, demo=world)
    root = tmp_path / "new" / "demo"
    data = ready(root, demo)
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 32, 32)
    assert len(data.val_dataset) == 4
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert (root / MARKER) in before and len(before) > 7
    ready(root, demo)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_without_a_demo_nothing_is_prepared(tmp_path, settings):
    make(tmp_path / "nothing", settings).prepare_data()
    assert not (tmp_path / "nothing").exists()
