"""The filter: which pairs and which pixels are kept, by what a segmenter sees in the images."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.models.loaded import LoadedGenerator
from geoseg_gan.synthesis.candidates import Candidate, CandidateMasks, UnlabelledWindow
from geoseg_gan.synthesis.generate_images import generate_batches
from geoseg_gan.synthesis.recognizer import Recognizer, class_ids_on, pixel_losses
from geoseg_gan.utils.confusion import confusion_matrix, mean_iou
from geoseg_gan.utils.errors import UserError, check_range

AUTO = "auto"
"""The setting of `tau` that fits it to real held-out pairs."""

_ONE_IN = 10  # tau=auto keeps at least a tenth, so that one lucky pair cannot set it alone
_ROUND_OFF = 1e-9  # means that are equal on paper may differ by this much


@dataclass(frozen=True)
class Decision:
    """What becomes of a candidate.

    Attributes:
        label: The mask to write, shape (H, W), uint8.
        why: Why it is dropped; None where it is kept.
        score: Agreement (mIoU) of segmenter and mask; None where there is none.
        ignored: How many pixels the pixel filter set to ignore; None where it is off.
    """

    label: npt.NDArray[np.uint8]
    why: str | None = None
    score: float | None = None
    ignored: int | None = None

    @property
    def kept(self) -> bool:
        """Whether the pair is written."""
        return self.why is None

    def to_dict(self) -> dict[str, Any]:
        """The manifest's entries."""
        entries = {"why": self.why, "score": self.score, "ignored_pixels": self.ignored}
        return {"kept": self.kept} | {k: v for k, v in entries.items() if v is not None}


class GeneratedPair(NamedTuple):
    """A candidate, its image (H, W, K) in the stored dtype if there is one, and its decision."""

    candidate: Candidate | UnlabelledWindow
    image: npt.NDArray[Any] | None
    decision: Decision


@dataclass(frozen=True)
class PairFilter:
    """Keeps what a segmenter recognises; without one, every candidate that is fit.

    Args:
        recognizer: The segmenter.
        tau: Agreement that a kept pair exceeds; None keeps all.
        alpha: How many times its class's mean loss a pixel may cost before it is ignored; None
            leaves masks as they are.
        class_losses: These means, as `drop_pixels` takes them; only `alpha` needs them.
    """

    recognizer: Recognizer | None = None
    tau: float | None = 0.0
    alpha: float | None = None
    class_losses: Sequence[float | None] = ()

    def predict(self, labels: Tensor, images: Tensor) -> tuple[Tensor, ...]:
        """Segments a batch without waiting for the GPU.

        Args:
            labels: The masks, shape (B, H, W), uint8.
            images: The generated images, shape (B, H, W, K), in the stored dtype.

        Returns:
            What `decide` needs to know of each image: the predicted classes, (B, H, W), uint8, and
            for the pixel filter the cross-entropy of every pixel, (B, H, W), float32.
        """
        if self.recognizer is None:
            return ()
        logits = self.recognizer.batch_logits(images)
        predicted = logits.argmax(1).to(torch.uint8)
        return (predicted,) if self.alpha is None else (predicted, pixel_losses(labels, logits))

    def decide(self, candidate: Candidate, predicted: Sequence[Tensor] | None) -> Decision:
        """Decides on one candidate.

        Args:
            candidate: The mask.
            predicted: Its row of what `predict` returned, on the CPU; None if it has no image.
        """
        label = candidate.label
        if candidate.unfit:
            return Decision(label, candidate.unfit)
        if self.recognizer is None or predicted is None:
            return Decision(label)
        agreement = agreement_of(label, predicted[0], len(self.recognizer.channels))
        if math.isnan(agreement):
            return Decision(label, "all of it is ignored")
        if self.tau is not None and agreement <= self.tau:
            return Decision(label, f"score is not above tau={self.tau:.4g}", agreement)
        if self.alpha is None:
            return Decision(label, None, agreement)
        filtered = drop_pixels(label, predicted[1].numpy(), self.class_losses, self.alpha)
        ignored = int(((filtered == IGNORE) & (label != IGNORE)).sum())
        why = "the pixel filter ignored all of it" if (filtered == IGNORE).all() else None
        return Decision(filtered, why, agreement, ignored)


def generate_and_filter(
    generator: LoadedGenerator,
    candidates: CandidateMasks,
    batches: Sequence[list[int]],
    pair_filter: PairFilter,
    *,
    num_workers: int,
    device: torch.device,
) -> Generator[GeneratedPair, None, None]:
    """Generates candidates' images and decides on them, in the order of the batches.

    Takes what `generate_batches` takes, and the filter.

    Raises:
        UserError: If a mask cannot be read.
    """
    for batch in generate_batches(
        generator,
        candidates,
        batches,
        num_workers=num_workers,
        device=device,
        predict=pair_filter.predict,
    ):
        for candidate, image, predicted in batch:
            yield GeneratedPair(candidate, image, pair_filter.decide(candidate, predicted))


def agreement_of(
    label: npt.NDArray[np.uint8] | Tensor, predicted: Tensor, num_classes: int
) -> float:
    """Agreement of a prediction with a mask: the mIoU over the classes of the mask.

    Both are of shape (H, W); 255 (ignore) does not count.

    Returns:
        A number in 0..1; NaN where the whole mask is ignore.
    """
    return mean_iou(confusion_matrix(class_ids_on(label, predicted), predicted, num_classes))


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
        losses: The cross-entropy of every pixel of the generated image, as `pixel_losses` gives it,
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
        candidates: Scores of generated candidates; NaN (no score) is left out.
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


def check_filter(tau: Any, alpha: float | None) -> None:
    """Refuses, with a UserError, settings of the filter that cannot be."""
    is_number = isinstance(tau, int | float) and not isinstance(tau, bool)
    if tau != AUTO and not (is_number and 0 <= tau < 1):
        raise UserError(f"tau={tau}: use a number from 0 to below 1, or auto.")
    check_range("alpha", alpha, 0, 1e6, "(]")


def check_can_ignore(alpha: float | None, reader: MaskReader) -> None:
    """Refuses, with a UserError, a pixel filter whose dropped pixels masks have no colour for."""
    if alpha is not None and not reader.can_write_ignore:
        lacks, key = "palette of the generator's data has no colour", "data.ignore set"
        if reader.mask_format == "index":
            lacks, key = "index_map of the generator's data has no value", "one in data.index_map"
        raise UserError(
            f"alpha={alpha} writes ignored pixels, but the {lacks} for them. Train the generator "
            f"with {key}, or leave alpha out."
        )
