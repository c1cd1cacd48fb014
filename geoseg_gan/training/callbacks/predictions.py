"""What a segmenter's training saves: pictures of predictions, the best weights, `last.ckpt`."""

from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch.utils.data import default_collate

from geoseg_gan.data.dataset import WindowDataset
from geoseg_gan.data.palette import Palette
from geoseg_gan.training.callbacks.checkpoint import LastCheckpoint
from geoseg_gan.training.segmenter import Segmenter
from geoseg_gan.utils.pictures import RGB, beside, evenly_spaced
from geoseg_gan.utils.plots import confusion_picture

SELECTED_BY = "inner/miou"
"""The figure by which the best epoch is selected."""


@dataclass(eq=False)
class SegmenterExporter(LastCheckpoint):
    """Keeps the weights of the best epoch on held-out tiles, and what resuming needs.

    With every validation TensorBoard gets the confusion matrix of the held-out tiles and a grid of
    image, mask and prediction.

    Attributes:
        dataset: Where the shown windows come from; None for no pictures.
        keep_best: Whether to keep the best epoch's weights; else the last ones count.
        samples: How many windows are shown.
        best_score: That of `SELECTED_BY`.
        best_epoch: 0 where none is kept.
        best_weights: Its weights, on the CPU.
    """

    dataset: WindowDataset | None
    keep_best: bool
    samples: int
    best_score: float = -1.0
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] | None = None

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keeps the best weights, and saves."""
        assert isinstance(module, Segmenter)
        score = float(trainer.callback_metrics.get(SELECTED_BY, torch.nan))
        if self.keep_best and (score > self.best_score or self.best_weights is None):
            self.best_score, self.best_epoch = score, trainer.current_epoch + 1
            weights = module.inference_network.state_dict()
            self.best_weights = {name: value.cpu().clone() for name, value in weights.items()}
        super().on_train_epoch_end(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Adds the pictures to TensorBoard."""
        assert isinstance(module, Segmenter)
        if not trainer.is_global_zero or trainer.logger is None or not self.samples:
            return
        board = cast(Any, trainer.logger).experiment
        step = trainer.global_step
        if self.dataset is not None:
            grid = prediction_grid(module, self.facts.palette, self.dataset, self.samples)
            board.add_image("image, mask, prediction", grid, step, dataformats="HWC")
        if module.confusion.numel():
            matrix = confusion_picture(module.confusion.cpu().numpy(), module.names)
            board.add_image("inner/confusion", matrix, step, dataformats="HWC")

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far, as `last.ckpt` keeps it."""
        best = {"score": self.best_score, "epoch": self.best_epoch}
        return super().state_dict() | best | {"weights": self.best_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best epoch of a resumed run."""
        super().load_state_dict(state_dict)
        self.best_score, self.best_epoch = state_dict["score"], state_dict["epoch"]
        self.best_weights = state_dict["weights"]


def prediction_grid(
    module: Segmenter, palette: Palette, dataset: WindowDataset, samples: int
) -> RGB:
    """Image, mask and prediction of 1 or more windows, evenly spread over a dataset, a row each."""
    shown = evenly_spaced(len(dataset), min(samples, len(dataset)))
    sample = default_collate([dataset[i] for i in shown])
    network, device = module.inference_network, next(module.inference_network.parameters()).device
    was_training = network.training
    network.eval()
    with torch.no_grad():
        logits = network(module.scaling.to_network(sample["image"].to(device)))
    network.train(was_training)
    predicted = logits.argmax(1).cpu().numpy()
    pictures = []
    for pixels, label, guess in zip(sample["image"], sample["label"], predicted, strict=True):
        image = module.scaling.to_rgb(np.moveaxis(pixels.numpy(), 0, -1))
        pictures += [image, palette.color_table[label.numpy()], palette.color_table[guess]]
    return beside(pictures, 3, ("image", "mask", "prediction"))
