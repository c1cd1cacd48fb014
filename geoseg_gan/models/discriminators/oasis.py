"""The discriminator that tells the class of every pixel, or that it is painted."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoseg_gan.models.discriminators.output import DiscriminatorOutput, Judges
from geoseg_gan.models.discriminators.patch import PatchDis
from geoseg_gan.models.discriminators.projected import ProjectedDis
from geoseg_gan.models.layers import convolution

BESIDE = frozenset({"patch", "projected"})

"""Settings of what judges beside a `PixelDis`, which are also the names of these networks in it."""


def unlike(settings: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Where two networks' settings differ, but for what judges beside them.

    Returns:
        Keys of the first.
    """
    return [key for key in settings if key not in BESIDE and settings[key] != others.get(key)]


class PixelDis(nn.Module):
    """U-Net with N + 1 logits a pixel, the discriminator of OASIS (Schönfeld et al. 2021, sec. 3).

    It is not shown the label map: to find it in the image is what it learns. Others may judge
    beside it how real the image is, since telling classes rewards what is typical of a class, and
    that is not all there is to its texture.

    Args:
        num_classes: C; it gives C + 1 logits.
        image_channels: K, bands of the image.
        width: Channels of the two finest levels of its encoder; every second level has twice as
            many.
        depth: How often the resolution is halved, from where its blocks begin.
        max_width: Upper limit of a level's channels.
        stem: Channels of a strided convolution before the blocks, which then work at half
            resolution and below, their logits being enlarged; 0 for none.
        spectral_norm: Divides weights by their spectral norm (Miyato et al. 2018).
        patch: Width of the PatchGAN beside it, of one scale and shown the label map; 0 for none.
        projected: Width, and channels of the finest mixed map, of projected discriminators beside
            it, on the features of a pretrained network; 0 for none.

    Attributes:
        judges: "classes", or "both" with others beside it.
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
    ) -> None:
        """Builds the network.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__()
        if min(width, depth, max_width) < 1 or min(stem, patch, projected) < 0:
            raise ValueError(
                f"width={width}, depth={depth} and max_width={max_width} must be 1 or more, stem="
                f"{stem}, patch={patch} and projected={projected} 0 or more"
            )
        self.judges: Judges = "both" if patch or projected else "classes"
        self.patch = self.projected = None
        if patch:
            self.patch = PatchDis(
                num_classes, image_channels, width=patch, scales=1, spectral_norm=spectral_norm
            )
        if projected:
            self.projected = ProjectedDis(
                num_classes,
                image_channels,
                mixed=projected,
                width=projected,
                spectral_norm=spectral_norm,
            )
        self.minimum_size = max(
            2 ** (depth + bool(stem)), *(other.minimum_size for other in self._beside()), 0
        )
        self.stem = (
            convolution(image_channels, stem, 4, stride=2, normed=spectral_norm) if stem else None
        )
        widths = [min(width * 2 ** (level // 2), max_width) for level in range(depth)]
        # The decoder mirrors the encoder, and ends at half of the finest level's width.
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

    def _beside(self) -> list[PatchDis | ProjectedDis]:
        return [other for other in (self.patch, self.projected) if other is not None]

    def blocks(self) -> list[nn.Module]:
        """The parts that activation checkpointing computes anew."""
        beside = [block for other in self._beside() for block in other.blocks()]
        return [*self.down, *self.up, *beside]

    def forward(self, image: Tensor, one_hot: Tensor) -> DiscriminatorOutput:
        """Judges images.

        Args:
            image: Shape (B, K, H, W), in [-1, 1]; H and W at least `minimum_size`.
            one_hot: Shape (B, C, H, W); only those beside it look at it.
        """
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
        for other in self._beside():
            beside: DiscriminatorOutput = other(image, one_hot)
            output.logits.extend(beside.logits)
            output.features.extend(beside.features)
        return output


class _Block(nn.Module):
    """A residual block of two convolutions; its first one in the network begins with the image."""

    def __init__(
        self, channels: int, out_channels: int, spectral_norm: bool, first: bool = False
    ) -> None:
        super().__init__()
        self.first = first
        self.one = convolution(channels, out_channels, 3, normed=spectral_norm)
        self.two = convolution(out_channels, out_channels, 3, normed=spectral_norm)
        self.skip = (
            convolution(channels, out_channels, 1, bias=False, normed=spectral_norm)
            if channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x if self.first else F.leaky_relu(x, 0.2))
        y = self.two(F.leaky_relu(y, 0.2))
        return y + (x if self.skip is None else self.skip(x))
