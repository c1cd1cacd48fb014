"""The train command: from a data folder to a generator."""

import time
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from geoseg_gan.config import plain, write_yaml
from geoseg_gan.data.datamodule import GanDataModule
from geoseg_gan.data.sampler import CROPS
from geoseg_gan.data.split import INNER
from geoseg_gan.data.stream import check_root
from geoseg_gan.evaluation.monitor import QuickEvaluation
from geoseg_gan.losses.objective import Objective, check_fit
from geoseg_gan.losses.settings import ObjectiveSettings
from geoseg_gan.models.checkpoints import RunFacts, start_from
from geoseg_gan.models.discriminators.output import Discriminator
from geoseg_gan.models.pretrained.features import MINIMUM_SIZE
from geoseg_gan.models.registry import Generator, build_discriminator, build_generator
from geoseg_gan.models.settings import ModelSettings
from geoseg_gan.synthesis.recognizer import load_recognizer
from geoseg_gan.training.callbacks.evaluation import MONITORS, Evaluator
from geoseg_gan.training.callbacks.overfitting import Overfitting
from geoseg_gan.training.callbacks.precision import PrecisionChoice
from geoseg_gan.training.callbacks.samples import RunExporter
from geoseg_gan.training.callbacks.timing import Estimate, Throughput, TimeBudget
from geoseg_gan.training.gan import GAN
from geoseg_gan.training.runs import FREE, check_out_dir, flat, point_to_resume, write_result
from geoseg_gan.training.settings import TrainConfig
from geoseg_gan.training.trainer import build_trainer
from geoseg_gan.utils.device import AUTO
from geoseg_gan.utils.distributed import launch
from geoseg_gan.utils.errors import UserError, check_choice, plural


def check_networks(
    model: ModelSettings, loss: ObjectiveSettings, num_classes: int, image_size: int
) -> None:
    """Refuses networks that cannot be built, do not take this image size, or do not fit together.

    Args:
        model: Settings of generator and discriminator.
        loss: The recipe that is to train them.
        num_classes: How many classes the palette has.
        image_size: Side of the images in pixels.

    Raises:
        UserError: Naming the setting and the sizes that fit.
    """
    settings = plain(model)
    with torch.device("meta"):  # shapes only: no memory, no time
        generator = cast(Generator, build_generator(settings["generator"], num_classes, 3))
        discriminator = cast(
            Discriminator, build_discriminator(settings["discriminator"], num_classes, 3)
        )
    check_fit(loss, discriminator.output_kind, generator.noise.channels)
    if image_size % generator.stride:
        fitting = max(1, round(image_size / generator.stride)) * generator.stride
        raise UserError(
            f"image_size={image_size} is not a multiple of {generator.stride}, which "
            f"model.generator={settings['generator']['name']} needs. Use e.g. "
            f"image_size={fitting}, or a smaller model.generator.depth."
        )
    if image_size < discriminator.minimum_size:
        raise UserError(
            f"image_size={image_size} is too small for the discriminator, which needs "
            f"{discriminator.minimum_size}. Enlarge it, or lower model.discriminator.scales or "
            "layers."
        )


RESULT = "G_e*.pt"


FREE_ON_RESUME = (*FREE, "keep_checkpoints", "max_minutes")

"""Settings that may differ between a run and its continuation."""


SCALES = ("none", "linear")


def train(config: TrainConfig) -> dict[str, float]:
    """Trains a generator and a discriminator.

    Args:
        config: What to train on what, and how.

    Returns:
        The last logged scalars by name; with evaluation, "objective" is the monitored figure of the
        best epoch, which sweeps optimise.

    Raises:
        UserError: If the configuration, the data folder or the output folder is not as it must be.
    """
    return launch(_train, config, check, share_cores=True)


def _train(config: TrainConfig) -> dict[str, float]:
    settings = plain(config)
    out_dir = Path(config.out_dir)
    last = (
        point_to_resume(out_dir, settings, FREE_ON_RESUME, config.epochs, RESULT)
        if config.resume
        else None
    )
    L.seed_everything(config.seed, workers=True, verbose=False)
    datamodule = GanDataModule(
        Path(config.data_root),
        config.data,
        image_size=config.image_size,
        batch_size=config.bs,
        jitter=config.jitter,
        seed=config.seed,
        on_gpu=config.trainer.on_gpu(),
        inner_share=config.inner_share,
        epoch_steps=config.epoch_steps,
        crops=config.crops,
        regions=settings["model"]["generator"]["region_channels"] > 0,
    )
    datamodule.prepare_data()
    datamodule.setup()
    facts = RunFacts(settings, datamodule.palette, datamodule.scaling())
    classes, bands = datamodule.palette.num_classes, datamodule.train_index.bands
    generator = build_generator(settings["model"]["generator"], classes, bands)
    discriminator = build_discriminator(settings["model"]["discriminator"], classes, bands)
    if config.init_from is not None and last is None:
        start_from(Path(config.init_from), generator, discriminator, facts)
    module = GAN(
        generator,
        discriminator,
        Objective(config.loss, bands, config.seed),
        num_classes=classes,
        scaling=facts.scaling,
        lr=config.lr * (config.bs / config.base_bs if config.scale_lr == "linear" else 1),
        optimizer=config.optimizer,
        seed=config.seed,
        global_batch=config.bs,
        accumulate=config.accumulate,
        speed=config.speed,
    )
    for backbone in (getattr(module.discriminator, "backbone", None), module.objective.backbone):
        if backbone is not None:
            backbone.load()  # before anything is written: weights may have to be downloaded
    keep = _kept(config)
    exporter = RunExporter(out_dir, facts, datamodule.val_dataset, config.samples, keep)
    callbacks: list[L.Callback] = [PrecisionChoice()] if config.precision == AUTO else []
    callbacks += [Throughput(), Estimate(keep, config.max_minutes), exporter]
    evaluator = _evaluator(config, datamodule, facts) if config.evaluate_every else None
    if evaluator is not None:
        callbacks.append(evaluator)
    if (held_out := datamodule.inner_crops()) is not None:
        callbacks.append(Overfitting(held_out))
    elif config.loss.augment.adaptive:
        raise UserError(
            "loss.augment.adaptive=true follows how the discriminator judges training tiles that "
            f"are held out, of which {config.data.split_file} names none: give some the part "
            f"{INNER}."
        )
    if config.max_minutes is not None:
        callbacks.append(TimeBudget(config.max_minutes))
    trainer = build_trainer(
        config.trainer,
        out_dir=out_dir,
        epochs=config.epochs,
        devices=config.devices,
        precision=config.precision,
        steps=datamodule.steps_per_epoch,
        callbacks=callbacks,
    )
    if trainer.is_global_zero:
        write_yaml(out_dir / "config.yaml", config)
        cast(TensorBoardLogger, trainer.logger).log_hyperparams(flat(settings))
        _summarise(config, datamodule, module)
    started = time.monotonic()
    trainer.fit(module, datamodule=datamodule, ckpt_path=last, weights_only=True)
    figures = {name: float(value) for name, value in trainer.logged_metrics.items()}
    if evaluator is not None and evaluator.best is not None:
        figures["objective"] = evaluator.best
    if trainer.is_global_zero:
        _record(trainer, settings, figures, time.monotonic() - started)
    return figures


def check(config: TrainConfig) -> None:
    """Refuses a configuration before anything slow starts or anything is written.

    Raises:
        UserError: Naming the key, its value and what to do.
    """
    for key in ("epochs", "bs", "lr", "base_bs", "accumulate", "image_size"):
        if getattr(config, key) <= 0:
            raise UserError(f"{key}={getattr(config, key)} must be positive.")
    if config.samples < 0 or config.seed < 0:
        raise UserError(f"samples={config.samples} and seed={config.seed} must be 0 or more.")
    if config.max_minutes is not None and config.max_minutes <= 0:
        raise UserError(f"max_minutes={config.max_minutes} must be positive, or null.")
    if config.epoch_steps is not None and config.epoch_steps < 1:
        raise UserError(f"epoch_steps={config.epoch_steps}: use 1 or more, or null.")
    if not 0 <= config.inner_share <= 0.5:
        raise UserError(f"inner_share={config.inner_share}: use a share from 0 to 0.5.")
    check_choice("crops", config.crops, CROPS)
    if config.init_from is not None and not config.resume and not Path(config.init_from).is_file():
        raise UserError(
            f"init_from={config.init_from} does not exist. Give the G_e###.pt of the run whose "
            "networks are to be trained on."
        )
    _check_evaluation(config)
    if config.loss.augment.adaptive and not config.inner_share and config.data.split_file is None:
        raise UserError(
            "loss.augment.adaptive=true follows how the discriminator judges training tiles that "
            "are held out: set inner_share=0.15 or so."
        )
    _kept(config)
    check_choice("scale_lr", config.scale_lr, SCALES)
    if config.precision == AUTO:
        config.trainer.check(config.devices)
    else:
        config.trainer.check(config.devices, config.precision)
    nodes = config.trainer.num_nodes
    if config.bs % (config.devices * nodes * config.accumulate):
        machines = f", times trainer.num_nodes={nodes}" if nodes > 1 else ""
        parts = f", times accumulate={config.accumulate}" if config.accumulate > 1 else ""
        raise UserError(
            f"bs={config.bs} is the batch over all devices and must be a multiple of "
            f"devices={config.devices}{machines}{parts}."
        )
    config.speed.check()
    config.optimizer.check()
    config.loss.check()
    classes = config.data.classes().num_classes
    check_networks(config.model, config.loss, classes, config.image_size)
    check_root(config.data, Path(config.data_root))
    check_out_dir(Path(config.out_dir), config.resume, RESULT)


def _check_evaluation(config: TrainConfig) -> None:
    check_choice("monitor", config.monitor, MONITORS)
    if config.evaluate_every < 0 or config.evaluate_samples < 2:
        raise UserError(
            f"evaluate_every={config.evaluate_every} must be 0 or more, and evaluate_samples="
            f"{config.evaluate_samples} 2 or more."
        )
    if not config.evaluate_every:
        return
    if config.image_size < MINIMUM_SIZE:
        raise UserError(
            f"evaluate_every={config.evaluate_every} needs image_size={MINIMUM_SIZE} or more, not "
            f"{config.image_size}."
        )
    if not config.inner_share and config.data.split_file is None:
        raise UserError(
            f"evaluate_every={config.evaluate_every} needs training tiles that are held out: set "
            "inner_share=0.15 or so. Validation tiles are not there to choose by."
        )
    if config.monitor == "agreement" and config.segmenter_ckpt is None:
        raise UserError(
            "monitor=agreement needs a segmenter: set segmenter_ckpt to a segmenter.pt that "
            "train_segmenter wrote, or to an ONNX model."
        )


def _evaluator(config: TrainConfig, data: GanDataModule, facts: RunFacts) -> Evaluator:
    held_out = data.inner_dataset
    if held_out is None or len(held_out) < 2:
        raise UserError(
            f"evaluate_every={config.evaluate_every}: the tiles that are held out make no two "
            f"windows of {config.image_size} px. Hold out more of them: with a larger inner_share, "
            f"or as part {INNER} of data.split_file."
        )
    device = config.trainer.device()
    recognizer = None
    if config.segmenter_ckpt is not None:
        path = Path(config.segmenter_ckpt)
        size = config.image_size
        recognizer = load_recognizer(
            path, facts.palette, facts.scaling, size, device, None, config.onnx
        )
    evaluation = QuickEvaluation(
        held_out,
        data.train_windows(),
        facts.palette,
        facts.scaling,
        samples=config.evaluate_samples,
        device=device,
        recognizer=recognizer,
    )
    out_dir = Path(config.out_dir)
    return Evaluator(out_dir, facts, evaluation, config.evaluate_every, config.monitor)


def _kept(config: TrainConfig) -> int | None:
    value = config.keep_checkpoints
    if value == "all":
        return None
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"keep_checkpoints={value}: use all, or a number from 1.")
    return int(value)


def _record(
    trainer: L.Trainer, settings: dict[str, Any], figures: dict[str, float], seconds: float
) -> None:
    """Leaves what the run has come to, for sweeps: in a file, and for TensorBoard's HPARAMS tab."""
    write_result(
        Path(settings["out_dir"]),
        figures,
        monitor=settings["monitor"],
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        seconds=round(seconds, 1),
    )
    if "objective" in figures:
        logger = cast(TensorBoardLogger, trainer.logger)
        logger.log_hyperparams(
            flat(settings), {"hp/objective": figures["objective"]}, trainer.global_step
        )
        logger.finalize("success")


def _summarise(config: TrainConfig, data: GanDataModule, module: GAN) -> None:
    """One screen on what is about to happen."""
    index = data.train_index
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(
        "data",
        f"{config.data_root}: {plural(len(index.pairs), 'training pair')}, "
        f"{plural(len(data.val_dataset), 'validation window')} of {config.image_size} px, "
        f"{plural(index.bands, 'band')} of {index.dtype}",
    )
    shares = zip(data.palette.names, index.class_shares(), strict=True)
    table.add_row("classes", ", ".join(f"{name} {share:.1%}" for name, share in shares))
    if data.focus is not None:
        shown = ", ".join(data.palette.names[c] for c in data.focus.classes)
        table.add_row("crops", f"{data.focus.share:.0%} placed on these classes in turn: {shown}")
    sizes = (
        sum(p.numel() for p in network.parameters()) / 1e6
        for network in (module.generator, module.discriminator)
    )
    names = plain(config.model)
    table.add_row(
        "model",
        "generator {} {:.1f} M, discriminator {} {:.1f} M parameters".format(
            names["generator"]["name"], next(sizes), names["discriminator"]["name"], next(sizes)
        ),
    )
    where = "GPU" if config.trainer.on_gpu() else "CPU"
    table.add_row("device", f"{config.devices} x {where}, precision {config.precision}")
    limit = f", at most {config.max_minutes:g} minutes" if config.max_minutes else ""
    table.add_row(
        "training",
        f"{plural(config.epochs, 'epoch')} of {plural(data.steps_per_epoch, 'step')}{limit}",
    )
    if config.init_from is not None:
        table.add_row("start", f"from the networks of {config.init_from}")
    table.add_row("output", config.out_dir)
    table.add_row("watch", f"tensorboard --logdir {config.out_dir}")
    Console().print(table)
