"""Knobs of the train, train_segmenter and compare commands."""

from dataclasses import dataclass
from typing import Any

from geoseg_gan.config import command
from geoseg_gan.data.settings import (
    AugmentSettings,
    DataSettings,
    JitterSettings,
    MixingSettings,
)
from geoseg_gan.losses.settings import ObjectiveSettings, SegmentationLossSettings
from geoseg_gan.models.settings import ModelSettings, SegmenterSettings
from geoseg_gan.synthesis.settings import OnnxSettings
from geoseg_gan.utils.device import TrainerSettings
from geoseg_gan.utils.errors import UserError, check_choice

SCHEDULES = ("constant", "linear")


@dataclass
class OptimizerSettings:
    """How both networks are optimised."""

    betas: list[float]
    d_lr_ratio: float
    schedule: str
    decay_from: float
    clip: float
    ema: float

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and the range.
        """
        check_choice("optimizer.schedule", self.schedule, SCHEDULES)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas={self.betas}: use two numbers in [0, 1).")
        if not 0 <= self.decay_from < 1:
            raise UserError(f"optimizer.decay_from={self.decay_from}: use a share in [0, 1).")
        if not 0 <= self.ema < 1:
            raise UserError(f"optimizer.ema={self.ema}: use a number in [0, 1); 0 for none.")
        if self.d_lr_ratio <= 0 or self.clip < 0:
            raise UserError(
                f"optimizer: d_lr_ratio={self.d_lr_ratio} must be positive and clip={self.clip} "
                "not negative."
            )


NETWORKS = ("generator", "discriminator")


@dataclass
class SpeedSettings:
    """Switches for speed and memory."""

    channels_last: bool
    fused: bool
    compile: list[str]
    recompute: list[str]

    def check(self) -> None:
        """Refuses networks that are none.

        Raises:
            UserError: Naming the key, its value and the choices.
        """
        for key in ("compile", "recompute"):
            for name in getattr(self, key):
                check_choice(f"speed.{key}", name, NETWORKS)


@dataclass
class SegmenterOptimizerSettings:
    """How a segmenter is optimised: AdamW, a linear warm-up and a half cosine to zero."""

    weight_decay: float
    warm_up: float
    clip: float

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and the range.
        """
        if self.weight_decay < 0 or self.clip < 0:
            raise UserError(
                f"optimizer: weight_decay={self.weight_decay} and clip={self.clip} must not be "
                "negative."
            )
        if not 0 <= self.warm_up < 1:
            raise UserError(f"optimizer.warm_up={self.warm_up}: use a share in [0, 1).")


@dataclass
class TrainConfig:
    """Configuration of scripts/train.py."""

    data_root: str
    out_dir: str
    epochs: int
    epoch_steps: int | None
    bs: int
    lr: float
    scale_lr: str
    base_bs: int
    accumulate: int
    init_from: str | None
    image_size: int
    crops: str
    seed: int
    resume: bool
    inner_share: float
    keep_checkpoints: str
    max_minutes: float | None
    samples: int
    evaluate_every: int
    evaluate_samples: int
    monitor: str
    segmenter_ckpt: str | None
    devices: int
    precision: str
    model: ModelSettings
    data: DataSettings
    loss: ObjectiveSettings
    jitter: JitterSettings
    trainer: TrainerSettings
    optimizer: OptimizerSettings
    speed: SpeedSettings
    onnx: OnnxSettings


@dataclass
class TrainSegmenterConfig:
    """Configuration of scripts/train_segmenter.py."""

    data_root: str
    out_dir: str
    epochs: int
    epoch_steps: int | None
    bs: int
    lr: float
    image_size: int
    seed: int
    resume: bool
    select: str
    validate_every: int
    inner_share: float
    synthetic: Any
    synthetic_ratio: float
    oversample_classes: list[Any]
    oversample_factor: float
    samples: int
    devices: int
    precision: str
    segmenter: SegmenterSettings
    data: DataSettings
    augment: AugmentSettings
    mixing: MixingSettings
    loss: SegmentationLossSettings
    trainer: TrainerSettings
    optimizer: SegmenterOptimizerSettings


@dataclass
class CompareConfig:
    """Configuration of scripts/compare.py."""

    folder: str


train_command = command("train", TrainConfig, "geoseg_gan.training.train:train")


train_segmenter_command = command(
    "train_segmenter", TrainSegmenterConfig, "geoseg_gan.training.train_segmenter:train_segmenter"
)


compare_command = command("compare", CompareConfig, "geoseg_gan.training.compare:compare")
