"""What several networks share: the condition, layers, and computing activations again."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint


def check_minimum(minimum: int, **values: int) -> None:
    """Refuses numbers below a minimum.

    Raises:
        ValueError: Naming the first such number.
    """
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name}={value} must be {minimum} or more")


def condition_of(one_hot: Tensor, edges: bool) -> Tensor:
    """The label map as networks see it: classes, an "unknown" channel and, if asked for, outlines.

    Of one-hot (B, C, H, W), all zero where ignored, it makes (B, C + 1, H, W), or (B, C + 2, H, W)
    with edges (see `edge_map`). The "unknown" channel is 1 at ignored pixels: the next layer learns
    weights for them as it does for each class.
    """
    unknown = 1 - one_hot.sum(1, keepdim=True)
    return torch.cat([one_hot, unknown, *([edge_map(one_hot)] if edges else [])], 1)


def condition_channels(num_classes: int, edges: bool) -> int:
    """The number of channels of `condition_of` for C classes."""
    return num_classes + 1 + edges


def edge_map(one_hot: Tensor) -> Tensor:
    """Outlines of regions: 1 where a pixel and one of its four neighbours differ in class.

    The boundary map of pix2pixHD (Wang et al. 2018, sec. 3.3), of regions in place of instances,
    (B, 1, H, W) of the dtype of the one-hot map (B, C, H, W).
    """
    rows = (one_hot[:, :, 1:] != one_hot[:, :, :-1]).any(1, keepdim=True).to(one_hot.dtype)
    columns = (one_hot[..., 1:] != one_hot[..., :-1]).any(1, keepdim=True).to(one_hot.dtype)
    above, below = F.pad(rows, (0, 0, 1, 0)), F.pad(rows, (0, 0, 0, 1))
    left, right = F.pad(columns, (1, 0)), F.pad(columns, (0, 1))
    return torch.maximum(torch.maximum(above, below), torch.maximum(left, right))


class PixelNorm(nn.Module):
    """Divides each pixel's feature vector by its root mean square (Karras et al. 2018, sec. 4.2).

    There are no statistics over space or batch. So a mask of a single class keeps its class, which
    instance normalisation would remove; images of other sizes look the same; and a generated image
    does not depend on the rest of its batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
        # In float32, since squares above 255 overflow half precision; but not of a float32 copy,
        # which would take as long as a convolution.
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(norm.square() / x.shape[1] + 1e-6)
        return x * scale.to(x.dtype)


def convolution(
    channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    bias: bool = True,
    spectral_norm: bool = False,
) -> nn.Module:
    """A convolution that keeps the size, or divides it by its stride (see also `SpectralNorm`)."""
    layer = nn.Conv2d(channels, out_channels, kernel, stride, padding=(kernel - 1) // 2, bias=bias)
    # On the meta device there are no values whose norm could be estimated.
    if spectral_norm and not layer.weight.is_meta:
        parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return layer


class SpectralNorm(nn.Module):
    """Divides a weight by an estimate of its largest singular value (Miyato et al. 2018, eq. 7).

    `update_spectral_norms`, called once a training step, moves the estimate's two vectors; forward
    passes do not. So all passes of a step see the same weight: gradients of the parts of a batch
    add up to those of the whole batch, and activations that are computed again are the same.

    Args:
        weight: The weight to be divided, shape (out, in, h, w).
    """

    def __init__(self, weight: Tensor) -> None:
        """Takes fifteen steps from random vectors, which end near the singular vectors."""
        super().__init__()
        matrix = weight.detach().flatten(1)
        # PyTorch's own spectral norm has the same names in its state.
        self.register_buffer("_u", F.normalize(torch.randn(len(matrix)), dim=0))
        self.register_buffer("_v", F.normalize(torch.randn(matrix.shape[1]), dim=0))
        for _ in range(15):
            self.update(weight)

    @torch.no_grad()
    def update(self, weight: Tensor) -> None:
        """Takes one step of the power method for the weight as it is now."""
        stored, v = self._as_stored(weight)
        matrix, u = stored.flatten(1), self.get_buffer("_u")
        with torch.autocast(weight.device.type, enabled=False):
            v.copy_(F.normalize(matrix.mT @ u, dim=0).view_as(v))
            u.copy_(F.normalize(matrix @ v.flatten(), dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """Maps a weight to one of the same shape and a spectral norm near 1."""
        stored, v = self._as_stored(weight)
        # Half precision would be off by some tenths of a percent.
        with torch.autocast(weight.device.type, enabled=False):
            divided = _Divide.apply(stored.flatten(1), self.get_buffer("_u"), v.flatten())
        return cast(Tensor, divided).view_as(stored).movedim(_channel_axis(weight), 1)

    def _as_stored(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the weight and of v as maps, with axes in the order of the weight's memory."""
        maps = self.get_buffer("_v").view(1, *weight.shape[1:])
        axis = _channel_axis(weight)
        return weight.movedim(1, axis), maps.movedim(1, axis)


def _channel_axis(weight: Tensor) -> int:
    """Where the channels stand in the memory of a weight (out, in, h, w)."""
    return 3 if weight.is_contiguous(memory_format=torch.channels_last) else 1


class _Divide(torch.autograd.Function):
    """Divides a matrix W by u W v, with fewer passes over memory than autograd's own gradient.

    Where large weights meet small feature maps, these passes are a noticeable part of a step.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
        sigma = torch.dot(u, matrix @ v)
        ctx.save_for_backward(matrix, u, v, sigma)
        return matrix / sigma

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        matrix, u, v, sigma = ctx.saved_tensors
        along = torch.dot(gradient.flatten(), matrix.flatten()) / sigma.square()
        return (gradient / sigma).addcmul_((u * -along).unsqueeze(1), v), None, None


def update_spectral_norms(network: nn.Module) -> None:
    """Takes one step of every spectral norm's estimate; training calls it once a step."""
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList):
            for entry in module:
                if isinstance(entry, SpectralNorm):
                    entry.update(module.original)


def memory_format_of(layer: nn.Conv2d) -> torch.memory_format:
    """The memory format of a convolution's weights, in which its inputs are read fastest."""
    kind = torch.channels_last
    return kind if layer.weight.is_contiguous(memory_format=kind) else torch.contiguous_format


class HasBlocks(Protocol):
    """A network with parts whose activations can be computed again."""

    def blocks(self) -> list[nn.Module]:
        """The parts; none is inside another."""


def recompute_blocks(blocks: list[nn.Module]) -> None:
    """Lets blocks drop their activations, which the backward pass computes again.

    Activation checkpointing (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"):
    about a third more arithmetic, memory only for what lies between the blocks, the same gradients.
    The blocks are changed in place.
    """
    for block in blocks:
        # A method, which a copy of the block binds to itself.
        block.forward = MethodType(_recomputed, block)


def _recomputed(block: nn.Module, *inputs: Any) -> Any:
    return checkpoint(
        partial(type(block).forward, block),
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # none of our layers draws random numbers
        context_fn=lambda: (nullcontext(), _untracked(block)),
    )


@contextmanager
def _untracked(block: nn.Module) -> Iterator[None]:
    """Holds running statistics still, so that a batch that is computed twice counts once."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    held = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = norm.num_batches_tracked.clone()  # type: ignore[union-attr]
    try:
        yield
    finally:  # computing again is stopped by an exception once nothing more is needed
        for norm, (momentum, count) in zip(norms, held, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
