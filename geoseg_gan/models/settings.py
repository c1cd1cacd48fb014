"""Knobs of the networks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from geoseg_gan.utils.errors import check_range

_RENAMED = {"modulated": "spade", "pixel": "oasis"}
"""Names of networks in runs of earlier versions, and today's."""

_NEWER = {"generator": {"style_codes": 0}}
"""Knobs of networks that runs of earlier versions lack, at the value that leaves them out."""


@dataclass
class SegmenterSettings:
    """Which network a segmenter is."""

    arch: str
    encoder: str
    encoder_weights: str | None
    options: dict[str, Any]
    image_scale: float

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        check_range("segmenter.image_scale", self.image_scale, 0.25, 4)


@dataclass
class ModelSettings:
    """The two networks: each a name and the arguments of its constructor."""

    generator: dict[str, Any]
    discriminator: dict[str, Any]


def current_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's stored configuration as one of today.

    It has today's names, no removed knob at its default, and the default of a knob that is newer
    than the run and decides what its network computes.
    """
    current = dict(config)
    if isinstance(segmenter := config.get("segmenter"), dict):
        current["segmenter"] = {"image_scale": 1.0, **segmenter}
    if "model" in config:
        current["model"] = {
            kind: {
                **_NEWER.get(kind, {}),
                **network,
                "name": _RENAMED.get(network["name"], network["name"]),
            }
            for kind, network in config["model"].items()
        }
    if "mixing" in config:
        removed = ("batch_norm", "shared")
        current["mixing"] = dict(entry for entry in config["mixing"].items() if entry != removed)
    return current
