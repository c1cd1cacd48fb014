"""The choice precision=auto: float32 or bfloat16, whichever is measured to be faster."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision

from geoseg_gan.data.batch import Sample
from geoseg_gan.utils.device import now

_GAIN = 1.1
"""How much faster bfloat16 has to be: below that, float32's digits are the better deal."""

_ROUNDS = 3
_LONG = 10.0  # seconds of a step above which one round has to do


class MeasuredPrecision(MixedPrecision):
    """Autocast to bfloat16 where that has been measured to be faster, else float32.

    Until `PrecisionChoice` has measured, it is float32.

    Attributes:
        chosen: Lightning's name of the precision that is used; None before it is measured.
    """

    def __init__(self, device: str) -> None:
        """Starts undecided."""
        super().__init__("bf16-mixed", device)
        self.chosen: str | None = None

    def autocast_context_manager(self) -> torch.autocast:
        """Autocast, switched off where float32 is used."""
        half = self.chosen == "bf16-mixed"
        return torch.autocast(self.device, torch.bfloat16, enabled=half, cache_enabled=False)

    def state_dict(self) -> dict[str, Any]:
        """The choice, so that a resumed run keeps it."""
        return {"chosen": self.chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the choice."""
        self.chosen = state_dict["chosen"]


class PrecisionChoice(Callback):
    """Times steps on the first batch in float32 and under autocast to bfloat16.

    The steps run on copies of the networks, so that training starts as if nothing had been
    measured. Rank 0 measures, and all processes follow. A resumed run keeps its choice.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, sample: Any, index: int
    ) -> None:
        """Measures, the first time."""
        precision = trainer.precision_plugin
        assert isinstance(precision, MeasuredPrecision)
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


def _speed_up(module: L.LightningModule, sample: Sample) -> float:
    """How many times as fast steps are under autocast to bfloat16."""
    device = module.device
    with _on_copies(module):
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(1 + _ROUNDS):  # the first round warms up
            for half, times in seconds.items():
                started = now(device)
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    cast(Any, module).backward_only(sample)
                times.append(now(device) - started)
            if seconds[False][-1] > _LONG:
                break
    return min(seconds[False][-_ROUNDS:]) / min(seconds[True][-_ROUNDS:])


@contextmanager
def _on_copies(module: L.LightningModule) -> Iterator[None]:
    """Within it a module works on copies of its parts; random numbers drawn do not count."""
    parts = dict(module.named_children())
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for name, part in parts.items():
            setattr(module, name, copy.deepcopy(part))
        try:
            yield
        finally:
            for name, part in parts.items():
                setattr(module, name, part)
