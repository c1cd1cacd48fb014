"""Layers that several networks share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint


@contextmanager
def norms_apart(network: nn.Module, first: int, batch: int) -> Iterator[None]:
    """Lets batch normalisation treat two parts of a training batch as batches by themselves.

    The first part is normalised, and counted in the running statistics, as if there were no other.
    The other is normalised by its own statistics and leaves no trace, so that inference is as the
    first part wants it. This is the auxiliary batch norm of Xie et al. (2020, "Adversarial examples
    improve image recognition", sec. 3.3), but with one scale and shift for both.

    A part that has one value a channel, as a lone image has where maps shrink to a pixel, has no
    spread to be normalised by: there the running statistics stand in for its own.

    Where batch normalisation acts over several processes, all must enter this together, but each
    may have as many images of either part as it has.

    Args:
        network: Whose batch normalisation, until the context ends.
        first: How many images, the first of the batch, are the first part.
        batch: How many images there are.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        if dist.is_initialized() and isinstance(norm, (SharedBatchNorm, nn.SyncBatchNorm)):
            forward = partial(_over_processes, norm, first / batch)
        else:
            forward = partial(_alone, norm, first / batch, norm.forward)
        norm.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward  # the class's is seen again


def _parts(x: Tensor, share: float) -> Sequence[Tensor]:
    first = round(share * len(x))
    return torch.split(x, [first, len(x) - first])


def _alone(
    norm: _BatchNorm, share: float, forward: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """Passes each part through the layer, which may do more than normalise, by itself."""
    if not norm.training:
        return forward(x)
    is_tracking = norm.track_running_stats
    found = []
    for part, is_first in zip(_parts(x, share), (True, False), strict=True):
        if len(part):
            norm.training = part.numel() > part.shape[1]
            # Without tracking, training neither uses nor changes the running statistics.
            norm.track_running_stats = is_tracking and is_first
            found.append(forward(part))
    norm.training, norm.track_running_stats = True, is_tracking
    return torch.cat(found) if len(found) > 1 else found[0]


def _over_processes(norm: _BatchNorm, share: float, x: Tensor) -> Tensor:
    """Normalises each part over all processes; one that is nowhere is no reason to part ways."""
    if not norm.training:
        return type(norm).forward(norm, x)
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.momentum is not None and norm.num_batches_tracked is not None
    shape = (1, -1, *[1] * (x.ndim - 2))
    axes = [axis for axis in range(x.ndim) if axis != 1]
    parts = _parts(x.float(), share)
    sizes = [[part.numel() / x.shape[1]] for part in parts]
    sums = torch.stack([part.sum(axes) for part in parts])
    totals = summed(torch.cat([sums, sums.new_tensor(sizes)], 1))
    count = totals[:, -1:].detach()
    has_spread = count > 1
    mean = torch.where(has_spread, totals[:, :-1] / count.clamp(min=1), norm.running_mean)
    centred = [part - own.view(shape) for part, own in zip(parts, mean, strict=True)]
    squares = summed(torch.stack([part.square().sum(axes) for part in centred]))
    variance = torch.where(has_spread, squares / count.clamp(min=1), norm.running_var)
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked += count[0, 0] > 0
            unbiased = count[0] / (count[0] - 1).clamp(min=1)
            norm.running_mean.lerp_(mean[0], norm.momentum)
            target = torch.where(has_spread[0], variance[0] * unbiased, norm.running_var)
            norm.running_var.lerp_(target, norm.momentum)
    scales = torch.rsqrt(variance + norm.eps)
    y = torch.cat([part * own.view(shape) for part, own in zip(centred, scales, strict=True)])
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    y = y.to(x.dtype)
    for layer in norm.children():  # timm's layers hold what comes after: dropout, activation
        y = layer(y)
    return y


class Blocks(Protocol):
    """A network that says which parts of it can be computed anew."""

    def blocks(self) -> list[nn.Module]:
        """The parts, none within another."""


def recompute_blocks(blocks: list[nn.Module]) -> None:
    """Lets blocks forget their activations, which the backward pass computes anew.

    What is learnt stays the same (Chen et al. 2016, "Training Deep Nets with Sublinear Memory
    Cost"): about a third more arithmetic buys memory for what lies between the blocks only.

    Args:
        blocks: Changed in place.
    """
    for block in blocks:
        # A bound method, which a copy of the block has bound to itself.
        block.forward = MethodType(_recomputed, block)


def _recomputed(block: nn.Module, *inputs: Any) -> Any:
    return checkpoint(
        partial(type(block).forward, block),
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # no layer of ours draws
        context_fn=lambda: (nullcontext(), _untracked(block)),
    )


@contextmanager
def _untracked(block: nn.Module) -> Iterator[None]:
    """Within it, running statistics stay as they are: a batch computed twice counts once."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    held = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = norm.num_batches_tracked.clone()  # type: ignore[union-attr]
    try:
        yield
    finally:  # recomputing ends in an exception as soon as there is enough
        for norm, (momentum, count) in zip(norms, held, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class PixelNorm(nn.Module):
    """Divides each pixel's feature vector by its root mean square (Karras et al. 2018, sec. 4.2).

    It has no statistics over space or batch. So a mask of a single class keeps its class, which
    instance normalisation would wash out; other image sizes look the same; and what is painted
    does not depend on the rest of the batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape."""
        # In float32, since squares above 255 overflow half precision; but not of a float32 copy,
        # which would take as long as a convolution.
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(norm.square() / x.shape[1] + 1e-6)
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
    if normed and not layer.weight.is_meta:
        parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return layer


class SpectralNorm(nn.Module):
    """Divides a weight by an estimate of its largest singular value (Miyato et al. 2018, eq. 7).

    The estimate's two vectors move when `estimate_norms` is called, once a training step, and not
    in forward passes. So all passes of a step see one weight: those over parts of a batch add up to
    that over the whole batch, and what is computed anew for want of memory comes out the same.

    Args:
        weight: The weight to be divided, shape (out, ...).
    """

    def __init__(self, weight: Tensor) -> None:
        """Starts from random vectors and fifteen steps, near the singular vectors."""
        super().__init__()
        matrix = weight.detach().flatten(1)
        # The names under which PyTorch's own keeps them in state dicts.
        self.register_buffer("_u", F.normalize(torch.randn(len(matrix)), dim=0))
        self.register_buffer("_v", F.normalize(torch.randn(matrix.shape[1]), dim=0))
        for _ in range(15):
            self.estimate(weight)

    @torch.no_grad()
    def estimate(self, weight: Tensor) -> None:
        """Takes one step of the power method, for a weight as it is now."""
        matrix, u, v = weight.flatten(1), self.get_buffer("_u"), self.get_buffer("_v")
        v.copy_(F.normalize(matrix.mT @ u, dim=0))
        u.copy_(F.normalize(matrix @ v, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """Maps a weight to one of the same shape and a norm near 1."""
        sigma = self.get_buffer("_u") @ (weight.flatten(1) @ self.get_buffer("_v"))
        return weight / sigma


def estimate_norms(network: nn.Module) -> None:
    """Takes one step of every spectral norm's estimate; training calls it once a step."""
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList):
            for entry in module:
                if isinstance(entry, SpectralNorm):
                    entry.estimate(module.original)


def memory_format_of(layer: nn.Conv2d) -> torch.memory_format:
    """How a convolution's weights lie in memory, which what it reads had better do too."""
    kind = torch.channels_last
    return kind if layer.weight.is_contiguous(memory_format=kind) else torch.contiguous_format


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, on CPUs too.

    `torch.nn.SyncBatchNorm`, which is faster, needs GPUs.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape; all processes must call it with the same B."""
        shared = self.training and dist.is_initialized()
        y = self._over_processes(input) if shared else super().forward(input)
        for layer in self.children():  # timm's layers hold what comes after: dropout, activation
            y = layer(y)
        return y

    def _over_processes(self, input: Tensor) -> Tensor:
        processes = dist.get_world_size()
        x = input.float()
        mean = summed(x.mean((0, 2, 3))) / processes
        centred = x - mean.view(1, -1, 1, 1)
        variance = summed(centred.square().mean((0, 2, 3))) / processes
        if self.track_running_stats:
            assert self.running_mean is not None and self.running_var is not None
            assert self.momentum is not None and self.num_batches_tracked is not None
            count = processes * input.numel() / input.shape[1]
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        y: Tensor = centred * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1)
        if self.affine:
            y = y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return y.to(input.dtype)


def summed(values: Tensor) -> Tensor:
    """The sum over processes, gradients passing through."""
    total: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]
    return total


def share_batch_norms(network: nn.Module, on_gpu: bool) -> nn.Module:
    """Lets all batch normalisation of a network act over all processes; returns the network.

    Args:
        network: Changed in place; names and values of its state stay.
        on_gpu: Whether it trains on GPUs.
    """
    if on_gpu:
        # torch's own would drop the activations that timm's layers hold.
        from timm.layers.norm_act import convert_sync_batchnorm

        convert: Callable[[nn.Module], nn.Module] = convert_sync_batchnorm
        return convert(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SharedBatchNorm
    return network
