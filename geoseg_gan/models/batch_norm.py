"""Batch normalisation over several processes, and over separate parts of a batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all processes' batches, for CPUs.

    `torch.nn.SyncBatchNorm`, which is faster, needs GPUs.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape; all processes must call it together."""
        if self.training and dist.is_initialized():
            return _normalise_over_processes(self, [input])
        return _apply_held_layers(self, super().forward(input))


def sync_batch_norms(network: nn.Module, on_gpu: bool) -> nn.Module:
    """Lets all batch normalisation of a network use the statistics of all processes.

    Args:
        network: Changed in place; names and values of its state stay.
        on_gpu: Whether it trains on GPUs.

    Returns:
        The network.
    """
    if on_gpu:
        # torch's own would drop the activations that timm's layers hold.
        from timm.layers.norm_act import convert_sync_batchnorm

        convert: Callable[[nn.Module], nn.Module] = convert_sync_batchnorm
        return convert(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = CpuSyncBatchNorm
    return network


@contextmanager
def separate_batch_norm(network: nn.Module, first: int, batch: int) -> Iterator[None]:
    """Normalises two parts of each training batch as if they were two batches.

    Only the first part is counted in the running statistics, so that inference fits the first part.
    This is the auxiliary batch norm of Xie et al. (2020, "Adversarial examples improve image
    recognition", sec. 3.3), but with one scale and shift for both parts.

    A part with one value per channel, such as a single image whose maps have shrunk to one pixel,
    has no variance: it is normalised by the running statistics.

    Where batch normalisation acts over several processes, all must enter this context together, but
    each may have any number of images of either part.

    Args:
        network: Its batch normalisation is changed until the context ends.
        first: How many images at the start of the batch are the first part.
        batch: How many images there are.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        if dist.is_initialized() and isinstance(norm, (CpuSyncBatchNorm, nn.SyncBatchNorm)):
            forward = partial(_separate_over_processes, norm, first / batch)
        else:
            forward = partial(_separate, norm, first / batch, norm.forward)
        norm.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward  # uncovers the class's own


def _split(x: Tensor, share: float) -> Sequence[Tensor]:
    first = round(share * len(x))
    return torch.split(x, [first, len(x) - first])


def _separate(
    norm: _BatchNorm, share: float, forward: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """Passes each part alone through the layer, which may do more than normalise."""
    if not norm.training:
        return forward(x)
    is_tracking = norm.track_running_stats
    outputs = []
    for part, is_first in zip(_split(x, share), (True, False), strict=True):
        if len(part):
            norm.training = part.numel() > part.shape[1]
            # Without tracking, training neither uses nor changes the running statistics.
            norm.track_running_stats = is_tracking and is_first
            outputs.append(forward(part))
    norm.training, norm.track_running_stats = True, is_tracking
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _separate_over_processes(norm: _BatchNorm, share: float, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    return _normalise_over_processes(norm, _split(x, share))


def _normalise_over_processes(norm: _BatchNorm, parts: Sequence[Tensor]) -> Tensor:
    """Normalises each part by its statistics over all processes and counts only the first.

    A part may be empty in some processes or in all.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.momentum is not None and norm.num_batches_tracked is not None
    dtype = parts[0].dtype
    parts = [part.float() for part in parts]
    channels = parts[0].shape[1]
    shape = (1, -1, *[1] * (parts[0].ndim - 2))
    axes = [axis for axis in range(parts[0].ndim) if axis != 1]
    sizes = [[part.numel() / channels] for part in parts]
    sums = torch.stack([part.sum(axes) for part in parts])
    totals = _sum_over_processes(torch.cat([sums, sums.new_tensor(sizes)], 1))
    count = totals[:, -1:].detach()
    has_spread = count > 1
    mean = torch.where(has_spread, totals[:, :-1] / count.clamp(min=1), norm.running_mean)
    centred = [part - own.view(shape) for part, own in zip(parts, mean, strict=True)]
    squares = _sum_over_processes(torch.stack([part.square().sum(axes) for part in centred]))
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
    return _apply_held_layers(norm, y.to(dtype))


def _apply_held_layers(norm: nn.Module, y: Tensor) -> Tensor:
    """Applies what timm's batch normalisation layers hold inside: dropout and activation."""
    for layer in norm.children():
        y = layer(y)
    return y


def _sum_over_processes(values: Tensor) -> Tensor:
    """The sum over processes; gradients pass through."""
    total: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]
    return total
