"""Time: the budget, the estimate and the rate."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint

from geoseg_gan.models.checkpoints import RunFacts
from geoseg_gan.training.gan import GAN
from geoseg_gan.training.runs import LAST
from geoseg_gan.utils.errors import plural


class Resumable(Checkpoint):
    """Saves `last.ckpt`, and tells who interrupts a run how to go on.

    As a `Checkpoint` it acts after all other callbacks.

    Args:
        out_dir: Where `last.ckpt` goes.
        facts: The run, whose configuration a resume is compared with.
    """

    def __init__(self, out_dir: Path, facts: RunFacts) -> None:
        """Keeps both."""
        self.out_dir = out_dir
        self.facts = facts

    def save_last(self, trainer: L.Trainer) -> None:
        """Saves all that resuming needs, whole or not at all."""
        # Every process takes part in Lightning's save, though only the first one writes.
        scratch = self.out_dir / f".{LAST}"
        trainer.save_checkpoint(scratch)
        if trainer.is_global_zero:
            scratch.replace(self.out_dir / LAST)

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        """Tells who presses Ctrl-C how to go on."""
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            again = "resume=true continues" if (self.out_dir / LAST).is_file() else "nothing saved"
            print(f"Interrupted in epoch {trainer.current_epoch + 1}: {again}.", flush=True)

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the run's configuration."""
        checkpoint["config"] = self.facts.config


class Batched(Protocol):
    """What counting images needs of a LightningModule.

    Attributes:
        global_batch: Batch size over all processes.
    """

    global_batch: int


class TimeBudget(Callback):
    """Ends training once a time budget is used up; what was learnt is saved as usual.

    The learning-rate schedule sees the budget, so that the rate has fallen when time is up.

    Args:
        minutes: Wall-clock time from the start of training.
    """

    _ASK = 10  # steps from one agreement of several processes on the time to the next

    def __init__(self, minutes: float) -> None:
        """Keeps the budget."""
        self.minutes = minutes
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Tells the module the share used, and stops the trainer at 1."""
        assert isinstance(module, GAN)
        if trainer.world_size > 1 and trainer.global_step % self._ASK:
            return
        used = min(1.0, (time.monotonic() - self._started) / (60 * self.minutes))
        # All processes follow one clock, or their learning rates would part.
        used = trainer.strategy.broadcast(used)
        module.time_used = used
        if used >= 1:
            trainer.should_stop = True


class Throughput(Callback):
    """Logs images per second over all processes, first batches left out."""

    _WARM_UP = 3

    def __init__(self) -> None:
        """Starts at nothing."""
        self._since = 0.0
        self._batches = 0

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leaves the time between epochs out."""
        self._batches = -self._WARM_UP if trainer.global_step == 0 else 0
        self._since = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Logs the rate since the epoch's start."""
        self._batches += 1
        if self._batches <= 0:
            self._since = time.monotonic()
            return
        seconds = max(time.monotonic() - self._since, 1e-9)
        rate = self._batches * cast(Batched, module).global_batch / seconds
        module.log("images_per_second", rate, prog_bar=True)


class Estimate(Callback):
    """Prints once, after the first steps, how long training will take and what it will write.

    Args:
        keep_checkpoints: How many epochs' checkpoints stay; None for all.
        minutes: The time budget; None for none.
    """

    _AFTER = 10

    def __init__(self, keep_checkpoints: int | None, minutes: float | None) -> None:
        """Keeps the settings."""
        self.keep_checkpoints = keep_checkpoints
        self.minutes = minutes
        self._since = 0.0
        self._batches = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Starts the clock."""
        self._since, self._batches = time.monotonic(), 0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Counts batches and prints when there are enough."""
        self._batches += 1
        if self._batches == 1:
            self._since = time.monotonic()  # the first batch also warms everything up
        after = min(self._AFTER, int(trainer.num_training_batches))
        if self._batches != after or not trainer.is_global_zero:
            return
        seconds = (time.monotonic() - self._since) / max(1, after - 1)
        left = int(trainer.estimated_stepping_batches) - trainer.global_step
        duration = seconds * left
        capped = self.minutes is not None and duration > 60 * self.minutes
        if self.minutes is not None and capped:
            duration = 60 * self.minutes
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch
        if capped:
            epochs = min(epochs, int(duration / seconds / trainer.num_training_batches) + 1)
        kept = min(epochs, self.keep_checkpoints or epochs)
        weights = sum(p.numel() * p.element_size() for p in module.parameters())
        # last.ckpt holds Adam's two moments beside the weights.
        size = weights * (kept + 3)
        why = " (max_minutes)" if capped else ""
        print(
            f"Estimate: {timedelta(seconds=round(duration))}{why} for {plural(epochs, 'epoch')}, "
            f"{size / 1e6:,.0f} MB of checkpoints."
        )
