"""The discriminator that tells the class of every pixel, or that it is generated."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoseg_gan.models.discriminators.output import DiscriminatorOutput, OutputKind
from geoseg_gan.models.discriminators.patch import PatchDis
from geoseg_gan.models.discriminators.projected import ProjectedDis
from geoseg_gan.models.layers import check_minimum, convolution

EXTRA_NETWORKS = frozenset({"patch", "projected", "reconstruction"})
"""Settings of an `OasisDis` that add a network, and the names of these networks in it."""

_ENLARGED = 3  # times that the reconstruction is twice as large as the coarsest features


def changed_settings(settings: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Keys of `settings` with another value in `others`, extra networks apart."""
    return [
        key for key in settings if key not in EXTRA_NETWORKS and settings[key] != others.get(key)
    ]


class OasisDis(nn.Module):
    """U-Net with C + 1 logits a pixel, the discriminator of OASIS (Schönfeld et al. 2021, sec. 3).

    It does not see the label map: it learns to find it in the image. That rewards what is typical
    of a class, which is only a part of a realistic texture; so discriminators of realness can be
    added. A decoder can be too, which keeps its coarsest features informative.

    The arguments are the knobs of configs/model/discriminator/oasis.yaml.

    Attributes:
        output_kind: "classes", or "both" with extra discriminators.
    """

    def __init__(
        self,
        num_classes: int,
        image_channels: int,
        *,
        width: int = 128,
        depth: int = 6,
        max_width: int = 512,
        stem: int = 0,
        spectral_norm: bool = True,
        patch: int = 0,
        projected: int = 0,
        reconstruction: int = 0,
    ) -> None:
        """Builds the network.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__()
        check_minimum(1, width=width, depth=depth, max_width=max_width)
        check_minimum(0, stem=stem, patch=patch, projected=projected, reconstruction=reconstruction)
        self.output_kind: OutputKind = "both" if patch or projected else "classes"
        channels = (num_classes, image_channels)
        self.patch = self.projected = None
        if patch:
            self.patch = PatchDis(*channels, width=patch, scales=1, spectral_norm=spectral_norm)
        if projected:
            self.projected = ProjectedDis(
                *channels, mixed=projected, width=projected, spectral_norm=spectral_norm
            )
        self.minimum_size = max(
            2 ** (depth + bool(stem)), *(extra.minimum_size for extra in self._extra()), 0
        )
        self.stem = (
            convolution(image_channels, stem, 4, stride=2, spectral_norm=spectral_norm)
            if stem
            else None
        )
        widths = [min(width * 2 ** (level // 2), max_width) for level in range(depth)]
        # The decoder mirrors the encoder and ends at half of the finest level's width.
        outs = [max(1, width // 2), *widths[:-1]]
        self.down = nn.ModuleList(
            _Block(above, below, spectral_norm, first=not level)
            for level, (above, below) in enumerate(
                zip([stem or image_channels, *widths[:-1]], widths, strict=True)
            )
        )
        self.up = nn.ModuleList(
            _Block(below if level == depth - 1 else 2 * below, out, spectral_norm)
            for level, (below, out) in enumerate(zip(widths, outs, strict=True))
        )
        self.head = nn.Conv2d(outs[0], num_classes + 1, 1)
        self.reconstruction = (
            _decoder(widths[-1], reconstruction, image_channels) if reconstruction else None
        )

    def _extra(self) -> list[PatchDis | ProjectedDis]:
        return [extra for extra in (self.patch, self.projected) if extra is not None]

    def blocks(self) -> list[nn.Module]:
        """The parts whose activations can be computed again."""
        extra = [block for each in self._extra() for block in each.blocks()]
        return [*self.down, *self.up, *extra]

    def forward(self, image: Tensor, one_hot: Tensor) -> DiscriminatorOutput:
        """Tells the class of each pixel; only extra discriminators see the label map."""
        x = image if self.stem is None else self.stem(image)
        sizes, levels = [], []
        for down in self.down:
            sizes.append(x.shape[-2:])
            x = F.avg_pool2d(down(x), 2)
            levels.append(x)
        features = list(levels)
        for level in reversed(range(len(levels))):
            if level < len(levels) - 1:
                x = torch.cat([x, levels[level]], 1)
            x = self.up[level](F.interpolate(x, size=sizes[level], mode="nearest"))
            features.append(x)
        logits = self.head(x)
        if logits.shape[-2:] != image.shape[-2:]:
            logits = F.interpolate(logits, size=image.shape[-2:], mode="bilinear")
        output = DiscriminatorOutput([logits], [features])
        for extra in self._extra():
            more: DiscriminatorOutput = extra(image, one_hot)
            output.logits.extend(more.logits)
            output.features.extend(more.features)
        return output

    def reconstruct(self, output: DiscriminatorOutput) -> Tensor:
        """Draws the images of an output from its coarsest features, smaller, (B, K, h, w).

        Raises:
            ValueError: If there is no decoder, as with `reconstruction=0`.
        """
        if self.reconstruction is None:
            raise ValueError("reconstruction=0 has no decoder")
        image: Tensor = self.reconstruction(output.features[0][len(self.down) - 1])
        return image


def _decoder(channels: int, width: int, image_channels: int) -> nn.Sequential:
    """A small decoder of features, the one of FastGAN's discriminator (Liu et al. 2021, sec. 3.2).

    It has no spectral norm: how steep it is does not reach the generator.
    """
    layers: list[nn.Module] = []
    for _ in range(_ENLARGED):
        layers += [
            nn.Upsample(scale_factor=2.0),
            nn.Conv2d(channels, width, 3, padding=1),
            nn.LeakyReLU(0.2),
        ]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(width, image_channels, 3, padding=1), nn.Tanh())


class _Block(nn.Module):
    """A residual block of two convolutions; the network's first has no activation in front."""

    def __init__(
        self, channels: int, out_channels: int, spectral_norm: bool, first: bool = False
    ) -> None:
        super().__init__()
        self.first = first
        self.one = convolution(channels, out_channels, 3, spectral_norm=spectral_norm)
        self.two = convolution(out_channels, out_channels, 3, spectral_norm=spectral_norm)
        self.skip = (
            convolution(channels, out_channels, 1, bias=False, spectral_norm=spectral_norm)
            if channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x if self.first else F.leaky_relu(x, 0.2))
        y = self.two(F.leaky_relu(y, 0.2))
        return y + (x if self.skip is None else self.skip(x))
