"""Which painted pairs are kept, and with which mask."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geoseg_gan.checkpoints import LoadedGenerator
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.synthesis.filter import drop_pixels, pixel_losses, score_of
from geoseg_gan.synthesis.masks import Candidate, CandidateMasks
from geoseg_gan.synthesis.paint import paint_batches
from geoseg_gan.synthesis.recognizer import Recognizer


@dataclass(frozen=True)
class Verdict:
    """What becomes of a candidate.

    Attributes:
        label: The mask to write, shape (H, W), uint8.
        why: Why it is dropped; None where it is kept.
        score: Agreement (mIoU) of segmenter and mask; None where there was nothing to judge.
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
        content: dict[str, Any] = {"kept": self.kept}
        if self.why is not None:
            content["why"] = self.why
        if self.score is not None:
            content["score"] = self.score
        if self.ignored is not None:
            content["ignored_pixels"] = self.ignored
        return content


class Judged(NamedTuple):
    """A candidate, its image (H, W, K) in the stored dtype if it was painted, and its verdict."""

    candidate: Candidate
    image: npt.NDArray[Any] | None
    verdict: Verdict


class Judge:
    """Keeps what a segmenter recognises; without one, every candidate that is fit.

    Args:
        recognizer: The segmenter.
        tau: Agreement that a kept pair exceeds.
        alpha: How many times its class's mean loss a pixel may cost before it is ignored; None
            leaves masks as they are.
    """

    def __init__(
        self, recognizer: Recognizer | None = None, tau: float = 0.0, alpha: float | None = None
    ) -> None:
        """Keeps the settings."""
        self.recognizer = recognizer
        self.tau = tau
        self.alpha = alpha

    def look(self, labels: Tensor, images: Tensor) -> tuple[Tensor, ...]:
        """What the segmenter sees in a batch; nothing waits for a GPU to see it.

        Args:
            labels: The masks, shape (B, H, W), uint8.
            images: The painted images, shape (B, H, W, K), in the stored dtype.

        Returns:
            What `decide` needs to know of each image: the predicted classes, (B, H, W), uint8, and
            for the pixel filter the cross-entropy of every pixel, (B, H, W), float32.
        """
        if self.recognizer is None:
            return ()
        logits = self.recognizer.batch_logits(images)
        seen = logits.argmax(1).to(torch.uint8)
        return (seen,) if self.alpha is None else (seen, pixel_losses(labels, logits))

    def decide(self, candidate: Candidate, seen: Sequence[Tensor] | None) -> Verdict:
        """Judges one candidate.

        Args:
            candidate: The mask.
            seen: Its row of what `look` gave, on the CPU; None if it was not painted.
        """
        label = candidate.label
        if candidate.unfit:
            return Verdict(label, candidate.unfit)
        if self.recognizer is None or seen is None:
            return Verdict(label)
        agreement = score_of(label, seen[0], len(self.recognizer.channels))
        if math.isnan(agreement):
            return Verdict(label, "all of it is ignored")
        if agreement <= self.tau:
            return Verdict(label, f"score is not above tau={self.tau:.4g}", agreement)
        if self.alpha is None:
            return Verdict(label, None, agreement)
        losses = self.recognizer.class_losses
        assert losses is not None, "class losses are there before the pixel filter is used"
        filtered = drop_pixels(label, seen[1].numpy(), losses, self.alpha)
        ignored = int(((filtered == IGNORE) & (label != IGNORE)).sum())
        why = "the pixel filter ignored all of it" if (filtered == IGNORE).all() else None
        return Verdict(filtered, why, agreement, ignored)


def paint_and_judge(
    generator: LoadedGenerator,
    candidates: CandidateMasks,
    batches: Sequence[list[int]],
    judge: Judge,
    *,
    num_workers: int,
    device: torch.device,
) -> Generator[Judged, None, None]:
    """Paints candidates and judges them, in the order in which they are asked for.

    Args:
        generator: A loaded generator, on `device`.
        candidates: The masks; their seed also fixes the noise.
        batches: Numbers of the candidates that are painted and judged at once on a GPU.
        judge: The judge.
        num_workers: Processes that read and jitter masks.
        device: Where the generator is.

    Raises:
        UserError: If a mask cannot be read.
    """
    for shot in paint_batches(
        generator, candidates, batches, num_workers=num_workers, device=device, look=judge.look
    ):
        for candidate, image, seen in shot:
            yield Judged(candidate, image, judge.decide(candidate, seen))
