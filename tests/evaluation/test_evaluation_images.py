import numpy as np
import pytest
import torch

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.dataset import PairSource, WindowDataset
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.scan import scan
from geoseg_gan.evaluation.images import ImageSet, collect, generate_like
from geoseg_gan.models.loaded import load_generator


@pytest.fixture
def windows(tmp_path, make_folder, palette):
    pairs = find_pairs(make_folder(tmp_path / "data", train=3, size=48), "train")
    reader = MaskReader(palette)
    return WindowDataset(PairSource(pairs, reader), scan(pairs, reader).sizes, 32, "crop")


def test_windows_keep_whole_masks_and_count_every_pixel_once(windows, palette):
    images = collect(windows, range(4))  # the four windows of a picture of 48 pixels
    assert images.pixels.shape == (4, 32, 32, 3) and images.pixels.dtype == np.uint8
    source = windows.source.read(0)
    np.testing.assert_array_equal(images.pixels[3], source[0][16:, 16:])
    np.testing.assert_array_equal(images.labels[3], source[1][16:, 16:])
    assert (images.counted != 255).sum() == (source[1] != 255).sum()
    assert images.names.tolist() == ["train_000"] * 4 and not windows.once


def test_shares_leave_ignored_pixels_out():
    label = np.array([[[0, 0], [1, 255]], [[255, 255], [255, 255]]], np.uint8)
    images = ImageSet(np.zeros((2, 2, 2, 3), np.uint8), label, label, *np.array([["a", "b"]] * 2))
    np.testing.assert_allclose(images.shares(2), [[2 / 3, 1 / 3], [0, 0]])


def test_parts_hold_every_image_in_order(windows):
    images = collect(windows, [0, 5] * 40)
    parts = list(images.parts())
    assert [len(part) for part in parts] == [64, 16]
    np.testing.assert_array_equal(np.concatenate([part.pixels for part in parts]), images.pixels)
    scaling = ImageScaling([0, 0, 0], [255, 255, 255])
    scaled = parts[1].scaled(scaling)
    assert scaled.shape == (16, 3, 32, 32)
    np.testing.assert_allclose((scaled[0, 1] + 1) * 127.5, images.pixels[64, ..., 1], atol=1e-4)


def test_each_mask_is_generated_with_noise_of_its_own(windows, generator, tmp_path):
    device = torch.device("cpu")
    loaded = load_generator(generator(tmp_path), device)
    real = collect(windows, [0, 0, 1])
    generated = generate_like(loaded, real, 0, device)
    assert generated.pixels.shape == real.pixels.shape and generated.labels is real.labels
    assert (generated.pixels[0] != generated.pixels[1]).any()
    np.testing.assert_array_equal(generate_like(loaded, real, 0, device).pixels, generated.pixels)
    assert (generate_like(loaded, real, 1, device).pixels != generated.pixels).any()
    last = generate_like(loaded, real.part([2]), 0, device, first=2)
    np.testing.assert_array_equal(last.pixels[0], generated.pixels[2])
