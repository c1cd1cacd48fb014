import numpy as np
import pytest

from geoseg_gan.synthesis.sampling import SAMPLINGS, expected_shares, mask_weights
from geoseg_gan.utils.errors import UserError

PIXELS = np.array([[60, 0, 0, 40], [30, 10, 0, 0], [10, 30, 0, 60]])
"""Three masks; the third class does not occur, the last column is ignore."""


def masks_of(*hardness):
    """Masks and class losses, where mask i holds class i alone, whose loss is its hardness."""
    return np.pad(np.diag(np.full(len(hardness), 50)), ((0, 0), (0, 1))), list(hardness)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_weights_sum_to_one(sampling):
    pixels = np.random.default_rng(0).integers(0, 1000, (999, 5))
    weights = mask_weights(sampling, pixels, [0.1, 2.0, None, 0.4])
    assert weights.shape == (999,) and weights.dtype == np.float64
    assert weights.sum() == pytest.approx(1, abs=1e-12) and (weights >= 0).all()


def test_uniform_draws_all_masks_alike():
    assert mask_weights("uniform", PIXELS).tolist() == pytest.approx([1 / 3] * 3)


def test_balanced_by_hand():
    # Class 0 lies in the masks by 60, 30 and 10 of 100, class 1 by 0, 10 and 30 of 40.
    expected = [(0.6 + 0) / 2, (0.3 + 0.25) / 2, (0.1 + 0.75) / 2]
    assert mask_weights("balanced", PIXELS).tolist() == pytest.approx(expected)
    assert mask_weights("balanced", np.array([[0, 0, 100], [50, 50, 0]])).tolist() == [0, 1]


def test_balanced_without_any_labelled_pixel_is_refused():
    with pytest.raises(UserError, match=r"sampling=balanced: no training mask .* Check data_root"):
        mask_weights("balanced", np.array([[0, 0, 9]]))


def test_hard_is_the_freemask_formula_by_hand():
    # Ranks 2, 4, 1, 3 of 4: min(1 + 20 * rank / 4, 20) is 11, 20 (of 21), 6 and 16.
    weights = mask_weights("hard", *masks_of(0.3, 0.9, 0.1, 0.5))
    assert weights.tolist() == pytest.approx([11 / 53, 20 / 53, 6 / 53, 16 / 53])


def test_hard_counts_the_easiest_of_many_masks_once():
    weights = mask_weights("hard", *masks_of(*np.arange(1, 101) / 100))
    assert weights[-1] / weights[0] == pytest.approx(20)


def test_equally_hard_masks_are_drawn_alike():
    # The two of 0.2 share ranks 2 and 3: min(1 + 20 * 2.5 / 4, 20), 12.5 to even, is 13.
    weights = mask_weights("hard", *masks_of(0.2, 0.1, 0.2, 0.3))
    assert weights.tolist() == pytest.approx([13 / 52, 6 / 52, 13 / 52, 20 / 52])


def test_hardness_weighs_losses_by_pixels():
    # 0.75 * 0.1 + 0.25 * 0.9 = 0.3, against 0.1, 0.9 and 0.5 * 0.1 + 0.5 * 0.9 = 0.5.
    pixels = np.array([[75, 25, 0], [10, 0, 90], [0, 40, 0], [1, 1, 98]])
    weights = mask_weights("hard", pixels, [0.1, 0.9])
    assert weights.tolist() == pytest.approx([11 / 53, 6 / 53, 20 / 53, 16 / 53])


def test_classes_without_a_loss_do_not_make_a_mask_easier():
    # Of mask 0 only the ten pixels of class 1 count, 0.9; mask 2 has none that do, 0.
    pixels = np.array([[90, 10, 0, 0], [0, 50, 50, 0], [100, 0, 0, 0]])
    weights = mask_weights("hard", pixels, [None, 0.9, 0.1])
    assert weights.tolist() == pytest.approx([20 / 42, 14 / 42, 8 / 42])


def test_hard_needs_the_losses_of_every_class():
    with pytest.raises(UserError, match=r"sampling=hard .* Set segmenter_ckpt"):
        mask_weights("hard", PIXELS)
    with pytest.raises(ValueError, match="2 class losses for 3 classes"):
        mask_weights("hard", PIXELS, [0.1, 0.2])


def test_unknown_sampling_is_refused():
    with pytest.raises(UserError, match=r"sampling=balance is not one of .* mean 'balanced'"):
        mask_weights("balance", PIXELS)


def test_expected_shares_by_hand():
    # The second mask is smaller, but a draw of it is a tile like any other: class 0 gets
    # 0.5 * 60/100 + 0.5 * 30/40 and class 1 0.5 * 0 + 0.5 * 10/40 of a tile.
    shares = expected_shares(np.array([0.5, 0.5, 0.0]), PIXELS)
    assert shares.tolist() == pytest.approx([0.675 / 0.8, 0.125 / 0.8, 0])
    assert expected_shares(np.array([1.0]), np.array([[0, 0, 9]])).tolist() == [0, 0]
