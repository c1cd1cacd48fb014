"""The checkpoint that a run is resumed from: when it is saved, and what stops a run."""

import os
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from geoseg_gan.models.checkpoints import RunFacts
from geoseg_gan.training.runs import LAST
from geoseg_gan.utils.device import REQUEUE_SIGNAL
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.signals import Noted, noting_signals

_NEVER = 2**62  # a step that no run reaches


@dataclass(eq=False)
class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt`, the one file that says how far a run is.

    It is saved when an epoch ends, before all other files of that epoch; inside of an epoch, after
    every few minutes and at the first step after a signal. What the end of an epoch lacks is
    written when the run is resumed. A loss or a weight that is not finite ends the run, and is
    never saved.

    As a `Checkpoint` this acts after all other callbacks.

    Attributes:
        out_dir: Where everything goes.
        facts: The run, whose configuration a resume is compared with.
        minutes: Time between two saves inside of an epoch.
        requeue: Whether SLURM's signal saves the run and puts its job into the queue again.
        figures: The scalars that were logged last when the run was saved.
        has_begun: Whether the state of a run that is resumed has been taken over.
    """

    out_dir: Path
    facts: RunFacts
    minutes: float
    requeue: bool
    figures: dict[str, float] = field(default_factory=dict, init=False)
    has_begun: bool = field(default=False, init=False)
    _noted: Noted = field(default_factory=Noted, init=False)
    _first_bad: Tensor = field(default_factory=lambda: torch.tensor(_NEVER), init=False)
    _saved_at: float = field(default=0.0, init=False)
    _saved_step: int = field(default=0, init=False)

    @contextmanager
    def noting_signals(self) -> Iterator[None]:
        """Within it a signal ends training after the step in which it comes."""
        with noting_signals([REQUEUE_SIGNAL] if self.requeue else []) as self._noted:
            yield

    def export(self, trainer: L.Trainer, module: L.LightningModule, epoch: int) -> None:
        """Writes what an epoch leaves beside `last.ckpt`, as far as it is missing."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Writes what the last epoch lacks, if the run was stopped as that ended."""
        for optimizer in trainer.optimizers:  # which take over whatever a file holds
            for parameter, state in optimizer.state.items():
                if wrong := [v for v in state.values() if v.ndim and v.shape != parameter.shape]:
                    raise ValueError(f"an optimizer's state of shape {list(wrong[0].shape)}")
        self.has_begun = True
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        progress = cast(Any, trainer.fit_loop.epoch_progress.current)
        if progress.processed and progress.ready == progress.processed:
            self.export(trainer, module, progress.processed)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, sample: Any, index: int
    ) -> None:
        """Seeds the step, so that dropout is the same after a resume as without it."""
        source = (self.facts.config["seed"], trainer.global_step, trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(source).generate_state(1)[0]))

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, sample: Any, index: int
    ) -> None:
        """Saves if it is time to or a signal came; an epoch's last batch leaves that to its end."""
        loss = cast(Tensor, module.last_loss)
        bad = torch.where(torch.isfinite(loss), _NEVER, trainer.global_step)
        self._first_bad = torch.minimum(self._first_bad.to(loss.device), bad)
        is_late = time.monotonic() - self._saved_at > 60 * self.minutes
        is_due, stop = int(is_late and trainer.is_global_zero), self._noted.number
        if trainer.world_size > 1:  # all save and stop at the same step
            mine = torch.stack([bad.new_tensor(is_due), bad.new_tensor(stop), -self._first_bad])
            found = cast(Tensor, trainer.strategy.reduce(mine, reduce_op="max"))
            (is_due, stop), self._first_bad = found[:2].tolist(), -found[2]
        is_logged = trainer.global_step % cast(Any, trainer).log_every_n_steps == 0
        if is_due or stop or is_logged or loss.device.type == "cpu":  # a GPU would have to wait
            self._refuse_bad_loss(trainer)
        if (is_due or stop) and not (trainer.is_last_batch or trainer.should_stop):
            self._save(trainer)
            self._end(trainer, stop)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Saves the run, then what its epoch leaves."""
        self._refuse_bad_loss(trainer)
        self._save(trainer)
        self.export(trainer, module, trainer.current_epoch + 1)
        stop = torch.tensor(self._noted.number, device=module.device)
        self._end(trainer, int(cast(Tensor, trainer.strategy.reduce(stop, reduce_op="max"))))

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        """Says how to go on."""
        if trainer.is_global_zero:
            path = self.out_dir / LAST
            hint = f"saved {path}, resume=true continues" if path.is_file() else "nothing saved"
            print(f"Stopped in epoch {trainer.current_epoch + 1}: {hint}.", flush=True)

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the run's configuration and the fingerprints of its data."""
        checkpoint["config"] = self.facts.config
        checkpoint["data"] = self.facts.data

    def state_dict(self) -> dict[str, Any]:
        """The last figures, as `last.ckpt` keeps them."""
        return {"figures": self.figures}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the last figures."""
        self.figures = state_dict.get("figures", {})  # earlier versions did not keep them

    def _save(self, trainer: L.Trainer) -> None:
        # The gradient of a finite loss need not be finite, as that of a root at 0.
        weights = trainer.lightning_module.parameters()
        if not torch.stack([weight.detach().isfinite().all() for weight in weights]).all():
            self._refuse(trainer, "a weight", trainer.global_step)
        self.figures |= {name: float(value) for name, value in trainer.logged_metrics.items()}
        # Every process takes part in Lightning's save, though only the first one writes.
        trainer.save_checkpoint(self.out_dir / LAST)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _end(self, trainer: L.Trainer, stop: int) -> None:
        """Ends the run if a signal came."""
        if stop == REQUEUE_SIGNAL and trainer.is_global_zero:
            _requeue()
        Noted(stop).raise_if_any()

    def _refuse_bad_loss(self, trainer: L.Trainer) -> None:
        step = int(self._first_bad)
        if step != _NEVER:
            self._refuse(trainer, "the loss", step)

    def _refuse(self, trainer: L.Trainer, what: str, step: int) -> NoReturn:
        path = self.out_dir / LAST
        saved = f"{path} of step {self._saved_step} is good" if path.is_file() else "nothing saved"
        raise UserError(
            f"{what} is not finite at step {step}, in epoch {trainer.current_epoch + 1} ({saved})"
            ". Start a new run with a lower lr, or with precision=32-true."
        )


def _requeue() -> None:
    """Puts the SLURM job of this process into the queue again."""
    known = os.environ.get
    job = known("SLURM_JOB_ID", "")
    if known("SLURM_ARRAY_JOB_ID"):
        job = f"{known('SLURM_ARRAY_JOB_ID')}_{known('SLURM_ARRAY_TASK_ID')}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        warnings.warn(f"the job is not in the queue again: {error}", stacklevel=2)
