"""Layers that several networks share."""

import torch
from torch import Tensor, nn


class PixelNorm(nn.Module):
    """Divides each pixel's feature vector by its root mean square (Karras et al. 2018, sec. 4.2).

    It has no statistics over space or batch. So a mask of a single class keeps its class, which
    instance normalisation would wash out; other image sizes look the same; and what is painted
    does not depend on the rest of the batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)
