"""The Lightning Trainer of both training commands."""

import logging
from collections.abc import Iterable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import LayerSync
from torch import nn

from geoseg_gan.models.batch_norm import sync_batch_norms
from geoseg_gan.training.callbacks.precision import MeasuredPrecision, PrecisionChoice
from geoseg_gan.training.settings import TrainingConfig
from geoseg_gan.utils.device import AUTO


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
    config: TrainingConfig, steps: int, callbacks: Iterable[Callback], validate_every: int = 1
) -> L.Trainer:
    """A Trainer that logs to TensorBoard in `out_dir` and leaves checkpoints to callbacks.

    The precision is resolved (see `TrainerSettings.full_precision`). Scalars are logged once in an
    epoch's `steps` at least.
    """
    settings, is_measured = config.trainer, config.precision == AUTO
    processes = config.devices * settings.num_nodes
    strategy = settings.strategy
    if strategy == "auto" and processes > 1:
        # Plain ddp fails where one step leaves the other network's parameters unused.
        strategy = "ddp_find_unused_parameters_true"
    plugins: list[Any] = []
    if is_measured:
        plugins.append(MeasuredPrecision("cuda" if settings.on_gpu() else "cpu"))
        callbacks = [PrecisionChoice(), *callbacks]
    if processes > 1:
        plugins.append(_SharedBatchNorms(settings.on_gpu()))
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return L.Trainer(
        accelerator=settings.accelerator,
        strategy=strategy,
        devices=config.devices,
        num_nodes=settings.num_nodes,
        precision=None if is_measured else config.precision,  # type: ignore[arg-type]
        max_epochs=config.epochs,
        benchmark=True,  # of cuDNN's algorithms: all batches have one size
        plugins=plugins,
        callbacks=[_Bar(), *callbacks],
        logger=TensorBoardLogger(config.out_dir, name=None, version="", default_hp_metric=False),
        log_every_n_steps=min(10, steps),
        enable_model_summary=False,
        use_distributed_sampler=False,  # our sampler splits each batch over the processes
        check_val_every_n_epoch=validate_every,
        num_sanity_val_steps=0,
    )
