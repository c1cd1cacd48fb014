"""Batch normalisation with statistics of their own for some images of a batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from geoseg_gan.models.layers import SharedBatchNorm, summed


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
