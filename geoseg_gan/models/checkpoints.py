"""Saving and loading networks.

A network's file holds tensors and plain types only and is read with `weights_only=True`, so that
nothing in it can run code. Each is enough by itself: palette, image scaling and the training run's
configuration are stored beside the weights.
"""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.palette import Palette
from geoseg_gan.models.discriminators.oasis import EXTRA_DISCRIMINATORS, changed_settings
from geoseg_gan.models.registry import Generator, build_generator
from geoseg_gan.models.segmenters import build_segmenter
from geoseg_gan.models.settings import current_config
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path

NetworkKind = Literal["generator", "discriminator", "segmenter"]

FORMATS: dict[NetworkKind, int] = {"generator": 2, "discriminator": 2, "segmenter": 1}
"""The format of each kind of file; it grows when older files can no longer be read."""

_FILES: dict[NetworkKind, str] = {
    "generator": "a G_e###.pt, which train writes",
    "discriminator": "a D_e###.pt, which train writes",
    "segmenter": "a segmenter.pt, which train_segmenter writes",
}


@dataclass(frozen=True)
class RunFacts:
    """What every checkpoint of a run holds beside the weights.

    Attributes:
        config: The training run's resolved configuration, plain types only.
        palette: Classes and colours.
        scaling: Between stored image values and [-1, 1].
    """

    config: dict[str, Any]
    palette: Palette
    scaling: ImageScaling


@dataclass(frozen=True)
class SegmenterEvaluation:
    """How good a segmenter is on real data.

    Attributes:
        held_out: mIoU on every window of the training tiles that were held out of its training;
            empty where there were none.
        scores: Figures by name, such as "val/miou".
    """

    held_out: list[float]
    scores: dict[str, float]


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator in evaluation mode, with the SHA-256 of its file in hexadecimal."""

    network: Generator
    facts: RunFacts
    epoch: int
    digest: str


@dataclass(frozen=True)
class LoadedSegmenter:
    """A segmenter in evaluation mode.

    Attributes:
        network: Gives logits (B, C, H, W) for images (B, K, H, W) in [-1, 1].
        facts: The run it comes from.
        evaluation: How good it is.
        digest: SHA-256 of the file, in hexadecimal.
    """

    network: nn.Module
    facts: RunFacts
    evaluation: SegmenterEvaluation
    digest: str


def save_network(
    path: Path,
    kind: NetworkKind,
    network: nn.Module,
    facts: RunFacts,
    epoch: int,
    evaluation: SegmenterEvaluation | None = None,
) -> None:
    """Writes a network trained for `epoch` epochs, whole or not at all; replaces an older file."""
    content = {
        "format": FORMATS[kind],
        "kind": kind,
        "epoch": epoch,
        "weights": {name: value.cpu() for name, value in network.state_dict().items()},
        "config": facts.config,
        "palette": facts.palette.to_dict(),
        "scaling": asdict(facts.scaling),
    }
    if evaluation is not None:
        content["judged"] = asdict(evaluation)  # the key of format 1, which older files have
    with atomic_path(path) as scratch:
        torch.save(content, scratch)


def load_generator(path: Path, device: torch.device | str = "cpu") -> LoadedGenerator:
    """Reads a `G_e###.pt` and builds its generator.

    Raises:
        UserError: If there is no such file, or it is not a generator this version can read.
    """
    content = _read(path, "generator")
    facts = _facts(content)
    settings: Mapping[str, Any] = facts.config["model"]["generator"]
    network = build_generator(settings, facts.palette.num_classes, len(facts.scaling.low))
    digest = _finish(network, path, content, device)
    return LoadedGenerator(cast(Generator, network), facts, content["epoch"], digest)


def load_segmenter(path: Path, device: torch.device | str = "cpu") -> LoadedSegmenter:
    """Reads a `segmenter.pt` and builds its network.

    Raises:
        UserError: If there is no such file, or it is not a segmenter this version can read.
    """
    content = _read(path, "segmenter")
    facts = _facts(content)
    settings: Mapping[str, Any] = facts.config["segmenter"]
    network = build_segmenter(
        settings, facts.palette.num_classes, len(facts.scaling.low), pretrained=False
    )
    digest = _finish(network, path, content, device)
    # Older files also hold class losses.
    known = {f.name: content["judged"][f.name] for f in fields(SegmenterEvaluation)}
    return LoadedSegmenter(network, facts, SegmenterEvaluation(**known), digest)


def start_from(path: Path, generator: nn.Module, discriminator: nn.Module, facts: RunFacts) -> None:
    """Loads the weights of another run into the networks of a new one, e.g. for larger images.

    Args:
        path: A `G_e###.pt`. The `D_e###.pt` of the same epoch beside it is loaded into the
            discriminator; without it, as beside `G_best.pt`, that keeps its initial weights.
        generator: Changed in place.
        discriminator: Changed in place; its extra discriminators (see `EXTRA_DISCRIMINATORS`) keep
            their initial weights where the other run's settings of them differ.
        facts: The new run.

    Raises:
        UserError: If the file is no generator, or the new run's networks, classes or bands are not
            those of the run it is from.
    """
    d_path = path.with_name(f"D{path.name[1:]}")
    wanted: list[tuple[NetworkKind, Path, nn.Module]] = [("generator", path, generator)]
    if d_path.is_file():
        wanted.append(("discriminator", d_path, discriminator))
    for kind, source, network in wanted:
        content = _read(source, kind)
        theirs = _facts(content)
        if theirs.palette.to_dict()["classes"] != facts.palette.to_dict()["classes"]:
            raise UserError(f"init_from: {source} was trained on other classes than data= has.")
        settings, own = theirs.config["model"][kind], facts.config["model"][kind]
        for key in changed_settings(own, settings):
            raise UserError(
                f"init_from: {source} has model.{kind}.{key}={settings.get(key)}, not "
                f"{own[key]}. Give its settings, or use init_from=null."
            )
        if len(theirs.scaling.low) != len(facts.scaling.low):
            raise UserError(
                f"init_from: {source} was trained on images of {len(theirs.scaling.low)} bands, "
                f"and these have {len(facts.scaling.low)}."
            )
        new = {key for key in EXTRA_DISCRIMINATORS if settings.get(key) != own.get(key)}
        shared = {n: w for n, w in content["weights"].items() if n.split(".")[0] not in new}
        network.load_state_dict(network.state_dict() | shared)
    if not d_path.is_file():
        warnings.warn(
            f"{d_path} does not exist: the discriminator starts with new weights.", stacklevel=2
        )


def _facts(content: Mapping[str, Any]) -> RunFacts:
    config = current_config(content["config"])
    scaling = ImageScaling(**content["scaling"])
    return RunFacts(config, Palette.from_dict(content["palette"]), scaling)


def _finish(
    network: nn.Module, path: Path, content: Mapping[str, Any], device: torch.device | str
) -> str:
    """Loads the weights that a file holds; returns its digest."""
    network.load_state_dict(content["weights"])
    network.to(device).eval().requires_grad_(False)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(path: Path, kind: NetworkKind) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist. Give {_FILES[kind]}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises exceptions of many types for other files
        content = None
    if not isinstance(content, dict) or "format" not in content or "kind" not in content:
        raise UserError(f"{path} is not a checkpoint of this project. Give {_FILES[kind]}.")
    if content["kind"] != kind:
        raise UserError(
            f"{path} holds a {content['kind']}, but a {kind} is needed: give {_FILES[kind]}."
        )
    if content["format"] != FORMATS[kind]:
        raise UserError(
            f"{path} has format {content['format']}, but this version reads format "
            f"{FORMATS[kind]}. Use the version of geoseg-gan that wrote it, or train again."
        )
    return content
