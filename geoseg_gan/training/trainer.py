"""The Lightning Trainer of both training commands."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import LayerSync
from torch import nn

from geoseg_gan.models.batch_norm import sync_batch_norms
from geoseg_gan.training.callbacks.precision import MeasuredPrecision, PrecisionChoice
from geoseg_gan.utils.device import AUTO, TrainerSettings
from geoseg_gan.utils.errors import UserError


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
        precision: Lightning's full name of it, or AUTO.
        steps: Batches an epoch, which bound how seldom scalars are logged.
        callbacks: Beside the progress bar and the choice of a precision.
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
        callbacks = [PrecisionChoice(), *callbacks]
    if processes > 1:
        plugins.append(_SharedBatchNorms(settings.on_gpu()))
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return L.Trainer(
        accelerator=settings.accelerator,
        strategy=strategy,
        devices=devices,
        num_nodes=settings.num_nodes,
        precision=None if precision == AUTO else precision,  # type: ignore[arg-type]
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


def check_batch(bs: int, devices: int, num_nodes: int, accumulate: int = 1) -> None:
    """Refuses a batch that cannot be divided over devices, machines and micro-batches.

    Raises:
        UserError: Naming the factors.
    """
    if bs % (devices * num_nodes * accumulate):
        machines = f", times trainer.num_nodes={num_nodes}" if num_nodes > 1 else ""
        parts = f", times accumulate={accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"bs={bs} is the batch over all devices and must be a multiple of "
            f"devices={devices}{machines}{parts}."
        )
