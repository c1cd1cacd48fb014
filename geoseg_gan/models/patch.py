"""The PatchGAN discriminator and what every discriminator returns."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm as add_spectral_norm


@dataclass(frozen=True)
class DiscriminatorOutput:
    """What a discriminator says of a batch.

    Attributes:
        logits: One tensor a scale, shape (B, 1 or N + 1, h, w); above 0 speaks for real.
        features: For every scale the activations of its layers, logits left out, each (B, c, h, w).
    """

    logits: list[Tensor]
    features: list[list[Tensor]]

    def halves(self) -> "tuple[DiscriminatorOutput, DiscriminatorOutput]":
        """Splits the output for a batch of real and fake images, concatenated in this order."""
        logits = [t.chunk(2) for t in self.logits]
        features = [[t.chunk(2) for t in scale] for scale in self.features]
        real, fake = (
            DiscriminatorOutput(
                [pair[half] for pair in logits], [[pair[half] for pair in s] for s in features]
            )
            for half in (0, 1)
        )
        return real, fake


class PatchDis(nn.Module):
    """PatchGAN on image and label map at one or more scales (Isola 2017; Wang et al. 2018).

    With three layers a logit judges 70x70 pixels. There is no normalisation over space by default:
    it would hide from the discriminator how bright the image is.

    Args:
        num_classes: C, channels of the one-hot label map.
        image_channels: K, bands of the image.
        width: Channels of the first layer; each further layer has twice as many, up to 8 times.
        layers: Strided layers of each scale.
        scales: How many copies look at the image, each at half the resolution of the one before.
        spectral_norm: Divides weights by their spectral norm (Miyato et al. 2018).
        instance_norm: Normalises each feature map over space, but for the first layer's.
    """

    def __init__(
        self,
        num_classes: int,
        image_channels: int,
        *,
        width: int = 64,
        layers: int = 3,
        scales: int = 2,
        spectral_norm: bool = True,
        instance_norm: bool = False,
    ) -> None:
        """Builds the network.

        Raises:
            ValueError: If width, layers or scales are below 1.
        """
        super().__init__()
        if min(width, layers, scales) < 1:
            raise ValueError(
                f"width={width}, layers={layers} and scales={scales} must be 1 or more"
            )
        self.minimum_size = 2 ** (layers + scales + 1)
        self.scales = nn.ModuleList(
            _Patch(num_classes + image_channels, width, layers, spectral_norm, instance_norm)
            for _ in range(scales)
        )

    def forward(self, image: Tensor, one_hot: Tensor) -> DiscriminatorOutput:
        """Judges images.

        Args:
            image: Shape (B, K, H, W), in [-1, 1]; H and W at least `minimum_size`.
            one_hot: Shape (B, C, H, W).
        """
        x = torch.cat([image, one_hot], 1)
        logits, features = [], []
        for number, patch in enumerate(self.scales):
            if number:
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            logit, layers = patch(x)
            logits.append(logit)
            features.append(layers)
        return DiscriminatorOutput(logits, features)


class _Patch(nn.Module):
    def __init__(
        self, channels: int, width: int, layers: int, spectral_norm: bool, instance_norm: bool
    ) -> None:
        super().__init__()
        widths = [channels, *(width * min(2**level, 8) for level in range(layers + 1))]
        blocks = []
        for level in range(layers + 1):
            stride = 2 if level < layers else 1
            convolution = nn.Conv2d(widths[level], widths[level + 1], 4, stride, padding=1)
            block = [add_spectral_norm(convolution) if spectral_norm else convolution]
            if instance_norm and level:
                block.append(nn.InstanceNorm2d(widths[level + 1]))
            blocks.append(nn.Sequential(*block, nn.LeakyReLU(0.2)))
        self.blocks = nn.ModuleList(blocks)
        head = nn.Conv2d(widths[-1], 1, 4, padding=1)
        self.head = add_spectral_norm(head) if spectral_norm else head

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return self.head(x), features
