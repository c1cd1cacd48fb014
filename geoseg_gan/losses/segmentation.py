"""What a segmenter minimises: cross-entropy and Dice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from geoseg_gan.data.palette import IGNORE
from geoseg_gan.errors import UserError
from geoseg_gan.losses.objective import Terms


@dataclass
class SegmentationLossSettings:
    """The weighted sum that a segmenter minimises.

    Attributes:
        ce: Weight of the cross-entropy.
        dice: Weight of the Dice loss.
        class_weights: Of the cross-entropy: None for equal ones, "balanced" for those of the
            median frequency (Eigen & Fergus 2015), or a list of one number a class.
    """

    ce: float = 1.0
    dice: float = 1.0
    class_weights: Any = None

    def check(self, num_classes: int) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and what is allowed.
        """
        if self.ce < 0 or self.dice < 0 or self.ce + self.dice == 0:
            raise UserError(
                f"loss: ce={self.ce} and dice={self.dice} must not be negative, nor both 0."
            )
        weights = self.class_weights
        if weights is None or weights == "balanced":
            return
        if (
            not isinstance(weights, list)
            or len(weights) != num_classes
            or not all(isinstance(w, int | float) and w >= 0 for w in weights)
            or not any(weights)
        ):
            raise UserError(
                f"loss.class_weights={weights}: use null, balanced, or {num_classes} numbers from "
                "0, one a class and not all 0."
            )

    def weights(self, shares: npt.NDArray[np.float64]) -> list[float] | None:
        """The weight of every class.

        Args:
            shares: Share of every class in the labelled training pixels, shape (C,).

        Returns:
            C numbers, or None for equal ones. A class that never occurs weighs 1 under "balanced".
        """
        if self.class_weights is None:
            return None
        if self.class_weights == "balanced":
            seen = shares > 0
            median = np.median(shares[seen])
            return [float(median / share) if share > 0 else 1.0 for share in shares]
        return [float(weight) for weight in self.class_weights]


class SegmentationLoss:
    """Cross-entropy plus Dice over the pixels that are not ignored.

    Args:
        settings: The weights of both.
        class_weights: Of the cross-entropy, one a class; None for equal ones.
    """

    def __init__(
        self, settings: SegmentationLossSettings, class_weights: Sequence[float] | None = None
    ) -> None:
        """Keeps the weights."""
        # The library takes seconds to import, which commands that need no segmenter shall not pay.
        from segmentation_models_pytorch.losses import DiceLoss

        self.settings = settings
        self.class_weights = None if class_weights is None else torch.tensor(list(class_weights))
        self._dice = DiceLoss("multiclass", ignore_index=IGNORE)

    def __call__(self, logits: Tensor, label: Tensor) -> Terms:
        """The weighted terms, each 0 where every pixel is ignored.

        Args:
            logits: Shape (B, C, H, W).
            label: Shape (B, H, W), uint8; 255 is ignored.
        """
        logits, target = logits.float(), label.long()
        terms = {}
        if self.settings.ce:
            if self.class_weights is not None:
                self.class_weights = self.class_weights.to(logits.device)
            losses = F.cross_entropy(
                logits, target, self.class_weights, ignore_index=IGNORE, reduction="none"
            )
            # Divided here: the library's own mean is NaN for a batch without a labelled pixel.
            terms["ce"] = self.settings.ce * losses.sum() / self._mass(target).clamp(min=1e-6)
        if self.settings.dice:
            terms["dice"] = self.settings.dice * self._dice(logits, target)
        return Terms(terms)

    def _mass(self, target: Tensor) -> Tensor:
        valid = target != IGNORE
        if self.class_weights is None:
            return valid.sum()
        return (self.class_weights[target.where(valid, 0)] * valid).sum()
