"""Knobs of the trial command and its recipes."""

import re
from dataclasses import dataclass, field
from typing import Any

from geoseg_gan.config import command
from geoseg_gan.data.settings import (
    AugmentSettings,
    DataSettings,
    JitterSettings,
    MixingSettings,
    TransplantStep,
)
from geoseg_gan.losses.settings import ObjectiveSettings, SegmentationLossSettings
from geoseg_gan.models.settings import ModelSettings, SegmenterSettings
from geoseg_gan.synthesis.filter import check_filter
from geoseg_gan.synthesis.sampling import SAMPLINGS
from geoseg_gan.synthesis.settings import ComposeSettings
from geoseg_gan.training.settings import (
    OptimizerSettings,
    SegmenterOptimizerSettings,
)
from geoseg_gan.trials.results import PLACEBO
from geoseg_gan.utils.device import TrainerSettings
from geoseg_gan.utils.errors import UserError, check_choice

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass
class RefineSettings:
    """A second training of the trial's generator, against a discriminator that judges realness too.

    What was trained to obey its masks learns to look real, which both at once do not teach it in a
    short training.

    Attributes:
        discriminator: That of the trial, with others beside it (see `models.discriminators.oasis.EXTRA_DISCRIMINATORS`).
        loss: What trains them.
        epochs: Of as many steps as those of the first training.
        d_lr_ratio: Their learning rate, in multiples of the generator's.
    """

    discriminator: Any = None
    loss: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    epochs: int = 4
    d_lr_ratio: float = 1.0


@dataclass
class RecipeSettings:
    """One way to get synthetic pairs and to train on them; all arms of a seed share a generator.

    Attributes:
        sampling: Which masks are painted; null for the trial's `sampling`, and so on below.
        tau: Above which score a pair is kept.
        alpha: Which of its pixels count.
        variants: Images of each mask.
        image_size: Side of the pairs in pixels; null for that of the generator's training.
        jitter: How masks are changed.
        compose: What of a pair is painted, and what stays real.
        mixing: How pairs are mixed into training.
        copy_paste: Whether real pairs have the copy-paste of the arm of that name as well.
        refine: How the generator is trained once more before it paints; null for not at all.
    """

    sampling: str | None = None
    tau: Any = None
    alpha: float | None = None
    variants: int | None = None
    image_size: int | None = None
    jitter: JitterSettings | None = None
    compose: ComposeSettings = field(default_factory=ComposeSettings)
    mixing: MixingSettings = field(default_factory=MixingSettings)
    copy_paste: bool = False
    refine: RefineSettings | None = None

    def check(self, name: str, jitter: JitterSettings) -> None:
        """Refuses a name or values that cannot be.

        Args:
            name: What the recipe is called.
            jitter: That of the trial.

        Raises:
            UserError: Naming the key, its value and what is allowed.
        """
        if not _NAME.fullmatch(name) or name in ("real", "oversample", "copy_paste"):
            raise UserError(
                f"recipes: {name} is no name for a recipe. Use lower-case letters, digits and _, "
                "and not the name of an arm that needs no generated pair."
            )
        if self.sampling is not None:
            check_choice(f"recipes.{name}.sampling", self.sampling, SAMPLINGS)
        for key in ("variants", "image_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"recipes.{name}.{key}={value} must be 1 or more.")
        check_filter(0.0 if self.tau is None else self.tau, self.alpha)
        jitter = self.jitter or jitter
        self.compose.check(jitter.transplant.p, f"recipes.{name}.compose")
        if name.startswith(PLACEBO) != (self.compose.paint == "none"):
            raise UserError(
                f"recipes.{name}: recipes that paint nothing (compose.paint=none), and no others, "
                f"are called {PLACEBO}..., so that a trial does not recommend one."
            )
        if self.refine is not None:
            self.refine.loss.check()
            for key in ("epochs", "d_lr_ratio"):
                value = getattr(self.refine, key)
                if value <= 0:
                    raise UserError(f"recipes.{name}.refine.{key}={value} must be positive.")


@dataclass
class TrialConfig:
    """Configuration of scripts/trial.py."""

    data_root: str
    out_dir: str
    image_size: int
    seeds: Any
    arms: list[str]
    ratios: list[float]
    recipes: dict[str, RecipeSettings]
    train_tiles: int | None
    train_fraction: float | None
    inner_share: float
    share_gan: bool
    epochs: int
    epoch_steps: int | None
    bs: int
    lr: float
    crops: str
    num_samples: int
    variants: int
    tau: Any
    alpha: float | None
    sampling: str
    segmenter_epochs: int
    segmenter_epoch_steps: int | None
    segmenter_bs: int
    segmenter_lr: float
    oversample_classes: list[Any]
    oversample_factor: float
    precision: str
    gan_precision: str
    devices: int
    merge: list[str]
    model: ModelSettings
    data: DataSettings
    loss: ObjectiveSettings
    jitter: JitterSettings
    segmenter: SegmenterSettings
    augment: AugmentSettings
    copy_paste: TransplantStep
    segmenter_loss: SegmentationLossSettings
    trainer: TrainerSettings
    optimizer: OptimizerSettings
    segmenter_optimizer: SegmenterOptimizerSettings


trial_command = command("trial", TrialConfig, "geoseg_gan.trials.trial:trial")
