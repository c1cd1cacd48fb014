"""Evaluation while a generator trains: figures every few epochs, and the best epoch kept."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from geoseg_gan.evaluation.monitor import QuickEvaluation
from geoseg_gan.models.checkpoints import RunFacts, save_network
from geoseg_gan.training.gan import GAN
from geoseg_gan.training.settings import MONITORS
from geoseg_gan.utils.tables import percent

BEST = "G_best.pt"


@dataclass(eq=False)
class Evaluator(Callback):
    """Evaluates the generator on held-out training tiles, and keeps the best one.

    Figures go to TensorBoard as `evaluation/...`. `G_best.pt` is the generator of the epoch with
    the best monitored figure.

    Attributes:
        out_dir: Where `G_best.pt` goes.
        facts: What it carries beside the weights.
        evaluation: What is measured.
        every: Epochs between evaluations; the last epoch is always evaluated.
        monitor: The figure that chooses, a key of MONITORS.
        best: The monitored figure of the best epoch; None before the first evaluation.
    """

    out_dir: Path
    facts: RunFacts
    evaluation: QuickEvaluation
    every: int
    monitor: str
    best: float | None = field(default=None, init=False)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Evaluates after every few epochs and the last one."""
        assert isinstance(module, GAN)
        epoch = trainer.current_epoch + 1
        is_last = epoch == trainer.max_epochs or trainer.should_stop
        if not trainer.is_global_zero or (epoch % self.every and not is_last):
            return
        with module.evaluating() as generator:
            figures = self.evaluation(generator)
        if trainer.logger is not None:
            board = cast(Any, trainer.logger).experiment
            for name, value in figures.items():
                board.add_scalar(f"evaluation/{name}", value, trainer.global_step)
        value = figures[self.monitor]
        is_best = not math.isnan(value) and (
            self.best is None or MONITORS[self.monitor] * (value - self.best) > 0
        )
        if is_best:
            self.best = value
            network = module.inference_generator
            save_network(self.out_dir / BEST, "generator", network, self.facts, epoch)
        shown = ", ".join(
            f"{name} {value:.4g}" if name != "agreement" else f"{name} {percent(value)} %"
            for name, value in figures.items()
        )
        print(f"Epoch {epoch}: {shown}{' (best so far)' if is_best else ''}.")

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far, as `last.ckpt` keeps it."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best figure of a resumed run."""
        self.best = state_dict["best"]
