"""The loss of a segmenter: cross-entropy and Dice."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from geoseg_gan.data.palette import IGNORE
from geoseg_gan.losses.settings import SegmentationLossSettings
from geoseg_gan.losses.terms import Terms


class SegmentationLoss:
    """Cross-entropy plus Dice loss (Milletari et al. 2016) over the pixels that are not ignored.

    Args:
        settings: The weights of the two terms.
        class_weights: Of the cross-entropy, one per class; None for equal weights.
    """

    def __init__(
        self, settings: SegmentationLossSettings, class_weights: Sequence[float] | None = None
    ) -> None:
        """Keeps the weights."""
        # Imported here: it takes seconds, which commands without a segmenter save.
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
            # torch's own mean is NaN for a batch without a labelled pixel.
            terms["ce"] = (
                self.settings.ce * losses.sum() / self._total_weight(target).clamp(min=1e-6)
            )
        if self.settings.dice:
            terms["dice"] = self.settings.dice * self._dice(logits, target)
        return Terms(terms)

    def _total_weight(self, target: Tensor) -> Tensor:
        valid = target != IGNORE
        if self.class_weights is None:
            return valid.sum()
        return (self.class_weights[target.where(valid, 0)] * valid).sum()
