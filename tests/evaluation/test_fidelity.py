import numpy as np
import pytest
import torch
from torch import nn

from geoseg_gan.evaluation.fidelity import fid, kid, kid_error, nearest, precision_recall


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


def test_one_image_has_no_standard_error():
    assert np.isnan(kid_error(np.ones((3, 2)), np.ones((3, 2))))


def test_fid_of_gaussians_is_the_closed_formula():
    rng = np.random.default_rng(3)
    first, second = rng.normal(0, 1, (50_000, 3)), rng.normal(1, 2, (50_000, 3))
    # |mean difference|^2 = 3, and (2 - 1)^2 for each of 3 dimensions.
    assert fid(first, second) == pytest.approx(6, rel=0.02)
    assert fid(first, first) == pytest.approx(0, abs=1e-6)


def test_large_sets_are_taken_in_parts_without_a_change(monkeypatch, sets):
    whole = kid(*sets), precision_recall(*sets), nearest(*sets)
    monkeypatch.setattr("geoseg_gan.evaluation.fidelity._ROWS", 7)
    parts = kid(*sets), precision_recall(*sets), nearest(*sets)
    assert parts[0] == pytest.approx(whole[0]) and parts[1] == whole[1]
    np.testing.assert_array_equal(parts[2][0], whole[2][0])


def test_precision_and_recall_tell_what_is_missing():
    rng = np.random.default_rng(4)
    real = np.concatenate([rng.normal(0, 1, (100, 4)), rng.normal(50, 1, (100, 4))])
    one_mode, far = rng.normal(0, 1, (100, 4)), rng.normal(-50, 1, (100, 4))
    precision, recall = precision_recall(real, one_mode)
    assert precision > 0.8 and 0.4 < recall <= 0.5
    assert precision_recall(real, far) == (0.0, 0.0)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert np.isnan(precision_recall(real, real[:3])).all()


def test_precision_counts_what_lies_within_the_kth_neighbour():
    real = np.array([[0.0], [1.0], [2.0], [10.0]])
    fake = np.array([[3.9], [4.1], [18.1], [0.5]])
    # With k = 2 the radii of the real ones are 2, 1, 2 and 9: 18.1 alone is 8.1 from 10, within 9.
    assert precision_recall(real, fake, k=2)[0] == 1.0
    assert precision_recall(real, fake, k=1)[0] == 0.75  # the last radius is 8 then


def test_nearest_finds_the_same_image_whatever_its_length():
    references = np.array([[1.0, 0.0], [0.0, 2.0]])
    rows, distances = nearest(np.array([[0.0, 5.0], [1.0, 1.0]]), references)
    assert rows[0] == 1 and distances[0] == 0
    assert distances[1] == pytest.approx(np.sqrt(2 - np.sqrt(2)))
