import numpy as np
import pytest
import torch

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.demo.tile import draw_tile
from geoseg_gan.evaluation.fidelity import (
    BLURS,
    NOISES,
    Extractor,
    compare,
    controls,
    coverage,
    fid,
    halves,
    kid,
    memorisation,
)
from geoseg_gan.evaluation.images import ImageSet
from geoseg_gan.models.pretrained.features import Lite0Features

CPU = torch.device("cpu")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def textured(rng, count, bands=3, side=64):
    """Images whose power falls with frequency, as that of aerial pictures does."""
    cycles = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    filters = 1 / np.maximum(cycles, 1 / side)
    noise = rng.normal(size=(count, bands, side, side))
    images = np.fft.ifft2(np.fft.fft2(noise) * filters).real
    images = 128 + 40 * images / images.std((1, 2, 3), keepdims=True)
    pixels = np.moveaxis(images, 1, -1).clip(0, 255).astype(np.uint8)
    label = np.zeros((count, side, side), np.uint8)
    names = [str(row) for row in range(count)]
    return ImageSet(pixels, label, label, names, names)


def drawn(count, side=64):
    """Windows of the demo world."""
    tiles = [draw_tile(np.random.default_rng((0, number)), 2 * side) for number in range(count)]
    pixels = np.concatenate([[image[:side, :side], image[side:, side:]] for image, _ in tiles])
    label = np.zeros(pixels.shape[:3], np.uint8)
    names = [str(row) for row in range(len(pixels))]
    return ImageSet(pixels, label, label, names, names)


def extractor(bands=3):
    scaling = ImageScaling([0] * bands, [255] * bands)
    return Extractor(Lite0Features(bands), scaling, CPU, batch_size=5)


@pytest.mark.parametrize("key", ["kid", "fid"])
def test_worse_blur_and_noise_cost_more_and_a_little_is_no_gain(key):
    images, extract = drawn(16), extractor()
    whole = controls(extract, images, seed=0, quiet=True)
    features = extract(images)
    found = [compare(features, damaged, paired=True)[key] for damaged in whole.values()]
    blurs, noises = found[: len(BLURS)], found[len(BLURS) :]
    assert len(noises) == len(NOISES)
    assert blurs == sorted(blurs) and noises == sorted(noises)
    assert min(found) > 0


def test_controls_take_any_number_of_bands(rng):
    images, extract = textured(rng, 4, bands=6), extractor(6)
    whole = controls(extract, images, seed=0)
    assert len(whole) == 8
    part = controls(extract, images.part([2, 3]), seed=0, first=2)
    for name, features in part.items():  # the same noise, but other batches
        np.testing.assert_allclose(features, whole[name][2:], atol=1e-4)


def test_features_do_not_depend_on_the_batch(rng):
    images, extract = textured(rng, 7), extractor()
    whole = extract(images)
    single = np.concatenate([extract(images.part([row])) for row in range(7)])
    np.testing.assert_allclose(whole, single, atol=1e-4)


def test_fid_takes_as_many_of_both_and_kid_takes_all(rng):
    real, fake = rng.normal(size=(10, 4)), rng.normal(size=(19, 4))
    row = compare(real, fake)
    assert row["images"] == 10
    assert row["fid"] == fid(real, fake[::2])
    assert row["kid"] == kid(real, fake)


def test_halves_keep_groups_together(rng):
    centres = np.repeat(rng.normal(size=(4, 6)), 10, 0) * 5
    real = centres + rng.normal(size=(40, 6)) / 100
    groups = [f"group {row // 10}" for row in range(40)]
    apart = halves(real, groups, 0)
    mixed = halves(real, [str(row) for row in range(40)], 0)
    assert apart["images"] == mixed["images"] == 20
    assert apart["kid"] > 10 * abs(mixed["kid"])


@pytest.mark.parametrize("groups", [["all"] * 20, ["all"] * 19 + ["one"]])
def test_halves_of_one_group_divide_its_images(rng, groups):
    real = rng.normal(size=(20, 4))
    assert halves(real, groups, 0) == halves(real, [str(row) for row in range(20)], 0)


def test_training_images_generated_again_are_covered_and_found(rng):
    train, held_out = rng.normal(size=(30, 8)), rng.normal(size=(30, 8))
    assert coverage(train, train) == {"precision": 1.0, "recall": 1.0}
    near = memorisation(train, train[[4, 2]], held_out)
    assert near["rows"].tolist() == [4, 2]
    np.testing.assert_allclose(near["generated"], 0, atol=1e-7)
    assert near["held_out"].shape == (30,) and near["held_out"].min() > 0.1


def test_paired_sets_are_not_taken_for_independent_ones(rng):
    # Of points 0 and 1 with themselves: pairs of different points have k = 1, of 1 with itself 8.
    points = np.array([[0.0], [1.0]])
    assert kid(points, points, paired=True) == 0
    assert kid(points, points) == pytest.approx(1 + 1 - 2 * (1 + 1 + 1 + 8) / 4)
    # One image more or less alike with its own change must not count.
    images = rng.normal(size=(200, 5))
    shifts = [kid(images, images + 0.01 * rng.normal(size=images.shape), paired=True)]
    shifts += [kid(images, images + 0.01 * rng.normal(size=images.shape))]
    assert abs(shifts[0]) < abs(shifts[1]) / 20
