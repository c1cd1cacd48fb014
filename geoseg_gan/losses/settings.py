"""Training recipes as settings."""

from dataclasses import dataclass, field

from geoseg_gan.errors import UserError, check_choice
from geoseg_gan.losses.adversarial import ADVERSARIAL, build_adversarial
from geoseg_gan.losses.augment import DiffAugmentSettings
from geoseg_gan.models.backbone import PACKAGED
from geoseg_gan.models.discriminator import Judges

_TELLS: dict[Judges, str] = {
    "realness": "says how real an image is",
    "classes": "tells the class of every pixel",
    "both": "does both, telling classes and how real an image is",
}
_FITS: dict[Judges, tuple[str, str]] = {
    "realness": ("model/discriminator=patch", "loss=hinge_fm"),
    "classes": ("model/discriminator=oasis", "loss=oasis"),
    "both": ("model/discriminator=both", "loss=both"),
}
"""A discriminator that judges so, and a loss for it."""


@dataclass
class Weight:
    """The weight of one term.

    Attributes:
        weight: Factor; 0 leaves the term out.
    """

    weight: float = 0.0


@dataclass
class PerceptualSettings(Weight):
    """Weight and network of the perceptual term.

    Attributes:
        network: "lite2" (needs no download), "vgg19", or a convolutional network of timm.
    """

    network: str = PACKAGED


@dataclass
class DiversitySettings(Weight):
    """Weight and limit of the diversity term.

    Attributes:
        limit: Ratio of image distance to noise distance above which nothing more is earned.
    """

    limit: float = 0.3


@dataclass
class PenaltySettings(Weight):
    """Weight and pace of the gradient penalty R1.

    Attributes:
        every: Batches from one penalty to the next, each counting so many times as much (Karras et
            al. 2020, "Analyzing and Improving", sec. 3.1).
    """

    every: int = 16


@dataclass
class ObjectiveSettings:
    """One training recipe.

    Attributes:
        adversarial: A name among ADVERSARIAL.
        class_balance: Whether classes weigh alike in adversarial=classes; else pixels do.
        feature_matching: Real and painted images are to look alike to the discriminator's layers.
        perceptual: They are to look alike to a pretrained network.
        diversity: Images of one mask are to differ.
        labelmix: Consistency of a discriminator that tells classes.
        r1: The discriminator is to be flat around real images.
        augment: How images change before the discriminator sees them.
    """

    adversarial: str = "hinge"
    class_balance: bool = True
    feature_matching: Weight = field(default_factory=Weight)
    perceptual: PerceptualSettings = field(default_factory=PerceptualSettings)
    diversity: DiversitySettings = field(default_factory=DiversitySettings)
    labelmix: Weight = field(default_factory=Weight)
    r1: PenaltySettings = field(default_factory=PenaltySettings)
    augment: DiffAugmentSettings = field(default_factory=DiffAugmentSettings)

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and what is allowed.
        """
        check_choice("loss.adversarial", self.adversarial, ADVERSARIAL)
        for name in ("feature_matching", "perceptual", "diversity", "labelmix", "r1"):
            weight = getattr(self, name).weight
            if weight < 0:
                raise UserError(f"loss.{name}.weight={weight}: use 0 or more.")
        if self.r1.every < 1:
            raise UserError(f"loss.r1.every={self.r1.every}: use 1 or more batches.")
        if self.diversity.limit <= 0:
            raise UserError(f"loss.diversity.limit={self.diversity.limit} must be positive.")
        self.augment.check()

    def check_fit(self, judges: Judges, noise_channels: int) -> None:
        """Refuses networks that this recipe cannot train.

        Args:
            judges: What the discriminator's logits mean (see `models.discriminator`).
            noise_channels: Z of the generator.

        Raises:
            UserError: Saying why, and what fits.
        """
        wanted = build_adversarial(self.adversarial, self.class_balance).judges
        if judges != wanted:
            raise UserError(
                f"loss.adversarial={self.adversarial} needs a discriminator that {_TELLS[wanted]}, "
                f"and model.discriminator {_TELLS[judges]}. Use {_FITS[wanted][0]}, or "
                f"{_FITS[judges][1]}."
            )
        if self.labelmix.weight and wanted == "realness":
            raise UserError(
                f"loss.labelmix.weight={self.labelmix.weight} mixes images along their classes, "
                f"which loss.adversarial={self.adversarial} does not tell. Set it to 0, or use "
                "loss=oasis."
            )
        if self.diversity.weight and not noise_channels:
            raise UserError(
                f"loss.diversity.weight={self.diversity.weight} compares images of different "
                "noise, but the generator takes none. Set it to 0, or give model.generator some "
                "style_channels, region_channels or texture_octaves."
            )
