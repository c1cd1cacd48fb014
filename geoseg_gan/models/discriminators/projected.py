"""Discriminators on the features of a frozen pretrained network."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoseg_gan.models.discriminators.output import DiscriminatorOutput, OutputKind
from geoseg_gan.models.discriminators.patch import PatchDis
from geoseg_gan.models.layers import check_minimum, condition_channels, condition_of, convolution
from geoseg_gan.models.pretrained.backbone import LITE2_BACKBONE, Backbone

_FINEST = 4
"""Stride in pixels of the finest feature map that is used, as in the paper."""


class ProjectedDis(nn.Module):
    """Small discriminators on randomly mixed pretrained features (Sauer et al. 2021).

    Feature maps at 1/4 to 1/32 of the resolution are mixed by 1x1 convolutions and then, from the
    coarsest to the finest, added up and mixed by 3x3 ones (sec. 3.2). Both keep their random
    initial weights, so that no feature can be neglected. Each mixed map has a discriminator of its
    own.

    Differences from the paper: each discriminator also sees the share of every class at a feature's
    place, and gives a map of logits, so that an image has to show its mask. And images are smoothed
    before the backbone: its strided first layer aliases patterns of two pixels, which would stay in
    generated images (Zhang 2019, "Making Convolutional Networks Shift-Invariant Again").

    The arguments are the knobs of configs/model/discriminator/projected.yaml.
    """

    output_kind: OutputKind = "realness"

    def __init__(
        self,
        num_classes: int,
        image_channels: int,
        *,
        backbone: str = LITE2_BACKBONE,
        mixed: int = 64,
        width: int = 64,
        patch: int = 0,
        spectral_norm: bool = True,
        edges: bool = False,
    ) -> None:
        """Builds the discriminators; the backbone is loaded when it is first needed.

        Raises:
            UserError: If there is no such backbone, or it has no feature maps.
            ValueError: If a number is out of range, or the backbone has no feature map at a quarter
                of the resolution or below.
        """
        super().__init__()
        check_minimum(1, mixed=mixed, width=width)
        check_minimum(0, patch=patch)
        self.backbone = Backbone(backbone, image_channels)
        self.minimum_size = 32
        self.edges = edges
        levels = self.backbone.levels()
        self.first = sum(stride < _FINEST for _, stride in levels)  # the first level that is used
        channels = [count for count, _ in levels[self.first :]]
        if not channels:
            raise ValueError(f"backbone={backbone} has no feature map of stride {_FINEST} or more")
        mixes = [mixed * 2**level for level in range(len(channels))]
        # Buffers: saved with the discriminator, but never trained.
        for level, (found, mix) in enumerate(zip(channels, mixes, strict=True)):
            self.register_buffer(f"across_channels_{level}", _random(mix, found, 1))
            if level < len(channels) - 1:
                self.register_buffer(f"across_scales_{level}", _random(mix, mixes[level + 1], 3))
        condition = condition_channels(num_classes, edges)
        self.scales = nn.ModuleList(_Head(mix + condition, width, spectral_norm) for mix in mixes)
        self.patch = None
        if patch:
            self.patch = PatchDis(
                num_classes,
                image_channels,
                width=patch,
                scales=1,
                spectral_norm=spectral_norm,
                edges=edges,
            )

    def blocks(self) -> list[nn.Module]:
        """The parts whose activations can be computed again: those of the PatchGAN."""
        return [] if self.patch is None else self.patch.blocks()

    def forward(self, image: Tensor, one_hot: Tensor) -> DiscriminatorOutput:
        """Says how real an image looks beside its label map."""
        condition = condition_of(one_hot, self.edges)
        mixed: list[Tensor] = []
        maps = self.backbone(_smooth(image))[self.first :]
        for level, found in reversed(list(enumerate(maps))):
            x = F.conv2d(found, self.get_buffer(f"across_channels_{level}").to(found.dtype))
            if mixed:
                weight = self.get_buffer(f"across_scales_{level}").to(found.dtype)
                coarser = F.interpolate(mixed[-1], size=x.shape[-2:], mode="bilinear")
                x = x + F.conv2d(coarser, weight, padding=1)
            mixed.append(x)
        logits, features = [], []
        for head, x in zip(self.scales, reversed(mixed), strict=True):
            shares = F.adaptive_avg_pool2d(condition, (x.shape[-2], x.shape[-1]))
            logit, layers = head(torch.cat([x, shares.to(x.dtype)], 1))
            logits.append(logit)
            features.append(layers)
        if self.patch is not None:
            output: DiscriminatorOutput = self.patch(image, one_hot)
            logits += output.logits
            features += output.features
        return DiscriminatorOutput(logits, features)


class _Head(nn.Module):
    def __init__(self, channels: int, width: int, spectral_norm: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                convolution(channels, width, 3, spectral_norm=spectral_norm),
                convolution(width, 2 * width, 3, stride=2, spectral_norm=spectral_norm),
            ]
        )
        self.head = convolution(2 * width, 1, 3, spectral_norm=spectral_norm)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for block in self.blocks:
            x = F.leaky_relu(block(x), 0.2)
            features.append(x)
        return self.head(x), features


def _smooth(image: Tensor) -> Tensor:
    """Filters with 1/4, 1/2, 1/4 along rows and columns, which removes patterns of two pixels."""
    kernel = torch.tensor([0.25, 0.5, 0.25], dtype=image.dtype, device=image.device)
    bands = image.shape[1]
    weight = torch.outer(kernel, kernel).expand(bands, 1, 3, 3)
    return F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), weight, groups=bands)


def _random(out_channels: int, channels: int, kernel: int) -> Tensor:
    """Random weights of a convolution that keeps the size of activations."""
    return torch.randn(out_channels, channels, kernel, kernel) / math.sqrt(channels * kernel**2)
