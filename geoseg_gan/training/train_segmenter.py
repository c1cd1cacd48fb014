"""The train_segmenter command: from real pairs, or real and synthetic ones, to a segmenter."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from geoseg_gan.config import plain
from geoseg_gan.data.batch import Sample
from geoseg_gan.data.dataset import WindowDataset
from geoseg_gan.data.segmenter_datamodule import SegmenterDataModule
from geoseg_gan.data.synthetic import GENERATION
from geoseg_gan.losses.segmentation import SegmentationLoss
from geoseg_gan.models.checkpoints import (
    RunFacts,
    SegmenterEvaluation,
    read_training_state,
    save_network,
)
from geoseg_gan.models.segmenters import build_segmenter, check_segmenter, divide_logits
from geoseg_gan.training.calibration import PixelSample
from geoseg_gan.training.callbacks.predictions import SegmenterExporter, prediction_grid
from geoseg_gan.training.callbacks.timing import Estimate, Throughput
from geoseg_gan.training.runs import (
    FREE,
    LAST,
    announce,
    check_run,
    data_summary,
    find_run,
    refuse_other_data,
)
from geoseg_gan.training.segmenter import Segmenter, iou_scores
from geoseg_gan.training.settings import TrainSegmenterConfig
from geoseg_gan.training.trainer import build_trainer, fit
from geoseg_gan.training.unlabelled import check_unlabelled, check_unlabelled_images, label
from geoseg_gan.utils.confusion import TileConfusions, confusion_matrix, mean_iou
from geoseg_gan.utils.distributed import launch
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import atomic_path, write_json
from geoseg_gan.utils.pictures import write_picture
from geoseg_gan.utils.plots import confusion_picture
from geoseg_gan.utils.reading import Number, read_json
from geoseg_gan.utils.tables import percent, print_table

SEGMENTER = "segmenter.pt"
SCORES = "scores.json"
"""The figures, written last: a run that has left them has finished."""

TILES = "tiles.npz"
"""Confusion matrices of every tile: `TileConfusions` under the names "inner" and "val"."""

_OTHERS = (SCORES, TILES, "confusion_*.png", "predictions_*.png")
_ROUND = "round_{}"  # folder in out_dir of a segmenter that labels images
_EPOCHS = 30  # of epochs=0, where they come to enough steps
_ENOUGH = 1000  # steps; docs/segmenter.md has what fewer cost
_TEST = 100  # steps; fewer are a test of the settings, which needs no advice
_FACTS = ("epoch", "steps")  # what the figures' file says of the run itself


def train_segmenter(config: TrainSegmenterConfig) -> dict[str, float]:
    """Trains a segmenter on real pairs, or on a mix of real and synthetic ones.

    With `unlabelled`, a first segmenter is trained in `out_dir/round_0`, and labels these images in
    `out_dir/labelled_1`, which are mixed into the second one's training; and so on in all rounds.

    Returns:
        Figures by name: "val/miou" on the real validation split, "inner/miou" on the training
        tiles that were held out, and the IoU of every class. Those of the stored run where it has
        finished already.

    Raises:
        UserError: If the configuration, a data folder or the output folder is not valid.
    """
    config = replace(config, precision=config.trainer.full_precision(config.precision))
    if config.unlabelled is not None:
        config = _with_labelled_images(config)
    scores = launch(_train_segmenter, config, check, share_cores=True)
    if config.unlabelled is not None and (text := _against_first(config, scores)):
        print(text)
    return scores


def _with_labelled_images(config: TrainSegmenterConfig) -> TrainSegmenterConfig:
    """Labels the unlabelled images, in rounds; returns the training that mixes them in.

    What an interrupted call has finished is not computed again, if settings and data are the same.
    """
    check(config)
    out_dir, own = Path(config.out_dir), [str(folder) for folder in config.synthetic_folders]
    if (out_dir / LAST).exists() and not (out_dir / f"labelled_{config.rounds}").is_dir():
        raise UserError(
            f"rounds={config.rounds}: the run in {out_dir} has had fewer. Start a new run in "
            "another out_dir."
        )
    if (out_dir / LAST).exists():  # all rounds are over, whatever its folders are called by now
        last = str(out_dir / f"labelled_{config.rounds}")
        return replace(config, synthetic=[*own, last])
    first = out_dir / _ROUND.format(0)
    if (first / LAST).is_file() and not config.resume:
        raise UserError(
            f"out_dir={out_dir} holds {first.name} of a run already. Continue it with resume=true, "
            "or choose another out_dir."
        )
    data = _open_data(config)
    check_unlabelled_images(config, data)
    if (first / LAST).is_file():
        state = read_training_state(first / LAST)
        refuse_other_data(replace(config, out_dir=str(first)), state, data.fingerprints)
    mixed = replace(config, unlabelled=None, rounds=1, synthetic=own or None)
    for number in range(config.rounds):
        augment = mixed.augment
        if not mixed.synthetic:  # whose colours it could match
            augment = replace(augment, match_colors=replace(augment.match_colors, p=0.0))
        teacher, labelled = out_dir / _ROUND.format(number), out_dir / f"labelled_{number + 1}"
        print(f"Round {number + 1} of {config.rounds}: {teacher} labels {config.unlabelled}.")
        has_run = (teacher / LAST).is_file()
        settings = replace(mixed, augment=augment, out_dir=str(teacher), resume=has_run)
        if (labelled / GENERATION).is_file():  # what has labelled them is not trained on
            stored = read_training_state(teacher / LAST)["config"]
            settings = replace(settings, epochs=stored["epochs"])
        train_segmenter(settings)
        label(config, teacher / SEGMENTER, labelled)
        mixed = replace(mixed, synthetic=[*own, str(labelled)])
    return replace(mixed, unlabelled=config.unlabelled, rounds=config.rounds)


def _train_segmenter(config: TrainSegmenterConfig) -> dict[str, float]:
    out_dir = Path(config.out_dir)
    stored, has_finished = find_run(config, FREE, SCORES)
    if has_finished:
        return _stored_scores(out_dir)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = _open_data(config)
    refuse_other_data(config, stored, data.fingerprints)
    if not config.epochs:
        epochs = max(_EPOCHS, math.ceil(_ENOUGH / data.steps_per_epoch))
        epochs = epochs if stored is None else stored["config"]["epochs"]
        config, data.epochs = replace(config, epochs=epochs), epochs
    facts = RunFacts(plain(config), data.palette, data.scaling(), data.fingerprints)
    network = build_segmenter(
        plain(config.segmenter),
        data.palette.num_classes,
        data.train_index.bands,
        pretrained=stored is None,  # a resumed run brings its weights
    )
    module = Segmenter(
        network,
        SegmentationLoss(config.loss, config.loss.weights(data.train_index.class_shares())),
        names=data.palette.names,
        scaling=facts.scaling,
        lr=config.lr,
        optimizer=config.optimizer,
        color=config.augment.color,
        seed=config.seed,
        global_batch=config.bs,
    )
    exporter = SegmenterExporter(
        *(out_dir, facts, config.checkpoint_minutes, config.trainer.requeue),
        *(data.inner_dataset, config.select == "best", config.samples),
    )
    callbacks = [Throughput(), Estimate(1), exporter]
    trainer = build_trainer(config, data.steps_per_epoch, callbacks, stored, config.validate_every)
    announce(trainer, config, _summary(config, data, module))
    fit(trainer, module, data, exporter, stored)
    if not trainer.is_global_zero:
        return {}
    if exporter.best_weights is not None:
        module.inference_network.load_state_dict(exporter.best_weights)
    scores, held_out = _evaluate(config, data, module)
    epoch = exporter.best_epoch or trainer.current_epoch
    evaluated = SegmenterEvaluation(held_out, scores)
    save_network(
        out_dir / SEGMENTER, "segmenter", module.inference_network, facts, epoch, evaluated
    )
    write_json(out_dir / SCORES, {"epoch": epoch, "steps": trainer.global_step, **scores})
    _report(config, data, trainer, scores, epoch)
    return scores


def check(config: TrainSegmenterConfig) -> None:
    """Refuses, with a UserError, a configuration before anything slow starts or is written."""
    if config.bs // (config.devices * config.trainer.num_nodes) < 2:
        raise UserError(
            f"bs={config.bs} leaves a device fewer than 2 images, which batch normalisation needs. "
            "Use a larger bs, or fewer devices."
        )
    if config.unlabelled is not None:
        if not config.inner_share:
            raise UserError(
                f"unlabelled={config.unlabelled}: how sure labels must be is chosen on held-out "
                "tiles, and inner_share=0 holds none out. Set it above 0; if all labels are of one "
                "location group, give each picture its own with data.group_regex, or cut blocks by "
                "scripts/tile.py split=spatial."
            )
        check_unlabelled(config)
    has_pairs = config.synthetic or config.unlabelled
    if (p := config.augment.match_colors.p) and not has_pairs:
        raise UserError(
            f"augment=matched, or augment.match_colors.p={p}, takes colours from synthetic pairs "
            "or labelled images. Give synthetic=FOLDER or unlabelled=FOLDER; with "
            "synthetic_ratio=0 they are for nothing else."
        )
    palette = config.data.classes()
    config.mixing.gate(palette)
    config.loss.check(palette.num_classes)
    check_segmenter(config.segmenter, config.image_size)
    check_run(config, SEGMENTER, _OTHERS)


def _open_data(config: TrainSegmenterConfig) -> SegmenterDataModule:
    data = SegmenterDataModule(
        Path(config.data_root),
        config.data,
        image_size=config.image_size,
        stride=check_segmenter(config.segmenter, config.image_size),
        batch_size=config.bs,
        jitter=config.augment.geometry(),
        seed=config.seed,
        on_gpu=config.trainer.on_gpu(),
        inner_share=config.inner_share,
        epoch_steps=config.epoch_steps,
        synthetic=config.synthetic_folders,
        synthetic_ratio=config.synthetic_ratio,
        mixing=config.mixing,
        epochs=config.epochs,
        oversample=config.oversample_classes,
        oversample_factor=config.oversample_factor,
        match=config.augment.match_colors,
    )
    data.prepare_data()
    data.setup()
    return data


def _evaluate(
    config: TrainSegmenterConfig, data: SegmenterDataModule, module: Segmenter
) -> tuple[dict[str, float], list[float]]:
    """Evaluates the chosen weights on real tiles, and writes `tiles.npz` and the pictures.

    The held-out tiles come first and calibrate the logits, which changes no prediction.

    Returns:
        The figures by name, and the mIoU of every whole window of the held-out tiles.
    """
    out_dir, names = Path(config.out_dir), data.palette.names
    scores: dict[str, float] = {}
    held_out: list[float] = []
    arrays: dict[str, Any] = {}
    for name, dataset in (("inner", data.inner_dataset), ("val", data.val_dataset)):
        if dataset is None:
            continue
        matrices = []
        pixels = PixelSample(len(dataset) * config.image_size**2)
        for sample, logits in _predict(config, module, dataset, f"Evaluating on {name}"):
            pixels.add(logits, sample["label"])
            guesses = zip(sample["label"], logits.argmax(1), strict=True)
            matrices += [confusion_matrix(label, guess, len(names)) for label, guess in guesses]
        counts = torch.stack(matrices)
        pairs = [dataset.source.pairs[row] for row, _ in dataset.windows]
        stems, groups = [pair.stem for pair in pairs], [pair.group for pair in pairs]
        arrays |= TileConfusions.of_windows(stems, groups, counts.numpy()).to_arrays(name)
        total = counts.sum(0)
        scores |= {f"{name}/miou": mean_iou(total)} | iou_scores(total, names, f"{name}_iou")
        if name == "inner":
            temperature = scores["temperature"] = pixels.temperature()
            divide_logits(module.inference_network, temperature)
            scores["inner/calibration_error"] = pixels.error(temperature)
            # Strips left over at a tile's edge are no windows that a pair can be compared with.
            whole = [matrix for matrix in matrices if 2 * matrix.sum() >= config.image_size**2]
            held_out = [mean_iou(matrix) for matrix in whole]
        else:
            scores["val/calibration_error"] = pixels.error()
        if config.samples:
            matrix = confusion_picture(total.numpy(), names)
            write_picture(out_dir / f"confusion_{name}.png", matrix)
            grid = prediction_grid(module, data.palette, dataset, config.samples)
            write_picture(out_dir / f"predictions_{name}.png", grid)
    with atomic_path(out_dir / TILES) as scratch:
        np.savez_compressed(scratch, allow_pickle=False, **arrays)
    return scores, held_out


@torch.inference_mode()
def _predict(
    config: TrainSegmenterConfig, module: Segmenter, dataset: WindowDataset, title: str
) -> Iterator[tuple[Sample, Tensor]]:
    """Batches of a dataset in order, each with its logits (B, C, H, W) on the CPU."""
    device = config.trainer.device()
    module.inference_network.to(device).eval()
    for sample in track(DataLoader(dataset, batch_size=config.bs), title):
        logits = module.inference_network(module.scaling.to_network(sample["image"].to(device)))
        yield sample, logits.float().cpu()


def _report(
    config: TrainSegmenterConfig,
    data: SegmenterDataModule,
    trainer: L.Trainer,
    scores: dict[str, float],
    epoch: int,
) -> None:
    """Shows the figures, each class beside its training pixels; TensorBoard gets those of val."""
    board = cast(Any, trainer.logger).experiment
    for name, value in scores.items():
        if name.startswith("val"):
            board.add_scalar(name, value, trainer.global_step)
    board.flush()
    pixels = data.train_index.pixels[:, :-1].sum(0)

    def shown(key: str) -> str:
        return percent(scores.get(key, math.nan))

    rows = [
        (name, f"{count:,}", shown(f"inner_iou/{name}"), shown(f"val_iou/{name}"))
        for name, count in zip(data.palette.names, pixels, strict=True)
    ]
    rows.append(("mean", f"{pixels.sum():,}", shown("inner/miou"), shown("val/miou")))
    print_table(rows, ("class", "training pixels", "inner IoU", "val IoU"))
    errors = [
        f"{100 * error:.1f} points on {tiles}"
        for part, tiles in (("inner", "held-out"), ("val", "val"))
        if (error := scores.get(f"{part}/calibration_error")) is not None
    ]
    if errors:
        print(f"Confidence differs from accuracy by {' and by '.join(errors)} tiles, on average.")
    print(f"Saved the segmenter of epoch {epoch} as {Path(config.out_dir) / SEGMENTER}.")
    # The demo world is for short runs.
    if config.data.demo is None and (text := _too_few(trainer.global_step, data.steps_per_epoch)):
        print(text)


def _against_first(config: TrainSegmenterConfig, scores: dict[str, float]) -> str | None:
    """Compares the segmenter with the first one, which had no labelled images; None if unknown."""
    first = Path(config.out_dir) / _ROUND.format(0)
    last = scores.get("inner/miou")
    if last is None or not (first / SCORES).is_file():
        return None
    before = _stored_scores(first)["inner/miou"]
    advice = "" if last >= before else f" For maps of the labelled ground use {first / SEGMENTER}."
    return (
        f"Held-out tiles: {percent(before)} mIoU by the first segmenter, {percent(last)} by this "
        f"one. They are of the labelled ground; on that of {config.unlabelled} it may differ."
        f"{advice}"
    )


def _stored_scores(out_dir: Path) -> dict[str, float]:
    """The figures of a run that has finished, without what they say of the run itself."""
    scores = read_json(out_dir / SCORES, {"*": (None, Number())}, "Begin a new run.")
    return {name: value for name, value in scores.items() if name not in _FACTS}


def _too_few(steps: int, steps_per_epoch: int) -> str | None:
    """Says that a training was short, and how long would do; None where it was not."""
    # Held-out tiles do not show it: as the learning rate falls, the last part always gains.
    if not _TEST <= steps < _ENOUGH:
        return None
    return (
        f"{steps} steps are few: 60 tiles gained 4.5 mIoU from 200 to 800 (docs/segmenter.md). "
        f"Train longer, as in epochs={math.ceil(_ENOUGH / steps_per_epoch)}."
    )


def _summary(
    config: TrainSegmenterConfig, data: SegmenterDataModule, module: Segmenter
) -> dict[str, str]:
    """What is about to be trained, as lines by title."""
    val = 0 if data.val_dataset is None else len(data.val_dataset)
    tiles = f"real training tiles: {data.split_summary()}; "
    mixed = "every epoch" if config.mixing.schedule == "constant" else "all epochs"
    rows = data_summary(config, data, tiles, val, mixed)
    size = sum(p.numel() for p in module.network.parameters()) / 1e6
    rows["model"] = (
        f"{config.segmenter.arch} on {config.segmenter.encoder}, {size:.1f} M parameters, "
        f"{config.segmenter.encoder_weights or 'no'} encoder weights"
    )
    steps = plural(data.steps_per_epoch, "step")
    rows["training"] = f"{plural(config.epochs, 'epoch')} of {steps}, {config.select} kept"
    return rows
