"""Objectives: what the discriminator step and the generator step minimise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from geoseg_gan.data.batch import Batch
from geoseg_gan.errors import UserError
from geoseg_gan.losses.terms import feature_matching, hinge_d, hinge_g, sign_accuracy
from geoseg_gan.models.registry import Discriminator


class Terms(dict[str, Tensor]):
    """Named, weighted scalar terms of a loss, and figures worth watching that are no part of it.

    Attributes:
        monitors: Named scalars without gradient.
    """

    def __init__(
        self, terms: Mapping[str, Tensor], monitors: Mapping[str, Tensor] | None = None
    ) -> None:
        """Keeps both."""
        super().__init__(terms)
        self.monitors = dict(monitors or {})

    def total(self) -> Tensor:
        """The loss: the sum of the terms."""
        return torch.stack(list(self.values())).sum()


class Objective(Protocol):
    """One training recipe."""

    def d_terms(self, discriminator: Discriminator, batch: Batch, fake: Tensor) -> Terms:
        """What the discriminator minimises; `fake` (B, K, H, W) carries no gradient."""

    def g_terms(self, discriminator: Discriminator, batch: Batch, fake: Tensor) -> Terms:
        """What the generator minimises through `fake` (B, K, H, W)."""


@dataclass
class Weight:
    """The weight of one term.

    Attributes:
        weight: Factor; 0 leaves the term out.
    """

    weight: float = 1.0


@dataclass
class HingeFM:
    """Hinge loss and feature matching, the base recipe.

    Ignored ground is blanked in real and generated images alike, so that neither network is judged
    by it.

    Attributes:
        name: "hinge_fm".
        feature_matching: Weight of feature matching; pix2pixHD's 10 by default.
    """

    name: str = "hinge_fm"
    feature_matching: Weight = field(default_factory=lambda: Weight(10.0))

    def __post_init__(self) -> None:
        """Refuses a negative weight."""
        weight = self.feature_matching.weight
        if weight < 0:
            raise UserError(f"loss.feature_matching.weight={weight}: use 0 or more.")

    def d_terms(self, discriminator: Discriminator, batch: Batch, fake: Tensor) -> Terms:
        """Hinge terms on real and on fake, and the accuracy on each."""
        # One pass over both halves is one round of spectral normalisation instead of two.
        images = torch.cat([batch.image * batch.valid, fake * batch.valid])
        real_out, fake_out = discriminator(images, batch.one_hot.repeat(2, 1, 1, 1)).halves()
        on_real, on_fake = hinge_d(real_out.logits, fake_out.logits)
        with torch.no_grad():
            monitors = {
                "accuracy_real": sign_accuracy(real_out.logits, real=True),
                "accuracy_fake": sign_accuracy(fake_out.logits, real=False),
            }
        return Terms({"hinge_real": on_real, "hinge_fake": on_fake}, monitors)

    def g_terms(self, discriminator: Discriminator, batch: Batch, fake: Tensor) -> Terms:
        """Hinge term and weighted feature matching."""
        fake_out = discriminator(fake * batch.valid, batch.one_hot)
        terms = {"hinge": hinge_g(fake_out.logits)}
        weight = self.feature_matching.weight
        if weight:
            with torch.no_grad():
                real_out = discriminator(batch.image * batch.valid, batch.one_hot)
            distance = feature_matching(real_out.features, fake_out.features)
            terms["feature_matching"] = weight * distance
        return Terms(terms)


OBJECTIVES: dict[str, type[HingeFM]] = {"hinge_fm": HingeFM}
