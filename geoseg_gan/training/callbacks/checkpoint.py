"""The checkpoint that a run is resumed from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from geoseg_gan.models.checkpoints import RunFacts
from geoseg_gan.training.runs import LAST


@dataclass(eq=False)
class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt`; on Ctrl-C it says how to go on.

    As a `Checkpoint` it acts after all other callbacks.

    Attributes:
        out_dir: Where everything goes.
        facts: The run, whose configuration a resume is compared with.
    """

    out_dir: Path
    facts: RunFacts

    def save_last(self, trainer: L.Trainer) -> None:
        """Saves everything that resuming needs, whole or not at all."""
        # Every process takes part in Lightning's save, though only the first one writes.
        scratch = self.out_dir / f".{LAST}"
        trainer.save_checkpoint(scratch)
        if trainer.is_global_zero:
            scratch.replace(self.out_dir / LAST)

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        """Says on Ctrl-C how to go on."""
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            hint = "resume=true continues" if (self.out_dir / LAST).is_file() else "nothing saved"
            print(f"Interrupted in epoch {trainer.current_epoch + 1}: {hint}.", flush=True)

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the run's configuration."""
        checkpoint["config"] = self.facts.config
