import numpy as np
import pytest
from synthesis_helpers import refused

from geoseg_gan.synthesis.sampling import SAMPLINGS, expected_shares, mask_weights

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


@pytest.mark.parametrize(
    ("sampling", "pixels", "losses", "expected"),
    [
        ("uniform", PIXELS, None, [1 / 3] * 3),
        # Class 0 lies in the masks by 60, 30 and 10 of 100, class 1 by 0, 10 and 30 of 40.
        ("balanced", PIXELS, None, [0.6 / 2, (0.3 + 0.25) / 2, (0.1 + 0.75) / 2]),
        ("balanced", [[0, 0, 100], [50, 50, 0]], None, [0, 1]),
        # FreeMask's formula. Ranks 2, 4, 1, 3 of 4: min(1 + 20 * rank / 4, 20), 20 where it is 21.
        ("hard", *masks_of(0.3, 0.9, 0.1, 0.5), [11 / 53, 20 / 53, 6 / 53, 16 / 53]),
        # The two of 0.2 share ranks 2 and 3: min(1 + 20 * 2.5 / 4, 20), 12.5 to even, is 13.
        ("hard", *masks_of(0.2, 0.1, 0.2, 0.3), [13 / 52, 6 / 52, 13 / 52, 20 / 52]),
        # By pixels: 0.75 * 0.1 + 0.25 * 0.9 = 0.3, 0.1, 0.9 and 0.5 * 0.1 + 0.5 * 0.9 = 0.5.
        (
            "hard",
            [[75, 25, 0], [10, 0, 90], [0, 40, 0], [1, 1, 98]],
            [0.1, 0.9],
            [11 / 53, 6 / 53, 20 / 53, 16 / 53],
        ),
        # A class without a loss does not make a mask easier: of mask 0 only the ten pixels of
        # class 1 count, 0.9; mask 2 has none that do, 0.
        (
            "hard",
            [[90, 10, 0, 0], [0, 50, 50, 0], [100, 0, 0, 0]],
            [None, 0.9, 0.1],
            [20 / 42, 14 / 42, 8 / 42],
        ),
    ],
)
def test_weights_by_hand(sampling, pixels, losses, expected):
    weights = mask_weights(sampling, np.array(pixels), losses)
    assert weights.tolist() == pytest.approx(expected)


def test_hard_counts_the_easiest_of_many_masks_once():
    weights = mask_weights("hard", *masks_of(*np.arange(1, 101) / 100))
    assert weights[-1] / weights[0] == pytest.approx(20)


@pytest.mark.parametrize(
    ("sampling", "pixels", "message"),
    [
        ("balanced", [[0, 0, 9]], "sampling=balanced: no training mask .* Check data_root"),
        ("hard", PIXELS, "sampling=hard .* Set segmenter_ckpt"),
        ("balance", PIXELS, "sampling=balance is not one of .* mean 'balanced'"),
    ],
)
def test_what_gives_no_weights_is_refused(sampling, pixels, message):
    with refused(message):
        mask_weights(sampling, np.array(pixels))


def test_hard_needs_the_losses_of_every_class():
    with pytest.raises(ValueError, match="2 class losses for 3 classes"):
        mask_weights("hard", PIXELS, [0.1, 0.2])


def test_expected_shares_by_hand():
    # The second mask is smaller, but a draw of it is a tile like any other: class 0 gets
    # 0.5 * 60/100 + 0.5 * 30/40 and class 1 0.5 * 0 + 0.5 * 10/40 of a tile.
    shares = expected_shares(np.array([0.5, 0.5, 0.0]), PIXELS)
    assert shares.tolist() == pytest.approx([0.675 / 0.8, 0.125 / 0.8, 0])
    assert expected_shares(np.array([1.0]), np.array([[0, 0, 9]])).tolist() == [0, 0]
