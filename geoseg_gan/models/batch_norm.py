"""Batch normalisation over several processes."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all processes' batches, for CPUs.

    `torch.nn.SyncBatchNorm`, which is faster, needs GPUs.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps (B, C, H, W) to the same shape; all processes must call it together."""
        is_shared = self.training and dist.is_initialized()
        y = self._normalise_over_processes(input) if is_shared else super().forward(input)
        # timm's batch normalisation layers hold dropout and activation.
        for layer in self.children():
            y = layer(y)
        return y

    def _normalise_over_processes(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        x = input.float()
        sums = torch.cat([x.sum((0, 2, 3)), x.new_tensor([x.numel() / x.shape[1]])])
        totals = _sum_over_processes(sums)
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centred = x - mean.view(1, -1, 1, 1)
        variance = _sum_over_processes(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                unbiased = count / (count - 1).clamp(min=1)
                self.running_var.lerp_(variance * unbiased, self.momentum)
        y = centred * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1)
        if self.affine:
            y = y * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return y.to(input.dtype)


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


def _sum_over_processes(values: Tensor) -> Tensor:
    """The sum over processes; gradients pass through."""
    total: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]
    return total
