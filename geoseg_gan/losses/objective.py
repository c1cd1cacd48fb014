"""The objective of a GAN: what the discriminator step and the generator step minimise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from geoseg_gan.data.batch import Batch, to_device
from geoseg_gan.losses.adversarial import build_adversarial
from geoseg_gan.losses.diff_augment import AdaptiveStrength, DiffAugment, ImageChange
from geoseg_gan.losses.settings import ObjectiveSettings
from geoseg_gan.losses.terms import (
    Terms,
    diversity,
    feature_matching,
    gradient_penalty,
    label_mix,
    perceptual,
)
from geoseg_gan.models.discriminators.output import Discriminator, OutputKind
from geoseg_gan.models.pretrained.backbone import Backbone
from geoseg_gan.utils.errors import UserError

Regenerate = Callable[[], tuple[Tensor, Tensor]]
"""Generates the batch again with other noise: images (B, K, H, W), and the mean absolute difference
of the two noise maps of each pair, (B,)."""

_STREAM = 0x3A8E1  # separates LabelMix's draws from others with the same seed

_MEANINGS: dict[OutputKind, str] = {
    "realness": "says how real an image is",
    "classes": "tells the class of every pixel",
    "both": "does both, telling classes and how real an image is",
}

_CHOICES: dict[OutputKind, tuple[str, str]] = {
    "realness": ("model/discriminator=patch", "loss=hinge_fm"),
    "classes": ("model/discriminator=oasis", "loss=oasis"),
    "both": ("model/discriminator=both", "loss=both"),
}
"""For each kind of output a discriminator that has it, and a loss that needs it."""


def check_compatible(loss: ObjectiveSettings, output_kind: OutputKind, noise_channels: int) -> None:
    """Refuses networks that a loss cannot train.

    Raises:
        UserError: Saying why, and what fits.
    """
    needed = build_adversarial(loss.adversarial, loss.class_balance).output_kind
    if output_kind != needed:
        raise UserError(
            f"loss.adversarial={loss.adversarial} needs a discriminator that {_MEANINGS[needed]}, "
            f"and model.discriminator {_MEANINGS[output_kind]}. Use {_CHOICES[needed][0]}, or "
            f"{_CHOICES[output_kind][1]}."
        )
    if loss.labelmix.weight and needed == "realness":
        raise UserError(
            f"loss.labelmix.weight={loss.labelmix.weight} mixes images along their classes, "
            f"which loss.adversarial={loss.adversarial} does not tell. Set it to 0, or use "
            "loss=oasis."
        )
    if loss.diversity.weight and not noise_channels:
        raise UserError(
            f"loss.diversity.weight={loss.diversity.weight} compares images of different "
            "noise, but the generator takes none. Set it to 0, or give model.generator some "
            "style_channels, region_channels or texture_octaves."
        )


@dataclass(frozen=True)
class View:
    """A batch as both steps see it, plain and augmented; `augment` is for its generated images."""

    batch: Batch
    augmented: Batch
    augment: ImageChange


class Objective(nn.Module):
    """What both networks minimise under some loss settings, and its state from batch to batch.

    Ignored pixels are blanked in real and generated images alike, so that neither network learns
    from them. The seed fixes augmentation and mixing.

    Attributes:
        strength: The probability of augmentation.

    Raises:
        UserError: If the perceptual network cannot take such images.
    """

    def __init__(self, settings: ObjectiveSettings, bands: int, seed: int) -> None:
        """Prepares the terms that have a weight."""
        super().__init__()
        self.settings = settings
        self.seed = seed
        self.adversarial = build_adversarial(settings.adversarial, settings.class_balance)
        self.augment = DiffAugment(settings.augment, seed)
        self.strength = AdaptiveStrength(settings.augment)
        self.backbone = (
            Backbone(settings.perceptual.network, bands) if settings.perceptual.weight else None
        )
        self._batches = 0

    def views(self, batches: Sequence[Batch]) -> list[View]:
        """Prepares a process's share of a global batch, in parts of one size, for both steps."""
        augmented = [self.augment(batch, self.strength.p) for batch in batches]
        pixels = None
        if self.adversarial.output_kind != "realness":
            pixels = torch.stack([seen.class_pixels() for seen, _ in augmented]).mean(0)
            if dist.is_initialized():
                dist.all_reduce(pixels)
                pixels /= dist.get_world_size()
        return [
            View(batch, replace(seen, pixels=pixels), change)
            for batch, (seen, change) in zip(batches, augmented, strict=True)
        ]

    def d_terms(self, discriminator: Discriminator, view: View, fake: Tensor) -> Terms:
        """What the discriminator minimises, given generated images (B, K, H, W) without gradient.

        Returns:
            The weighted terms; the accuracy on real and on generated images as monitors.
        """
        batch = view.augmented
        real, fake = batch.image * batch.valid, view.augment(fake) * batch.valid
        output = discriminator(torch.cat([real, fake]), batch.one_hot.repeat(2, 1, 1, 1))
        real_out, fake_out = output.halves()
        terms = self.adversarial.d_terms(real_out, fake_out, batch)
        if self.settings.labelmix.weight:
            from_real = self._label_mix_mask(batch)
            mixed = torch.where(from_real > 0, real, fake)
            mixed_out = discriminator(mixed, batch.one_hot)
            difference = label_mix(
                mixed_out.logits[0], real_out.logits[0], fake_out.logits[0], from_real
            )
            terms["labelmix"] = self.settings.labelmix.weight * difference
        r1 = self.settings.r1
        if r1.weight and self._batches % r1.every == 0:
            terms["r1"] = r1.weight / 2 * r1.every * self._r1(discriminator, batch, real)
        with torch.no_grad():
            monitors = {
                "accuracy_real": self.adversarial.accuracy(real_out, batch, real=True),
                "accuracy_fake": self.adversarial.accuracy(fake_out, batch, real=False),
            }
        return Terms(terms, monitors)

    def g_terms(
        self, discriminator: Discriminator, view: View, fake: Tensor, regenerate: Regenerate
    ) -> Terms:
        """What the generator minimises, given a discriminator whose parameters are frozen.

        `regenerate` is only called where the loss has a diversity term.
        """
        settings, batch, augmented = self.settings, view.batch, view.augmented
        fake_out = discriminator(view.augment(fake) * augmented.valid, augmented.one_hot)
        terms = {"adversarial": self.adversarial.g_term(fake_out, augmented)}
        if settings.feature_matching.weight:
            with torch.no_grad():
                real_out = discriminator(augmented.image * augmented.valid, augmented.one_hot)
            distance = feature_matching(real_out.features, fake_out.features, batch.paired)
            terms["feature_matching"] = settings.feature_matching.weight * distance
        if self.backbone is not None:
            with torch.no_grad():
                target = self.backbone(batch.image * batch.valid)
            distance = perceptual(target, self.backbone(fake * batch.valid), batch.paired)
            terms["perceptual"] = settings.perceptual.weight * distance
        if settings.diversity.weight:
            other, noise = regenerate()
            varied = diversity(
                fake * batch.valid, other * batch.valid, noise, settings.diversity.limit
            )
            terms["diversity"] = settings.diversity.weight * varied
        return Terms(terms)

    @torch.no_grad()
    def realness(self, discriminator: Discriminator, image: Tensor, batch: Batch) -> Tensor:
        """How real images of a batch's masks look on average, without augmentation.

        The discriminator is in evaluation mode.
        """
        output = discriminator(image * batch.valid, batch.one_hot)
        return self.adversarial.realness(output, batch)

    def stepped(self) -> None:
        """Counts a batch, once both networks have learnt from it."""
        self._batches += 1

    def get_extra_state(self) -> dict[str, Any]:
        """The state from batch to batch, for `state_dict`."""
        return {"batches": self._batches, "strength": self.strength.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_extra_state` gave."""
        self._batches = state["batches"]
        self.strength.load(state["strength"])

    def _label_mix_mask(self, batch: Batch) -> Tensor:
        """Draws each class of each image from the real (1) or the generated image: (B, 1, H, W)."""
        classes = batch.one_hot.shape[1]
        draws = [
            np.random.default_rng((_STREAM, self.seed, number)).random(classes) < 0.5
            for number in batch.serials
        ]
        chosen = to_device(np.stack(draws), batch.one_hot.device).to(batch.one_hot.dtype)
        return (batch.one_hot * chosen[:, :, None, None]).sum(1, keepdim=True)

    def _r1(self, discriminator: Discriminator, batch: Batch, real: Tensor) -> Tensor:
        images = real.detach().float().requires_grad_()
        # Gradients of gradients overflow in half precision.
        with torch.autocast(real.device.type, enabled=False):
            output = discriminator(images, batch.one_hot)
            score = self.adversarial.realness(output, batch) * len(images)
        return gradient_penalty(score, images)
