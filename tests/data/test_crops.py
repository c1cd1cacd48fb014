from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from defaults import defaults
from geometry import OFF, TURNS

from geoseg_gan.data.datamodule import GanDataModule
from geoseg_gan.data.jitter import Warp, draw_warp, sample_label
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.sampler import Focus, SampleIndex, crop_focus, draw_focused
from geoseg_gan.data.settings import AffineStep, ElasticStep
from geoseg_gan.synthesis.sampling import mask_weights
from geoseg_gan.utils.errors import UserError

PIXELS = np.array([[90, 0, 10, 0, 0], [60, 0, 0, 0, 40], [35, 0, 30, 5, 30]])
"""Pixels of four classes, of which the second never occurs, and of ignore."""


@pytest.mark.parametrize(
    ("crops", "share", "classes"), [("balanced", 1.0, [0, 2, 3]), ("rare", 0.5, [3])]
)
def test_crops_are_on_all_classes_alike_or_every_other_on_a_rare_one(crops, share, classes):
    focus = crop_focus(crops, PIXELS)
    assert (focus.share, focus.classes) == (share, classes)
    np.testing.assert_array_equal(focus.pixels, PIXELS[:, classes])
    assert crop_focus("uniform", PIXELS) is None
    with pytest.raises(UserError, match=f"crops={crops}: no training mask holds a pixel of any"):
        crop_focus(crops, np.array([[0, 0, 9], [0, 0, 9]]))


def test_an_unknown_way_is_refused_by_its_key():
    with pytest.raises(UserError, match=r"crops=balance is not one of .*Did you mean 'balanced'"):
        crop_focus("balance", PIXELS)


def test_rows_are_drawn_in_proportion_to_their_pixels_of_a_class_drawn_alike():
    focus = crop_focus("balanced", PIXELS)
    rows, classes = focus.draw(30_000, np.random.default_rng(0))
    assert Counter(classes.tolist()) == {0: 10_000, 2: 10_000, 3: 10_000}
    for class_id in focus.classes:
        shares = np.bincount(rows[classes == class_id], minlength=3) / 10_000
        expected = PIXELS[:, class_id] / PIXELS[:, class_id].sum()
        np.testing.assert_allclose(shares, expected, atol=0.02)
        assert not shares[expected == 0].any()
    shares = np.bincount(rows, minlength=3) / 30_000
    np.testing.assert_allclose(shares, mask_weights("balanced", PIXELS), atol=0.02)


def test_draws_follow_the_generator_s_state_and_may_be_none():
    focus = crop_focus("balanced", PIXELS)
    first, same, other = (focus.draw(50, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    rows, classes = Focus(0.5, [2], PIXELS[:, [2]]).draw(0, np.random.default_rng(0))
    assert rows.shape == classes.shape == (0,)


def with_blob(height, width, row, column, side=6):
    label = np.zeros((height, width), np.uint8)
    label[row : row + side, column : column + side] = 2
    return label


@pytest.mark.parametrize(
    "settings",
    [
        OFF,
        TURNS,
        replace(TURNS, affine=defaults(AffineStep, 1.0)),
        replace(
            TURNS, affine=defaults(AffineStep, 1.0), elastic=defaults(ElasticStep, 1.0, 3.0, 48.0)
        ),
    ],
    ids=["off", "turned", "affine", "bent"],
)
def test_a_crop_shows_its_class_under_every_warp(settings):
    rng = np.random.default_rng(0)
    for _ in range(150):
        # No warp of these settings moves the middle of the frame out of it.
        row, column = rng.integers(40, [74, 104])
        label = with_blob(120, 150, row, column)
        warp = draw_warp(settings, rng)
        window = draw_focused(label, 2, warp, 32, rng)
        crop = sample_label(label, warp.source_map(120, 150, window))
        assert (crop == 2).any()


def test_the_pixel_lies_anywhere_in_the_crop_that_the_frame_allows():
    rng = np.random.default_rng(0)
    middle = with_blob(60, 60, 30, 28, side=1)
    windows = Counter(draw_focused(middle, 2, Warp(), 8, rng) for _ in range(3000))
    assert set(windows) == {(t, s, 8) for t in range(23, 31) for s in range(21, 29)}
    assert max(windows.values()) < 3 * min(windows.values())
    corner = with_blob(60, 60, 0, 59, side=1)
    windows = {draw_focused(corner, 2, Warp(), 8, rng) for _ in range(20)}
    assert windows == {(0, 52, 8)}


def test_all_pixels_of_a_class_are_drawn_alike():
    label = with_blob(40, 200, 10, 20)
    label[30, 100:112] = 2  # 36 pixels in one place, 12 in another
    rng = np.random.default_rng(0)
    left = [draw_focused(label, 2, Warp(), 16, rng)[1] < 60 for _ in range(2000)]
    assert np.mean(left) == pytest.approx(0.75, abs=0.04)


def test_pixels_that_leave_the_frame_are_passed_over_while_others_stay():
    shift = Warp(affine=(1.0, 0.0, 0.0, 1.0, 0.5, 0.0))  # the right half fills the left one
    label = with_blob(64, 64, 8, 4, side=12)
    label[40, 60] = 2
    label[8:16, 33:45] = 2
    rng = np.random.default_rng(0)
    for _ in range(50):
        window = draw_focused(label, 2, shift, 16, rng)
        assert (sample_label(label, shift.source_map(64, 64, window)) == 2).any()
    gone = with_blob(64, 64, 30, 4)  # the crop goes to the border over which the class left
    for _ in range(20):
        top, left, side = draw_focused(gone, 2, shift, 16, rng)
        assert left == 0 and side == 16 and 15 <= top <= 35


@pytest.fixture
def one_small_blob(make_folder, tmp_path, palette):
    """A data folder of 12 tiles, of which one alone holds a little of Settlement (2)."""
    root = make_folder(tmp_path / "blob", train=12, val=1, size=(80, 96))
    reader = MaskReader(palette)
    for number, path in enumerate(sorted((root / "train" / "masks").iterdir())):
        label, _ = reader.read(path)
        label[label == 2] = 0
        label[:40] = 1
        if number == 5:
            label[60:66, 70:76] = 2
        reader.write(path, label)
    return root


def ready(root, settings, **changes):
    knobs = {"image_size": 32, "batch_size": 6, "jitter": TURNS, "seed": 0} | changes
    data = GanDataModule(root, settings, **knobs)
    data.setup()
    return data


def labels_of(data):
    return torch.cat([batch["label"] for batch in data.train_dataloader()])


def share_with(labels, class_id):
    return float((labels == class_id).flatten(1).any(1).float().mean())


@pytest.mark.parametrize(("crops", "least"), [("balanced", 1 / 3), ("rare", 1 / 2)])
def test_a_class_in_one_tile_of_many_is_in_its_share_of_the_crops(
    one_small_blob, settings, crops, least
):
    uniform = share_with(labels_of(ready(one_small_blob, settings, epoch_steps=20)), 2)
    data = ready(one_small_blob, settings, epoch_steps=20, crops=crops)
    assert uniform < 0.1 and share_with(labels_of(data), 2) >= least
    assert data.focus.classes == ([2] if crops == "rare" else [0, 1, 2])


def test_every_item_on_a_class_shows_it(one_small_blob, settings):
    data = ready(one_small_blob, settings, crops="balanced", epoch_steps=10)
    for draw in data.train_dataloader().sampler:
        assert (data.train_dataset[draw]["label"] == draw.focus).any()


def test_whole_pictures_are_only_chosen_by_the_class(one_small_blob, settings):
    resized = replace(settings, fit="resize")
    data = ready(one_small_blob, resized, crops="rare", epoch_steps=10, image_size=64)
    assert share_with(labels_of(data), 2) >= 0.5
    dataset = data.train_dataset
    for serial in range(5):
        plain, focused = dataset[SampleIndex(5, serial)], dataset[SampleIndex(5, serial, 2)]
        assert torch.equal(plain["image"], focused["image"])


def test_tiles_that_are_held_out_are_never_shown(one_small_blob, settings, tmp_path):
    path = tmp_path / "split.csv"
    fitted = "".join(f"train_{number:03d},fit\n" for number in range(5))
    path.write_text(f"stem,part\n{fitted}train_005,inner\n")
    with pytest.warns(UserWarning, match="never occurs in the masks: Settlement"):
        data = ready(
            one_small_blob, replace(settings, split_file=str(path)), crops="balanced", epoch_steps=9
        )
    assert data.focus.classes == [0, 1]
    assert not share_with(labels_of(data), 2)
