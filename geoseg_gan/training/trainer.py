"""Devices, precision and progress bar: what a Lightning Trainer is made of here."""

import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import LayerSync, MixedPrecision
from torch import Tensor, nn

from geoseg_gan.models.batch_norm import sync_batch_norms
from geoseg_gan.utils.device import AUTO, TrainerSettings, full_precision


class MeasuredPrecision(MixedPrecision):
    """Autocast to bfloat16 where that has been measured to be faster, else float32.

    Until it is measured, and where nothing measures it, it is float32.

    Args:
        device: "cuda" or "cpu".

    Attributes:
        chosen: Lightning's name of the precision that is used; None before it is measured.
    """

    def __init__(self, device: str) -> None:
        """Starts undecided."""
        super().__init__("bf16-mixed", device)
        self.chosen: str | None = None

    def autocast_context_manager(self) -> torch.autocast:
        """Autocast, switched off where float32 is used."""
        return torch.autocast(
            self.device,
            dtype=torch.bfloat16,
            enabled=self.chosen == "bf16-mixed",
            cache_enabled=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """What was chosen, so that a run that is resumed goes on with it."""
        return {"chosen": self.chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what was chosen."""
        self.chosen = state_dict["chosen"]


def backward(loss: Tensor) -> None:
    """Adds a loss's gradients up, as `GAN.step` wants it where no Trainer does it."""
    loss.backward()  # type: ignore[no-untyped-call]


def now(device: torch.device) -> float:
    """The time in seconds once a device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _SharedBatchNorms(LayerSync):
    """Batch normalisation over the images of all processes, on GPUs and CPUs."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu

    def apply(self, model: nn.Module) -> nn.Module:
        return sync_batch_norms(model, self.on_gpu)

    def revert(self, model: nn.Module) -> nn.Module:
        return model  # nothing is trained after fit


class _Bar(RichProgressBar):
    """Lightning's rich bar without the version number."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The logged values, to three digits."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return dict(metrics)


def build_trainer(
    settings: TrainerSettings,
    *,
    out_dir: Path,
    epochs: int,
    devices: int,
    precision: str,
    steps: int,
    callbacks: list[Callback],
    validate_every: int = 1,
) -> L.Trainer:
    """A Trainer that logs to TensorBoard in `out_dir` and leaves checkpoints to callbacks.

    Args:
        settings: Where it runs.
        out_dir: Where TensorBoard's events go.
        epochs: How many epochs it trains.
        devices: How many devices or processes of each machine share a batch.
        precision: Lightning's name for it, its short form, or AUTO.
        steps: Batches an epoch, which bound how seldom scalars are logged.
        callbacks: What acts beside the progress bar.
        validate_every: Epochs from one validation to the next.
    """
    processes = devices * settings.num_nodes
    strategy = settings.strategy
    if strategy == "auto" and processes > 1:
        # Plain ddp fails where one step leaves the other network's parameters unused.
        strategy = "ddp_find_unused_parameters_true"
    plugins: list[Any] = []
    if precision == AUTO:
        plugins.append(MeasuredPrecision("cuda" if settings.on_gpu() else "cpu"))
    if processes > 1:
        plugins.append(_SharedBatchNorms(settings.on_gpu()))
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return L.Trainer(
        accelerator=settings.accelerator,
        strategy=strategy,
        devices=devices,
        num_nodes=settings.num_nodes,
        precision=None if precision == AUTO else full_precision(precision),  # type: ignore[arg-type]
        max_epochs=epochs,
        benchmark=True,  # of cuDNN's algorithms: all batches have one size
        plugins=plugins,
        callbacks=[_Bar(), *callbacks],
        logger=TensorBoardLogger(out_dir, name=None, version="", default_hp_metric=False),
        log_every_n_steps=min(10, steps),
        enable_model_summary=False,
        use_distributed_sampler=False,  # our sampler splits each batch over the processes
        check_val_every_n_epoch=validate_every,
        num_sanity_val_steps=0,
    )
