"""The choice of a precision by measuring it, before training starts."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from geoseg_gan.data.batch import Sample
from geoseg_gan.training.gan import GAN
from geoseg_gan.training.trainer import MeasuredPrecision, backward, now

_GAIN = 1.1

"""How much faster bfloat16 has to be: below that, float32's digits are the better deal."""


_ROUNDS = 3


_LONG = 10.0  # seconds of a step from which on one round has to do


class PrecisionChoice(Callback):
    """Times steps on the first batch in float32 and under autocast to bfloat16, and takes the best.

    Copies of the networks take those steps, so that training starts as if nothing had been
    measured. One process measures, and all follow. A run that is resumed goes on as it began.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, sample: Any, index: int
    ) -> None:
        """Measures, the first time."""
        precision = trainer.precision_plugin
        assert isinstance(precision, MeasuredPrecision) and isinstance(module, GAN)
        if precision.chosen is not None:
            return
        gain = 0.0
        if trainer.is_global_zero and _has_bfloat16(module.device):
            gain = _speed_up(module, sample)
        gain = trainer.strategy.broadcast(gain)
        precision.chosen = "bf16-mixed" if gain >= _GAIN else "32-true"
        if trainer.is_global_zero:
            measured = f"bf16-mixed takes {gain:.2f} x its speed" if gain else "no bfloat16 here"
            print(f"Precision: {precision.chosen} (measured against 32-true: {measured}).")


def _has_bfloat16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def _speed_up(module: GAN, sample: Sample) -> float:
    """How many times as fast steps are under autocast to bfloat16."""
    with _copied(module):
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(1 + _ROUNDS):  # the first one warms up
            for half, times in seconds.items():
                started = now(module.device)
                with torch.autocast(module.device.type, torch.bfloat16, enabled=half):
                    module.step(sample, range(len(sample["label"])), (_Idle(), _Idle()), backward)
                times.append(now(module.device) - started)
            if seconds[False][-1] > _LONG:
                break
    return min(seconds[False][-_ROUNDS:]) / min(seconds[True][-_ROUNDS:])


@contextmanager
def _copied(module: GAN) -> Iterator[None]:
    """Within it a module holds copies of its networks, and afterwards all that it held before."""
    names = ("generator", "discriminator", "average")
    held = {name: getattr(module, name) for name in names}
    memory = module.objective.get_extra_state()
    module.generator, module.discriminator = (
        copy.deepcopy(cast(nn.Module, held[name])) for name in names[:2]
    )
    module.average = None
    try:
        yield
    finally:
        for name, network in held.items():
            setattr(module, name, network)
        module.objective.set_extra_state(memory)


class _Idle:
    """An optimiser that learns nothing."""

    def zero_grad(self) -> None:
        pass

    def step(self) -> None:
        pass
