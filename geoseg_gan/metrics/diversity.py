"""Distances between images that show the same: how much a generator varies."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F


def layer_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Perceptual distance in the manner of LPIPS, with all channels weighted alike.

    Every feature map is brought to length 1 along its channels; squared differences are summed over
    channels and averaged over space and layers (Zhang et al. 2018, equation 1, without the weights
    learnt from human judgement, which exist for other networks only).

    Args:
        first: Feature maps (B, C, H, W) of several layers.
        second: The same of other images.

    Returns:
        Shape (B,), in 0..4; 0 for equal images.
    """
    parts = []
    for ours, theirs in zip(first, second, strict=True):
        gap = F.normalize(ours.float(), dim=1) - F.normalize(theirs.float(), dim=1)
        parts.append(gap.square().sum(1).mean((1, 2)))
    return torch.stack(parts).mean(0)


def feature_distance(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distance of pooled features brought to length 1, as in `fidelity.nearest`.

    Args:
        first: Shape (B, D).
        second: Shape (B, D).

    Returns:
        Shape (B,), in 0..2.
    """
    gap = F.normalize(first.float(), dim=1) - F.normalize(second.float(), dim=1)
    return gap.square().sum(1).sqrt()


def composition_pairs(
    shares: npt.NDArray[np.float64], groups: Sequence[str], count: int
) -> list[tuple[int, int]]:
    """Pairs of different tiles of like composition, from different ground where there is any.

    Args:
        shares: Share of every class in each tile, shape (N, C).
        groups: The ground that each tile shows.
        count: How many pairs at most.

    Returns:
        Positions of the tiles; pairs that differ least in composition (L1) come first, and no tile
        stands in two pairs.
    """
    names = np.unique(groups, return_inverse=True)[1]
    gaps = np.abs(shares[:, None] - shares).sum(2)
    allowed = ~np.eye(len(shares), dtype=bool)
    if len(set(names.tolist())) > 1:
        allowed &= names[:, None] != names
    upper = np.argwhere(np.triu(allowed))
    order = upper[np.argsort(gaps[upper[:, 0], upper[:, 1]], kind="stable")]
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    for one, other in order.tolist():
        if len(pairs) == count:
            break
        if one not in used and other not in used:
            pairs.append((one, other))
            used |= {one, other}
    return pairs
