"""The adversarial losses: how discriminator and generator compete."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from geoseg_gan.data.batch import Batch
from geoseg_gan.losses.terms import at_least_one, balanced_cross_entropy, over_scales, sign_accuracy
from geoseg_gan.models.discriminators.output import DiscriminatorOutput, OutputKind


class Adversarial(Protocol):
    """A pair of losses for discriminator and generator.

    Attributes:
        output_kind: What the discriminator's logits must mean.
    """

    output_kind: OutputKind

    def d_terms(
        self,
        real: DiscriminatorOutput,
        fake: DiscriminatorOutput,
        batch: Batch,
        shown: Batch | None = None,
    ) -> dict[str, Tensor]:
        """What the discriminator minimises, as scalars by name.

        Generated images are of the masks of `shown`, where those are others than of `batch`.
        """

    def g_term(self, fake: DiscriminatorOutput, batch: Batch) -> Tensor:
        """What the generator minimises, a scalar."""

    def realness(self, output: DiscriminatorOutput, batch: Batch) -> Tensor:
        """How real the images look to the discriminator on average, a scalar; above 0 is real."""

    def accuracy(self, output: DiscriminatorOutput, batch: Batch, real: bool) -> Tensor:
        """Share of patches or pixels that the discriminator is right about, a scalar in [0, 1]."""


@dataclass
class RealnessLoss:
    """A loss of one logit per patch, averaged over patches and then over scales.

    Attributes:
        name: Prefix of the terms' names.
        on_real: What the discriminator minimises on real patches, of logits (B, 1, h, w).
        on_fake: The same on generated patches.
        of_generator: What the generator minimises.
    """

    name: str
    on_real: Callable[[Tensor], Tensor]
    on_fake: Callable[[Tensor], Tensor]
    of_generator: Callable[[Tensor], Tensor]
    output_kind: OutputKind = "realness"

    def d_terms(
        self,
        real: DiscriminatorOutput,
        fake: DiscriminatorOutput,
        batch: Batch,
        shown: Batch | None = None,
    ) -> dict[str, Tensor]:
        """The terms on real and on generated images."""
        return {
            f"{self.name}_real": over_scales(real.logits, lambda x: self.on_real(x).mean()),
            f"{self.name}_fake": over_scales(fake.logits, lambda x: self.on_fake(x).mean()),
        }

    def g_term(self, fake: DiscriminatorOutput, batch: Batch) -> Tensor:
        """What the generator minimises, a scalar."""
        return over_scales(fake.logits, lambda x: self.of_generator(x).mean())

    def realness(self, output: DiscriminatorOutput, batch: Batch) -> Tensor:
        """The mean logit."""
        return over_scales(output.logits, torch.mean)

    def accuracy(self, output: DiscriminatorOutput, batch: Batch, real: bool) -> Tensor:
        """Share of logits on the right side of 0."""
        return sign_accuracy(output.logits, real)


# Lim & Ye 2017, eqs. 6 and 7.
HINGE = RealnessLoss("hinge", lambda x: F.relu(1 - x), lambda x: F.relu(1 + x), lambda x: -x)

# LSGAN (Mao et al. 2017, eq. 8) with targets 1 and -1 instead of 1 and 0: the boundary is at 0, as
# in all losses here.
LEAST_SQUARES = RealnessLoss(
    "lsgan",
    lambda x: (x - 1).square() / 2,
    lambda x: (x + 1).square() / 2,
    lambda x: x.square() / 2,
)

# Goodfellow et al. 2014, sec. 3: -log sigmoid(D(real)) and -log(1 - sigmoid(D(fake))), and for the
# generator -log sigmoid(D(fake)).
NON_SATURATING = RealnessLoss(
    "logistic", lambda x: F.softplus(-x), F.softplus, lambda x: F.softplus(-x)
)


class Oasis:
    """Cross-entropy over N + 1 classes at every pixel (Schönfeld et al. 2021, eqs. 1 and 2).

    The discriminator is to tell the class of real pixels and to recognise generated ones; the
    generator's pixels are to be recognised as their class. Ignored pixels do not count.

    Args:
        balance: Whether all classes weigh alike, on real images and in the generator's loss,
            however few pixels they have; otherwise all pixels do.
    """

    output_kind: OutputKind = "classes"

    def __init__(self, balance: bool = True) -> None:
        """Keeps the setting."""
        self.balance = balance

    def d_terms(
        self,
        real: DiscriminatorOutput,
        fake: DiscriminatorOutput,
        batch: Batch,
        shown: Batch | None = None,
    ) -> dict[str, Tensor]:
        """Cross-entropy with the true class on real pixels and with class 0 on generated ones."""
        shown = batch if shown is None else shown
        on_fake = -F.log_softmax(fake.logits[0].float(), 1)[:, :1]
        pixels, fakes = batch.class_pixels(), shown.class_pixels().sum()
        on_real = balanced_cross_entropy(real.logits[0], batch.one_hot, pixels, self.balance)
        return {
            "classes_real": on_real,
            "classes_fake": (on_fake * shown.valid).sum() / at_least_one(fakes),
        }

    def g_term(self, fake: DiscriminatorOutput, batch: Batch) -> Tensor:
        """Cross-entropy with the class in the mask."""
        pixels = batch.class_pixels()
        return balanced_cross_entropy(fake.logits[0], batch.one_hot, pixels, self.balance)

    def realness(self, output: DiscriminatorOutput, batch: Batch) -> Tensor:
        """The mean over pixels of log(P(any class) / P(fake))."""
        logits = output.logits[0].float()
        odds = logits[:, 1:].logsumexp(1, keepdim=True) - logits[:, :1]
        return (odds * batch.valid).sum() / at_least_one(batch.class_pixels().sum())

    def accuracy(self, output: DiscriminatorOutput, batch: Batch, real: bool) -> Tensor:
        """Share of pixels whose class is right if real, or that are recognised if generated."""
        guess = output.logits[0].argmax(1, keepdim=True)
        right = batch.one_hot.gather(1, (guess - 1).clamp(min=0)) * (guess > 0)
        right = right if real else (guess == 0) * batch.valid
        return right.sum() / batch.valid.sum().clamp(min=1)


class OasisAndHinge:
    """The sum of `Oasis`, for agreement with the mask, and HINGE, for texture."""

    output_kind: OutputKind = "both"

    def __init__(self, balance: bool = True) -> None:
        """Keeps the setting of `Oasis`."""
        self.oasis = Oasis(balance)

    def d_terms(
        self,
        real: DiscriminatorOutput,
        fake: DiscriminatorOutput,
        batch: Batch,
        shown: Batch | None = None,
    ) -> dict[str, Tensor]:
        """The terms of both."""
        return {
            **self.oasis.d_terms(real.classes(), fake.classes(), batch, shown),
            **HINGE.d_terms(real.realness(), fake.realness(), batch, shown),
        }

    def g_term(self, fake: DiscriminatorOutput, batch: Batch) -> Tensor:
        """The sum of both."""
        classes = self.oasis.g_term(fake.classes(), batch)
        return classes + HINGE.g_term(fake.realness(), batch)

    def realness(self, output: DiscriminatorOutput, batch: Batch) -> Tensor:
        """That of the classes."""
        return self.oasis.realness(output.classes(), batch)

    def accuracy(self, output: DiscriminatorOutput, batch: Batch, real: bool) -> Tensor:
        """That of the classes."""
        return self.oasis.accuracy(output.classes(), batch, real)


def build_adversarial(name: str, class_balance: bool) -> Adversarial:
    """The adversarial loss of a name in `losses.settings.ADVERSARIAL`."""
    losses: dict[str, Adversarial] = {
        "hinge": HINGE,
        "lsgan": LEAST_SQUARES,
        "nonsaturating": NON_SATURATING,
        "classes": Oasis(class_balance),
        "both": OasisAndHinge(class_balance),
    }
    return losses[name]
