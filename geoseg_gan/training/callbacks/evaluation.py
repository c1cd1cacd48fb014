"""Evaluation while a generator trains: figures every so many epochs, and the best epoch kept."""

import math
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from geoseg_gan.evaluation.monitor import QuickEvaluation
from geoseg_gan.models.checkpoints import RunFacts, save_network
from geoseg_gan.training.gan import GAN

BEST = "G_best.pt"


MONITORS = {"kid": -1.0, "fid": -1.0, "precision": 1.0, "recall": 1.0, "agreement": 1.0}

"""Figures by which the best epoch may be chosen: 1 where more is better, -1 where less is."""


class Evaluator(Callback):
    """Evaluates the generator on held-out training tiles, and keeps the best one.

    Figures go to TensorBoard as `evaluation/...`. `G_best.pt` is the generator of the epoch that
    was best by the monitored figure.

    Args:
        out_dir: Where `G_best.pt` goes.
        facts: What it carries beside the weights.
        evaluation: What is measured.
        every: Epochs between evaluations; the last epoch is always evaluated.
        monitor: The figure that chooses, a key of MONITORS.

    Attributes:
        best: The monitored figure of the best epoch; None before the first evaluation.
    """

    def __init__(
        self, out_dir: Path, facts: RunFacts, evaluation: QuickEvaluation, every: int, monitor: str
    ) -> None:
        """Keeps the settings."""
        self.out_dir = out_dir
        self.facts = facts
        self.evaluation = evaluation
        self.every = every
        self.monitor = monitor
        self.best: float | None = None

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Evaluates where it is time to."""
        assert isinstance(module, GAN)
        epoch = trainer.current_epoch + 1
        is_last = epoch == trainer.max_epochs or trainer.should_stop
        if not trainer.is_global_zero or (epoch % self.every and not is_last):
            return
        with module.painting() as generator:
            figures = self.evaluation(generator)
        if trainer.logger is not None:
            board = cast(Any, trainer.logger).experiment
            for name, value in figures.items():
                board.add_scalar(f"evaluation/{name}", value, trainer.global_step)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        value = figures[self.monitor]
        is_best = not math.isnan(value) and (
            self.best is None or MONITORS[self.monitor] * (value - self.best) > 0
        )
        if is_best:
            self.best = value
            path = self.out_dir / BEST
            save_network(path, "generator", module.painter, self.facts, epoch)
        print(f"Epoch {epoch}: {shown}{' (best so far)' if is_best else ''}.")

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far, as `last.ckpt` keeps it."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the best figure of the run that goes on."""
        self.best = state_dict["best"]
