"""How often each training mask is drawn, and the class shares that follow."""

import numpy as np
import numpy.typing as npt

from geoseg_gan.utils.errors import UserError, check_choice

SAMPLINGS = ("uniform", "balanced")
"""The ways to draw masks: alike, or rare classes more often."""


def mask_weights(sampling: str, pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The probability with which each mask is drawn.

    - "uniform": the same for all.
    - "balanced": that of drawing one of the classes that occur, all alike, and then a mask in
      proportion to its pixels of that class.

    Args:
        sampling: One of `SAMPLINGS`.
        pixels: Pixels of every class and, last, of ignore in each mask: shape (N, C + 1), int64.

    Returns:
        Shape (N,), float64, summing to 1.

    Raises:
        UserError: If `sampling` is unknown, or no class occurs.
    """
    check_choice("sampling", sampling, SAMPLINGS)
    if sampling == "uniform":
        return np.full(len(pixels), 1 / len(pixels))
    labelled = pixels[:, :-1].astype(np.float64)
    totals = labelled.sum(0)
    occurs = totals > 0
    if not occurs.any():
        raise UserError(
            "sampling=balanced: no training mask holds a pixel of any class. Check data_root "
            "and data.palette."
        )
    weights: npt.NDArray[np.float64] = (labelled[:, occurs] / totals[occurs]).mean(1)
    return weights


def expected_shares(
    weights: npt.NDArray[np.float64], pixels: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Class shares that can be expected when masks are drawn with these weights.

    Each draw is one tile whatever the size of its mask.

    Args:
        weights: The probability of each mask, shape (N,).
        pixels: Pixels of every class and, last, of ignore in each mask: shape (N, C + 1), int64.

    Returns:
        Share of every class in the labelled pixels, shape (C,), float64, summing to 1; all 0 where
        nothing is labelled.
    """
    within = pixels[:, :-1] / pixels.sum(1, keepdims=True)
    mean = weights @ within
    shares: npt.NDArray[np.float64] = mean / (mean.sum() or 1.0)
    return shares
