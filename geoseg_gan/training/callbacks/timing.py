"""Time: the budget of a run, the estimate of its duration, and images per second."""

import math
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from geoseg_gan.training.gan import GAN
from geoseg_gan.utils.errors import plural


class TimeBudget(Callback):
    """Ends training when a time budget is used up; the weights are saved as usual.

    The learning-rate schedule follows the budget, so that the rate has fallen when time is up. A
    resumed run goes on with what is left.

    Args:
        minutes: Wall-clock time of training, over all parts of a run that is resumed; None for no
            limit.
    """

    _EVERY = 10  # batches between two agreements of several processes on the time

    def __init__(self, minutes: float | None) -> None:
        """Starts with an unused budget."""
        self.seconds = math.inf if minutes is None else 60 * minutes
        self._used_before = 0.0
        self._started: float | None = None

    @property
    def used(self) -> float:
        """Seconds of training so far."""
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self._used_before + running

    def state_dict(self) -> dict[str, Any]:
        """The time used, as `last.ckpt` keeps it."""
        return {"seconds": self.used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the time used before a resume."""
        self._used_before = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Starts the clock."""
        self._started = time.monotonic()
        self._update(trainer, module)
        progress = cast(Any, trainer.fit_loop.epoch_progress.current)
        if cast(GAN, module).time_used >= 1 and progress.ready == progress.processed:
            trainer.should_stop = True  # a run that was stopped after its last epoch

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Gives the module the share used, and stops the trainer at 1."""
        if math.isinf(self.seconds):
            return
        if trainer.world_size == 1 or trainer.global_step % self._EVERY == 0:
            self._update(trainer, module)
            if cast(GAN, module).time_used >= 1:
                trainer.should_stop = True

    def _update(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # All processes follow one clock, or their learning rates would differ.
        share = trainer.strategy.broadcast(min(1.0, self.used / self.seconds))
        cast(GAN, module).time_used = share


class Throughput(Callback):
    """Logs images per second over all processes, without the first batches."""

    _WARM_UP = 3
    _since = 0.0
    _batches = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Starts the clock, since a resumed run may begin inside of an epoch."""
        self._batches, self._since = -self._WARM_UP, time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leaves out the time between epochs."""
        self._batches = min(self._batches, 0)
        self._since = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Logs the rate since the epoch's start."""
        self._batches += 1
        if self._batches <= 0:
            self._since = time.monotonic()
            return
        seconds = max(time.monotonic() - self._since, 1e-9)
        rate = self._batches * cast(int, module.global_batch) / seconds
        module.log("images_per_second", rate, prog_bar=True)


@dataclass(eq=False)
class Estimate(Callback):
    """Prints once, after the first batches, how long training will take and what it will write.

    Attributes:
        kept_epochs: How many epochs' networks stay; None for all.
        budget: The time budget, where a command has one.
    """

    kept_epochs: int | None
    budget: TimeBudget | None = None
    _AFTER = 10
    _since = 0.0
    _batches = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Starts the clock."""
        self._since, self._batches = time.monotonic(), 0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Counts batches, and prints when there are enough."""
        self._batches += 1
        if self._batches == 1:
            self._since = time.monotonic()  # the first batch also warms everything up
        after = min(self._AFTER, int(trainer.num_training_batches))
        if self._batches != after or not trainer.is_global_zero:
            return
        seconds = (time.monotonic() - self._since) / max(1, after - 1)
        duration = seconds * (int(trainer.estimated_stepping_batches) - trainer.global_step)
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch
        why = ""
        if self.budget is not None and duration > (left := self.budget.seconds - self.budget.used):
            duration = max(0.0, left)
            epochs = min(epochs, int(duration / seconds / trainer.num_training_batches) + 1)
            why = " (max_minutes)"
        kept = min(epochs, self.kept_epochs or epochs)
        weights = sum(p.numel() * p.element_size() for p in module.parameters())
        # last.ckpt holds Adam's two moments beside the weights.
        size = weights * (kept + 3)
        print(
            f"Estimate: {timedelta(seconds=round(duration))}{why} for {plural(epochs, 'epoch')}, "
            f"{size / 1e6:,.0f} MB of checkpoints."
        )
