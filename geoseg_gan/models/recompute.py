"""Activation checkpointing: memory for time."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any, Protocol

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


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
