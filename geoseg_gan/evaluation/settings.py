"""Knobs of the evaluate command."""

from dataclasses import dataclass

from geoseg_gan.config import command
from geoseg_gan.synthesis.settings import OnnxSettings
from geoseg_gan.utils.device import TrainerSettings


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
    features_weights: str | None
    split: str
    num_samples: int
    variants: int
    controls: bool
    bs: int
    seed: int
    devices: int
    onnx: OnnxSettings
    trainer: TrainerSettings


evaluate_command = command("evaluate", EvaluateConfig, "geoseg_gan.evaluation.evaluate:evaluate")
