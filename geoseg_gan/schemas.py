"""The typed configuration of every command."""

from dataclasses import dataclass, field
from typing import Any

from geoseg_gan.data.augment import AugmentSettings
from geoseg_gan.data.jitter import JitterSettings
from geoseg_gan.data.mixing_settings import MixingSettings
from geoseg_gan.data.pack_settings import PackSettings
from geoseg_gan.data.settings import DataSettings
from geoseg_gan.data.tile_settings import TileSettings
from geoseg_gan.data.transplant import TransplantStep
from geoseg_gan.losses.segmentation import SegmentationLossSettings
from geoseg_gan.losses.settings import ObjectiveSettings
from geoseg_gan.models.segmenters import SegmenterSettings
from geoseg_gan.optimizer import OptimizerSettings
from geoseg_gan.recipes import RecipeSettings
from geoseg_gan.segmenter import SegmenterOptimizerSettings
from geoseg_gan.speed import SpeedSettings
from geoseg_gan.synthesis.compose import ComposeSettings
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
    epoch_steps: int | None = knob(None, "steps an epoch; null to go through the pairs once")
    bs: int = knob(8, "batch size over all devices")
    lr: float = knob(2e-4, "learning rate at this batch size")
    scale_lr: str = knob("none", "linear: lr is of batches of base_bs and grows with bs; or none")
    base_bs: int = knob(8, "the batch size that lr belongs to, with scale_lr=linear")
    accumulate: int = knob(1, "parts that every device works on its share of a batch in")
    init_from: str | None = knob(None, "start from this G_e###.pt and the D_e###.pt beside it")
    image_size: int = knob(256, "side of the training images in pixels")
    crops: str = knob(
        "uniform", "crops: uniform, balanced (all classes alike), rare (half on rare classes)"
    )
    seed: int = knob(0, "fixes weights, order, augmentation and noise")
    resume: bool = knob(False, "continue the run in out_dir")
    inner_share: float = knob(0.0, "share of the training tiles held out, by ground; 0 for none")
    keep_checkpoints: str = knob("all", "networks of how many epochs stay: all, or a number")
    max_minutes: float | None = knob(None, "end after this time, saving first; null for no limit")
    samples: int = knob(4, "sample pictures an epoch")
    evaluate_every: int = knob(0, "epochs between evaluations on held-out tiles; 0 for none")
    evaluate_samples: int = knob(128, "held-out windows painted for an evaluation, at most")
    monitor: str = knob("kid", "G_best.pt is best by kid, fid, precision, recall or agreement")
    segmenter_ckpt: str | None = knob(None, "the segmenter by which agreement is measured")
    devices: int = knob(1, "how many GPUs or processes of a machine share a batch")
    precision: str = knob(
        "auto", "32-true, bf16-mixed, 16-mixed, or auto: the faster of the first two, measured"
    )
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    jitter: JitterSettings = field(default_factory=JitterSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)


@dataclass
class GenerateConfig:
    """Configuration of scripts/generate.py."""

    gen_ckpt: str = knob(MISSING, "the generator, a G_e###.pt that training wrote")
    data_root: str | None = knob(None, "whose training masks are sampled; null as in training")
    save_dir: str = knob("synthetic", "where pairs, manifest and contact sheet go")
    num_samples: int = knob(1000, "how many pairs are painted")
    variants: int = knob(1, "images painted from each mask, each with noise of its own")
    image_size: int | None = knob(None, "side of the pairs in pixels; null as in training")
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
    num_workers: int | None = knob(None, "processes that read and jitter masks; null by the cores")
    devices: int = knob(1, "how many GPUs or processes share the work")
    jitter: JitterSettings = field(default_factory=JitterSettings)
    compose: ComposeSettings = field(default_factory=ComposeSettings)
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
    validate_every: int = knob(1, "epochs from one check on held-out tiles to the next")
    inner_share: float = knob(0.15, "share of the training tiles held out, by ground; 0 for none")
    synthetic: Any = knob(None, "folder(s) that generate wrote, mixed into training")
    synthetic_ratio: float = knob(0.25, "share of synthetic pairs in training")
    oversample_classes: list[Any] = knob_list("names or IDs whose pairs are shown more often")
    oversample_factor: float = knob(3.0, "how much more often")
    samples: int = knob(6, "predictions shown")
    devices: int = knob(1, "how many GPUs or processes share a batch")
    precision: str = knob("32-true", "32-true, bf16-mixed or 16-mixed")
    segmenter: SegmenterSettings = field(default_factory=SegmenterSettings)
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    mixing: MixingSettings = field(default_factory=MixingSettings)
    loss: SegmentationLossSettings = field(default_factory=SegmentationLossSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    optimizer: SegmenterOptimizerSettings = field(default_factory=SegmenterOptimizerSettings)


@dataclass
class EvaluateConfig:
    """Configuration of scripts/evaluate.py."""

    gen_ckpt: str | None = knob(None, "the generator to evaluate, a G_e###.pt that training wrote")
    folder: str | None = knob(None, "or a folder of generated pairs, the save_dir of generate")
    data_root: str | None = knob(
        None, "folder with real pairs; null as in the generator's training"
    )
    out_dir: str = knob("runs/evaluation", "where figures, table and pictures go")
    segmenter_ckpt: str | None = knob(None, "measures agreement: segmenter.pt or .onnx")
    class_map: list[int] | None = knob(
        None, "the segmenter's channel of every class, if its order is another"
    )
    features: str = knob("lite0", "lite0 (needs no download) or inception (compares with papers)")
    features_weights: str | None = knob(None, "file of inception's weights; null to download them")
    split: str = knob("val", "real tiles: val, or held_out, of train but held out of training")
    num_samples: int = knob(1000, "windows of these tiles painted, at most")
    variants: int = knob(4, "images painted from one mask, for diversity")
    controls: bool = knob(True, "measure real images with known damage as well, in eight ways")
    bs: int = knob(16, "images at once through the feature network")
    seed: int = knob(0, "fixes noise, halves and controls")
    devices: int = knob(1, "how many GPUs or processes share the work")
    onnx: OnnxSettings = field(default_factory=OnnxSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)


@dataclass
class TrialConfig:
    """Configuration of scripts/trial.py."""

    data_root: str = knob("data", "folder with real pairs: train/ and val/")
    out_dir: str = knob("runs/trial", "where results and report go; calling again goes on")
    image_size: int = knob(256, "side of all images in pixels")
    seeds: Any = knob(5, "how many seeds, from 0 on; or a list of them, as in seeds=[3,4]")
    arms: list[str] = knob_list("only these arms are computed by this call; [] for all")
    ratios: list[float] = field(
        default_factory=lambda: [0.1, 0.25, 0.5],
        metadata={"help": "shares of synthetic pairs, an arm each"},
    )
    recipes: dict[str, RecipeSettings] = field(
        default_factory=dict,
        metadata={"help": "how pairs are painted and mixed, an arm each: recipe=[...]"},
    )
    train_tiles: int | None = knob(None, "train everything on so few tiles, drawn by each seed")
    train_fraction: float | None = knob(None, "the same as a share of the training tiles")
    inner_share: float = knob(0.15, "share of them held out of everything, to choose by")
    share_gan: bool = knob(False, "one generator for all seeds: faster, and proves less")
    epochs: int = knob(10, "of every generator")
    epoch_steps: int | None = knob(None, "its steps an epoch; null to go through the pairs once")
    bs: int = knob(8, "their batch size")
    lr: float = knob(2e-4, "their learning rate at this batch size")
    crops: str = knob(
        "uniform", "crops: uniform, balanced (all classes alike), rare (half on rare classes)"
    )
    num_samples: int = knob(1000, "pairs painted for each seed")
    variants: int = knob(1, "images painted from each mask, each with noise of its own")
    tau: Any = knob("auto", "mIoU above which a pair is kept; auto fits it to held-out pairs")
    alpha: float | None = knob(None, "ignore pixels whose loss exceeds alpha times their class's")
    sampling: str = knob("uniform", "masks: uniform, balanced (rare classes), hard (high losses)")
    segmenter_epochs: int = knob(30, "of every segmenter, the same in all arms")
    segmenter_epoch_steps: int | None = knob(None, "its steps an epoch; null as for epoch_steps")
    segmenter_bs: int = knob(8, "their batch size")
    segmenter_lr: float = knob(1e-3, "their highest learning rate")
    oversample_classes: list[Any] = knob_list("of the arm oversample; [] for the rare ones")
    oversample_factor: float = knob(3.0, "how much more often it shows their pairs")
    precision: str = knob("32-true", "of segmenters: 32-true, bf16-mixed or 16-mixed")
    gan_precision: str = knob("32-true", "of generators, likewise")
    devices: int = knob(1, "how many GPUs or processes share the runs")
    merge: list[str] = knob_list("folders of other trials with these settings: take their results")
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    jitter: JitterSettings = field(default_factory=JitterSettings)
    segmenter: SegmenterSettings = field(default_factory=SegmenterSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    copy_paste: TransplantStep = field(default_factory=lambda: TransplantStep(p=0.5))
    segmenter_loss: SegmentationLossSettings = field(default_factory=SegmentationLossSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    segmenter_optimizer: SegmenterOptimizerSettings = field(
        default_factory=SegmenterOptimizerSettings
    )


@dataclass
class CalibrateConfig:
    """Configuration of scripts/calibrate.py."""

    folder: str = knob("runs/trial", "the out_dir of a trial with 20 or more runs of arm real")
    out_dir: str = knob("runs/calibration", "where calibration.json and calibration.md go")
    trials: int = knob(400, "how many trials are made up, for each number of seeds")
    seeds: list[int] = knob_list("with how many seeds, as in [3,5]; [] for all that can be")
    ratios: int = knob(3, "among how many ratios they choose")
    effect: float = knob(0.03, "added to the mIoU of all ratios, to see how often it is found")
    seed: int = knob(0, "fixes which run goes where")


@dataclass
class BenchmarkConfig:
    """Configuration of scripts/benchmark.py."""

    data_root: str = knob("data", "folder with train/images and train/masks")
    out_dir: str = knob("runs/benchmark", "where benchmark.json, benchmark.md and traces go")
    image_size: int = knob(128, "side of the images in pixels")
    bs: int = knob(8, "batch size")
    lr: float = knob(2e-4, "learning rate")
    seconds: float = knob(10.0, "how long each part is measured, in each of its rounds")
    precision: str = knob("auto", "32-true, bf16-mixed, or auto: the faster one, measured")
    rounds: int = knob(3, "rounds in which the parts take turns; the median counts")
    parts: list[str] = field(
        default_factory=lambda: ["data", "training", "switches", "generation"],
        metadata={"help": "what is measured"},
    )
    models: list[str] = knob_list("choices of model, each with its loss; [] for the one of model=")
    tiles: list[int] = knob_list("numbers of tiles to start with, as in [100,100000]; [] for none")
    compile: bool = knob(False, "measures compiled networks as well: minutes more for each model")
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    jitter: JitterSettings = field(default_factory=JitterSettings)
    segmenter: SegmenterSettings = field(default_factory=SegmenterSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)


@dataclass
class DescribeConfig:
    """Configuration of scripts/describe.py."""

    image_size: int = knob(256, "side of the image in pixels")
    num_classes: int = knob(8, "classes of the palette")
    image_channels: int = knob(3, "bands of the image")
    out: str | None = knob(None, "Markdown file that gets the tables; null to print them only")


@dataclass
class LadderConfig:
    """Configuration of scripts/ladder.py."""

    out_dir: str = knob("runs/ladder", "where runs, results and report go; calling again goes on")
    segmenter_ckpt: str | None = knob(None, "judges agreement: a segmenter.pt of real pairs")
    seeds: Any = knob(1, "how many seeds, from 0 on; or a list of them, as in seeds=[3,4]")
    rows: list[str] = knob_list("only these rows are computed by this call; [] for all")
    jobs: int = knob(1, "runs side by side, which share the cores")
    num_samples: int = knob(400, "windows painted for each evaluation, at most")
    report_only: bool = knob(False, "compute nothing: the table of the results that are there")
    common: list[str] = knob_list("settings of train that all rows have; see configs/ladder.yaml")
    ladder: dict[str, list[str]] = field(
        default_factory=dict,
        metadata={"help": "rows: the settings of train that each changes; the first is the base"},
    )


@dataclass
class CompareConfig:
    """Configuration of scripts/compare.py."""

    folder: str = knob(MISSING, "the out_dir of a sweep; table and picture go there")


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "generate": GenerateConfig,
    "train_segmenter": TrainSegmenterConfig,
    "evaluate": EvaluateConfig,
    "trial": TrialConfig,
    "calibrate": CalibrateConfig,
    "tile": TileSettings,
    "pack": PackSettings,
    "benchmark": BenchmarkConfig,
    "describe": DescribeConfig,
    "compare": CompareConfig,
    "ladder": LadderConfig,
}
