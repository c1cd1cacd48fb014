"""Knobs of the train, train_segmenter and compare commands."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoseg_gan.config import command
from geoseg_gan.data.settings import (
    LARGEST_SIDE,
    AugmentSettings,
    DataSettings,
    JitterSettings,
    MixingSettings,
)
from geoseg_gan.losses.settings import ObjectiveSettings, SegmentationLossSettings
from geoseg_gan.models.settings import ModelSettings, SegmenterSettings
from geoseg_gan.synthesis.settings import LARGEST_BATCH, OnnxSettings
from geoseg_gan.utils.device import TrainerSettings
from geoseg_gan.utils.errors import LARGEST_SEED, UserError, check_choice, check_range
from geoseg_gan.utils.messages import Texts

SCHEDULES = ("constant", "linear")
NETWORKS = ("generator", "discriminator")
LR_SCALING = ("none", "linear")
SELECTIONS = ("best", "last")
MONITORS = {"kid": -1.0, "fid": -1.0, "precision": 1.0, "recall": 1.0, "agreement": 1.0}
"""Figures by which the best epoch may be chosen: 1 where more is better, -1 where less is."""


@dataclass
class OptimizerSettings:
    """How generator and discriminator are optimised: both by Adam."""

    betas: list[float]
    d_lr_ratio: float
    schedule: str
    decay_from: float
    clip: float
    ema: float

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        check_choice("optimizer.schedule", self.schedule, SCHEDULES)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas={self.betas}: use two numbers in [0, 1).")
        check_range("optimizer.decay_from", self.decay_from, 0, 1, "[)")
        check_range("optimizer.ema", self.ema, 0, 1, "[)")
        check_range("optimizer.d_lr_ratio", self.d_lr_ratio, 0, 1000, "(]")
        check_range("optimizer.clip", self.clip, 0, 1e6)


@dataclass
class SpeedSettings:
    """Switches for speed and memory."""

    channels_last: bool
    fused: bool
    compile: list[str]
    recompute: list[str]

    def __post_init__(self) -> None:
        """Refuses names that are not one of the two networks."""
        for key in ("compile", "recompute"):
            for name in getattr(self, key):
                check_choice(f"speed.{key}", name, NETWORKS)


@dataclass
class SegmenterOptimizerSettings:
    """How a segmenter is optimised: AdamW, a linear warm-up and a half cosine to zero."""

    weight_decay: float
    warm_up: float
    clip: float
    ema: float

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        check_range("optimizer.ema", self.ema, 0, 1, "[)")
        check_range("optimizer.weight_decay", self.weight_decay, 0, 100)
        check_range("optimizer.clip", self.clip, 0, 1e6)
        check_range("optimizer.warm_up", self.warm_up, 0, 1, "[)")


@dataclass
class TrainingConfig:
    """What both training commands have in common."""

    data_root: str
    out_dir: str
    epochs: int
    epoch_steps: int | None
    bs: int
    lr: float
    image_size: int
    seed: int
    resume: bool
    inner_share: float
    synthetic: Texts
    synthetic_ratio: float
    unlabelled: str | None
    samples: int
    checkpoint_minutes: float
    devices: int
    precision: str | None
    data: DataSettings
    trainer: TrainerSettings

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        check_range("epoch_steps", self.epoch_steps, 1, 1e9)
        check_range("bs", self.bs, 1, LARGEST_BATCH)
        check_range("image_size", self.image_size, 1, LARGEST_SIDE)
        check_range("lr", self.lr, 0, 10, "(]")
        check_range("samples", self.samples, 0, 1000)
        check_range("checkpoint_minutes", self.checkpoint_minutes, 0, 1e7)
        check_range("seed", self.seed, 0, LARGEST_SEED)
        check_range("inner_share", self.inner_share, 0, 0.5)
        check_range("synthetic_ratio", self.synthetic_ratio, 0, 1)
        folders = self.synthetic if isinstance(self.synthetic, list) else [self.synthetic]
        wrong = [folder for folder in folders if not isinstance(folder, str)]
        if self.synthetic is not None and wrong:
            raise UserError(
                f"synthetic={self.synthetic}: {wrong[0]!r} is not the name of a folder. Use a "
                "folder that generate wrote, a list of them, as in [pairs,'2024'], or null."
            )

    @property
    def synthetic_folders(self) -> list[Path]:
        """The folders of synthetic pairs, in order."""
        folders = self.synthetic or []
        return [Path(f) for f in ([folders] if isinstance(folders, str) else folders)]


@dataclass
class TrainConfig(TrainingConfig):
    """Configuration of scripts/train.py."""

    scale_lr: str
    base_bs: int
    accumulate: int
    init_from: str | None
    crops: str
    keep_checkpoints: str
    max_minutes: float | None
    evaluate_every: int
    evaluate_samples: int
    monitor: str
    segmenter_ckpt: str | None
    model: ModelSettings
    loss: ObjectiveSettings
    jitter: JitterSettings
    optimizer: OptimizerSettings
    speed: SpeedSettings
    onnx: OnnxSettings

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        super().__post_init__()
        check_range("epochs", self.epochs, 1, 1_000_000)
        check_range("base_bs", self.base_bs, 1, LARGEST_BATCH)
        check_range("accumulate", self.accumulate, 1, LARGEST_BATCH)
        check_range("max_minutes", self.max_minutes, 0, 1e7, "(]")
        check_choice("scale_lr", self.scale_lr, LR_SCALING)
        check_choice("monitor", self.monitor, MONITORS)
        if not re.fullmatch("all|[1-9][0-9]*", self.keep_checkpoints):
            kept = self.keep_checkpoints
            raise UserError(f"keep_checkpoints={kept}: use all, or a number from 1.")
        check_range("evaluate_every", self.evaluate_every, 0, 1e6)
        check_range("evaluate_samples", self.evaluate_samples, 2, 1e6)

    @property
    def kept_epochs(self) -> int | None:
        """How many epochs' networks stay, the newest; None for all."""
        return None if self.keep_checkpoints == "all" else int(self.keep_checkpoints)

    @property
    def scaled_lr(self) -> float:
        """The generator's learning rate at this batch size."""
        return self.lr * (self.bs / self.base_bs if self.scale_lr == "linear" else 1)


@dataclass
class TrainSegmenterConfig(TrainingConfig):
    """Configuration of scripts/train_segmenter.py."""

    select: str
    validate_every: int
    rounds: int
    oversample_classes: list[Any]
    oversample_factor: float
    segmenter: SegmenterSettings
    augment: AugmentSettings
    mixing: MixingSettings
    loss: SegmentationLossSettings
    optimizer: SegmenterOptimizerSettings

    def __post_init__(self) -> None:
        """Refuses values out of range, and a selection that has nothing to choose by."""
        super().__post_init__()
        check_range("epochs", self.epochs, 0, 1_000_000)
        check_range("validate_every", self.validate_every, 1, 1e6)
        check_choice("select", self.select, SELECTIONS)
        check_range("rounds", self.rounds, 1, 100)
        check_range("oversample_factor", self.oversample_factor, 1, 1000)
        if self.select == "best" and not self.inner_share:
            raise UserError(
                "select=best needs held-out training tiles to choose by. Set inner_share=0.15 or "
                "so, or select=last."
            )
        if self.select == "best" and self.validate_every > 1:
            raise UserError(
                f"validate_every={self.validate_every} skips epochs that select=best chooses "
                "from. Set validate_every=1, or select=last."
            )


@dataclass
class CompareConfig:
    """Configuration of scripts/compare.py."""

    folder: str


train_command = command("train", TrainConfig, "geoseg_gan.training.train:train")
train_segmenter_command = command(
    "train_segmenter", TrainSegmenterConfig, "geoseg_gan.training.train_segmenter:train_segmenter"
)
compare_command = command("compare", CompareConfig, "geoseg_gan.training.compare:compare")
