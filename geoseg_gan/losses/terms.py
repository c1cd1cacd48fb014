"""Loss terms as plain functions of discriminator outputs; each returns a scalar tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def hinge_d(real: Sequence[Tensor], fake: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Hinge loss of the discriminator on real and on fake logits (Lim & Ye 2017, eq. 6).

    Args:
        real: Logits of real images, one tensor a scale.
        fake: Logits of generated images, one tensor a scale.

    Returns:
        The means over scales of mean(max(0, 1 - real)) and of mean(max(0, 1 + fake)).
    """
    return (
        torch.stack([F.relu(1 - scale).mean() for scale in real]).mean(),
        torch.stack([F.relu(1 + scale).mean() for scale in fake]).mean(),
    )


def hinge_g(fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the generator: the mean over scales of -mean(fake) (Lim & Ye 2017, eq. 7).

    Args:
        fake: Logits of generated images, one tensor a scale.
    """
    return torch.stack([-scale.mean() for scale in fake]).mean()


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean absolute difference of features, summed over layers, averaged over scales.

    Wang et al. 2018 (pix2pixHD), eq. 4. The real side is detached; the logits, a discriminator's
    last output, are not among its features.

    Args:
        real: For every scale the features of each layer on real images.
        fake: The same on generated images.
    """
    total = torch.stack(
        [
            F.l1_loss(mine, target.detach())
            for fake_scale, real_scale in zip(fake, real, strict=True)
            for mine, target in zip(fake_scale, real_scale, strict=True)
        ]
    ).sum()
    return total / len(real)


def sign_accuracy(logits: Sequence[Tensor], real: bool) -> Tensor:
    """Share of logits on the right side of 0, averaged over scales; 0 itself counts as wrong.

    Args:
        logits: One tensor a scale.
        real: Whether the images judged were real.
    """
    sign = 1 if real else -1
    return torch.stack([(scale * sign > 0).float().mean() for scale in logits]).mean()
