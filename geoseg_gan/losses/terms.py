"""The terms of a loss, and functions that compute them from what networks return."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class Terms(dict[str, Tensor]):
    """Named, weighted scalar terms of a loss, and scalars to log that are not part of it.

    Attributes:
        monitors: Scalars without gradient by name.
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

    @classmethod
    def mean(cls, parts: "Sequence[Terms]") -> "Terms":
        """The mean over the parts of a batch, without gradient."""

        def over(dicts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            names = dicts[0]
            return {n: torch.stack([own[n].detach() for own in dicts]).mean() for n in names}

        return cls(over(parts), over([part.monitors for part in parts]))


def over_scales(logits: Sequence[Tensor], loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean over scales of a scalar function of each scale's logits."""
    return torch.stack([loss(scale) for scale in logits]).mean()


def sign_accuracy(logits: Sequence[Tensor], real: bool) -> Tensor:
    """Share of logits on the right side of 0, averaged over scales; 0 itself counts as wrong."""
    sign = 1 if real else -1
    return over_scales(logits, lambda scale: (scale * sign > 0).float().mean())


def feature_matching(
    real: Sequence[Sequence[Tensor]],
    fake: Sequence[Sequence[Tensor]],
    weights: Tensor | None = None,
) -> Tensor:
    """Mean absolute difference of features, summed over layers, averaged over scales.

    Wang et al. 2018 (pix2pixHD), eq. 4. Each side has, for every scale, the features of each layer;
    the real side is detached. Images weigh as `weights` (B,) say, by default alike.
    """
    total = torch.stack(
        [
            _distance(mine, target, weights)
            for fake_scale, real_scale in zip(fake, real, strict=True)
            for mine, target in zip(fake_scale, real_scale, strict=True)
        ]
    ).sum()
    return total / len(real)


def perceptual(
    real: Sequence[Tensor], fake: Sequence[Tensor], weights: Tensor | None = None
) -> Tensor:
    """Weighted mean absolute difference of a pretrained network's features (Wang et al. 2018).

    The coarsest map weighs 1, the next 1/4, and each finer one half of the one before: of five maps
    1/32, 1/16, 1/8, 1/4 and 1, as published for VGG19. Maps are given from the finest to the
    coarsest; the real side is detached. Images weigh as `weights` (B,) say, by default alike.
    """
    count = len(real)
    factors = [2.0 ** -(count - number) for number in range(count - 1)] + [1.0]
    distances = [
        factor * _distance(mine, target, weights)
        for factor, mine, target in zip(factors, fake, real, strict=True)
    ]
    return torch.stack(distances).sum()


def _distance(mine: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """The mean absolute difference of features (B, ...), images weighing as said."""
    if weights is None:
        return F.l1_loss(mine, target.detach())
    return ((mine - target.detach()).abs().flatten(1).mean(1, dtype=torch.float32) * weights).mean()


def diversity(first: Tensor, second: Tensor, distance: Tensor, limit: float) -> Tensor:
    """How much images of one mask differ with their noise, negated.

    The regulariser of DSGAN (Yang et al. 2019, eq. 4): the mean over the batch of the mean absolute
    difference of two images, divided by that of their noise, up to a limit.

    Args:
        first: Images (B, K, H, W).
        second: Images of the same masks with other noise.
        distance: Mean absolute difference of the noise of each pair, shape (B,).
        limit: Ratios above it count as this.
    """
    ratio = (first - second).abs().mean((1, 2, 3)) / distance.clamp(min=1e-6)
    return -ratio.clamp(max=limit).mean()


def gradient_penalty(score: Tensor, images: Tensor) -> Tensor:
    """R1: the mean squared norm of the discriminator's gradient at real images.

    Mescheder et al. 2018, eq. 9, without its weight. The score is the sum over the batch of the
    discriminator's scores of images (B, K, H, W) that require gradients.
    """
    (gradient,) = torch.autograd.grad(score, images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def balanced_cross_entropy(
    logits: Tensor, one_hot: Tensor, pixels: Tensor, balance: bool = True
) -> Tensor:
    """Cross-entropy with the true class of labelled pixels, all classes weighing alike.

    Schönfeld et al. 2021, eq. 2: a pixel of class c weighs in proportion to 1 / (pixels of c in the
    batch). So weighted, the mean over labelled pixels is the mean over the classes present of the
    mean over their pixels.

    Args:
        logits: Shape (B, C + 1, H, W), channel 0 for fake and c + 1 for class c.
        one_hot: Shape (B, C, H, W), all zero where ignored.
        pixels: Labelled pixels of each class, shape (C,): the mean over all parts of the batch,
            where this is one of several.
        balance: False for the plain mean over pixels.

    Returns:
        A scalar, 0 where no pixel is labelled.
    """
    losses = -(F.log_softmax(logits.float(), 1)[:, 1:] * one_hot)
    if not balance:
        return losses.sum() / at_least_one(pixels.sum())
    means = losses.sum((0, 2, 3)) / at_least_one(pixels)
    return means.sum() / (pixels > 0).sum().clamp(min=1)


def at_least_one(counts: Tensor) -> Tensor:
    """Counts to divide by: 1 in place of 0. Means over the parts of a batch may be below 1."""
    return torch.where(counts > 0, counts, 1)


def label_mix(mixed: Tensor, real: Tensor, fake: Tensor, from_real: Tensor) -> Tensor:
    """LabelMix consistency: the logits of a mixed image should be the mix of both images' logits.

    Schönfeld et al. 2021, eq. 4: the mean squared difference of logits (B, C + 1, H, W), where
    `from_real` (B, 1, H, W) is 1 where the mixed image is real and 0 where it is generated.
    """
    return F.mse_loss(mixed, from_real * real + (1 - from_real) * fake)
