"""Devices, precision and progress bar: what a Lightning Trainer is made of here."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import LayerSync
from torch import nn

from geoseg_gan.errors import UserError, check_choice
from geoseg_gan.models.layers import share_batch_norms
from geoseg_gan.speed import MeasuredPrecision

ACCELERATORS = ("auto", "cpu", "gpu")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
AUTO = "auto"
"""The precision that is measured: see `MeasuredPrecision`."""
_SHORT_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass
class TrainerSettings:
    """Where a command runs.

    Attributes:
        accelerator: "auto", "cpu" or "gpu".
        strategy: Lightning's name of a strategy; "auto" fits it to the number of devices.
        num_nodes: How many machines, each with `devices` devices, share a batch.
    """

    accelerator: str = "auto"
    strategy: str = "auto"
    num_nodes: int = 1

    def check(self, devices: int = 1, precision: str = "32-true") -> None:
        """Refuses devices and precisions that are not there.

        Args:
            devices: How many devices a machine is to use.
            precision: Lightning's name for it, or its short form.

        Raises:
            UserError: Naming the key, its value and what is there.
        """
        check_choice("trainer.accelerator", self.accelerator, ACCELERATORS)
        check_choice("precision", full_precision(precision), PRECISIONS)
        gpus = torch.cuda.device_count()
        if self.accelerator == "gpu" and not gpus:
            raise UserError("trainer=gpu: no GPU is visible. Use trainer=auto or trainer=cpu.")
        if devices < 1 or (self.on_gpu() and devices > gpus):
            raise UserError(f"devices={devices}: use 1 to {gpus or 'the number of processes'}.")
        if self.num_nodes < 1:
            raise UserError(f"trainer.num_nodes={self.num_nodes}: use 1 or more.")
        if full_precision(precision) == "16-mixed" and not self.on_gpu():
            raise UserError("precision=16-mixed needs a GPU. Use bf16-mixed or 32-true.")

    def on_gpu(self) -> bool:
        """Whether the work will run on a GPU."""
        return self.accelerator != "cpu" and torch.cuda.is_available()

    def device(self) -> torch.device:
        """The device of a command that needs no Trainer."""
        return torch.device("cuda" if self.on_gpu() else "cpu")


class _SharedBatchNorms(LayerSync):
    """Batch normalisation over the images of all processes, on GPUs and CPUs."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu

    def apply(self, model: nn.Module) -> nn.Module:
        return share_batch_norms(model, self.on_gpu)

    def revert(self, model: nn.Module) -> nn.Module:
        return model  # nothing is trained after fit


class _Bar(RichProgressBar):
    """Lightning's rich bar without the version number."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The logged values, to three digits."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return dict(metrics)


def full_precision(name: str) -> str:
    """Lightning's full name for a precision's short one, as in 32 for 32-true."""
    return _SHORT_PRECISIONS.get(name, name)


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
