import math

import numpy as np
import pytest
import torch
from synthesis_helpers import refused

from geoseg_gan.synthesis.filter import agreement_of, choose_tau, drop_pixels
from geoseg_gan.synthesis.recognizer import pixel_losses

NAN = math.nan


def label_of(rows):
    return np.array(rows, np.uint8)


def logits_for(prediction, num_classes):
    """Logits whose largest channel is the prediction."""
    return torch.nn.functional.one_hot(torch.tensor(prediction), num_classes).permute(2, 0, 1) * 5.0


def logits_of(probabilities):
    """Logits (C, 1, W) of pixels with these class probabilities (W, C)."""
    return torch.tensor(probabilities).log().T.unsqueeze(1)


def score(label, logits):
    return agreement_of(label, logits.argmax(0), len(logits))


def test_the_score_of_a_half_and_a_third_by_hand():
    # Class 0: TP 1, FN 1: 1/2. Class 1: TP 1, FP 1, FN 1: 1/3. Class 2 is only predicted.
    label, logits = label_of([[0, 0], [1, 1]]), logits_for([[0, 1], [1, 2]], 4)
    assert score(label, logits) == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_ignored_pixels_do_not_score():
    assert score(label_of([[0, 255]]), logits_for([[0, 1]], 2)) == 1
    assert math.isnan(score(label_of([[255, 255]]), logits_for([[0, 1]], 2)))


def test_arrays_that_may_not_be_written_to_and_tensors_score_alike():
    label, logits = label_of([[0, 1], [1, 1]]), logits_for([[0, 0], [1, 1]], 2)
    label.flags.writeable = False
    assert score(label, logits) == score(torch.tensor(label), logits) == pytest.approx(7 / 12)


def test_pixels_beyond_alpha_times_their_classes_loss_become_ignore():
    # Means 0.4 and 0.2, so with alpha 1.25 the limits are 0.5 and 0.25. Losses: -log 0.62 = 0.478
    # stays and -log 0.6 = 0.511 goes for class 0; -log 0.79 = 0.236 stays, -log 0.77 = 0.261 goes.
    label = label_of([[0, 0, 1, 1]])
    logits = logits_of([[0.62, 0.38], [0.6, 0.4], [0.21, 0.79], [0.23, 0.77]])
    losses = pixel_losses(label, logits).numpy()
    filtered = drop_pixels(label, losses, [0.4, 0.2], 1.25)
    assert filtered.dtype == np.uint8
    assert filtered.tolist() == [[0, 255, 1, 255]]
    assert label.tolist() == [[0, 0, 1, 1]]
    assert drop_pixels(label, losses, [0.4, 0.2], 1.5).tolist() == [[0, 0, 1, 1]]


def test_classes_without_a_loss_and_ignored_pixels_stay():
    label = label_of([[0, 1, 255]])
    logits = logits_of([[0.01, 0.99], [0.99, 0.01], [0.5, 0.5]])
    losses = pixel_losses(label, logits).numpy()
    assert drop_pixels(label, losses, [None, 0.2], 1.25).tolist() == [[0, 255, 255]]
    assert drop_pixels(label, losses, [None, None], 1.25).tolist() == [[0, 1, 255]]


@pytest.mark.parametrize(
    ("candidates", "held_out", "tau", "reached"),
    [
        # All: 0.5; without 0.2: 0.6; the real mean is 0.55. So 0.2 goes; tau is midway to 0.4.
        ([0.8, 0.4, 0.2, 0.6], [0.5, 0.6], 0.3, True),
        ([NAN, 0.2, 0.6, NAN, 0.4, 0.8], [0.6, NAN, 0.5], 0.3, True),  # in any order, without nan
        # Everything is kept where candidates score like real pairs. Three times 0.1 sums to a
        # little more than 0.3: round-off must not cost a candidate.
        ([0.7, 0.3], [0.5], 0, True),
        ([0.1], [0.1, 0.1, 0.1], 0, True),
        # The best tenth of 0.025 to 0.5, 0.475 and 0.5, where the real mean is out of reach.
        ([number / 40 for number in range(1, 21)], [0.9], (0.45 + 0.475) / 2, False),
        # The best alone reaches 0.9, but of eleven candidates a tenth is more than one.
        ([0.95, 0.5] + [0.1] * 9, [0.9], 0.3, False),
        ([0.95, 0.5] + [0.1] * 8, [0.9], 0.725, True),
        # All: 0.44. Without 0.2 the mean is 0.5, short of 0.55, and the three 0.4 go as one.
        ([0.2, 0.4, 0.4, 0.4, 0.8], [0.55], 0.6, True),
        ([0.4] * 30, [0.9], 0, False),
        # What scores nothing is never kept: without its zeros the mean is 0.5, with them 0.25.
        ([0.0, 0.5, 0.0, 0.5], [0.5], 0, True),
        ([0.0, 0.0], [0.5], 0, False),
        ([0.0] * 20 + [0.3], [0.5], 0, False),
        ([], [0.5], 0, False),
        ([NAN], [0.5], 0, False),
    ],
)
def test_the_smallest_threshold_whose_kept_mean_reaches_the_real_one(
    candidates, held_out, tau, reached
):
    expected = pytest.approx(tau) if tau else 0.0
    assert choose_tau(candidates, held_out) == (expected, reached)


def test_the_threshold_parts_scores_that_are_neighbouring_floats():
    low = 0.5
    for _ in range(4):
        high = math.nextafter(low, 1)
        tau, _ = choose_tau([low, high], [0.9])
        assert low <= tau < high
        low = high


@pytest.mark.parametrize("held_out", [[], [NAN]])
def test_without_real_scores_there_is_nothing_to_compare_with(held_out):
    with refused(r"tau=auto .* Set tau to a number, or train"):
        choose_tau([0.5], held_out)
