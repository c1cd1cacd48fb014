"""Warped masks that a generator also generates from, without images that belong to them."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from geoseg_gan.data.batch import Sample, to_device
from geoseg_gan.data.jitter import Warp
from geoseg_gan.data.settings import ElasticStep

_WHETHER, _HOW = 0x3A8E2, 0x3A8E3  # separate these draws from others with the same seed


class LabelWarp:
    """Bends the masks of some batches by smooth random displacements, as jitter's elastic step.

    The run's seed and the number of the batch fix whether its masks are bent, all or none; the seed
    and the number of the sample fix how.
    """

    def __init__(self, settings: ElasticStep, seed: int) -> None:
        """Keeps the settings."""
        self.settings = settings
        self.seed = seed

    def __call__(self, sample: Sample, serials: Sequence[int], batch: int) -> Sample:
        """Masks, and regions where there are any, bent alike; or the very sample given.

        Args:
            sample: Collated, of square masks (B, S, S), on any device.
            serials: Number of each sample.
            batch: Number of the batch.
        """
        settings = self.settings
        if not settings.p or self._rng(_WHETHER, batch).random() >= settings.p:
            return sample
        side = sample["label"].shape[-1]
        maps = []
        for number in serials:
            drawn = int(self._rng(_HOW, number).integers(2**31))
            warp = Warp(elastic=(drawn, settings.amplitude, settings.wavelength))
            maps.append(np.stack(warp.source_map(side, side, (0, 0, side)), -1))
        grid = to_device(np.stack(maps) * np.float32(2 / (side - 1)) - 1, sample["label"].device)
        bent = {key: _read(sample[key], grid) for key in ("label", "regions") if key in sample}
        return cast(Sample, {**sample, **bent})

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng((stream, self.seed, number))


def _read(label: Tensor, grid: Tensor) -> Tensor:
    """Reads integers (B, S, S) at places in [-1, 1], nearest neighbour, borders reflected."""
    # Exact: there are fewer regions than float32 has whole numbers.
    with torch.autocast(label.device.type, enabled=False):
        values = label.unsqueeze(1).float()
        read = F.grid_sample(values, grid, "nearest", "reflection", align_corners=True)
    return read.squeeze(1).to(label.dtype)
