"""Knobs of the networks."""

from dataclasses import dataclass
from typing import Any


@dataclass
class SegmenterSettings:
    """Which network a segmenter is."""

    arch: str
    encoder: str
    encoder_weights: str | None
    options: dict[str, Any]


@dataclass
class ModelSettings:
    """The two networks: each a name and what its constructor takes."""

    generator: Any
    discriminator: Any
