"""The U-Net generator."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoseg_gan.models.generators.codes import StyleCodes
from geoseg_gan.models.generators.noise import NoiseSpec
from geoseg_gan.models.layers import (
    PixelNorm,
    check_minimum,
    condition_channels,
    condition_of,
    memory_format_of,
)


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
        style_codes: int = 0,
        edges: bool = False,
    ) -> None:
        """Builds the network.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__()
        check_minimum(1, width=width, depth=depth, max_width=max_width)
        self.noise = NoiseSpec(style_channels, region_channels, texture_octaves, style_codes)
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
            _block(nn.Conv2d(2 * above, above, 3, padding=1)) for above in widths[:-1]
        )
        self.head = nn.Conv2d(width, image_channels, 3, padding=1)
        # Last, so that the other weights are the same with and without.
        self.styles = StyleCodes(num_classes, image_channels, style_codes) if style_codes else None

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
        stages = list(zip(self.squeeze, self.up, skips, strict=True))
        for squeeze, up, skip in reversed(stages):
            x = F.interpolate(squeeze(x), scale_factor=2.0, mode="bilinear")
            x = up(torch.cat([x, skip], 1))
        return torch.tanh(self.head(x))


def _block(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, PixelNorm(), nn.LeakyReLU(0.2))
