import numpy as np
import pytest
import torch
from torch import nn

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
    kid_error,
    memorisation,
    nearest,
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
    names = np.arange(count).astype(str)
    return ImageSet(pixels, label, label, names, names)


def drawn(count, side=64):
    """Windows of the demo world."""
    tiles = [draw_tile(np.random.default_rng((0, number)), 2 * side) for number in range(count)]
    pixels = np.concatenate([[image[:side, :side], image[side:, side:]] for image, _ in tiles])
    label = np.zeros(pixels.shape[:3], np.uint8)
    names = np.arange(len(pixels)).astype(str)
    return ImageSet(pixels, label, label, names, names)


def extractor(bands=3):
    scaling = ImageScaling([0] * bands, [255] * bands)
    return Extractor(Lite0Features(bands), scaling, CPU, batch_size=5)


@pytest.mark.slow
def test_worse_blur_and_noise_cost_more_and_a_little_is_no_gain():
    images, extract = drawn(16), extractor()
    whole = controls(extract, images, seed=0, quiet=True)
    features = extract(images)
    compared = [compare(features, damaged, paired=True) for damaged in whole.values()]
    assert len(compared) == len(BLURS) + len(NOISES)
    for key in ("kid", "fid"):
        found = [row[key] for row in compared]
        blurs, noises = found[: len(BLURS)], found[len(BLURS) :]
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


@pytest.fixture
def sets():
    """Features as networks give them: not negative, with columns that go together."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(16, 16)) / 4
    first = np.maximum(rng.normal(0.4, 1, (90, 16)) @ mix, 0)
    second = np.maximum(rng.normal(0.6, 1.2, (70, 16)) @ mix, 0)
    return first, second


class Given(nn.Module):
    """What torchmetrics takes for a network whose features are the images themselves."""

    num_features = 16

    def forward(self, images):
        return images.reshape(len(images), -1)[:, :16]


def updated(metric, first, second):
    for rows, real in ((first, True), (second, False)):
        metric.update(torch.from_numpy(rows).reshape(len(rows), 1, 4, 4), real=real)
    return metric


@pytest.mark.filterwarnings("ignore:Metric .Kernel Inception Distance. will save all:UserWarning")
def test_kid_is_that_of_torchmetrics_with_the_whole_set_as_its_subset(sets):
    from torchmetrics.image.kid import KernelInceptionDistance

    first, second = sets[0][:70], sets[1]
    metric = KernelInceptionDistance(Given(), subsets=1, subset_size=70, normalize=False)
    expected, _ = updated(metric.set_dtype(torch.float64), first, second).compute()
    assert kid(first, second) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("counts", [(90, 70), (12, 10)], ids=["more than D", "fewer than D"])
def test_fid_is_that_of_torchmetrics(sets, counts):
    from torchmetrics.image.fid import FrechetInceptionDistance

    first, second = (rows[:count] for rows, count in zip(sets, counts, strict=True))
    metric = FrechetInceptionDistance(Given(), normalize=False, input_img_size=(1, 4, 4))
    expected = updated(metric.set_dtype(torch.float64), first, second).compute()
    assert fid(first, second) == pytest.approx(float(expected), rel=1e-3)


def test_kid_by_hand():
    # One dimension, k(x, y) = (xy + 1)^3: within 0, 1 it is 1; within 1, 2 it is 27; across
    # 1, 1, 8, 27.
    real, fake = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    assert kid(real, fake) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_kid_of_sets_that_are_alike_is_zero_on_average():
    rng = np.random.default_rng(1)
    values = [kid(*rng.normal(size=(2, 20, 6))) for _ in range(400)]
    error = np.std(values) / 20
    assert abs(np.mean(values)) < 3 * error
    assert min(values) < 0  # unbiased, so that it must fall below zero too


def test_the_standard_error_of_kid_is_how_much_it_varies():
    rng = np.random.default_rng(2)
    draws = [(rng.normal(size=(60, 6)), rng.normal(0.5, 1, (60, 6))) for _ in range(200)]
    spread = np.std([kid(*draw) for draw in draws])
    assert np.mean([kid_error(*draw) for draw in draws]) == pytest.approx(spread, rel=0.25)
    assert np.isnan(kid_error(np.ones((3, 2)), np.ones((3, 2))))


def test_fid_of_gaussians_is_the_closed_formula():
    rng = np.random.default_rng(3)
    first, second = rng.normal(0, 1, (50_000, 3)), rng.normal(1, 2, (50_000, 3))
    # |mean difference|^2 = 3, and (2 - 1)^2 for each of 3 dimensions.
    assert fid(first, second) == pytest.approx(6, rel=0.02)
    assert fid(first, first) == pytest.approx(0, abs=1e-6)


def test_large_sets_are_taken_in_parts_without_a_change(monkeypatch, sets):
    whole = kid(*sets), coverage(*sets), nearest(*sets)
    monkeypatch.setattr("geoseg_gan.evaluation.fidelity._ROWS", 7)
    parts = kid(*sets), coverage(*sets), nearest(*sets)
    assert parts[0] == pytest.approx(whole[0]) and parts[1] == whole[1]
    np.testing.assert_array_equal(parts[2][0], whole[2][0])


def test_precision_and_recall_tell_what_is_missing():
    rng = np.random.default_rng(4)
    real = np.concatenate([rng.normal(0, 1, (100, 4)), rng.normal(50, 1, (100, 4))])
    one_mode, far = rng.normal(0, 1, (100, 4)), rng.normal(-50, 1, (100, 4))
    precision, recall = coverage(real, one_mode).values()
    assert precision > 0.8 and 0.4 < recall <= 0.5
    assert coverage(real, far) == {"precision": 0.0, "recall": 0.0}
    assert coverage(real, real) == {"precision": 1.0, "recall": 1.0}
    assert np.isnan([*coverage(real, real[:3]).values()]).all()


def test_precision_counts_what_lies_within_the_kth_neighbour():
    real = np.array([[0.0], [1.0], [2.0], [10.0]])
    fake = np.array([[3.9], [4.1], [18.1], [0.5]])
    # With k = 2 the radii of the real ones are 2, 1, 2 and 9: 18.1 alone is 8.1 from 10, within 9.
    assert coverage(real, fake, k=2)["precision"] == 1.0
    assert coverage(real, fake, k=1)["precision"] == 0.75  # the last radius is 8 then


def test_nearest_finds_the_same_image_whatever_its_length():
    references = np.array([[1.0, 0.0], [0.0, 2.0]])
    rows, distances = nearest(np.array([[0.0, 5.0], [1.0, 1.0]]), references)
    assert rows[0] == 1 and distances[0] == 0
    assert distances[1] == pytest.approx(np.sqrt(2 - np.sqrt(2)))
