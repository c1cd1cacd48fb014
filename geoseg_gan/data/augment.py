"""Classical augmentation for training a segmenter: geometry, copy-paste and colour."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from geoseg_gan.data.jitter import (
    AffineStep,
    ElasticStep,
    FlipStep,
    JitterSettings,
    QuarterTurnStep,
)
from geoseg_gan.data.transplant import TransplantStep
from geoseg_gan.errors import UserError

_COLOR_STREAM = 0xC0104  # keeps colour apart from the other draws of the same seed and number


@dataclass
class ColorStep:
    """Changes light and colour with probability `p`.

    Attributes:
        p: Probability.
        brightness: Factor on all values, drawn from 1 - brightness to 1 + brightness.
        contrast: The same for the distance from the image's mean.
        saturation: The same for the distance of the bands from each other.
        gamma: The values' exponent, drawn log-uniformly from 1 / (1 + gamma) to 1 + gamma.
    """

    p: float = 0.0
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    gamma: float = 0.2


@dataclass
class AugmentSettings:
    """The steps in the order in which they act; a step with p=0 is off.

    Attributes:
        copy_paste: Regions of rare classes from other real pairs, image and mask together.
        elastic: Bends outlines.
        affine: Rotates, scales, shears and shifts.
        quarter_turn: Turns by 90, 180 or 270 degrees.
        flip: Mirrors.
        color: Light and colour of the image.
    """

    copy_paste: TransplantStep = field(default_factory=TransplantStep)
    elastic: ElasticStep = field(default_factory=ElasticStep)
    affine: AffineStep = field(default_factory=AffineStep)
    quarter_turn: QuarterTurnStep = field(default_factory=QuarterTurnStep)
    flip: FlipStep = field(default_factory=FlipStep)
    color: ColorStep = field(default_factory=ColorStep)

    def geometry(self) -> JitterSettings:
        """The steps that move pixels."""
        return JitterSettings(
            transplant=self.copy_paste,
            elastic=self.elastic,
            affine=self.affine,
            quarter_turn=self.quarter_turn,
            flip=self.flip,
        )

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and the range.
        """
        try:
            self.geometry().check()
        except UserError as error:
            # The steps are the jitter's, under the names they have here.
            text = str(error).replace("jitter.transplant", "augment.copy_paste")
            raise UserError(text.replace("jitter.", "augment.")) from None
        if not 0 <= self.color.p <= 1:
            raise UserError(
                f"augment.color.p={self.color.p} is not a probability; use a number from 0 to 1."
            )
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self.color, name)
            if not 0 <= value < 1:
                raise UserError(f"augment.color.{name}={value}: use a number from 0 to below 1.")
        if self.color.gamma < 0:
            raise UserError(f"augment.color.gamma={self.color.gamma} must not be negative.")


def jitter_color(image: Tensor, step: ColorStep, seed: int, numbers: Sequence[int]) -> Tensor:
    """Changes light and colour of a batch on its device, each image by its own draw.

    Args:
        image: Shape (B, K, H, W), in [-1, 1].
        step: How strongly.
        seed: The run's seed.
        numbers: Number of every sample in the run, which with the seed fixes its draw.

    Returns:
        A tensor of the same shape and range.
    """
    if step.p == 0:
        return image
    draws = np.stack([_draw(step, seed, number) for number in numbers])
    factors = torch.from_numpy(draws).to(image.device, image.dtype)
    brightness, contrast, saturation, gamma = factors.T.reshape(4, -1, 1, 1, 1)
    value: Tensor = ((image + 1) / 2 * brightness).clamp(0, 1)
    mean = value.mean((1, 2, 3), keepdim=True)
    value = (mean + (value - mean) * contrast).clamp(0, 1)
    gray = value.mean(1, keepdim=True)
    value = (gray + (value - gray) * saturation).clamp(0, 1)
    # Black stays away from 0, where the power's gradient and tiny exponents misbehave.
    return value.clamp(min=1e-4).pow(gamma) * 2 - 1


def _draw(step: ColorStep, seed: int, number: int) -> np.ndarray:
    rng = np.random.default_rng((_COLOR_STREAM, seed, number))
    chance, *shares = rng.uniform(-1, 1, 5)
    if (chance + 1) / 2 >= step.p:
        return np.ones(4)
    spans = (step.brightness, step.contrast, step.saturation)
    factors = [1 + span * share for span, share in zip(spans, shares[:3], strict=True)]
    return np.array([*factors, (1 + step.gamma) ** shares[3]])
