"""Knobs of the studio command."""

from dataclasses import dataclass

from geoseg_gan.config import command
from geoseg_gan.synthesis.settings import OnnxSettings
from geoseg_gan.utils.device import TrainerSettings


@dataclass
class StudioConfig:
    """Configuration of scripts/studio.py."""

    gen_ckpt: str | None
    save_dir: str | None
    data_root: str | None
    image_size: int | None
    segmenter_ckpt: str | None
    class_map: list[int] | None
    port: int
    seed: int
    onnx: OnnxSettings
    trainer: TrainerSettings


studio_command = command("studio", StudioConfig, "geoseg_gan.studio.studio:studio")
