"""Differentiable augmentation of the discriminator's images, of fixed or adaptive strength."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geoseg_gan.data.batch import Batch, to_device
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.losses.settings import DiffAugmentSettings

ImageChange = Callable[[Tensor], Tensor]
"""Changes images (B, K, H, W) in the way that a batch was changed."""

_BRIGHTNESS = 0.5  # largest shift either way, of values in [-1, 1]
_SATURATION = 1.0  # largest change either way of the factor 1
_CONTRAST = 0.5  # largest change either way of the factor 1
_TRANSLATION = 0.125  # largest shift either way, as a share of the side
_CUTOUT = 0.5  # side of the square that is cut out, as a share of the image's
_SMOOTHING = 0.9  # of the measured gap from one measurement to the next
_STREAM = 0xA06  # separates these draws from others with the same seed


class DiffAugment:
    """DiffAugment (Zhao et al. 2020): color, translation and cutout; gradients pass through.

    The run's seed and the pair's number fix each pair's draw. Real image, generated image and mask
    change together, so that feature matching compares the same places. Pixels that are shifted in
    or cut out are ignored.
    """

    def __init__(self, settings: DiffAugmentSettings, seed: int) -> None:
        """Keeps the settings."""
        self.settings = settings
        self.seed = seed

    def __call__(self, batch: Batch, p: float) -> tuple[Batch, ImageChange]:
        """Augments a batch of real images and masks; each change has the probability p.

        Returns:
            The changed batch, and a function that changes generated images (B, K, H, W) of its
            masks in the same way.
        """
        if p == 0:
            return batch, _unchanged
        draws = [np.random.default_rng((_STREAM, self.seed, n)).random(10) for n in batch.serials]
        height, width = batch.image.shape[-2:]
        device = batch.image.device
        color = _Color.of(draws, p, device) if self.settings.color else _unchanged
        if not self.settings.geometry:
            return replace(batch, image=color(batch.image)), color
        geometry = _Geometry.of(draws, p, height, width, device)
        return replace(
            batch,
            image=geometry(color(batch.image)),
            label=geometry(batch.label.unsqueeze(1), IGNORE).squeeze(1),
            one_hot=geometry(batch.one_hot),
            valid=geometry(batch.valid),
        ), lambda image: geometry(color(image))


def _unchanged(image: Tensor) -> Tensor:
    return image


@dataclass(frozen=True)
class _Color:
    """Brightness, saturation and contrast of each pair, each of shape (B, 1, 1, 1)."""

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor

    @classmethod
    def of(cls, draws: Sequence[np.ndarray], p: float, device: torch.device) -> "_Color":
        drawn = np.stack(draws)
        on = drawn[:, :3] < p
        # A draw below p, divided by p, is again uniform in [0, 1).
        amounts = np.where(on, 2 * drawn[:, :3] / p - 1, 0) * (_BRIGHTNESS, _SATURATION, _CONTRAST)
        table = to_device(amounts + np.array([0, 1, 1]), device).float()
        return cls(*table.view(-1, 3, 1, 1, 1).unbind(1))

    def __call__(self, image: Tensor) -> Tensor:
        image = image + self.brightness
        grey = image.mean(1, keepdim=True)
        image = grey + (image - grey) * self.saturation
        mean = image.mean((1, 2, 3), keepdim=True)
        return mean + (image - mean) * self.contrast


@dataclass(frozen=True)
class _Geometry:
    """Translation and cutout of the pairs of a batch."""

    shifts: list[tuple[int, int]]  # down and right in pixels, one per pair
    margin: tuple[int, int]  # the largest shift possible, down and right
    keep: Tensor  # (B, 1, H, W), false where something is cut out

    @classmethod
    def of(
        cls, draws: Sequence[np.ndarray], p: float, height: int, width: int, device: torch.device
    ) -> "_Geometry":
        keep = np.ones((len(draws), 1, height, width), np.bool_)
        shifts = []
        for own, draw in zip(keep, draws, strict=True):
            down, right = (
                round((2 * d - 1) * _TRANSLATION * side) if draw[3] < p else 0
                for d, side in zip(draw[5:7], (height, width), strict=True)
            )
            shifts.append((down, right))
            if draw[4] < p:
                tall, wide = int(height * _CUTOUT), int(width * _CUTOUT)
                # The centre may be anywhere, so a part of the square may lie outside.
                top = int(draw[8] * height) - tall // 2
                left = int(draw[9] * width) - wide // 2
                own[:, max(top, 0) : top + tall, max(left, 0) : left + wide] = False
        margin = (round(_TRANSLATION * height), round(_TRANSLATION * width))
        return cls(shifts, margin, to_device(keep, device))

    def __call__(self, maps: Tensor, fill: int = 0) -> Tensor:
        """Shifts each map of (B, C, H, W) and cuts out a square."""
        height, width = maps.shape[-2:]
        tall, wide = self.margin
        padded = F.pad(maps, (wide, wide, tall, tall), value=fill)
        moved = torch.stack(
            [
                own[:, tall - down : tall - down + height, wide - right : wide - right + width]
                for own, (down, right) in zip(padded, self.shifts, strict=True)
            ]
        )
        return moved.where(self.keep, fill)


class AdaptiveStrength:
    """The probability of augmentation, which can follow how far the discriminator overfits.

    The gap (Karras et al. 2020, "ADA", eq. 1) is the difference in realness between training and
    held-out images, divided by that between training and generated images. At 0 training and
    held-out images look alike to the discriminator; at 1 held-out images look generated. Above the
    target `p` rises, below it falls.

    Attributes:
        p: The current probability.
        gap: The smoothed gap; None before the first measurement.
    """

    def __init__(self, settings: DiffAugmentSettings) -> None:
        """Starts at the settings' p."""
        self.settings = settings
        self.p = settings.p
        self.gap: float | None = None

    def update(self, train: float, held_out: float, fake: float, images: int) -> None:
        """Adds a measurement of mean realness, `images` training images after the last one."""
        # A discriminator that cannot tell real from generated images does not overfit.
        difference = train - fake
        gap = min(max((train - held_out) / difference, 0.0), 1.0) if difference > 1e-3 else 0.0
        self.gap = gap if self.gap is None else _SMOOTHING * self.gap + (1 - _SMOOTHING) * gap
        if self.settings.adaptive:
            step = images / self.settings.images
            self.p += step if self.gap > self.settings.target else -step
            self.p = min(max(self.p, 0.0), self.settings.most)

    def state(self) -> dict[str, Any]:
        """What resuming a run needs, plain types only."""
        return {"p": self.p, "gap": self.gap}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` gave."""
        self.p, self.gap = state["p"], state["gap"]
