"""The LightningModule of a segmenter."""

import math
from collections.abc import Sequence
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from geoseg_gan.data.augment import jitter_color
from geoseg_gan.data.batch import ImageScaling, Sample
from geoseg_gan.data.settings import ColorStep
from geoseg_gan.losses.segmentation import SegmentationLoss
from geoseg_gan.losses.terms import Terms
from geoseg_gan.training.average import move_average, start_average
from geoseg_gan.training.settings import SegmenterOptimizerSettings
from geoseg_gan.utils.confusion import class_iou, confusion_matrix, mean_iou


class Segmenter(L.LightningModule):
    """Trains a segmenter, and measures its IoU on real tiles that are held out of training.

    Args:
        network: Gives logits (B, C, H, W) for images (B, K, H, W) in [-1, 1]. What is evaluated and
            saved is the moving average of its weights, where one is kept.
        loss: Of logits and labels.
        names: Of the C classes.
        scaling: From stored image values to [-1, 1].
        lr: The highest learning rate.
        optimizer: Weight decay, warm-up, clipping and moving average.
        color: Random brightness and colour of training images.
        seed: Fixes brightness and colour of every sample of the run.
        global_batch: Batch size over all processes.

    Attributes:
        confusion: Pixels by true and predicted class in the last pass over the held-out tiles,
            int64, shape (C, C).
        last_loss: The loss of the last step, a scalar.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: SegmentationLoss,
        *,
        names: Sequence[str],
        scaling: ImageScaling,
        lr: float,
        optimizer: SegmenterOptimizerSettings,
        color: ColorStep,
        seed: int,
        global_batch: int,
    ) -> None:
        """Keeps the parts; `configure_optimizers` makes the optimiser."""
        super().__init__()
        self.network = network
        self.average = start_average(network, optimizer.ema)
        self.loss = loss
        self.names = list(names)
        self.scaling = scaling
        self.lr = lr
        self.optimizer_settings = optimizer
        self.color = color
        self.seed = seed
        self.global_batch = global_batch
        self.confusion = torch.zeros(0)
        self.last_loss = torch.zeros(())

    @property
    def inference_network(self) -> nn.Module:
        """What is evaluated and saved: the moving average, where one is kept."""
        return self.network if self.average is None else self.average

    def training_step(self, sample: Sample, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        terms = self._terms(sample)
        total = terms.total()
        self.last_loss = total.detach()
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        optimizer = cast(LightningOptimizer, self.optimizers())
        self.log("lr", cast(float, optimizer.param_groups[0]["lr"]))
        self.log("loss", total.detach(), prog_bar=True, logger=False)
        return total

    def backward_only(self, sample: Sample) -> None:
        """Computes all gradients of a step on a batch, and updates no weight."""
        self.zero_grad()
        torch.autograd.backward(self._terms(sample).total())

    def _terms(self, sample: Sample) -> Terms:
        """The loss terms of a training batch."""
        image = self.scaling.to_network(sample["image"])
        local = image.shape[0]
        first = self.global_step * self.global_batch + self.global_rank * local
        image = jitter_color(image, self.color, self.seed, range(first, first + local))
        return self.loss(self.network(image), sample["label"])

    def on_validation_epoch_start(self) -> None:
        """Starts counting."""
        classes = len(self.names)
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=self.device)

    def validation_step(self, sample: Sample, batch_idx: int) -> None:
        """Counts one batch of held-out windows."""
        logits = self.inference_network(self.scaling.to_network(sample["image"]))
        self.confusion += confusion_matrix(sample["label"], logits.argmax(1), len(self.names))

    def on_validation_epoch_end(self) -> None:
        """Logs IoU by class and mIoU over the windows of all processes."""
        if self.trainer.world_size > 1:
            self.confusion = self.trainer.strategy.reduce(self.confusion, reduce_op="sum")
        self.log("inner/miou", mean_iou(self.confusion), prog_bar=True)
        self.log_dict(iou_scores(self.confusion, self.names, "inner_iou"))

    def configure_optimizers(self) -> Any:
        """AdamW, with a new learning rate at every step."""
        # A fused step takes a tenth of the time on a CPU; it would clip gradients still scaled.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        decay = self.optimizer_settings.weight_decay
        optimizer = AdamW(self.network.parameters(), self.lr, weight_decay=decay, fused=not scaled)
        schedule = {"scheduler": LambdaLR(optimizer, self._lr_factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Updates the weights, and moves their average."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            ema = self.optimizer_settings.ema
            move_average(self.average, self.network, ema, self.global_step + 1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips gradients, which are unscaled here under every precision."""
        if self.optimizer_settings.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.optimizer_settings.clip)

    def _lr_factor(self, step: int) -> float:
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warm_up = self.optimizer_settings.warm_up * total
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / (total - warm_up))))


def iou_scores(confusion: Tensor, names: Sequence[str], prefix: str) -> dict[str, float]:
    """IoU by class as named figures, without classes that occur in neither label nor prediction."""
    ious = class_iou(confusion).tolist()
    return {f"{prefix}/{n}": v for n, v in zip(names, ious, strict=True) if not math.isnan(v)}
