"""Knobs of the networks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_RENAMED = {"modulated": "spade", "pixel": "oasis"}
"""Names of networks in runs of earlier versions, and today's."""


@dataclass
class SegmenterSettings:
    """Which network a segmenter is."""

    arch: str
    encoder: str
    encoder_weights: str | None
    options: dict[str, Any]


@dataclass
class ModelSettings:
    """The two networks: each a name and the arguments of its constructor."""

    generator: dict[str, Any]
    discriminator: dict[str, Any]


def with_current_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's stored configuration, with the names that its networks have today."""
    if "model" not in config:
        return dict(config)
    networks = {
        kind: {**network, "name": _RENAMED.get(network["name"], network["name"])}
        for kind, network in config["model"].items()
    }
    return {**config, "model": networks}
