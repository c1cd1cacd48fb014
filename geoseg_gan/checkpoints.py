"""The one place that saves and loads networks.

A network's file holds tensors and plain types only and is read with `weights_only=True`, so that
nothing in it can run code. Each is enough by itself: palette, image scaling and the training run's
configuration travel with the weights.
"""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.palette import Palette
from geoseg_gan.errors import UserError
from geoseg_gan.files import atomic_path
from geoseg_gan.models.registry import Generator, build_generator

FORMAT = 1

Kind = Literal["generator", "discriminator"]


@dataclass(frozen=True)
class RunFacts:
    """What every checkpoint of a run carries beside the weights.

    Attributes:
        config: The training run's resolved configuration, plain types only.
        palette: Classes and colours.
        scaling: Between stored image values and [-1, 1].
    """

    config: dict[str, Any]
    palette: Palette
    scaling: ImageScaling


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator ready to paint, in evaluation mode.

    Attributes:
        network: The generator.
        facts: The run it comes from.
        epoch: How many epochs it was trained.
        digest: SHA-256 of the file, in hexadecimal.
    """

    network: Generator
    facts: RunFacts
    epoch: int
    digest: str


def save_network(path: Path, kind: Kind, network: nn.Module, facts: RunFacts, epoch: int) -> None:
    """Writes a network, whole or not at all.

    Args:
        path: Where to; an existing file is replaced.
        kind: What the network is.
        network: Its state is saved from whatever device it is on.
        facts: The run it comes from.
        epoch: How many epochs it was trained.
    """
    content = {
        "format": FORMAT,
        "kind": kind,
        "epoch": epoch,
        "weights": {name: value.cpu() for name, value in network.state_dict().items()},
        "config": facts.config,
        "palette": facts.palette.to_dict(),
        "scaling": asdict(facts.scaling),
    }
    with atomic_path(path) as scratch:
        torch.save(content, scratch)


def load_generator(path: Path, device: torch.device | str = "cpu") -> LoadedGenerator:
    """Reads a `G_e###.pt` and builds its generator.

    Raises:
        UserError: If there is no such file, or it is not a generator this version can read.
    """
    content = _read(path, "generator")
    palette = Palette.from_dict(content["palette"])
    scaling = ImageScaling(**content["scaling"])
    settings: Mapping[str, Any] = content["config"]["model"]["generator"]
    network = build_generator(settings, palette.num_classes, len(scaling.low))
    network.load_state_dict(content["weights"])
    network.to(device).eval().requires_grad_(False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = RunFacts(content["config"], palette, scaling)
    return LoadedGenerator(cast(Generator, network), facts, content["epoch"], digest)


def _read(path: Path, kind: Kind) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"{path} does not exist. Give a checkpoint that training wrote, such as "
            "runs/label2img/G_e010.pt."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        content = None
    if not isinstance(content, dict) or "format" not in content or "kind" not in content:
        raise UserError(
            f"{path} is not a checkpoint of this project. Give a G_e###.pt that training wrote."
        )
    if content["format"] != FORMAT:
        raise UserError(
            f"{path} has format {content['format']}, but this version reads format {FORMAT}. "
            "Use the version of geoseg-gan that wrote it, or train again."
        )
    if content["kind"] != kind:
        raise UserError(
            f"{path} holds a {content['kind']}, but a {kind} is needed: give the G_e###.pt beside "
            "it."
        )
    return content
