"""The Lightning Trainer of both training commands."""

import logging
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import LayerSync, TorchCheckpointIO
from torch import nn

from geoseg_gan.data.datamodule import PairDataModule
from geoseg_gan.models.batch_norm import sync_batch_norms
from geoseg_gan.training.callbacks.checkpoint import LastCheckpoint
from geoseg_gan.training.callbacks.precision import MeasuredPrecision, PrecisionChoice
from geoseg_gan.training.runs import LAST
from geoseg_gan.training.settings import TrainingConfig
from geoseg_gan.utils.device import AUTO
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path
from geoseg_gan.utils.tables import percent

_OTHER = "Begin another run in a new out_dir."


class _SharedBatchNorms(LayerSync):
    """Batch normalisation over the images of all processes, on GPUs and CPUs."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu

    def apply(self, model: nn.Module) -> nn.Module:
        return sync_batch_norms(model, self.on_gpu)

    def revert(self, model: nn.Module) -> nn.Module:
        return model  # nothing is trained after fit


class _AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all; Lightning's own are copied from /tmp."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        with atomic_path(Path(path)) as scratch, scratch.open("wb") as file:
            torch.save(checkpoint, file)


class _Board(TensorBoardLogger):
    """TensorBoard's files without its hparams.yaml: config.yaml holds the same."""

    def save(self) -> None:
        self.experiment.flush()


class _Bar(RichProgressBar):
    """Lightning's rich bar, which counts epochs from 1, without the version number."""

    def _get_train_description(self, current_epoch: int) -> str:
        text = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        return text.ljust(len(self.validation_description))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        if "images_per_second" in metrics:
            metrics["img/s"] = metrics.pop("images_per_second")
        if "inner/miou" in metrics:
            metrics["mIoU %"] = percent(metrics.pop("inner/miou"))
        return metrics


def build_trainer(
    config: TrainingConfig,
    steps: int,
    callbacks: Iterable[Callback],
    stored: Mapping[str, Any] | None = None,
    validate_every: int = 1,
) -> L.Trainer:
    """A Trainer that logs to TensorBoard in `out_dir` and leaves checkpoints to callbacks.

    The precision is resolved (see `TrainerSettings.full_precision`). Scalars are logged once in an
    epoch's `steps` at least. Of a run that is resumed, as its `last.ckpt` is `stored`, TensorBoard
    shows no step twice.
    """
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
    settings, is_measured = config.trainer, config.precision == AUTO
    processes = config.devices * settings.num_nodes
    strategy = settings.strategy
    if strategy == "auto" and processes > 1:
        # Plain ddp fails where one step leaves the other network's parameters unused.
        strategy = "ddp_find_unused_parameters_true"
    plugins: list[Any] = [_AtomicCheckpoints()]
    if is_measured:
        plugins.append(MeasuredPrecision("cuda" if settings.on_gpu() else "cpu"))
        callbacks = [PrecisionChoice(), *callbacks]
    if processes > 1:
        plugins.append(_SharedBatchNorms(settings.on_gpu()))
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    purge = {} if stored is None else {"purge_step": stored["global_step"] + 1}
    board = _Board(config.out_dir, name=None, version="", default_hp_metric=False, **purge)
    trainer = L.Trainer(
        accelerator=settings.accelerator,
        strategy=strategy,
        devices=config.devices,
        num_nodes=settings.num_nodes,
        precision=None if is_measured else config.precision,  # type: ignore[arg-type]
        max_epochs=config.epochs,
        benchmark=True,  # of cuDNN's algorithms: all batches have one size
        plugins=plugins,
        callbacks=[_Bar(), *callbacks],
        logger=board,
        log_every_n_steps=min(10, steps),
        enable_model_summary=False,
        use_distributed_sampler=False,  # our sampler splits each batch over the processes
        check_val_every_n_epoch=validate_every,
        num_sanity_val_steps=0,
    )
    # `LastCheckpoint` handles them: Lightning's own handler talks to the other processes from
    # inside a step, which can hang, and ends the run without saving it.
    connector: Any = trainer._signal_connector
    connector.register_signal_handlers = lambda: None
    return trainer


def fit(
    trainer: L.Trainer,
    module: L.LightningModule,
    data: PairDataModule,
    exporter: LastCheckpoint,
    stored: Mapping[str, Any] | None,
) -> None:
    """Trains, or goes on with the `stored` run, and sees that nothing of its last epoch is missing.

    Raises:
        Stopped: If a signal has ended training; it is saved by then.
        UserError: If the stored state is not one of this run.
    """
    path = None
    if stored is not None:
        path, loop = exporter.out_dir / LAST, stored["loops"]["fit_loop"]
        epochs, batches = (
            loop[name]["current"] for name in ("epoch_progress", "epoch_loop.batch_progress")
        )
        is_inside = epochs["ready"] > epochs["processed"]
        data.begin = epochs["processed"], batches["processed"] if is_inside else 0
        lacks = [key for key in ("optimizer_states", "lr_schedulers") if not stored[key]]
        if lacks or data.begin[1] >= data.steps_per_epoch:
            what = f"no {lacks[0]}" if lacks else f"{data.begin[1]} batches of an epoch"
            raise UserError(f"{path} holds {what}. {_OTHER}")
        if trainer.is_global_zero:
            after = f" after {data.begin[1]} of {data.steps_per_epoch} steps"
            print(f"Going on in epoch {data.begin[0] + 1}{after if data.begin[1] else ''}.")
    with exporter.noting_signals():
        try:
            trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if path is None or exporter.has_begun:
                raise
            why = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is not a state of this run ({why}). {_OTHER}") from error
        exporter.export(trainer, module, trainer.current_epoch)
