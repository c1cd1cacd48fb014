"""Settings as the YAML files fill them in, for tests that change a few of them."""

import copy
import functools
from dataclasses import fields, is_dataclass, replace

from geoseg_gan.config import compose
from geoseg_gan.data.settings import (
    CheckDataSettings,
    PackSettings,
    PrepareSettings,
    TileSettings,
)
from geoseg_gan.evaluation.settings import EvaluateConfig, PredictConfig
from geoseg_gan.export.settings import ExportConfig
from geoseg_gan.studio.settings import StudioConfig
from geoseg_gan.synthesis.settings import GenerateConfig
from geoseg_gan.training.settings import CompareConfig, TrainConfig, TrainSegmenterConfig
from geoseg_gan.trials.settings import TrialConfig

SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "generate": GenerateConfig,
    "train_segmenter": TrainSegmenterConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "trial": TrialConfig,
    "tile": TileSettings,
    "check_data": CheckDataSettings,
    "prepare": PrepareSettings,
    "pack": PackSettings,
    "compare": CompareConfig,
    "export": ExportConfig,
    "studio": StudioConfig,
}
"""The configuration of every command."""


@functools.cache
def _found():
    found = {}

    def walk(settings):
        found.setdefault(type(settings), settings)
        for entry in fields(settings):
            if is_dataclass(value := getattr(settings, entry.name)):
                walk(value)

    walk(compose(TileSettings, ["source=pictures"]))
    walk(compose(TrainConfig, ["jitter=none", "loss.feature_matching.weight=0", "data=demo"]))
    walk(compose(GenerateConfig, ["gen_ckpt=G.pt", "jitter=none"]))
    walk(compose(PackSettings))
    walk(compose(TrainSegmenterConfig, ["augment=none"]))
    return found


def defaults(kind, *values, **changes):
    """An instance of a settings class: every step off, every optional term without weight.

    Args:
        kind: The dataclass.
        values: Its first fields in order.
        changes: Other fields by name.
    """
    names = (entry.name for entry in fields(kind))
    return replace(
        copy.deepcopy(_found()[kind]), **dict(zip(names, values, strict=False)), **changes
    )


TINY = (
    "data.palette=[{name:Background,color:[250,62,119]},{name:Forest land,color:[168,232,84]},"
    "{name:Settlement,color:[255,214,33]}]",
    "model.generator.width=4",
    "model.generator.depth=2",
    "model.generator.max_width=8",
    "model.discriminator.width=4",
    "model.discriminator.layers=2",
    "model.discriminator.scales=1",
    "image_size=32",
    "bs=2",
    "precision=32-true",
    "data.num_workers=0",
    "trainer=cpu",
)
"""Overrides that train tiny networks on `make_folder`'s data."""
