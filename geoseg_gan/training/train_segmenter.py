"""The train_segmenter command: from real pairs, or real and synthetic ones, to a segmenter."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from geoseg_gan.config import plain, write_yaml
from geoseg_gan.data.batch import Sample
from geoseg_gan.data.dataset import WindowDataset
from geoseg_gan.data.segmenter_datamodule import SegmenterDataModule
from geoseg_gan.data.stream import check_root
from geoseg_gan.losses.segmentation import SegmentationLoss
from geoseg_gan.models.checkpoints import RunFacts, SegmenterEvaluation, save_network
from geoseg_gan.models.segmenters import build_segmenter, check_segmenter
from geoseg_gan.training.callbacks.predictions import SegmenterExporter, prediction_grid
from geoseg_gan.training.callbacks.timing import Estimate, Throughput
from geoseg_gan.training.runs import FREE, check_out_dir, flat, point_to_resume
from geoseg_gan.training.segmenter import Segmenter, iou_scores
from geoseg_gan.training.settings import TrainSegmenterConfig
from geoseg_gan.training.trainer import build_trainer
from geoseg_gan.utils.confusion import TileConfusions, confusion_matrix, mean_iou
from geoseg_gan.utils.distributed import launch
from geoseg_gan.utils.errors import UserError, check_choice, plural
from geoseg_gan.utils.files import atomic_path, write_json
from geoseg_gan.utils.pictures import write_picture
from geoseg_gan.utils.plots import confusion_picture

RESULT = "segmenter.pt"


SCORES = "scores.json"


TILES = "tiles.npz"

"""Confusion matrices of every tile: `TileConfusions` under the names "inner" and "val"."""


SELECTIONS = ("best", "last")


def train_segmenter(config: TrainSegmenterConfig) -> dict[str, float]:
    """Trains a segmenter on real pairs, or on a mix of real and synthetic ones.

    Args:
        config: What to train on what, and how.

    Returns:
        Figures by name: "val/miou" on the real validation split, "inner/miou" on the training
        tiles that were held out, and the IoU of every class.

    Raises:
        UserError: If the configuration, a data folder or the output folder is not as it must be.
    """
    return launch(_train_segmenter, config, check, share_cores=True)


def _train_segmenter(config: TrainSegmenterConfig) -> dict[str, float]:
    settings = plain(config)
    out_dir = Path(config.out_dir)
    last = (
        point_to_resume(out_dir, settings, FREE, config.epochs, RESULT) if config.resume else None
    )
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = _open_data(config)
    index = data.train_index
    facts = RunFacts(settings, data.palette, data.scaling())
    pretrained = last is None  # a resumed run brings its weights
    network = build_segmenter(
        settings["segmenter"], data.palette.num_classes, index.bands, pretrained=pretrained
    )
    module = Segmenter(
        network,
        SegmentationLoss(config.loss, config.loss.weights(index.class_shares())),
        names=data.palette.names,
        scaling=facts.scaling,
        lr=config.lr,
        optimizer=config.optimizer,
        color=config.augment.color,
        seed=config.seed,
        global_batch=config.bs,
    )
    keep_best = config.select == "best"
    exporter = SegmenterExporter(out_dir, facts, data.inner_dataset, keep_best, config.samples)
    trainer = build_trainer(
        config.trainer,
        out_dir=out_dir,
        epochs=config.epochs,
        devices=config.devices,
        precision=config.precision,
        steps=data.steps_per_epoch,
        validate_every=config.validate_every,
        callbacks=[Throughput(), Estimate(1, None), exporter],
    )
    if trainer.is_global_zero:
        write_yaml(out_dir / "config.yaml", config)
        cast(TensorBoardLogger, trainer.logger).log_hyperparams(flat(settings))
        _summarise(config, data, module)
    trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    if not trainer.is_global_zero:
        return {}
    if exporter.best_weights is not None:
        module.network.load_state_dict(exporter.best_weights)
    return _judge(config, data, module, exporter, trainer)


def check(config: TrainSegmenterConfig) -> None:
    """Refuses a configuration before anything slow starts or anything is written.

    Raises:
        UserError: Naming the key, its value and what to do.
    """
    for key in ("epochs", "bs", "lr", "image_size"):
        if getattr(config, key) <= 0:
            raise UserError(f"{key}={getattr(config, key)} must be positive.")
    if config.samples < 0 or config.seed < 0:
        raise UserError(f"samples={config.samples} and seed={config.seed} must be 0 or more.")
    if config.validate_every < 1:
        raise UserError(f"validate_every={config.validate_every}: use 1 or more.")
    if config.validate_every > 1 and config.select == "best":
        raise UserError(
            f"validate_every={config.validate_every} leaves out epochs that select=best chooses "
            "from. Set validate_every=1, or select=last."
        )
    if config.epoch_steps is not None and config.epoch_steps < 1:
        raise UserError(f"epoch_steps={config.epoch_steps}: use 1 or more, or null.")
    config.trainer.check(config.devices, config.precision)
    if config.bs % config.devices or config.bs // config.devices < 2:
        raise UserError(
            f"bs={config.bs} is the batch over all devices: use a multiple of "
            f"devices={config.devices} with 2 or more each, which batch normalisation needs."
        )
    check_choice("select", config.select, SELECTIONS)
    if not 0 <= config.inner_share <= 0.5:
        raise UserError(f"inner_share={config.inner_share}: use a share from 0 to 0.5.")
    if config.select == "best" and config.inner_share == 0:
        raise UserError(
            "select=best needs held-out training tiles to choose by. Set inner_share=0.15 or so, "
            "or select=last."
        )
    if not 0 <= config.synthetic_ratio <= 1:
        raise UserError(f"synthetic_ratio={config.synthetic_ratio}: use a share from 0 to 1.")
    if config.synthetic and config.synthetic_ratio == 1 and config.mixing.batch_norm == "apart":
        raise UserError(
            "mixing.batch_norm=apart keeps the statistics of real images, and synthetic_ratio=1 "
            "shows none. Use a lower ratio, or mixing.batch_norm=shared."
        )
    if config.oversample_factor < 1:
        raise UserError(f"oversample_factor={config.oversample_factor} must be 1 or more.")
    config.optimizer.check()
    palette = config.data.classes()
    config.mixing.gate(palette)
    config.loss.check(palette.num_classes)
    check_segmenter(config.segmenter, config.image_size)
    check_root(config.data, Path(config.data_root))
    check_out_dir(Path(config.out_dir), config.resume, RESULT)


def _open_data(config: TrainSegmenterConfig) -> SegmenterDataModule:
    synthetic = config.synthetic or []
    folders = [synthetic] if isinstance(synthetic, str) else list(synthetic)
    data = SegmenterDataModule(
        Path(config.data_root),
        config.data,
        image_size=config.image_size,
        batch_size=config.bs,
        jitter=config.augment.geometry(),
        seed=config.seed,
        on_gpu=config.trainer.on_gpu(),
        inner_share=config.inner_share,
        epoch_steps=config.epoch_steps,
        synthetic=[Path(folder) for folder in folders],
        synthetic_ratio=config.synthetic_ratio,
        mixing=config.mixing,
        epochs=config.epochs,
        oversample=config.oversample_classes,
        oversample_factor=config.oversample_factor,
    )
    data.prepare_data()
    data.setup()
    return data


@torch.inference_mode()
def _predict(
    config: TrainSegmenterConfig, module: Segmenter, dataset: WindowDataset, title: str
) -> Iterator[tuple[Sample, Tensor]]:
    """Batches of a dataset in order, each with its logits (B, C, H, W) on the CPU."""
    device = config.trainer.device()
    module.network.to(device).eval()
    for sample in track(DataLoader(dataset, batch_size=config.bs), title):
        logits = module.network(module.scaling.to_network(sample["image"].to(device)))
        yield sample, logits.float().cpu()


def _judge(
    config: TrainSegmenterConfig,
    data: SegmenterDataModule,
    module: Segmenter,
    exporter: SegmenterExporter,
    trainer: L.Trainer,
) -> dict[str, float]:
    """Measures the chosen weights on real data, saves them with the figures, and shows both."""
    out_dir = Path(config.out_dir)
    names = data.palette.names
    scores: dict[str, float] = {}
    held_out: list[float] = []
    arrays: dict[str, Any] = {}
    for name, dataset in (("inner", data.inner_dataset), ("val", data.val_dataset)):
        if dataset is None:
            continue
        matrices = []
        for sample, logits in _predict(config, module, dataset, f"Judging on {name}"):
            guesses = zip(sample["label"], logits.argmax(1), strict=True)
            matrices += [confusion_matrix(label, guess, len(names)) for label, guess in guesses]
        counts = torch.stack(matrices)
        arrays |= tile_confusions(dataset, counts.numpy()).to_arrays(name)
        total = counts.sum(0)
        scores |= {f"{name}/miou": mean_iou(total)} | iou_scores(total, names, f"{name}_iou")
        if name == "inner":
            # Strips that are left over at a tile's end are no windows that a pair compares with.
            whole = [matrix for matrix in matrices if 2 * matrix.sum() >= config.image_size**2]
            held_out = [mean_iou(matrix) for matrix in whole]
        write_picture(out_dir / f"confusion_{name}.png", confusion_picture(total.numpy(), names))
        if config.samples:
            grid = prediction_grid(module, data.palette, dataset, config.samples)
            write_picture(out_dir / f"predictions_{name}.png", grid)
    with atomic_path(out_dir / TILES) as scratch:
        np.savez_compressed(scratch, allow_pickle=False, **arrays)
    epoch = exporter.best_epoch or trainer.current_epoch
    judged = SegmenterEvaluation(held_out, scores)
    save_network(out_dir / RESULT, "segmenter", module.network, exporter.facts, epoch, judged)
    write_json(out_dir / SCORES, {"epoch": epoch, **scores})
    board = cast(Any, trainer.logger).experiment
    for name, value in scores.items():
        if name.startswith("val"):
            board.add_scalar(name, value, trainer.global_step)
    board.flush()
    _report(config, data, scores, epoch)
    return scores


def tile_confusions(dataset: WindowDataset, counts: npt.NDArray[np.int64]) -> TileConfusions:
    """Adds up confusion matrices of windows, shape (N, C, C), by the tiles that they show."""
    pairs = [dataset.source.pairs[row] for row, _ in dataset.windows]
    stems, groups = [pair.stem for pair in pairs], [pair.group for pair in pairs]
    return TileConfusions.of_windows(stems, groups, counts)


def _report(
    config: TrainSegmenterConfig, data: SegmenterDataModule, scores: dict[str, float], epoch: int
) -> None:
    """The figures as a table, each class beside the training ground it rests on."""
    table = Table(
        "class", "training pixels", "inner IoU", "val IoU", box=None, padding=(0, 3, 0, 0)
    )
    pixels = data.train_index.pixels[:, :-1].sum(0)

    def shown(key: str) -> str:
        return f"{100 * scores[key]:.1f}" if key in scores else "-"

    for name, count in zip(data.palette.names, pixels, strict=True):
        table.add_row(name, f"{count:,}", shown(f"inner_iou/{name}"), shown(f"val_iou/{name}"))
    table.add_row("mean", f"{pixels.sum():,}", shown("inner/miou"), shown("val/miou"))
    Console().print(table)
    print(f"Saved the segmenter of epoch {epoch} as {Path(config.out_dir) / RESULT}.")


def _summarise(config: TrainSegmenterConfig, data: SegmenterDataModule, module: Segmenter) -> None:
    """One screen on what is about to happen."""
    index = data.train_index
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    val = 0 if data.val_dataset is None else len(data.val_dataset)
    table.add_row(
        "data",
        f"{config.data_root}: real training tiles: {data.split_summary()}; "
        f"{plural(val, 'validation window')} of {config.image_size} px, "
        f"{plural(index.bands, 'band')} of {index.dtype}",
    )
    shares = zip(data.palette.names, index.class_shares(), strict=True)
    table.add_row("classes", ", ".join(f"{name} {share:.1%}" for name, share in shares))
    if data.synthetic_folders:
        folders = ", ".join(str(f.folder) for f in data.synthetic_folders)
        pairs = plural(sum(len(f.pairs) for f in data.synthetic_folders), "pair")
        when = "every epoch" if config.mixing.schedule == "constant" else "all epochs"
        share = f"{config.synthetic_ratio:.0%} of {when}"
        table.add_row("synthetic", f"{share} from {pairs} in {folders}")
    size = sum(p.numel() for p in module.network.parameters()) / 1e6
    name = f"{config.segmenter.arch} on {config.segmenter.encoder}"
    weights = config.segmenter.encoder_weights or "no"
    table.add_row("model", f"{name}, {size:.1f} M parameters, {weights} encoder weights")
    where = "GPU" if config.trainer.on_gpu() else "CPU"
    table.add_row("device", f"{config.devices} x {where}, precision {config.precision}")
    steps = plural(data.steps_per_epoch, "step")
    table.add_row("training", f"{plural(config.epochs, 'epoch')} of {steps}, {config.select} kept")
    table.add_row("output", config.out_dir)
    table.add_row("watch", f"tensorboard --logdir {config.out_dir}")
    Console().print(table)
