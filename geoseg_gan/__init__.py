"""Generate aerial images from semantic masks, and measure whether they improve a segmenter.

The commands as functions. Settings are those of the command line, nested ones by dotted key:

    import geoseg_gan as gg

    gg.train({"optimizer.ema": 0}, model="unet_light", data_root="data", epochs=3)
    generator = gg.load_generator("runs/label2img/G_e003.pt")
    image = gg.generate_image(generator, label_map, seed=1)

Importing the package loads no torch; the first call does.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from geoseg_gan.models.checkpoints import LoadedGenerator, LoadedSegmenter

ConfigT = TypeVar("ConfigT")
Settings = Mapping[str, Any]


def compose(schema: type[ConfigT], settings: Settings = {}, /, **more: Any) -> ConfigT:  # noqa: B006
    """The configuration of a command, as in `compose(TrainConfig, epochs=3)`.

    Args:
        schema: The command's dataclass, which the `settings` module of its room holds.
        settings: By key, dotted where nested.
        more: Top-level settings, and choices of groups.

    Raises:
        UserError: If the command would refuse them.
    """
    from geoseg_gan import config

    given = {**settings, **more}
    return config.compose(schema, [f"{key}={_text(value)}" for key, value in given.items()])


def train(settings: Settings = {}, /, **more: Any) -> dict[str, float]:  # noqa: B006
    """Trains a generator and a discriminator; settings as for `compose`."""
    return _call("training.settings:TrainConfig", "training.train:train", settings, more)


def generate(settings: Settings = {}, /, **more: Any) -> dict[str, float]:  # noqa: B006
    """Generates image-mask pairs; settings as for `compose`."""
    return _call("synthesis.settings:GenerateConfig", "synthesis.generate:generate", settings, more)


def train_segmenter(settings: Settings = {}, /, **more: Any) -> dict[str, float]:  # noqa: B006
    """Trains and evaluates a segmenter; settings as for `compose`."""
    run = "training.train_segmenter:train_segmenter"
    return _call("training.settings:TrainSegmenterConfig", run, settings, more)


def evaluate(settings: Settings = {}, /, **more: Any) -> dict[str, float]:  # noqa: B006
    """Measures how good generated images are; settings as for `compose`."""
    run = "evaluation.evaluate:evaluate"
    return _call("evaluation.settings:EvaluateConfig", run, settings, more)


def trial(settings: Settings = {}, /, **more: Any) -> dict[str, float]:  # noqa: B006
    """Measures whether generated pairs improve a segmenter; settings as for `compose`."""
    return _call("trials.settings:TrialConfig", "trials.trial:trial", settings, more)


def load_generator(path: str | Path, device: str = "cpu") -> "LoadedGenerator":
    """Reads a `G_e###.pt`; see `geoseg_gan.models.checkpoints.load_generator`."""
    from geoseg_gan.models import checkpoints

    return checkpoints.load_generator(Path(path), device)


def load_segmenter(path: str | Path, device: str = "cpu") -> "LoadedSegmenter":
    """Reads a `segmenter.pt`; see `geoseg_gan.models.checkpoints.load_segmenter`."""
    from geoseg_gan.models import checkpoints

    return checkpoints.load_segmenter(Path(path), device)


def generate_images(
    generator: "LoadedGenerator", labels: "Sequence[npt.NDArray[np.uint8]]", seed: int = 0
) -> "list[npt.NDArray[Any]]":
    """Generates an image (H, W, K), in the training images' stored dtype, for each label map.

    Args:
        generator: What `load_generator` returned.
        labels: Label maps of one shape (H, W), uint8, 255 where ignored; height and width are
            multiples of `generator.network.stride`.
        seed: Fixes the noise, with the place of a label map in the sequence.
    """
    from geoseg_gan.synthesis import generate_images as module

    device = next(cast(Any, generator.network).parameters()).device
    return module.generate_images(
        generator, labels, seed=seed, indices=range(len(labels)), device=device
    )


def generate_image(
    generator: "LoadedGenerator", label: "npt.NDArray[np.uint8]", seed: int = 0
) -> "npt.NDArray[Any]":
    """Generates an image for one label map; see `generate_images`."""
    return generate_images(generator, [label], seed)[0]


def _call(schema: str, run: str, settings: Settings, more: Settings) -> dict[str, float]:
    found = (name.split(":") for name in (schema, run))
    kind, function = (getattr(import_module(f"{__name__}.{m}"), name) for m, name in found)
    figures: dict[str, float] = function(compose(kind, settings, **more))
    return figures


def _text(value: Any) -> str:
    """A Python value as the command line has it."""
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_text(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if value is None or isinstance(value, int | float):
        return "null" if value is None else str(value).lower()
    # Backslashes count as such except before a quote, where Hydra wants two for each.
    text = re.sub(r"(\\*)('|$)", lambda at: at[1] * 2 + at[2].replace("'", "\\'"), str(value))
    return f"'{text}'"
