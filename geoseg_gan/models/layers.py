"""Layers that several networks share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


class PixelNorm(nn.Module):
    """Divides each pixel's feature vector by its root mean square (Karras et al. 2018, sec. 4.2).

    It has no statistics over space or batch. So a mask of a single class keeps its class, which
    instance normalisation would wash out; other image sizes look the same; and what is painted
    does not depend on the rest of the batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
        # In float32: squares above 255 overflow half precision.
        scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6)
        return x * scale.to(x.dtype)


def condition_channels(num_classes: int, edges: bool) -> int:
    """How many channels `condition_of` returns for C classes."""
    return num_classes + 1 + edges


def condition_of(one_hot: Tensor, edges: bool) -> Tensor:
    """What a network is told of the ground: its classes, where it is unknown, and outlines.

    The channel of the unknown gives ignored ground weights of its own in the layer that follows, an
    embedding that is learnt as those of the classes are.

    Args:
        one_hot: Shape (B, C, H, W), all zero where ignored.
        edges: Whether the outlines of regions are added (see `edge_map`).

    Returns:
        Shape (B, C + 1, H, W), or (B, C + 2, H, W) with edges.
    """
    unknown = 1 - one_hot.sum(1, keepdim=True)
    return torch.cat([one_hot, unknown, *([edge_map(one_hot)] if edges else [])], 1)


def edge_map(one_hot: Tensor) -> Tensor:
    """Outlines of regions: 1 where a pixel or one of its four neighbours belongs to another one.

    The boundary map of pix2pixHD (Wang et al. 2018, sec. 3.3), of regions in place of instances.

    Args:
        one_hot: Shape (B, C, H, W), all zero where ignored.

    Returns:
        Shape (B, 1, H, W), 0 or 1, of the same dtype.
    """
    rows = (one_hot[:, :, 1:] != one_hot[:, :, :-1]).any(1, keepdim=True).to(one_hot.dtype)
    columns = (one_hot[..., 1:] != one_hot[..., :-1]).any(1, keepdim=True).to(one_hot.dtype)
    above, below = F.pad(rows, (0, 0, 1, 0)), F.pad(rows, (0, 0, 0, 1))
    left, right = F.pad(columns, (1, 0)), F.pad(columns, (0, 1))
    return torch.maximum(torch.maximum(above, below), torch.maximum(left, right))


def convolution(
    channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    bias: bool = True,
    normed: bool = False,
) -> nn.Module:
    """A convolution that keeps the size, or divides it by its stride.

    Args:
        channels: Of its input.
        out_channels: Of its output.
        kernel: Side of the kernel in pixels.
        stride: Between outputs, in pixels.
        bias: Whether it adds one.
        normed: Divides the weights by their spectral norm (Miyato et al. 2018).
    """
    layer = nn.Conv2d(channels, out_channels, kernel, stride, padding=(kernel - 1) // 2, bias=bias)
    # Where only shapes are worked out, there is no norm, and looking for it takes seconds.
    return spectral_norm(layer) if normed and not layer.weight.is_meta else layer
