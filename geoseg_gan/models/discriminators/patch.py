"""The PatchGAN discriminator."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoseg_gan.models.discriminators.output import DiscriminatorOutput, OutputKind
from geoseg_gan.models.layers import check_minimum, condition_channels, condition_of, convolution


class PatchDis(nn.Module):
    """PatchGAN on image and label map at one or more scales (Isola 2017; Wang et al. 2018).

    With three layers a logit sees 70x70 pixels. There is no normalisation over space by default: it
    would hide the image's brightness from the discriminator.

    The arguments are the knobs of configs/model/discriminator/patch.yaml.
    """

    output_kind: OutputKind = "realness"

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
        edges: bool = False,
    ) -> None:
        """Builds the network.

        Raises:
            ValueError: If a number is out of range.
        """
        super().__init__()
        check_minimum(1, width=width, layers=layers, scales=scales)
        self.minimum_size = 2 ** (layers + scales + 1)
        self.edges = edges
        channels = condition_channels(num_classes, edges) + image_channels
        self.scales = nn.ModuleList(
            _Patch(channels, width, layers, spectral_norm, instance_norm) for _ in range(scales)
        )

    def blocks(self) -> list[nn.Module]:
        """The parts whose activations can be computed again."""
        return [block for scale in self.scales for block in cast(_Patch, scale).blocks]

    def forward(self, image: Tensor, one_hot: Tensor) -> DiscriminatorOutput:
        """Says how real each patch of an image looks beside its label map."""
        x = torch.cat([image, condition_of(one_hot, self.edges)], 1)
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
            block = [
                convolution(
                    widths[level], widths[level + 1], 4, stride=stride, spectral_norm=spectral_norm
                )
            ]
            if instance_norm and level:
                block.append(nn.InstanceNorm2d(widths[level + 1]))
            blocks.append(nn.Sequential(*block, nn.LeakyReLU(0.2)))
        self.blocks = nn.ModuleList(blocks)
        self.head = convolution(widths[-1], 1, 4, spectral_norm=spectral_norm)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return self.head(x), features
