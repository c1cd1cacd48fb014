import numpy as np
import pytest
from synthesis_helpers import refused

from geoseg_gan.synthesis.sampling import SAMPLINGS, expected_shares, mask_weights

PIXELS = np.array([[60, 0, 0, 40], [30, 10, 0, 0], [10, 30, 0, 60]])
"""Three masks; the third class does not occur, the last column is ignore."""


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_weights_sum_to_one(sampling):
    pixels = np.random.default_rng(0).integers(0, 1000, (999, 5))
    weights = mask_weights(sampling, pixels)
    assert weights.shape == (999,) and weights.dtype == np.float64
    assert weights.sum() == pytest.approx(1, abs=1e-12) and (weights >= 0).all()


@pytest.mark.parametrize(
    ("sampling", "pixels", "expected"),
    [
        ("uniform", PIXELS, [1 / 3] * 3),
        # Class 0 lies in the masks by 60, 30 and 10 of 100, class 1 by 0, 10 and 30 of 40.
        ("balanced", PIXELS, [0.6 / 2, (0.3 + 0.25) / 2, (0.1 + 0.75) / 2]),
        ("balanced", [[0, 0, 100], [50, 50, 0]], [0, 1]),
    ],
)
def test_weights_by_hand(sampling, pixels, expected):
    weights = mask_weights(sampling, np.array(pixels))
    assert weights.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("sampling", "pixels", "message"),
    [
        ("balanced", [[0, 0, 9]], "sampling=balanced: no training mask .* Check data_root"),
        ("balance", PIXELS, "sampling=balance is not one of .* mean 'balanced'"),
    ],
)
def test_what_gives_no_weights_is_refused(sampling, pixels, message):
    with refused(message):
        mask_weights(sampling, np.array(pixels))


def test_expected_shares_by_hand():
    # The second mask is smaller, but a draw of it is a tile like any other: class 0 gets
    # 0.5 * 60/100 + 0.5 * 30/40 and class 1 0.5 * 0 + 0.5 * 10/40 of a tile.
    shares = expected_shares(np.array([0.5, 0.5, 0.0]), PIXELS)
    assert shares.tolist() == pytest.approx([0.675 / 0.8, 0.125 / 0.8, 0])
    assert expected_shares(np.array([1.0]), np.array([[0, 0, 9]])).tolist() == [0, 0]
