"""How often each training mask is drawn, and the class shares that follow."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from geoseg_gan.utils.errors import UserError, check_choice

SAMPLINGS = ("uniform", "balanced", "hard")
"""The ways to draw masks: alike, rare classes more often, or hard classes more often."""

_MOST = 20  # times that the hardest mask counts, in FreeMask


def mask_weights(
    sampling: str,
    pixels: npt.NDArray[np.int64],
    class_losses: Sequence[float | None] | None = None,
) -> npt.NDArray[np.float64]:
    """The probability with which each mask is drawn.

    - "uniform": the same for all.
    - "balanced": that of drawing one of the classes that occur, all alike, and then a mask in
      proportion to its pixels of that class.
    - "hard": the resampling of FreeMask (Yang et al. 2023, arXiv:2310.15160). A mask's hardness is
      the mean of its classes' losses weighted by their pixels; with masks ranked from 1, the
      easiest, to N, each counts min(1 + round(20 * rank / N), 20) times. Equally hard masks share
      their mean rank. Pixels of ignore or of a class without a loss are left out, and a mask of
      nothing else has hardness 0.

    Args:
        sampling: One of `SAMPLINGS`.
        pixels: Pixels of every class and, last, of ignore in each mask: shape (N, C + 1), int64.
        class_losses: The mean loss of every class on real images, None where it has none; only
            "hard" needs them.

    Returns:
        Shape (N,), float64, summing to 1.

    Raises:
        UserError: If `sampling` is unknown, no class occurs, or "hard" has no class losses.
        ValueError: If there are more or fewer class losses than classes.
    """
    check_choice("sampling", sampling, SAMPLINGS)
    labelled = pixels[:, :-1].astype(np.float64)
    count = len(labelled)
    if sampling == "uniform":
        return np.full(count, 1 / count)
    if sampling == "balanced":
        totals = labelled.sum(0)
        occurs = totals > 0
        if not occurs.any():
            raise UserError(
                "sampling=balanced: no training mask holds a pixel of any class. Check data_root "
                "and data.palette."
            )
        weights: npt.NDArray[np.float64] = (labelled[:, occurs] / totals[occurs]).mean(1)
        return weights
    if class_losses is None:
        raise UserError(
            "sampling=hard ranks masks by a segmenter's losses. Set segmenter_ckpt, or "
            "sampling=uniform or balanced."
        )
    if len(class_losses) != labelled.shape[1]:
        raise ValueError(f"{len(class_losses)} class losses for {labelled.shape[1]} classes")
    known = np.array([loss is not None for loss in class_losses])
    losses = np.array([loss or 0.0 for loss in class_losses])
    hardness = labelled @ losses / labelled[:, known].sum(1).clip(1)
    counts = np.minimum(1 + np.rint(_MOST * rankdata(hardness) / count), _MOST)
    shares: npt.NDArray[np.float64] = counts / counts.sum()
    return shares


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
