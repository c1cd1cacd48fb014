"""Differentiable augmentation of what the discriminator sees, fixed or adaptive in strength."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geoseg_gan.data.batch import Batch
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.errors import UserError

_BRIGHTNESS = 0.5  # largest shift either way, of values in [-1, 1]
_SATURATION = 1.0  # largest change either way of the factor 1
_CONTRAST = 0.5  # likewise
_TRANSLATION = 0.125  # largest shift either way, as a share of the side
_CUTOUT = 0.5  # side of the square that is cut out, as a share of the image's
_SMOOTHING = 0.9  # of the measured gap from one measurement to the next
_STREAM = 0xA06  # keeps these draws apart from others of the same seed


@dataclass
class DiffAugmentSettings:
    """How real and painted images are changed before the discriminator sees them.

    Attributes:
        p: Probability of every change, for each pair; where adaptive, at the start.
        color: Whether brightness, saturation and contrast change.
        geometry: Whether images and their masks are shifted and cut out together.
        adaptive: Whether `p` follows the discriminator's overfitting.
        target: The gap (see `AdaptiveStrength`) above which `p` grows.
        images: Training images over which `p` may change by 1.
        most: Largest `p`: beyond it changes leak into what is painted (Karras et al. 2020).
    """

    p: float = 0.0
    color: bool = True
    geometry: bool = True
    adaptive: bool = False
    target: float = 0.6
    images: int = 50_000
    most: float = 0.8

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and the range.
        """
        for key in ("p", "target", "most"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"loss.augment.{key}={getattr(self, key)}: use 0 to 1.")
        if self.images < 1:
            raise UserError(f"loss.augment.images={self.images}: use 1 or more.")
        if (self.p or self.adaptive) and not (self.color or self.geometry):
            raise UserError(
                f"loss.augment.p={self.p} changes nothing with color=false and geometry=false: set "
                "one of them, or p=0 and adaptive=false."
            )


class DiffAugment:
    """Changes images in the way of Zhao et al. 2020 ("DiffAugment"), gradients passing through.

    Each pair has one draw, fixed by the run's seed and the pair's number: real image, painted image
    and mask change together, so that features of both are of the same ground. What is shifted in or
    cut out counts as ignored.

    Args:
        settings: What changes.
        seed: The run's seed.
    """

    def __init__(self, settings: DiffAugmentSettings, seed: int) -> None:
        """Keeps the settings."""
        self.settings = settings
        self.seed = seed

    def __call__(self, batch: Batch, fake: Tensor, p: float) -> tuple[Batch, Tensor]:
        """Changes a batch and what was painted of it.

        Args:
            batch: Real images and masks.
            fake: Painted images, shape (B, K, H, W).
            p: Probability of every change.

        Returns:
            Both changed; they themselves stay as they are.
        """
        if p == 0:
            return batch, fake
        draws = [np.random.default_rng((_STREAM, self.seed, n)).random(10) for n in batch.serials]
        image = batch.image
        if self.settings.color:
            factors = _factors(draws, p, image.device)
            image, fake = _recolor(image, *factors), _recolor(fake, *factors)
        batch = replace(batch, image=image)
        if not self.settings.geometry:
            return batch, fake
        height, width = fake.shape[-2:]
        moves = [_Move.of(draw, p, height, width) for draw in draws]
        return replace(
            batch,
            image=_move(batch.image, moves),
            label=_move(batch.label, moves, IGNORE),
            one_hot=_move(batch.one_hot, moves),
            valid=_move(batch.valid, moves),
        ), _move(fake, moves)


@dataclass(frozen=True)
class _Move:
    """Shift down and right in pixels, and top, left, height and width of what is cut out."""

    down: int
    right: int
    hole: tuple[int, int, int, int]

    @classmethod
    def of(cls, draw: np.ndarray, p: float, height: int, width: int) -> "_Move":
        shift = draw[3] < p
        down, right = (
            round((2 * d - 1) * _TRANSLATION * side) if shift else 0
            for d, side in zip(draw[5:7], (height, width), strict=True)
        )
        if draw[4] >= p:
            return cls(down, right, (0, 0, 0, 0))
        tall, wide = int(height * _CUTOUT), int(width * _CUTOUT)
        # Its centre is anywhere, so that a part of it may lie outside.
        top = int(draw[8] * height) - tall // 2
        left = int(draw[9] * width) - wide // 2
        top, bottom = max(top, 0), min(top + tall, height)
        left, end = max(left, 0), min(left + wide, width)
        return cls(down, right, (top, left, bottom - top, end - left))


def _factors(draws: Sequence[np.ndarray], p: float, device: torch.device) -> list[Tensor]:
    """Brightness, saturation and contrast of each pair, three tensors of shape (B, 1, 1, 1)."""
    drawn = np.stack(draws)
    on = drawn[:, :3] < p
    # What lies below p is, over p, again a draw from 0 to 1.
    amounts = np.where(on, 2 * drawn[:, :3] / p - 1, 0) * (_BRIGHTNESS, _SATURATION, _CONTRAST)
    table = torch.from_numpy(amounts + np.array([0, 1, 1])).float().to(device)
    return list(table.view(-1, 3, 1, 1, 1).unbind(1))


def _recolor(image: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    image = image + brightness
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * saturation
    mean = image.mean((1, 2, 3), keepdim=True)
    return mean + (image - mean) * contrast


def _move(maps: Tensor, moves: Sequence[_Move], fill: int = 0) -> Tensor:
    """Shifts each map of (B, ..., H, W) and cuts a hole into it."""
    height, width = maps.shape[-2:]
    moved = []
    for own, move in zip(maps, moves, strict=True):
        down, right = move.down, move.right
        inside = own[
            ..., max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
        ]
        sides = max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)
        own = F.pad(inside, sides, value=fill)
        top, left, tall, wide = move.hole
        if tall and wide:
            keep = torch.ones(height, width, dtype=torch.bool, device=maps.device)
            keep[top : top + tall, left : left + wide] = False
            own = own.where(keep, fill)
        moved.append(own)
    return torch.stack(moved)


class AdaptiveStrength:
    """The probability of changes, which follows how far the discriminator overfits.

    The gap is that of Karras et al. 2020 ("ADA", eq. 1): how much more real training images look
    than held-out ones do, over how much more real they look than painted ones. At 0 both are alike;
    at 1 held-out images look painted. Above the target `p` grows, below it falls.

    Args:
        settings: Start, target, pace and limit.

    Attributes:
        p: The probability now.
        gap: The smoothed gap; None before the first measurement.
    """

    def __init__(self, settings: DiffAugmentSettings) -> None:
        """Starts at the settings' p."""
        self.settings = settings
        self.p = settings.p
        self.gap: float | None = None

    def measured(self, train: float, held_out: float, fake: float, images: int) -> None:
        """Takes a measurement in.

        Args:
            train: Mean realness of real training images.
            held_out: That of real images never trained on.
            fake: That of painted images.
            images: Training images since the last measurement.
        """
        # A discriminator that tells nothing apart does not overfit.
        apart = train - fake
        gap = min(max((train - held_out) / apart, 0.0), 1.0) if apart > 1e-3 else 0.0
        self.gap = gap if self.gap is None else _SMOOTHING * self.gap + (1 - _SMOOTHING) * gap
        if self.settings.adaptive:
            step = images / self.settings.images
            self.p += step if self.gap > self.settings.target else -step
            self.p = min(max(self.p, 0.0), self.settings.most)

    def state(self) -> dict[str, Any]:
        """What a resume needs, plain types only."""
        return {"p": self.p, "gap": self.gap}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
        self.p, self.gap = state["p"], state["gap"]
