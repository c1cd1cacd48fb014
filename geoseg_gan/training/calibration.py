"""How far a segmenter's probabilities are those of being right, and what makes them so."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geoseg_gan.utils.confusion import IGNORE

_PIXELS = 2**20  # drawn evenly from all windows; more change the third digit
_BOUNDS = (0.2, 5.0)  # of the temperature
_BINS = 15


@dataclass
class PixelSample:
    """Logits and classes of some labelled pixels, drawn evenly from windows.

    Args:
        total: How many pixels all windows have.
    """

    total: int
    _logits: list[Tensor] = field(default_factory=list, init=False)
    _labels: list[Tensor] = field(default_factory=list, init=False)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Draws from windows: logits (B, C, H, W), and labels (B, H, W) with 255 for ignore."""
        step = self.total // _PIXELS | 1  # odd, so that it does not fall on the same columns
        known = labels != IGNORE
        self._logits.append(logits.movedim(1, -1)[known][::step].float())
        self._labels.append(labels[known][::step].long())

    def temperature(self) -> float:
        """The number that logits must be divided by to be the most likely (Guo et al. 2017).

        Returns:
            0.2 to 5; 1 without pixels.
        """
        from scipy.optimize import minimize_scalar

        logits, labels = torch.cat(self._logits), torch.cat(self._labels)
        if not len(labels):
            return 1.0

        def loss(exponent: float) -> float:
            return float(F.cross_entropy(logits / np.exp(exponent), labels))

        bounds = tuple(np.log(_BOUNDS))
        return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))

    def error(self, temperature: float = 1.0) -> float:
        """The expected calibration error of 15 bins (Guo et al. 2017, eq. 3), in 0..1.

        That is how far, on average, the probability of the likeliest class is from the share of
        pixels at which it is right. NaN without pixels.
        """
        from torchmetrics.functional.classification import multiclass_calibration_error

        logits, labels = torch.cat(self._logits), torch.cat(self._labels)
        if not len(labels):
            return float("nan")
        shares = (logits / temperature).softmax(1)
        return float(multiclass_calibration_error(shares, labels, logits.shape[1], _BINS))
