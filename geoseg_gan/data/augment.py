"""Colour augmentation of a segmenter's training batches."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from geoseg_gan.data.settings import ColorStep

_COLOR_STREAM = 0xC0104  # separates colour from other random numbers of the same seed and sample


def jitter_color(image: Tensor, step: ColorStep, seed: int, numbers: Sequence[int]) -> Tensor:
    """Changes light and colour of a batch on its device, each image by its own random factors.

    Args:
        image: Shape (B, K, H, W), in [-1, 1]; so is the result.
        step: How strongly.
        seed: The run's seed.
        numbers: Number of every sample in the run; with the seed it fixes the sample's change.
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
    # Black is kept above 0, where the gradient of the power is infinite.
    return value.clamp(min=1e-4).pow(gamma) * 2 - 1


def _draw(step: ColorStep, seed: int, number: int) -> np.ndarray:
    rng = np.random.default_rng((_COLOR_STREAM, seed, number))
    chance, *shares = rng.uniform(-1, 1, 5)
    if (chance + 1) / 2 >= step.p:
        return np.ones(4)
    spans = (step.brightness, step.contrast, step.saturation)
    factors = [1 + span * share for span, share in zip(spans, shares[:3], strict=True)]
    return np.array([*factors, (1 + step.gamma) ** shares[3]])
