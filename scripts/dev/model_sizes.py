"""Prints how large every network is, as the Markdown tables of docs/models.md."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from geoseg_gan.config import compose, plain
from geoseg_gan.models.pretrained.backbone import Backbone
from geoseg_gan.models.registry import Generator, build_discriminator, build_generator
from geoseg_gan.training.settings import TrainConfig
from geoseg_gan.utils.messages import choices
from geoseg_gan.utils.tables import markdown_table

IMAGE_SIZE, NUM_CLASSES, BANDS = 256, 8, 3  # what published figures are counted for


@dataclass(frozen=True)
class Size:
    """How large a network is.

    Attributes:
        parameters: Trained ones, in millions.
        gmac: Multiply-adds of a forward pass of one image, in thousands of millions.
        frozen: Parameters of its pretrained backbone, in millions.
    """

    parameters: float
    gmac: float
    frozen: float = 0.0


@dataclass(frozen=True)
class Published(Size):
    """A paper's figures.

    Attributes:
        noise: Settings that give our generator the noise of the paper's.
    """

    noise: Mapping[str, int] = field(default_factory=dict)


_NO_NOISE = {"style_channels": 0, "region_channels": 0, "texture_octaves": 0}

PUBLISHED = {
    "generator/spade": Published(92.2, 138, noise=_NO_NOISE),
    "generator/clade": Published(67.0, 42, noise=_NO_NOISE),
    "generator/oasis": Published(70.4, 151, noise=_NO_NOISE | {"style_channels": 64}),
    "discriminator/oasis": Published(22.3, 48),
}
"""From Park et al. 2019, Tan et al. 2021 and Schönfeld et al. 2021."""


def measure(kind: str, settings: Mapping[str, Any]) -> Size:
    """Counts one network on the meta device: no memory for weights, no computation."""
    with torch.device("meta"):
        one_hot = torch.empty(1, NUM_CLASSES, IMAGE_SIZE, IMAGE_SIZE)
        if kind == "generator":
            network = build_generator(settings, NUM_CLASSES, BANDS)
            channels = cast(Generator, network).noise.channels
            inputs = one_hot, torch.empty(1, channels, IMAGE_SIZE, IMAGE_SIZE)
        else:
            network = build_discriminator(settings, NUM_CLASSES, BANDS)
            inputs = torch.empty(1, BANDS, IMAGE_SIZE, IMAGE_SIZE), one_hot
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*inputs)
    backbone = getattr(network, "backbone", None)
    frozen = backbone.skeleton().parameters() if isinstance(backbone, Backbone) else ()
    return Size(
        sum(p.numel() for p in network.parameters()) / 1e6,
        counter.get_total_flops() / 2e9,  # a multiplication and an addition
        sum(p.numel() for p in frozen) / 1e6,
    )


def row(kind: str, choice: str) -> list[str]:
    """Name, parameters and GMAC of a network, published figures in brackets."""
    settings = plain(compose(TrainConfig, [f"model/{kind}={choice}"]).model)[kind]
    size, published = measure(kind, settings), PUBLISHED.get(f"{kind}/{choice}")
    parameters, gmac = (
        f"{value:.1f}" if value >= 1 else f"{value:.2f}" for value in (size.parameters, size.gmac)
    )
    if size.frozen:
        parameters += f" + {size.frozen:.1f} frozen"
    if published:
        parameters += f" ({published.parameters:.1f})"
        gmac += f" ({published.gmac:.0f})"
    return [f"`{choice}`", parameters, gmac]


if __name__ == "__main__":
    for kind in ("generator", "discriminator"):
        rows = [row(kind, choice) for choice in choices(f"model/{kind}")]
        print(*markdown_table([kind, "parameters", "GMAC"], rows), "", sep="\n")
