"""Knobs of the generate command."""

from dataclasses import dataclass
from typing import Any

from geoseg_gan.config import command
from geoseg_gan.data.settings import JitterSettings
from geoseg_gan.utils.device import TrainerSettings
from geoseg_gan.utils.errors import UserError, check_choice, check_range

UNLABELLED = "unlabelled"
"""The `source` of pairs that are made from unlabelled images."""

EXEMPLARS = "exemplars"
"""The value of `compose.source` for images that are laid together from real regions."""

LARGEST_BATCH = 65_536
"""The largest number of images at once."""


@dataclass
class ComposeSettings:
    """Which part of an image is generated; the rest is the source tile's real image."""

    generate: str
    share: float
    match: float
    source: str

    def check(self, transplant: float, key: str = "compose") -> None:
        """Refuses, with a UserError, values out of range, and grafts where nothing is transplanted.

        `transplant` is the probability of jitter.transplant, `key` what the group is called.
        """
        check_choice(f"{key}.source", self.source, ("generator", EXEMPLARS))
        check_choice(f"{key}.generate", self.generate, ("all", "grafts", "regions", "none"))
        check_range(f"{key}.share", self.share, 0, 1, "(]")
        check_range(f"{key}.match", self.match, 0, 1)
        if self.generate == "grafts" and transplant == 0:
            raise UserError(
                f"{key}.generate=grafts generates only what is transplanted into masks, and "
                "jitter.transplant.p=0 transplants nothing. Set it above 0, as jitter=transplant "
                "does."
            )
        if self.generate == "none" and self.source == EXEMPLARS:
            raise UserError(
                f"{key}.generate=none shows real images alone, and nothing of {key}.source="
                f"{EXEMPLARS}. Leave one of the two out."
            )
        if self.generate == "none" and transplant > 0:
            raise UserError(
                f"{key}.generate=none keeps the real image, which does not show what "
                f"jitter.transplant.p={transplant} pastes into its mask. Set that to 0."
            )


@dataclass
class OnnxSettings:
    """What an ONNX model expects of its images, which it cannot say itself.

    Stored values are brought to [0, 1] by the generator's scaling (for 8-bit images: divided by
    255); the model then gets (value - mean) / std.
    """

    mean: list[float]
    std: list[float]

    def check(self) -> None:
        """Refuses, with a UserError, values out of range."""
        if not self.mean or not all(abs(v) <= 1e6 for v in self.mean):
            raise UserError(f"onnx.mean={self.mean}: use one number, or one a band.")
        if not self.std or not all(0 < v <= 1e6 for v in self.std):
            raise UserError(f"onnx.std={self.std}: use one number above 0, or one a band.")


@dataclass
class GenerateConfig:
    """Configuration of scripts/generate.py."""

    source: str
    gen_ckpt: str | None
    data_root: str | None
    unlabelled: str | None
    true_masks: str | None
    confidence: Any
    tta: str
    mask_path: str | None
    overlap: int | None
    save_dir: str
    num_samples: int
    variants: int
    image_size: int | None
    segmenter_ckpt: str | None
    tau: Any
    keep: int | None
    alpha: float | None
    class_map: list[int] | None
    sampling: str
    require_classes: list[Any]
    layout: str
    bs: int
    seed: int
    num_workers: int | None
    devices: int
    jitter: JitterSettings
    compose: ComposeSettings
    style_from: str | None
    onnx: OnnxSettings
    trainer: TrainerSettings

    @property
    def needs_generator(self) -> bool:
        """Whether a generator makes the images."""
        return self.source != UNLABELLED and self.compose.source != EXEMPLARS


generate_command = command("generate", GenerateConfig, "geoseg_gan.synthesis.generate:generate")
