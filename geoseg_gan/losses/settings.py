"""Knobs of the losses."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.utils.errors import UserError, check_choice, check_range

ADVERSARIAL = ("hinge", "lsgan", "nonsaturating", "classes", "both")
"""Names of the adversarial losses."""


@dataclass
class DiffAugmentSettings:
    """How images are augmented before the discriminator sees them."""

    p: float
    color: bool
    geometry: bool
    adaptive: bool
    target: float
    images: int
    most: float

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and the range.
        """
        for key in ("p", "target", "most"):
            check_range(f"loss.augment.{key}", getattr(self, key), 0, 1)
        check_range("loss.augment.images", self.images, 1, 1e9)
        if (self.p or self.adaptive) and not (self.color or self.geometry):
            raise UserError(
                f"loss.augment.p={self.p} changes nothing with color=false and geometry=false: set "
                "one of them, or p=0 and adaptive=false."
            )


@dataclass
class SegmentationLossSettings:
    """The weights of a segmenter's loss."""

    ce: float
    dice: float
    class_weights: Any

    def check(self, num_classes: int) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and what is allowed.
        """
        for key in ("ce", "dice"):
            check_range(f"loss.{key}", getattr(self, key), 0, 1e6)
        if not self.ce + self.dice:
            raise UserError(f"loss: ce={self.ce} and dice={self.dice}: use 0 or more, not both 0.")
        weights = self.class_weights
        if weights is None or weights == "balanced":
            return
        if not (
            isinstance(weights, list)
            and len(weights) == num_classes
            and all(isinstance(w, int | float) and 0 <= w <= 1e6 for w in weights)
            and any(weights)
        ):
            raise UserError(
                f"loss.class_weights={weights}: use null, balanced, or {num_classes} numbers from "
                "0, one a class and not all 0."
            )

    def weights(self, shares: npt.NDArray[np.float64]) -> list[float] | None:
        """The weight of every class in the cross-entropy.

        Args:
            shares: Share of every class in the labelled training pixels, shape (C,).

        Returns:
            C numbers, or None for equal ones; with "balanced" that of a class that never occurs
            is 1.
        """
        if self.class_weights is None:
            return None
        if self.class_weights == "balanced":
            seen = shares > 0
            median = np.median(shares[seen])
            return [float(median / share) if share > 0 else 1.0 for share in shares]
        return [float(weight) for weight in self.class_weights]


@dataclass
class Weight:
    """The weight of one term."""

    weight: float


@dataclass
class PerceptualSettings(Weight):
    """Weight and network of the perceptual term."""

    network: str


@dataclass
class DiversitySettings(Weight):
    """Weight and limit of the diversity term."""

    limit: float


@dataclass
class PenaltySettings(Weight):
    """Weight and pace of the gradient penalty R1."""

    every: int


@dataclass
class ObjectiveSettings:
    """The loss terms by which a GAN is trained."""

    adversarial: str
    class_balance: bool
    feature_matching: Weight
    perceptual: PerceptualSettings
    diversity: DiversitySettings
    labelmix: Weight
    r1: PenaltySettings
    augment: DiffAugmentSettings
    foreign_codes: float

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and what is allowed.
        """
        check_choice("loss.adversarial", self.adversarial, ADVERSARIAL)
        for name in ("feature_matching", "perceptual", "diversity", "labelmix", "r1"):
            check_range(f"loss.{name}.weight", getattr(self, name).weight, 0, 1e6)
        check_range("loss.r1.every", self.r1.every, 1, 1e6)
        check_range("loss.foreign_codes", self.foreign_codes, 0, 1)
        check_range("loss.diversity.limit", self.diversity.limit, 0, 1e6, "(]")
        self.augment.check()
