"""Knobs of the evaluate and predict commands."""

from dataclasses import dataclass

from geoseg_gan.config import command
from geoseg_gan.data.settings import LARGEST_SIDE
from geoseg_gan.synthesis.settings import LARGEST_BATCH, OnnxSettings
from geoseg_gan.utils.device import TrainerSettings
from geoseg_gan.utils.errors import check_choice, check_range


@dataclass
class EvaluateConfig:
    """Configuration of scripts/evaluate.py."""

    gen_ckpt: str | None
    folder: str | None
    data_root: str | None
    out_dir: str
    segmenter_ckpt: str | None
    class_map: list[int] | None
    features: str
    split: str
    num_samples: int
    variants: int
    controls: bool
    bs: int
    seed: int
    devices: int
    onnx: OnnxSettings
    trainer: TrainerSettings


@dataclass
class PredictConfig:
    """Configuration of scripts/predict.py."""

    segmenter_ckpt: str
    image_path: str
    out_dir: str
    image_size: int | None
    overlap: int | None
    tta: str
    bs: int
    trainer: TrainerSettings

    def __post_init__(self) -> None:
        """Refuses values out of range: a UserError that names key, value and range."""
        check_range("image_size", self.image_size, 1, LARGEST_SIDE)
        check_range("overlap", self.overlap, 0, LARGEST_SIDE)
        check_range("bs", self.bs, 1, LARGEST_BATCH)
        check_choice("tta", self.tta, ("none", "flips", "d4"))


evaluate_command = command("evaluate", EvaluateConfig, "geoseg_gan.evaluation.evaluate:evaluate")
predict_command = command("predict", PredictConfig, "geoseg_gan.evaluation.predict:predict")
