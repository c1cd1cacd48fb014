"""The typed configuration of every command."""

from dataclasses import dataclass, field
from typing import Any

from geoseg_gan.data.augment import AugmentSettings
from geoseg_gan.data.datamodule import DataSettings
from geoseg_gan.data.jitter import JitterSettings
from geoseg_gan.data.tile_settings import TileSettings
from geoseg_gan.gan import OptimizerSettings
from geoseg_gan.losses.segmentation import SegmentationLossSettings
from geoseg_gan.models.segmenters import SegmenterSettings
from geoseg_gan.segmenter import SegmenterOptimizerSettings
from geoseg_gan.synthesis.recognizer import OnnxSettings
from geoseg_gan.trainer import TrainerSettings

MISSING = "???"
"""What Hydra and OmegaConf know as a value that must be given."""


def knob(default: Any, text: str) -> Any:
    """A top-level setting with the line that `--help` shows for it."""
    return field(default=default, metadata={"help": text})


def knob_list(text: str) -> Any:
    """A top-level setting that is an empty list unless it is given."""
    return field(default_factory=list, metadata={"help": text})


@dataclass
class ModelSettings:
    """The two networks: each a name and what its constructor takes."""

    generator: Any = MISSING
    discriminator: Any = MISSING


@dataclass
class TrainConfig:
    """Configuration of scripts/train.py."""

    data_root: str = knob("data", "folder with train/ and val/, each with images/ and masks/")
    out_dir: str = knob("runs/label2img", "where samples, checkpoints and logs go")
    epochs: int = knob(10, "how often training goes through the pairs; 30 to 50 for good results")
    bs: int = knob(8, "batch size over all devices")
    lr: float = knob(2e-4, "learning rate at this batch size")
    image_size: int = knob(256, "side of the training images in pixels")
    seed: int = knob(0, "fixes weights, order, augmentation and noise")
    resume: bool = knob(False, "continue the run in out_dir")
    keep_checkpoints: str = knob("all", "networks of how many epochs stay: all, or a number")
    max_minutes: float | None = knob(None, "end after this time, saving first; null for no limit")
    samples: int = knob(4, "sample pictures an epoch")
    devices: int = knob(1, "how many GPUs or processes share a batch")
    precision: str = knob("32-true", "32-true, bf16-mixed or 16-mixed")
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: Any = MISSING
    jitter: JitterSettings = field(default_factory=JitterSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)


@dataclass
class GenerateConfig:
    """Configuration of scripts/generate.py."""

    gen_ckpt: str = knob(MISSING, "the generator, a G_e###.pt that training wrote")
    data_root: str | None = knob(None, "whose training masks are sampled; null as in training")
    save_dir: str = knob("synthetic", "where pairs, manifest and contact sheet go")
    num_samples: int = knob(1000, "how many pairs are painted")
    segmenter_ckpt: str | None = knob(None, "keeps only what it recognises: segmenter.pt or .onnx")
    tau: Any = knob(0.65, "mIoU above which a pair is kept; auto fits it to real held-out pairs")
    keep: int | None = knob(None, "paint until so many pairs are kept; overrides num_samples")
    max_tries: int | None = knob(None, "most pairs painted for keep; null for ten times keep")
    alpha: float | None = knob(
        None, "ignore pixels whose loss exceeds alpha times their class's; 1.25 is usual"
    )
    class_map: list[int] | None = knob(
        None, "the segmenter's channel of every class, if its order is another"
    )
    sampling: str = knob("uniform", "masks: uniform, balanced (rare classes), hard (high losses)")
    require_classes: list[Any] = knob_list("names or IDs that every mask must contain")
    layout: str = knob("pairs", "pairs: pair_00000_img.jpg; folders: images/ and masks/")
    bs: int = knob(8, "images painted at once on a GPU")
    seed: int = knob(0, "fixes masks, jitter and noise of every pair")
    num_workers: int = knob(1, "processes that read and jitter masks")
    jitter: JitterSettings = field(default_factory=JitterSettings)
    onnx: OnnxSettings = field(default_factory=OnnxSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)


@dataclass
class TrainSegmenterConfig:
    """Configuration of scripts/train_segmenter.py."""

    data_root: str = knob("data", "folder with real pairs: train/ and val/")
    out_dir: str = knob("runs/segmenter", "where segmenter.pt, figures and logs go")
    epochs: int = knob(30, "how many epochs")
    epoch_steps: int | None = knob(None, "steps an epoch; null to go through the real pairs once")
    bs: int = knob(8, "batch size over all devices")
    lr: float = knob(1e-3, "highest learning rate")
    image_size: int = knob(256, "side of the images in pixels")
    seed: int = knob(0, "fixes weights, order, augmentation and the held-out tiles")
    resume: bool = knob(False, "continue the run in out_dir")
    select: str = knob("best", "weights of the epoch best on held-out tiles, or the last")
    inner_share: float = knob(0.15, "share of the training tiles held out, by ground; 0 for none")
    synthetic: Any = knob(None, "folder(s) that generate wrote, mixed into training")
    synthetic_ratio: float = knob(0.25, "share of synthetic pairs in every epoch")
    oversample_classes: list[Any] = knob_list("names or IDs whose pairs are shown more often")
    oversample_factor: float = knob(3.0, "how much more often")
    samples: int = knob(6, "predictions shown")
    devices: int = knob(1, "how many GPUs or processes share a batch")
    precision: str = knob("32-true", "32-true, bf16-mixed or 16-mixed")
    segmenter: SegmenterSettings = field(default_factory=SegmenterSettings)
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    loss: SegmentationLossSettings = field(default_factory=SegmentationLossSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    optimizer: SegmenterOptimizerSettings = field(default_factory=SegmenterOptimizerSettings)


@dataclass
class BenchmarkConfig:
    """Configuration of scripts/benchmark.py."""

    data_root: str = knob("data", "folder with train/images and train/masks")
    out_dir: str = knob("runs/benchmark", "where benchmark.json and benchmark.md go")
    image_size: int = knob(128, "side of the images in pixels")
    bs: int = knob(8, "batch size")
    seconds: float = knob(20.0, "how long each part is measured, in each of its rounds")
    precision: str = knob("32-true", "32-true, bf16-mixed or 16-mixed")
    rounds: int = knob(3, "rounds in which the parts take turns; the median counts")
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: Any = MISSING
    jitter: JitterSettings = field(default_factory=JitterSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "generate": GenerateConfig,
    "train_segmenter": TrainSegmenterConfig,
    "tile": TileSettings,
    "benchmark": BenchmarkConfig,
}
