"""Prints parameters and multiply-adds of every network as Markdown tables, with published ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from geoseg_gan.config import choices, compose, plain
from geoseg_gan.models.discriminators.output import Discriminator
from geoseg_gan.models.pretrained.backbone import Backbone
from geoseg_gan.models.registry import Generator, build_discriminator, build_generator
from geoseg_gan.training.settings import TrainConfig
from geoseg_gan.utils.tables import markdown_table

IMAGE_SIZE, NUM_CLASSES, IMAGE_CHANNELS = 256, 8, 3
"""What published figures are counted for."""


@dataclass(frozen=True)
class Published:
    """A paper's figures of its network.

    Attributes:
        paper: Whose network it is.
        parameters: In millions.
        gmac: Multiply-adds of a forward pass of one image, in thousands of millions.
        noise: Settings that give our network the noise of the paper's.
        reason: What explains the deviation that is left then.
    """

    paper: str
    parameters: float
    gmac: float
    noise: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""


_NO_NOISE = {"style_channels": 0, "region_channels": 0, "texture_octaves": 0}

PUBLISHED = {
    "generator/spade": Published("Park et al. 2019", 92.2, 138, _NO_NOISE),
    "generator/clade": Published(
        "Tan et al. 2021", 67.0, 42, _NO_NOISE, "The rest are its look-ups, products here."
    ),
    "generator/oasis": Published(
        "Schönfeld et al. 2021", 70.4, 151, _NO_NOISE | {"style_channels": 64}
    ),
    "discriminator/oasis": Published(
        "Schönfeld et al. 2021",
        22.3,
        48,
        reason="The convolutions beside its blocks have no bias here; published figures are "
        "rounded.",
    ),
}


@dataclass(frozen=True)
class Size:
    """How large a network is.

    Attributes:
        parameters: Trained ones, in millions.
        gmac: Multiply-adds of a forward pass of one image, in thousands of millions.
        backbone: Parameters of its frozen backbone, in millions.
        mixing: Weights of its random mixing convolutions, in millions.
    """

    parameters: float
    gmac: float
    backbone: float
    mixing: float


def measure(kind: str, settings: Mapping[str, Any], num_classes: int = NUM_CLASSES) -> Size:
    """Counts one network on the meta device: no memory for weights, no computation."""
    with torch.device("meta"):
        image, one_hot = (
            torch.empty(1, channels, IMAGE_SIZE, IMAGE_SIZE)
            for channels in (IMAGE_CHANNELS, num_classes)
        )
        if kind == "generator":
            network = build_generator(settings, num_classes, IMAGE_CHANNELS)
            channels = cast(Generator, network).noise.channels
            inputs = one_hot, torch.empty(1, channels, IMAGE_SIZE, IMAGE_SIZE)
        else:
            network = build_discriminator(settings, num_classes, IMAGE_CHANNELS)
            assert cast(Discriminator, network).minimum_size <= IMAGE_SIZE
            inputs = image, one_hot
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*inputs)
    backbone = getattr(network, "backbone", None)
    frozen = backbone.skeleton().parameters() if isinstance(backbone, Backbone) else ()
    return Size(
        sum(p.numel() for p in network.parameters()) / 1e6,
        counter.get_total_flops() / 2e9,  # a multiplication and an addition
        sum(p.numel() for p in frozen) / 1e6,
        # Other buffers, such as running means, have fewer dimensions.
        sum(b.numel() for b in network.buffers() if b.dim() == 4) / 1e6,
    )


def notes(kind: str, settings: Mapping[str, Any], size: Size, published: Published | None) -> str:
    """What is frozen, and what deviations from published figures come from."""
    found = []
    if size.backbone:
        found.append(
            f"Frozen are {size.backbone:.1f} M of the backbone and {size.mixing:.1f} M of random "
            "projections; GMAC are of all."
        )
    if published and published.noise:
        described = []
        # With one class less, our channel of ignored pixels is made up for.
        for classes in (NUM_CLASSES, NUM_CLASSES - 1):
            other = measure(kind, {**settings, **published.noise}, classes)
            described.append(
                f"{other.parameters:.1f} M ({percent(other.parameters, published.parameters)}) and "
                f"{other.gmac:.1f} GMAC ({percent(other.gmac, published.gmac)})"
            )
        noise = "With the paper's noise" if any(published.noise.values()) else "Without our noise"
        found.append(f"{noise}: {described[0]}; without the unknown channel too: {described[1]}.")
    if published and published.reason:
        found.append(published.reason)
    return " ".join(found)


def percent(ours: float, theirs: float) -> str:
    """A deviation, never as -0.0."""
    return f"{round(100 * (ours / theirs - 1), 1) + 0.0:+.1f} %"


def shown(number: float) -> str:
    """A number with two digits or more."""
    return f"{number:.1f}" if number >= 1 else f"{number:.2f}"


def main() -> None:
    """Prints both tables, then the notes."""
    print(
        "Trained parameters in millions, and thousands of millions of multiply-adds (GMAC) of a "
        f"forward pass of one image, at `image_size={IMAGE_SIZE} num_classes={NUM_CLASSES} "
        f"image_channels={IMAGE_CHANNELS}`."
    )
    remarks = []
    for kind in ("generator", "discriminator"):
        rows = []
        for choice in choices(f"model/{kind}"):
            config = compose(TrainConfig, [f"model/{kind}={choice}"])
            settings = plain(config.model)[kind]
            size, published = measure(kind, settings), PUBLISHED.get(f"{kind}/{choice}")
            cells = [f"`{choice}`", shown(size.parameters), "", shown(size.gmac), "", ""]
            if size.backbone:
                cells[1] += f" + {size.backbone:.1f} frozen"
            if published:
                p, g = published.parameters, published.gmac
                cells[2] = f"{p:.1f} ({percent(size.parameters, p)})"
                cells[4:] = f"{g:.0f} ({percent(size.gmac, g)})", published.paper
            rows.append(cells)
            if note := notes(kind, settings, size, published):
                remarks.append(f"- {kind} `{choice}`: {note}")
        head = [kind, "parameters", "published", "GMAC", "published", "paper"]
        print("", *markdown_table(head, rows), sep="\n")
    print("", *remarks, sep="\n")


if __name__ == "__main__":
    main()
