"""The U-Net generator."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoseg_gan.models.generators.noise import NoiseSpec
from geoseg_gan.models.layers import (
    PixelNorm,
    check_minimum,
    condition_channels,
    condition_of,
    memory_format_of,
)

_SPAN = 4
"""Levels between the features that gate and those that are gated: 16 times the resolution."""


class UNetGen(nn.Module):
    """U-Net from one-hot label map and noise to image (after Isola et al. 2017, sec. 3.2.1).

    Differences from the paper: the decoder upsamples bilinearly and then convolves, and the stride
    of each encoder convolution divides its kernel. So every output pixel gets the same number of
    kernel taps; transposed convolutions do not ensure that, and leave a checkerboard (Odena et al.
    2016). Nearest-neighbour upsampling would leave steps of two pixels in the spectrum. Noise is a
    map instead of dropout, and normalisation is per pixel (see PixelNorm).

    The arguments are the knobs of configs/model/generator/unet.yaml.
    """

    def __init__(
        self,
        num_classes: int,
        image_channels: int,
        *,
        width: int = 32,
        depth: int = 6,
        max_width: int = 512,
        style_channels: int = 16,
        region_channels: int = 16,
        texture_octaves: int = 5,
        edges: bool = False,
        excitation: bool = False,
        modulation: bool = False,
    ) -> None:
        """Builds the network.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__()
        check_minimum(1, width=width, depth=depth, max_width=max_width)
        if modulation:
            check_minimum(1, style_channels=style_channels)
        self.noise = NoiseSpec(style_channels, region_channels, texture_octaves)
        self.edges = edges
        self.stride = 2**depth
        widths = [min(width * 2**level, max_width) for level in range(depth + 1)]
        self.stem = nn.Conv2d(
            condition_channels(num_classes, edges) + self.noise.channels, width, 3, padding=1
        )
        self.down = nn.ModuleList(
            _block(nn.Conv2d(above, below, 4, stride=2, padding=1))
            for above, below in pairwise(widths)
        )
        # Fewer channels before upsampling: a third less arithmetic than at the finer resolution.
        self.squeeze = nn.ModuleList(
            nn.Conv2d(below, above, 1) for above, below in pairwise(widths)
        )
        self.up = nn.ModuleList(
            (_Modulated if modulation else _block)(nn.Conv2d(2 * above, above, 3, padding=1))
            for above in widths[:-1]
        )
        self.head = nn.Conv2d(width, image_channels, 3, padding=1)
        # Of the finest level first; parts that are off leave the other initial weights as they are.
        self.excitation = nn.ModuleList(
            _excitation(widths[min(level + _SPAN, depth)], widths[level])
            for level in range(max(1, depth + 1 - _SPAN) if excitation else 0)
        )
        doubled = [2 * above for above in widths[:-1]]
        self.mapping = _Mapping(style_channels, doubled) if modulation else None

    def blocks(self) -> list[nn.Module]:
        """The parts whose activations can be computed again."""
        return [*self.down, *self.up]

    def forward(self, one_hot: Tensor, noise: Tensor) -> Tensor:
        """Maps one-hot (B, C, H, W) and noise (B, Z, H, W) to images (B, K, H, W) in [-1, 1]."""
        x = torch.cat([condition_of(one_hot, self.edges), noise], 1)
        x = F.leaky_relu(self.stem(x.contiguous(memory_format=memory_format_of(self.stem))), 0.2)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        stages = list(enumerate(zip(self.squeeze, self.up, skips, strict=True)))
        coarse = [x]
        styles = None if self.mapping is None else self.mapping(noise)
        for level, (squeeze, up, skip) in reversed(stages):
            x = F.interpolate(squeeze(x), scale_factor=2.0, mode="bilinear")
            x = torch.cat([x, skip], 1)
            x = up(x) if styles is None else up(x, styles[level])
            if self.excitation:
                if level < len(self.excitation):
                    x = x * self.excitation[level](coarse[-min(_SPAN, len(stages))])
                coarse.append(x)
        return torch.tanh(self.head(x))


def _block(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, PixelNorm(), nn.LeakyReLU(0.2))


class _Mapping(nn.Module):
    """Maps an image's style noise to scales near 1 of the channels of every decoder level."""

    def __init__(self, style_channels: int, channels: list[int], hidden: int = 64) -> None:
        super().__init__()
        self.style_channels, self.channels = style_channels, channels
        self.layers = nn.Sequential(
            nn.Linear(style_channels, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, sum(channels)),
        )

    def forward(self, noise: Tensor) -> tuple[Tensor, ...]:
        """Maps noise (B, Z, H, W), whose first channels are the style, to a (B, c) a level."""
        scales: Tensor = 1 + self.layers(noise[:, : self.style_channels, 0, 0])
        return torch.split(scales, self.channels, 1)


class _Modulated(nn.Module):
    """The decoder's block with a modulated convolution (Karras et al. 2020, eq. 1 to 3).

    Scaling the input and the output is the same as scaling the weight, but needs no weight for each
    image.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.rest = nn.Sequential(PixelNorm(), nn.LeakyReLU(0.2))

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """Maps (B, C, H, W), with a scale (B, C) of its channels."""
        weight, bias = self.convolution.weight, cast(Tensor, self.convolution.bias)
        # In half precision the squares would be too coarse, or too small.
        with torch.autocast(x.device.type, enabled=False):
            power = scale.float().square() @ weight.float().square().sum((2, 3)).mT
            demodulation = torch.rsqrt(power + 1e-8).to(x.dtype)
        y = F.conv2d(x * scale.to(x.dtype)[:, :, None, None], weight, padding=1)
        y = torch.addcmul(bias.to(x.dtype)[:, None, None], y, demodulation[:, :, None, None])
        return cast(Tensor, self.rest(y))


def _excitation(coarse: int, fine: int) -> nn.Sequential:
    """Maps coarse features to a gate in (0, 1) for every channel of fine ones.

    The skip-layer excitation of FastGAN (Liu et al. 2021, sec. 3.1).
    """
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4),
        nn.Conv2d(coarse, fine, 4),
        nn.LeakyReLU(0.2),
        nn.Conv2d(fine, fine, 1),
        nn.Sigmoid(),
    )
