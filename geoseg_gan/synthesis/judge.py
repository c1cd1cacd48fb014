"""Which painted pairs are kept, and with which mask."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.palette import IGNORE
from geoseg_gan.synthesis.filter import drop_pixels, score
from geoseg_gan.synthesis.masks import Candidate
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


class Judge:
    """Keeps what a segmenter recognises; without one, every candidate with its required classes.

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

    def __call__(self, candidate: Candidate, image: npt.NDArray[Any] | None) -> Verdict:
        """Judges one candidate.

        Args:
            candidate: The mask.
            image: Its painted image, (H, W, K) in the stored dtype; None if it was not painted.
        """
        label = candidate.label
        if candidate.lacks:
            return Verdict(label, f"shows no {' and no '.join(candidate.lacks)}")
        if self.recognizer is None or image is None:
            return Verdict(label)
        logits = self.recognizer.logits(image)
        agreement = score(label, logits)
        if math.isnan(agreement):
            return Verdict(label, "all of it is ignored")
        if agreement <= self.tau:
            return Verdict(label, f"score is not above tau={self.tau:.4g}", agreement)
        if self.alpha is None:
            return Verdict(label, None, agreement)
        losses = self.recognizer.class_losses
        assert losses is not None, "class losses are there before the pixel filter is used"
        filtered = drop_pixels(label, logits, losses, self.alpha)
        ignored = int(((filtered == IGNORE) & (label != IGNORE)).sum())
        why = "the pixel filter ignored all of it" if (filtered == IGNORE).all() else None
        return Verdict(filtered, why, agreement, ignored)
