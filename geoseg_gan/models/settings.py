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


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's stored configuration, with today's names and without the default of removed knobs."""
    current = dict(config)
    if "model" in config:
        current["model"] = {
            kind: {**network, "name": _RENAMED.get(network["name"], network["name"])}
            for kind, network in config["model"].items()
        }
    if "mixing" in config:
        removed = ("batch_norm", "shared")
        current["mixing"] = dict(entry for entry in config["mixing"].items() if entry != removed)
    return current
