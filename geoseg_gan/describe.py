"""The describe command: how large every network is, and how much work a forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from geoseg_gan.config import command, read_group
from geoseg_gan.errors import UserError
from geoseg_gan.files import atomic_path
from geoseg_gan.models.backbone import Backbone
from geoseg_gan.models.discriminator import Discriminator
from geoseg_gan.models.registry import Generator, build_discriminator, build_generator
from geoseg_gan.schemas import DescribeConfig

KINDS = ("generator", "discriminator")


@dataclass(frozen=True)
class Published:
    """Figures of a paper's network, counted for an image of 256x256, 8 classes and 3 bands.

    Attributes:
        paper: Whose network it is.
        parameters: In millions.
        gmac: Multiply-adds of a forward pass, in thousands of millions.
        noise: Settings that give our network the noise of the paper's.
        rest: What explains the deviation that is left then.
    """

    paper: str
    parameters: float
    gmac: float
    noise: Mapping[str, int] = field(default_factory=dict)
    rest: str = ""


_NO_NOISE = {"style_channels": 0, "region_channels": 0, "texture_octaves": 0}

PUBLISHED = {
    ("generator", "spade"): Published("Park et al. 2019", 92.2, 138, _NO_NOISE),
    ("generator", "clade"): Published(
        "Tan et al. 2021",
        67.0,
        42,
        _NO_NOISE,
        "The rest are its look-ups, which are products here.",
    ),
    ("generator", "oasis"): Published(
        "Schönfeld et al. 2021", 70.4, 151, _NO_NOISE | {"style_channels": 64}
    ),
    ("discriminator", "oasis"): Published(
        "Schönfeld et al. 2021",
        22.3,
        48,
        rest="The convolutions beside its blocks have no bias here; published figures are rounded.",
    ),
}
"""By kind and choice."""

REFERENCE = DescribeConfig(image_size=256, num_classes=8, image_channels=3)
"""What published figures are counted for."""


@dataclass(frozen=True)
class Size:
    """How large a network is.

    Attributes:
        parameters: How many are trained.
        backbones: Parameters of the frozen networks that it sees through, by their names.
        fixed: Weights of convolutions that keep their random values.
        macs: Multiply-adds of a forward pass of one image; None where it takes no such image.
        sizes: Which sides of images it takes, where not this one.
    """

    parameters: int
    backbones: dict[str, int]
    fixed: int
    macs: int | None
    sizes: str = ""


def describe(config: DescribeConfig) -> dict[str, float]:
    """Counts every generator and discriminator of the config groups and prints two tables.

    Args:
        config: What the networks are to be counted for, and where the tables go.

    Returns:
        Trained parameters in millions, as "generator/spade/parameters", and thousands of millions
        of multiply-adds of a forward pass of one image, as "generator/spade/gmac".

    Raises:
        UserError: If a setting is out of range, or the file exists or cannot be written.
    """
    check(config)
    sizes: dict[tuple[str, str], Size] = {}
    notes: list[str] = []
    for kind in KINDS:
        for choice, settings in read_group(f"model/{kind}").items():
            size = measure(kind, settings, config)
            sizes[kind, choice] = size
            note = [*_frozen(size), *_explained(kind, choice, settings, config)]
            if size.sizes:
                note.insert(0, f"Takes {size.sizes}.")
            if note:
                notes.append(f"- {kind} `{choice}`: {' '.join(note)}")
    text = _markdown(config, sizes, notes)
    print(text, end="")
    if config.out is not None:
        try:
            with atomic_path(Path(config.out)) as scratch:
                scratch.write_text(text)
        except OSError as error:
            raise UserError(f"out={config.out} cannot be written ({error}).") from None
        print(f"\nWrote {config.out}.")
    figures = {}
    for (kind, choice), size in sizes.items():
        figures[f"{kind}/{choice}/parameters"] = size.parameters / 1e6
        if size.macs is not None:
            figures[f"{kind}/{choice}/gmac"] = size.macs / 1e9
    return figures


main = command(DescribeConfig)(describe)


def check(config: DescribeConfig) -> None:
    """Refuses a configuration before anything is counted.

    Raises:
        UserError: Naming the key, its value and what to do.
    """
    for key in ("image_size", "num_classes", "image_channels"):
        if getattr(config, key) < 1:
            raise UserError(f"{key}={getattr(config, key)} must be 1 or more.")
    if config.out is not None and Path(config.out).exists():
        raise UserError(f"out={config.out} exists. Choose another file, or remove it.")


def measure(kind: str, settings: Mapping[str, Any], config: DescribeConfig) -> Size:
    """Counts one network, without memory for its weights and without computing anything.

    Args:
        kind: "generator" or "discriminator".
        settings: Its name and what its constructor takes.
        config: The image, and how many classes.
    """
    side, classes, bands = config.image_size, config.num_classes, config.image_channels
    if "spectral_norm" in settings:
        # It changes neither count, and to estimate the norms takes longer than all the rest.
        settings = {**settings, "spectral_norm": False}
    with torch.device("meta"):
        image, one_hot = (torch.empty(1, channels, side, side) for channels in (bands, classes))
        if kind == "generator":
            network = build_generator(settings, classes, bands)
            generator = cast(Generator, network)
            noise = torch.empty(1, generator.noise.channels, side, side)
            fits = side % generator.stride == 0
            sizes = f"sides that are multiples of {generator.stride}"
            inputs = (one_hot, noise)
        else:
            network = build_discriminator(settings, classes, bands)
            least = cast(Discriminator, network).minimum_size
            fits, sizes, inputs = side >= least, f"sides of {least} or more", (image, one_hot)
    backbones = [part for part in vars(network).values() if isinstance(part, Backbone)]
    return Size(
        sum(p.numel() for p in network.parameters() if p.requires_grad),
        {b.name: sum(p.numel() for p in b.skeleton().parameters()) for b in backbones},
        # Other buffers, such as running means, have fewer dimensions.
        sum(b.numel() for b in network.buffers() if b.dim() == 4),
        count_macs(network, *inputs) if fits else None,
        "" if fits else sizes,
    )


def count_macs(network: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of convolutions and matrix products in a forward pass.

    Args:
        network: It is put into evaluation mode.
        inputs: What it takes; on the meta device nothing is computed.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*inputs)
    return int(counter.get_total_flops()) // 2  # a multiplication and an addition


def _comparable(config: DescribeConfig) -> bool:
    return replace(config, out=None) == REFERENCE


def _frozen(size: Size) -> list[str]:
    parts = [f"{count / 1e6:.1f} M of backbone {name}" for name, count in size.backbones.items()]
    if not parts:
        return []
    if size.fixed:
        parts.append(f"{size.fixed / 1e6:.1f} M of random projections")
    return [f"Frozen are {' and '.join(parts)}; GMAC are of all."]


def _explained(
    kind: str, choice: str, settings: Mapping[str, Any], config: DescribeConfig
) -> list[str]:
    """What a deviation from published figures comes from, measured where it can be."""
    published = PUBLISHED.get((kind, choice))
    if published is None or not _comparable(config):
        return []
    found = []
    if published.noise:
        told = {**settings, **published.noise}
        theirs = measure(kind, told, config)
        # The unknown has a channel of its own, so that with one class less there are as many.
        bare = measure(kind, told, replace(config, num_classes=config.num_classes - 1))
        noise = "With the paper's noise" if any(published.noise.values()) else "Without our noise"
        found.append(
            f"{noise}: {_deviation(theirs, published)}; without the channel of the unknown too: "
            f"{_deviation(bare, published)}."
        )
    return [*found, published.rest] if published.rest else found


def _deviation(size: Size, published: Published) -> str:
    parameters, gmac = _figures(size)
    assert gmac is not None
    return (
        f"{parameters:.1f} M ({_percent(parameters, published.parameters)}) and {gmac:.1f} GMAC "
        f"({_percent(gmac, published.gmac)})"
    )


def _figures(size: Size) -> tuple[float, float | None]:
    return size.parameters / 1e6, None if size.macs is None else size.macs / 1e9


def _percent(ours: float, theirs: float) -> str:
    # Zero is added, since what rounds to it from below would be shown as -0.0.
    return f"{round(100 * (ours / theirs - 1), 1) + 0.0:+.1f} %"


def _markdown(
    config: DescribeConfig, sizes: Mapping[tuple[str, str], Size], notes: Sequence[str]
) -> str:
    lines = [
        "Trained parameters in millions, and thousands of millions of multiply-adds (GMAC) of a "
        f"forward pass of one image, at {_setting(config)}."
    ]
    compared = _comparable(config)
    if not compared:
        lines.append(f"Published figures, of {_setting(REFERENCE)}, are left out.")
    for kind in KINDS:
        head = [kind, "parameters", "GMAC"]
        if compared:
            head = [kind, "parameters", "published", "GMAC", "published", "paper"]
        rows = [head]
        for (own, choice), size in sizes.items():
            if own == kind:
                published = PUBLISHED.get((kind, choice)) if compared else None
                rows.append([f"`{choice}`", *_cells(size, published, compared)])
        lines += ["", *_table(rows)]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def _setting(config: DescribeConfig) -> str:
    keys = ("image_size", "num_classes", "image_channels")
    return f"`{' '.join(f'{key}={getattr(config, key)}' for key in keys)}`"


def _cells(size: Size, published: Published | None, compared: bool) -> list[str]:
    parameters, gmac = _figures(size)
    frozen = sum(size.backbones.values())
    ours = _shown(parameters) + (f" + {frozen / 1e6:.1f} frozen" if frozen else "")
    work = "" if gmac is None else _shown(gmac)
    if not compared:
        return [ours, work]
    if published is None or gmac is None:
        return [ours, "", work, "", ""]
    return [
        ours,
        f"{published.parameters:.1f} ({_percent(parameters, published.parameters)})",
        work,
        f"{published.gmac:.0f} ({_percent(gmac, published.gmac)})",
        published.paper,
    ]


def _shown(number: float) -> str:
    return f"{number:.1f}" if number >= 1 else f"{number:.2f}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns stand in line, since it is read in terminals too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [
        f"| {' | '.join(f'{cell:<{width}}' for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]
    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return [padded[0], rule, *padded[1:]]
