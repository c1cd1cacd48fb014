"""Generate aerial images from semantic masks, and measure whether they improve a segmenter.

The commands as functions. Settings are those of the command line, nested ones by dotted key:

    import geoseg_gan as gg

    gg.train({"optimizer.ema": 0}, model="unet_light", data_root="data", epochs=3)
    generator = gg.load_generator("runs/label2img/G_e003.pt")
    image = gg.generate_image(generator, label_map, seed=1)

Importing the package loads no torch; the first call does.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from geoseg_gan.models.checkpoints import LoadedGenerator, LoadedSegmenter

ConfigT = TypeVar("ConfigT")
Settings = Mapping[str, Any]


def compose(schema: type[ConfigT], settings: Settings = {}, /, **more: Any) -> ConfigT:  # noqa: B006
    """The configuration of the command of a schema, as in `compose(TrainConfig, epochs=3)`.

    Raises:
        UserError: If the command would refuse them.
    """
    from geoseg_gan import config

    given = {**settings, **more}
    return config.compose(schema, [f"{key}={_text(value)}" for key, value in given.items()])


def _command(module: str, does: str) -> Callable[..., dict[str, float]]:
    room, name = module.split(".")

    def call(settings: Settings = {}, /, **more: Any) -> dict[str, float]:  # noqa: B006
        schema = f"{__name__}.{room}.settings:{name.title().replace('_', '')}Config"
        run = resolve_name(f"{__name__}.{module}:{name}")
        return cast(dict[str, float], run(compose(resolve_name(schema), settings, **more)))

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{does}; settings as for `compose`."
    return call


train = _command("training.train", "Trains a generator and a discriminator")
generate = _command("synthesis.generate", "Generates image-mask pairs")
train_segmenter = _command("training.train_segmenter", "Trains and evaluates a segmenter")
evaluate = _command("evaluation.evaluate", "Measures how good generated images are")
trial = _command("trials.trial", "Measures whether generated pairs improve a segmenter")


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
        labels: Label maps of one shape (H, W), uint8: class IDs of the palette, or 255 where
            ignored; height and width are multiples of `generator.network.stride`.
        seed: Fixes the noise, with the place of a label map in the sequence.

    Raises:
        UserError: If a label map is not as described.
    """
    from geoseg_gan.synthesis import generate_images as module
    from geoseg_gan.utils.errors import UserError

    stride, classes = cast(Any, generator.network).stride, generator.facts.palette.num_classes
    for number, label in enumerate(labels):
        if (
            label.ndim != 2
            or label.shape != labels[0].shape
            or any(s % stride for s in label.shape)
        ):
            raise UserError(
                f"labels[{number}] has shape {label.shape}: give maps of one shape (H, W), both "
                f"multiples of {stride}."
            )
        if (unknown := label[(label >= classes) & (label != 255)]).size:
            raise UserError(
                f"labels[{number}] holds class {unknown[0]}: use 0 to {classes - 1}, 255 to ignore."
            )
    device = next(cast(Any, generator.network).parameters()).device
    indices = range(len(labels))
    return module.generate_images(generator, labels, seed=seed, indices=indices, device=device)


def generate_image(
    generator: "LoadedGenerator", label: "npt.NDArray[np.uint8]", seed: int = 0
) -> "npt.NDArray[Any]":
    """Generates an image for one label map; see `generate_images`."""
    return generate_images(generator, [label], seed)[0]


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
