"""The moving average of a network's weights."""

import copy

import torch
from torch import nn


def start_average(network: nn.Module, ema: float) -> nn.Module | None:
    """A copy of the network that is not learnt, to be moved by `move_average`; None for ema=0."""
    return copy.deepcopy(network).requires_grad_(False) if ema else None


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, ema: float, batches: int) -> None:
    """Moves an average towards the network; buffers are copied.

    Args:
        average: What `start_average` gave.
        network: As it is after a batch.
        ema: How much of the average is kept; early ones keep (1 + batches) / (10 + batches) at
            most.
        batches: How many there have been.
    """
    keep = min(ema, (1 + batches) / (10 + batches))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - keep)
    for mine, theirs in zip(average.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)
