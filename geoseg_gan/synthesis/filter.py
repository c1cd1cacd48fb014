"""What a segmenter's view of painted images decides: which pairs and which pixels are kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from geoseg_gan.data.images import MaskReader
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.errors import UserError
from geoseg_gan.metrics.agreement import confusion_matrix, mean_iou

AUTO = "auto"
"""The setting of `tau` that fits it to real held-out pairs."""

_ONE_IN = 10  # of the candidates must be kept at least, lest one lucky pair be all that is left
_ROUND_OFF = 1e-9  # means that are equal on paper may differ by this much


def check_filter(tau: Any, alpha: float | None) -> None:
    """Refuses settings of the filter that cannot be.

    Args:
        tau: The mIoU above which a pair is kept, or AUTO.
        alpha: How many times its class's loss a pixel may have; None for no pixel filter.

    Raises:
        UserError: Naming the key, its value and what to do.
    """
    is_number = isinstance(tau, int | float) and not isinstance(tau, bool)
    if tau != AUTO and not (is_number and 0 <= tau < 1):
        raise UserError(f"tau={tau}: use a number from 0 to below 1, or auto.")
    if alpha is not None and not alpha > 0:  # which NaN is not either
        raise UserError(f"alpha={alpha} must be positive, or null; 1.25 is usual.")


def check_can_ignore(alpha: float | None, reader: MaskReader) -> None:
    """Refuses a pixel filter whose dropped pixels masks have no colour for.

    Raises:
        UserError: Saying what to do.
    """
    if alpha is not None and not reader.palette.ignore and reader.mask_format == "rgb":
        raise UserError(
            f"alpha={alpha} writes ignored pixels, but the palette of the generator's data has no "
            "colour for them. Train the generator with data.ignore set, or leave alpha away."
        )


def score(label: npt.NDArray[np.uint8] | Tensor, logits: Tensor) -> float:
    """Agreement of a prediction with a mask: the mIoU over classes that occur in either.

    Args:
        label: The mask, shape (H, W), uint8; 255 (ignore) does not count.
        logits: The segmenter's output on the image, shape (C, H, W).

    Returns:
        A number in 0..1; NaN where the whole mask is ignore.
    """
    return score_of(label, logits.argmax(0), logits.shape[0])


def score_of(label: npt.NDArray[np.uint8] | Tensor, prediction: Tensor, num_classes: int) -> float:
    """The same where the class of every pixel is known: (H, W), integers."""
    return mean_iou(confusion_matrix(_classes(label, prediction), prediction, num_classes))


class ClassLosses:
    """The mean cross-entropy of every true class, gathered over many images.

    Attributes:
        sums: Summed losses of every class's pixels, shape (C,), float64, on the CPU.
        pixels: How many pixels those are, shape (C,), int64, on the CPU.
    """

    def __init__(self, num_classes: int) -> None:
        """Starts with no pixels of `num_classes` classes."""
        self.sums = torch.zeros(num_classes, dtype=torch.float64)
        self.pixels = torch.zeros(num_classes, dtype=torch.int64)

    def add(self, label: npt.NDArray[np.uint8] | Tensor, logits: Tensor) -> None:
        """Counts in one image or a batch of them.

        Args:
            label: The true classes, shape (H, W) or (B, H, W), uint8; 255 (ignore) is left out.
            logits: The segmenter's output, shape (C, H, W) or (B, C, H, W), on any device.
        """
        # Summed on the CPU: a GPU adds in no fixed order, and some have no float64.
        losses = pixel_losses(label, logits).cpu().double().flatten()
        classes = _classes(label, losses).flatten()
        counts = classes != IGNORE
        classes, losses, length = classes[counts], losses[counts], len(self.sums)
        self.sums += torch.bincount(classes, weights=losses, minlength=length)
        self.pixels += torch.bincount(classes, minlength=length)

    def means(self) -> list[float | None]:
        """The mean loss of every class; None where a class had no pixel."""
        pairs = zip(self.sums.tolist(), self.pixels.tolist(), strict=True)
        return [total / count if count else None for total, count in pairs]


def drop_pixels(
    label: npt.NDArray[np.uint8],
    losses: npt.NDArray[np.float32],
    class_losses: Sequence[float | None],
    alpha: float,
) -> npt.NDArray[np.uint8]:
    """Sets pixels that the segmenter finds too unlike their class to ignore.

    The filter of FreeMask (Yang et al. 2023, arXiv:2310.15160): a pixel goes where its
    cross-entropy exceeds `alpha` times the mean cross-entropy of its class on real images.

    Args:
        label: The mask, shape (H, W), uint8; 255 is ignore.
        losses: The cross-entropy of every pixel of the painted image, as `pixel_losses` gives it,
            shape (H, W).
        class_losses: The mean loss of every class on real images; the pixels of a class whose mean
            is None stay as they are.
        alpha: How many times the mean is tolerated; 1.25 in the paper.

    Returns:
        A new mask of the same shape, uint8.
    """
    limits = np.full(IGNORE + 1, np.inf)
    for kind, mean in enumerate(class_losses):
        if mean is not None:
            limits[kind] = alpha * mean
    return np.where(losses > limits[label], np.uint8(IGNORE), label)


def choose_tau(candidates: Sequence[float], held_out: Sequence[float]) -> tuple[float, bool]:
    """Chooses the threshold at which kept candidates score like real pairs do.

    That is the smallest one at which the mean score of the candidates above it reaches the mean of
    the held-out real ones. A candidate that scores 0 is never kept.

    Args:
        candidates: Scores of painted candidates; NaN (nothing to judge) is left out.
        held_out: Scores of real pairs that the segmenter was not trained on; likewise.

    Returns:
        The threshold, at least 0 and midway between the best dropped and the worst kept score, or
        0.0 where nothing that scores has to go; and whether the mean is reached while a tenth of
        the candidates is kept. Where it is not, the threshold keeps the best tenth.

    Raises:
        UserError: If no held-out pair has a score.
    """
    real = np.asarray(held_out, np.float64)
    real = real[~np.isnan(real)]
    if not len(real):
        raise UserError(
            "tau=auto compares with real pairs that the segmenter was not trained on, but it holds "
            "the score of none. Set tau to a number, or train the segmenter with an inner split."
        )
    scores = np.sort(np.asarray(candidates, np.float64))
    scores = scores[~np.isnan(scores)]
    lowest_kept = np.unique(scores[scores > 0])
    if not len(lowest_kept):
        return 0.0, False
    first = np.searchsorted(scores, lowest_kept)
    kept = len(scores) - first
    means = scores[::-1].cumsum()[::-1][first] / kept
    enough = kept * _ONE_IN >= len(scores)
    fitting = np.flatnonzero(enough & (means >= real.mean() - _ROUND_OFF))
    reached = bool(len(fitting))
    # Where even all that score are less than a tenth, all of them are the best that there is.
    choice = int(fitting[0]) if reached else max(0, int(enough.sum()) - 1)
    if choice == 0:
        return 0.0, reached
    below, lowest = float(lowest_kept[choice - 1]), float(lowest_kept[choice])
    middle = (below + lowest) / 2
    # Between two neighbouring floats there is no middle, and it would round to either.
    return (middle if middle < lowest else below), reached


def _classes(label: npt.NDArray[np.uint8] | Tensor, beside: Tensor) -> Tensor:
    """The label map as int64 on the device of another tensor."""
    # A copy, since torch warns where it shares an array that must not be written to.
    held = label if isinstance(label, Tensor) else torch.tensor(label)
    return held.to(beside.device, torch.int64)


def pixel_losses(label: npt.NDArray[np.uint8] | Tensor, logits: Tensor) -> Tensor:
    """The cross-entropy of every pixel.

    Args:
        label: The true classes, shape (H, W) or (B, H, W), uint8; 255 is ignore.
        logits: The segmenter's output, shape (C, H, W) or (B, C, H, W), on any device.

    Returns:
        The label's shape, float32, on the device of the logits; 0 where ignored.
    """
    classes = _classes(label, logits)
    rows = logits.float().movedim(-3, -1).flatten(0, -2)
    losses = F.cross_entropy(rows, classes.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.view(classes.shape)
