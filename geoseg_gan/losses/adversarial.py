"""The adversarial part of an objective: what real and painted images are told apart by."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from geoseg_gan.data.batch import Batch
from geoseg_gan.losses.terms import balanced_cross_entropy, over_scales, sign_accuracy
from geoseg_gan.models.discriminators.output import DiscriminatorOutput, OutputKind


class Adversarial(Protocol):
    """A pair of losses for discriminator and generator.

    Attributes:
        output_kind: What the discriminator's logits must mean.
    """

    output_kind: OutputKind

    def d_terms(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, batch: Batch
    ) -> dict[str, Tensor]:
        """What the discriminator minimises, by name."""

    def g_term(self, fake: DiscriminatorOutput, batch: Batch) -> Tensor:
        """What the generator minimises."""

    def realness(self, output: DiscriminatorOutput, batch: Batch) -> Tensor:
        """How real the images look to the discriminator, on average; above 0 is real."""

    def accuracy(self, output: DiscriminatorOutput, batch: Batch, real: bool) -> Tensor:
        """Share of the judgements that are right."""


class _OfRealness:
    """What the losses on one logit a patch share."""

    output_kind: OutputKind = "realness"

    def realness(self, output: DiscriminatorOutput, batch: Batch) -> Tensor:
        return over_scales(output.logits, torch.mean)

    def accuracy(self, output: DiscriminatorOutput, batch: Batch, real: bool) -> Tensor:
        return sign_accuracy(output.logits, real)


class Hinge(_OfRealness):
    """Hinge loss (Lim & Ye 2017, eqs. 6 and 7), the mean over scales."""

    def d_terms(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, batch: Batch
    ) -> dict[str, Tensor]:
        """The means of max(0, 1 - D(real)) and of max(0, 1 + D(fake))."""
        return {
            "hinge_real": over_scales(real.logits, lambda scale: F.relu(1 - scale).mean()),
            "hinge_fake": over_scales(fake.logits, lambda scale: F.relu(1 + scale).mean()),
        }

    def g_term(self, fake: DiscriminatorOutput, batch: Batch) -> Tensor:
        """The mean of -D(fake)."""
        return -self.realness(fake, batch)


class LeastSquares(_OfRealness):
    """LSGAN with targets 1 and -1 (Mao et al. 2017, eq. 8), the mean over scales.

    Those targets, and not 1 and 0, leave the boundary at 0, where all of these losses have it.
    """

    def d_terms(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, batch: Batch
    ) -> dict[str, Tensor]:
        """Half the means of (D(real) - 1)^2 and of (D(fake) + 1)^2."""
        return {
            "lsgan_real": over_scales(real.logits, lambda scale: (scale - 1).square().mean() / 2),
            "lsgan_fake": over_scales(fake.logits, lambda scale: (scale + 1).square().mean() / 2),
        }

    def g_term(self, fake: DiscriminatorOutput, batch: Batch) -> Tensor:
        """Half the mean of D(fake)^2: fakes are drawn to the boundary."""
        return over_scales(fake.logits, lambda scale: scale.square().mean() / 2)


class NonSaturating(_OfRealness):
    """The non-saturating loss (Goodfellow et al. 2014, sec. 3), the mean over scales."""

    def d_terms(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, batch: Batch
    ) -> dict[str, Tensor]:
        """The means of -log sigmoid(D(real)) and of -log(1 - sigmoid(D(fake)))."""
        return {
            "logistic_real": over_scales(real.logits, lambda scale: F.softplus(-scale).mean()),
            "logistic_fake": over_scales(fake.logits, lambda scale: F.softplus(scale).mean()),
        }

    def g_term(self, fake: DiscriminatorOutput, batch: Batch) -> Tensor:
        """The mean of -log sigmoid(D(fake))."""
        return over_scales(fake.logits, lambda scale: F.softplus(-scale).mean())


class PixelClasses:
    """N + 1 class cross-entropy of every pixel (Schönfeld et al. 2021, eqs. 1 and 2).

    Real pixels are to be told their class, painted ones to be found out, and the generator's to be
    taken for their class. Classes weigh alike, however few their pixels, on real images and in the
    generator's loss; ignored pixels do not count.

    Args:
        balance: Whether classes weigh alike; else pixels do.
    """

    output_kind: OutputKind = "classes"

    def __init__(self, balance: bool = True) -> None:
        """Keeps the setting."""
        self.balance = balance

    def d_terms(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, batch: Batch
    ) -> dict[str, Tensor]:
        """Cross-entropy with the true class on real pixels, with class 0 on painted ones."""
        on_fake = -F.log_softmax(fake.logits[0].float(), 1)[:, :1]
        pixels = batch.class_pixels()
        on_real = balanced_cross_entropy(real.logits[0], batch.one_hot, pixels, self.balance)
        return {
            "classes_real": on_real,
            "classes_fake": (on_fake * batch.valid).sum() / _total(pixels),
        }

    def g_term(self, fake: DiscriminatorOutput, batch: Batch) -> Tensor:
        """Cross-entropy with the class that was to be painted."""
        pixels = batch.class_pixels()
        return balanced_cross_entropy(fake.logits[0], batch.one_hot, pixels, self.balance)

    def realness(self, output: DiscriminatorOutput, batch: Batch) -> Tensor:
        """The mean over pixels of log(P(some class) / P(fake))."""
        logits = output.logits[0].float()
        odds = logits[:, 1:].logsumexp(1, keepdim=True) - logits[:, :1]
        return (odds * batch.valid).sum() / _total(batch.class_pixels())

    def accuracy(self, output: DiscriminatorOutput, batch: Batch, real: bool) -> Tensor:
        """Share of the real pixels whose class is told, or of the painted ones found out."""
        guess = output.logits[0].argmax(1, keepdim=True)
        right = batch.one_hot.gather(1, (guess - 1).clamp(min=0)) * (guess > 0)
        right = right if real else (guess == 0) * batch.valid
        return right.sum() / batch.valid.sum().clamp(min=1)


class Both:
    """`PixelClasses` and `Hinge` at once, the one for obedience and the other for texture.

    Args:
        balance: Whether classes weigh alike; else pixels do.
    """

    output_kind: OutputKind = "both"

    def __init__(self, balance: bool = True) -> None:
        """Builds both."""
        self.classes = PixelClasses(balance)
        self.hinge = Hinge()

    def d_terms(
        self, real: DiscriminatorOutput, fake: DiscriminatorOutput, batch: Batch
    ) -> dict[str, Tensor]:
        """The terms of both."""
        return {
            **self.classes.d_terms(real.classes(), fake.classes(), batch),
            **self.hinge.d_terms(real.realness(), fake.realness(), batch),
        }

    def g_term(self, fake: DiscriminatorOutput, batch: Batch) -> Tensor:
        """The sum of both."""
        return self.classes.g_term(fake.classes(), batch) + self.hinge.g_term(
            fake.realness(), batch
        )

    def realness(self, output: DiscriminatorOutput, batch: Batch) -> Tensor:
        """That of the classes."""
        return self.classes.realness(output.classes(), batch)

    def accuracy(self, output: DiscriminatorOutput, batch: Batch, real: bool) -> Tensor:
        """That of the classes."""
        return self.classes.accuracy(output.classes(), batch, real)


def _total(pixels: Tensor) -> Tensor:
    total = pixels.sum()
    return torch.where(total > 0, total, 1)


ADVERSARIAL = ("hinge", "lsgan", "nonsaturating", "classes", "both")

"""The adversarial losses by name."""


def build_adversarial(name: str, class_balance: bool) -> Adversarial:
    """The loss of a name among ADVERSARIAL."""
    losses: dict[str, Callable[[], Adversarial]] = {
        "hinge": Hinge,
        "lsgan": LeastSquares,
        "nonsaturating": NonSaturating,
        "classes": lambda: PixelClasses(class_balance),
        "both": lambda: Both(class_balance),
    }
    return losses[name]()
