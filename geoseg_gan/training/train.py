"""The train command: from a data folder to a generator."""

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from geoseg_gan.config import plain
from geoseg_gan.data.datamodule import GanDataModule
from geoseg_gan.data.sampler import CROPS
from geoseg_gan.data.split import INNER
from geoseg_gan.data.synthetic import check_classes
from geoseg_gan.evaluation.monitor import QuickEvaluation
from geoseg_gan.losses.objective import Objective, check_compatible
from geoseg_gan.losses.settings import ObjectiveSettings
from geoseg_gan.models.checkpoints import RunFacts
from geoseg_gan.models.discriminators.output import Discriminator
from geoseg_gan.models.loaded import load_segmenter, start_from, with_files
from geoseg_gan.models.pretrained.features import MINIMUM_SIZE
from geoseg_gan.models.registry import (
    Generator,
    build_discriminator,
    build_generator,
    check_memory,
    fitting_size,
)
from geoseg_gan.models.settings import ModelSettings
from geoseg_gan.synthesis.recognizer import load_recognizer
from geoseg_gan.training.callbacks.evaluation import BEST, Evaluator
from geoseg_gan.training.callbacks.overfitting import Overfitting
from geoseg_gan.training.callbacks.samples import RunExporter
from geoseg_gan.training.callbacks.timing import Estimate, Throughput, TimeBudget
from geoseg_gan.training.gan import GAN
from geoseg_gan.training.runs import (
    FREE,
    LAST,
    OUTCOME,
    announce,
    check_run,
    data_summary,
    find_run,
    flat,
    refuse_other_data,
    stored_figures,
    write_outcome,
)
from geoseg_gan.training.settings import TrainConfig
from geoseg_gan.training.trainer import build_trainer, fit
from geoseg_gan.training.unlabelled import check_unlabelled, check_unlabelled_images, label
from geoseg_gan.utils.distributed import launch
from geoseg_gan.utils.errors import UserError, check_choice, plural

GENERATORS = "G_e*.pt"
_OTHERS = ("D_e*.pt", BEST, "epoch*_*.jpg", OUTCOME)
_ADAPTIVE = (
    "loss.augment.adaptive=true follows the discriminator's output on training tiles that are held "
    "out"
)
_FREE = (*FREE, "keep_checkpoints", "max_minutes")


def train(config: TrainConfig) -> dict[str, float]:
    """Trains a generator and a discriminator.

    Returns:
        The last logged scalars by name; with evaluation, "objective" is the monitored figure of the
        best epoch, which sweeps optimise. Those of the stored run where it has finished already.

    Raises:
        UserError: If the configuration, the data folder or the output folder is not valid.
    """
    config = with_files(config)
    config = replace(config, precision=config.trainer.full_precision(config.precision))
    if config.unlabelled is not None:
        config = _with_labelled_images(config, Path(config.segmenter_ckpt or ""))
    return launch(_train, config, check, share_cores=True)


def _with_labelled_images(config: TrainConfig, segmenter: Path) -> TrainConfig:
    """Labels the unlabelled images where that is not done; returns the training that mixes them."""
    check(config)
    labelled = Path(config.out_dir) / "labelled"
    if not (Path(config.out_dir) / LAST).exists():
        data = open_data(config)  # refuses what could not be trained on before anything is labelled
        check_unlabelled_images(config, data)
        facts = load_segmenter(segmenter).facts
        check_classes(data.palette, facts.palette, "segmenter_ckpt", segmenter)
        label(config, segmenter, labelled, max(config.image_size, facts.config["image_size"]))
    folders = [*config.synthetic_folders, labelled]
    return replace(config, synthetic=[str(folder) for folder in folders])


def _train(config: TrainConfig) -> dict[str, float]:
    out_dir = Path(config.out_dir)
    stored, has_finished = find_run(config, _FREE, OUTCOME)
    if has_finished:
        return stored_figures(out_dir)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = open_data(config)
    refuse_other_data(config, stored, data.fingerprints)
    facts = RunFacts(plain(config), data.palette, data.scaling(), data.fingerprints)
    module = build_gan(config, data, facts, fresh=stored is None)
    budget = TimeBudget(config.max_minutes)
    exporter = RunExporter(
        *(out_dir, facts, config.checkpoint_minutes, config.trainer.requeue),
        *(data.val_dataset, config.samples, config.kept_epochs),
    )
    evaluator = _evaluator(config, data, facts) if config.evaluate_every else None
    overfitting = _overfitting(config, data)
    callbacks: list[L.Callback] = [budget, Throughput(), Estimate(config.kept_epochs, budget)]
    callbacks += [c for c in (exporter, evaluator, overfitting) if c is not None]
    trainer = build_trainer(config, data.steps_per_epoch, callbacks, stored)
    announce(trainer, config, _summary(config, data, module))
    fit(trainer, module, data, exporter, stored)
    figures = dict(exporter.figures)
    if evaluator is not None and evaluator.best is not None:
        figures["objective"] = evaluator.best
    if trainer.is_global_zero:
        end = {"epochs": trainer.current_epoch, "steps": trainer.global_step}
        seconds = round(budget.used, 1)
        write_outcome(out_dir, figures, monitor=config.monitor, **end, seconds=seconds)
        if "objective" in figures:
            # TensorBoard's HPARAMS tab compares the runs of a sweep by it.
            logger = cast(TensorBoardLogger, trainer.logger)
            objective = {"hp/objective": figures["objective"]}
            logger.log_hyperparams(flat(plain(config)), objective, trainer.global_step)
            logger.finalize("success")
        whole, more = divmod(trainer.global_step, data.steps_per_epoch)
        trained = plural(whole, "epoch") + f" and {plural(more, 'step')}" * bool(more)
        print(f"Trained {trained}: the checkpoints are in {out_dir}.")
    return figures


def check(config: TrainConfig) -> None:
    """Refuses, with a UserError, a configuration before anything slow starts or is written."""
    check_choice("crops", config.crops, CROPS)
    if config.init_from is not None and not config.resume and not Path(config.init_from).is_file():
        raise UserError(
            f"init_from={config.init_from} does not exist. Give the G_e###.pt of the run whose "
            "networks are to be trained further."
        )
    held_out = config.inner_share or config.data.split_file is not None
    if config.loss.augment.adaptive and not held_out:
        raise UserError(f"{_ADAPTIVE}: set inner_share=0.15 or so.")
    if config.evaluate_every:
        asked = f"evaluate_every={config.evaluate_every} needs"
        if config.image_size < MINIMUM_SIZE:
            raise UserError(f"{asked} image_size={MINIMUM_SIZE} or more, not {config.image_size}.")
        if not held_out:
            raise UserError(
                f"{asked} training tiles that are held out: set inner_share=0.15 or so. Validation "
                "tiles are not there to choose by."
            )
        if config.monitor == "agreement" and config.segmenter_ckpt is None:
            raise UserError(
                "monitor=agreement needs a segmenter: set segmenter_ckpt to a segmenter.pt that "
                "train_segmenter wrote, or to an ONNX model."
            )
    if config.unlabelled is not None:
        if config.segmenter_ckpt is None:
            raise UserError(
                f"unlabelled={config.unlabelled}: a segmenter has to label these images. Set "
                "segmenter_ckpt to a segmenter.pt that train_segmenter wrote."
            )
        check_unlabelled(config)
    config.loss.check()
    classes = config.data.classes().num_classes
    check_networks(config.model, config.loss, classes, config.image_size)
    check_run(config, GENERATORS, _OTHERS, config.accumulate)


def check_networks(
    model: ModelSettings, loss: ObjectiveSettings, num_classes: int, image_size: int
) -> int:
    """Refuses, with a UserError, networks that do not fit together, or images of this size.

    Returns:
        A number of pixels whose multiples are all sizes that both networks take.
    """
    settings = plain(model)
    with torch.device("meta"):  # shapes only: no memory, no time
        generator = cast(Generator, build_generator(settings["generator"], num_classes, 3))
        scoring = build_discriminator(settings["discriminator"], num_classes, 3)
        discriminator = cast(Discriminator, scoring)
    check_memory(cast(nn.Module, generator), "model.generator")
    check_memory(scoring, "model.discriminator")
    check_compatible(loss, discriminator.output_kind, generator.noise.channels)
    step = math.lcm(generator.stride, discriminator.minimum_size)
    if image_size % generator.stride or image_size < discriminator.minimum_size:
        names = " and ".join(f"model.{kind}={part['name']}" for kind, part in settings.items())
        raise UserError(
            f"image_size={image_size}: {names} need a multiple of {generator.stride}, at least "
            f"{discriminator.minimum_size}. {fitting_size(image_size, step)}"
        )
    return step


def open_data(config: TrainConfig) -> GanDataModule:
    """The data of a run, found and checked."""
    classes = config.data.classes().num_classes
    data = GanDataModule(
        Path(config.data_root),
        config.data,
        image_size=config.image_size,
        stride=check_networks(config.model, config.loss, classes, config.image_size),
        batch_size=config.bs,
        jitter=config.jitter,
        seed=config.seed,
        on_gpu=config.trainer.on_gpu(),
        inner_share=config.inner_share,
        epoch_steps=config.epoch_steps,
        synthetic=config.synthetic_folders,
        synthetic_ratio=config.synthetic_ratio,
        crops=config.crops,
        regions=config.model.generator.get("region_channels", 0) > 0,
    )
    data.prepare_data()
    data.setup()
    return data


def build_gan(
    config: TrainConfig, data: GanDataModule, facts: RunFacts, *, fresh: bool = True
) -> GAN:
    """The LightningModule of a run, with every weight that it needs.

    A run that is not `fresh` but resumed brings its weights, so that `init_from` does not count.

    Raises:
        UserError: If `init_from` does not fit.
    """
    model, classes, bands = plain(config.model), data.palette.num_classes, data.train_index.bands
    generator = build_generator(model["generator"], classes, bands)
    discriminator = build_discriminator(model["discriminator"], classes, bands)
    if config.init_from is not None and fresh:
        start_from(Path(config.init_from), generator, discriminator, facts)
    module = GAN(
        generator,
        discriminator,
        Objective(config.loss, bands, config.seed),
        num_classes=classes,
        scaling=facts.scaling,
        lr=config.scaled_lr,
        optimizer=config.optimizer,
        seed=config.seed,
        global_batch=config.bs,
        accumulate=config.accumulate,
        speed=config.speed,
    )
    for backbone in (getattr(discriminator, "backbone", None), module.objective.backbone):
        if backbone is not None:
            backbone.load()  # before anything is written: weights may have to be downloaded
    return module


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
        path, like = Path(config.segmenter_ckpt), (facts.palette, facts.scaling)
        recognizer = load_recognizer(path, *like, config.image_size, device, None, config.onnx)
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


def _overfitting(config: TrainConfig, data: GanDataModule) -> Overfitting | None:
    held_out = data.inner_crops()
    if held_out is not None:
        return Overfitting(held_out)
    if config.loss.augment.adaptive:
        named = f"of which {config.data.split_file} names none: give some the part {INNER}"
        raise UserError(f"{_ADAPTIVE}, {named}.")
    return None


def _summary(config: TrainConfig, data: GanDataModule, module: GAN) -> dict[str, str]:
    """What is about to be trained, as lines by title."""
    pairs = plural(len(data.train_index.pairs), "training pair")
    rows = data_summary(config, data, f"{pairs}, ", len(data.val_dataset))
    if data.focus is not None:
        shown = ", ".join(data.palette.names[c] for c in data.focus.classes)
        rows["crops"] = f"{data.focus.share:.0%} placed on these classes in turn: {shown}"
    sizes = (
        f"{kind} {settings['name']} "
        f"{sum(p.numel() for p in getattr(module, kind).parameters()) / 1e6:.1f} M"
        for kind, settings in plain(config.model).items()
    )
    rows["model"] = f"{', '.join(sizes)} parameters"
    limit = ""
    if (most := config.max_minutes) is not None:
        limit = f", at most {plural(int(most) if most == int(most) else most, 'minute')}"
    steps = plural(data.steps_per_epoch, "step")
    rows["training"] = f"{plural(config.epochs, 'epoch')} of {steps}{limit}"
    if config.init_from is not None:
        rows["start"] = f"from the networks of {config.init_from}"
    return rows
