"""Generators whose normalisation is modulated by the label map: SPADE, CLADE and OASIS."""

from collections.abc import Callable

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
    convolution,
    memory_format_of,
)

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": lambda channels: nn.BatchNorm2d(channels, affine=False),
    "instance": lambda channels: nn.InstanceNorm2d(channels),
    "pixel": lambda channels: PixelNorm(),
}
"""Normalisation layers without scale and shift of their own, by name."""


class Spade(nn.Module):
    """Spatially adaptive denormalisation: (1 + gamma) * norm(x) + beta (Park et al. 2019, eq. 1).

    Gamma and beta are convolved from the condition. The paper's equation has gamma in place of
    1 + gamma; as in its code, the network starts close to one without modulation. `channels` are
    those of the features, `condition` and `hidden` those before and between the convolutions.
    """

    def __init__(self, channels: int, condition: int, hidden: int, norm: str) -> None:
        """Builds the layers."""
        super().__init__()
        self.norm = NORMS[norm](channels)
        self.shared = nn.Conv2d(condition, hidden, 3, padding=1)
        self.gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Modulates (B, c, H, W) by a condition (B, D, H, W)."""
        hidden = F.relu(self.shared(condition))
        return _modulate(self.norm(x), self.gamma(hidden), self.beta(hidden))


class Clade(nn.Module):
    """Class-adaptive denormalisation: gamma and beta looked up by class (Tan et al. 2021, eq. 3).

    The look-up is a product with the condition: one-hot at full resolution, and a mixture of the
    classes' entries where several classes share a pixel at a lower one.
    """

    def __init__(self, channels: int, condition: int, norm: str) -> None:
        """Starts every class with gamma near 1 and beta near 0."""
        super().__init__()
        self.norm = NORMS[norm](channels)
        self.gamma = nn.Conv2d(condition, channels, 1, bias=False)
        self.beta = nn.Conv2d(condition, channels, 1, bias=False)
        for table in (self.gamma, self.beta):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Modulates (B, c, H, W) by a condition (B, D, H, W)."""
        return _modulate(self.norm(x), self.gamma(condition), self.beta(condition))


def _modulate(normed: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return torch.addcmul(normed + beta, normed, gamma)


class _Block(nn.Module):
    """A residual block of two modulated convolutions (Park et al. 2019, fig. 4)."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        modulation: Callable[[int], nn.Module],
        noise: int,
        spectral_norm: bool,
    ) -> None:
        super().__init__()
        middle = min(channels, out_channels)
        self.noise = nn.Conv2d(noise, channels, 1, bias=False) if noise else None
        self.first, self.second = modulation(channels), modulation(middle)
        self.first_conv = convolution(channels, middle, 3, spectral_norm=spectral_norm)
        self.second_conv = convolution(middle, out_channels, 3, spectral_norm=spectral_norm)
        self.skip = modulation(channels) if channels != out_channels else None
        if self.skip is not None:
            self.skip_conv = convolution(
                channels, out_channels, 1, bias=False, spectral_norm=spectral_norm
            )

    def forward(self, x: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
        if self.noise is not None:
            x = x + self.noise(noise)
        y: Tensor = self.first_conv(F.leaky_relu(self.first(x, condition), 0.2))
        y = self.second_conv(F.leaky_relu(self.second(y, condition), 0.2))
        if self.skip is not None:
            x = self.skip_conv(self.skip(x, condition))
        return x + y


class SpadeGen(nn.Module):
    """Residual blocks from coarse to fine, normalised and then modulated by the label map.

    With the defaults it is the generator of SPADE (Park et al. 2019) without its image encoder;
    with `modulation="clade"` that of CLADE (Tan et al. 2021); with `condition_noise` and one middle
    block that of OASIS (Schönfeld et al. 2021).

    Differences from the papers: features are upsampled bilinearly, since nearest-neighbour steps
    show in the spectrum; the condition is averaged, not sampled, at lower resolutions, so that thin
    roads reach them; ignored pixels have a channel of their own; and noise is a map with parts per
    image, region and pixel (see NoiseSpec). SPADE and CLADE take noise at the coarsest stage only,
    where a small region has none: here each block also adds a linear map of the noise to its
    features (Karras et al. 2019, sec. 2).

    The arguments are the knobs of configs/model/generator/spade.yaml.
    """

    def __init__(
        self,
        num_classes: int,
        image_channels: int,
        *,
        modulation: str = "spade",
        width: int = 64,
        depth: int = 5,
        max_width: int = 1024,
        middle_blocks: int = 2,
        hidden: int = 128,
        head_width: int = 0,
        condition_noise: bool = False,
        style_channels: int = 32,
        region_channels: int = 32,
        texture_octaves: int = 5,
        style_codes: int = 0,
        edges: bool = False,
        norm: str = "batch",
        spectral_norm: bool = True,
    ) -> None:
        """Builds the network.

        Raises:
            ValueError: If a number is out of range, or `modulation` or `norm` is unknown.
        """
        super().__init__()
        check_minimum(1, width=width, depth=depth, max_width=max_width, hidden=hidden)
        check_minimum(1, middle_blocks=middle_blocks)
        check_minimum(0, head_width=head_width)
        modulations = ("spade", "clade")
        for name, value, known in (("modulation", modulation, modulations), ("norm", norm, NORMS)):
            if value not in known:
                raise ValueError(f"{name}={value} is not one of {', '.join(known)}")
        self.noise = NoiseSpec(style_channels, region_channels, texture_octaves, style_codes)
        self.edges = edges
        self.condition_noise = condition_noise
        self.stride = 2**depth
        condition = condition_channels(num_classes, edges)
        inputs = condition + self.noise.channels
        # From the coarsest stage, at 1 / stride of the resolution, to full or half resolution.
        stages = depth + 1 - bool(head_width)
        widths = [min(width * 2 ** (stages - 1 - stage), max_width) for stage in range(stages)]
        self.stem = nn.Conv2d(inputs, widths[0], 3, padding=1)

        def modulate(features: int) -> nn.Module:
            channels = inputs if condition_noise else condition
            if modulation == "clade":
                return Clade(features, channels, norm)
            return Spade(features, channels, hidden, norm)

        added = 0 if condition_noise else self.noise.channels
        self.stages = nn.ModuleList()
        for stage, out_channels in enumerate(widths):
            channels = widths[max(stage - 1, 0)]
            # As in the papers, the blocks that keep the width come before the one that narrows.
            wide = [channels] * (middle_blocks - 1) if stage == 1 else []
            blocks = [
                _Block(channels, each, modulate, added, spectral_norm)
                for each in (*wide, out_channels)
            ]
            self.stages.append(nn.ModuleList(blocks))
        self.finish = None
        if head_width:
            self.finish = nn.Conv2d(widths[-1] + inputs, head_width, 3, padding=1)
        self.head = nn.Conv2d(head_width or widths[-1], image_channels, 3, padding=1)
        # Last, so that the other weights are the same with and without.
        self.styles = StyleCodes(num_classes, image_channels, style_codes) if style_codes else None

    def blocks(self) -> list[nn.Module]:
        """The parts whose activations can be computed again."""
        return [block for stage in self.stages.children() for block in stage.children()]

    def forward(self, one_hot: Tensor, noise: Tensor) -> Tensor:
        """Maps one-hot (B, C, H, W) and noise (B, Z, H, W) to images (B, K, H, W) in [-1, 1]."""
        full = torch.cat([condition_of(one_hot, self.edges), noise], 1)
        memory_format = memory_format_of(self.stem)
        full = full.contiguous(memory_format=memory_format)
        pyramid = [full]
        while 2 ** (len(pyramid) - 1) < self.stride:
            pyramid.append(F.avg_pool2d(pyramid[-1], 2))
        x = self.stem(pyramid[-1])
        classes = full.shape[1] - noise.shape[1]
        for stage, blocks in enumerate(self.stages):
            if stage:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
            condition = pyramid[-1 - stage]
            # Slices are copied here, once for all layers, so that they lie together in memory.
            own_noise = condition[:, classes:].contiguous(memory_format=memory_format)
            if not self.condition_noise:
                condition = condition[:, :classes].contiguous(memory_format=memory_format)
            for block in blocks.children():
                x = block(x, condition, own_noise)
        if self.finish is not None:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
            x = self.finish(torch.cat([x, full], 1))
        return torch.tanh(self.head(F.leaky_relu(x, 0.2)))
