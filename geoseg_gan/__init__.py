"""Generate aerial images from semantic masks, and measure whether they improve a segmenter.

The commands as functions, which take the words of the command line, and networks to call:

    import geoseg_gan as gg

    gg.train(["model=unet_light", "data_root=data", "epochs=3", "optimizer.ema=0"])
    generator = gg.load_generator("runs/label2img")
    image = generator(mask, seed=1)

Importing the package loads no torch; the first call does.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from geoseg_gan.models.checkpoints import NetworkKind
    from geoseg_gan.models.loaded import LoadedGenerator, LoadedSegmenter

ConfigT = TypeVar("ConfigT")


def compose(schema: type[ConfigT], overrides: Sequence[str] = (), /, **settings: Any) -> ConfigT:
    """The configuration of the command of a schema.

    Args:
        schema: Such as `TrainConfig`.
        overrides: Settings as words of the command line, such as "optimizer.ema=0".
        settings: Settings as Python values, which need no quotes.

    Raises:
        UserError: If the command would refuse them.
    """
    from geoseg_gan import config
    from geoseg_gan.utils.errors import UserError

    is_list = isinstance(overrides, Sequence) and not isinstance(overrides, str)
    if not is_list or not all(isinstance(word, str) for word in overrides):
        raise UserError(f"{overrides!r}: give a list of settings, as in ['epochs=3', 'bs=4'].")
    words = [f"{key}={_text(value)}" for key, value in settings.items()]
    return config.compose(schema, [*overrides, *words])


def _command(module: str, does: str) -> Callable[..., dict[str, float]]:
    room, name = module.split(".")

    def call(overrides: Sequence[str] = (), /, **settings: Any) -> dict[str, float]:
        schema = f"{__name__}.{room}.settings:{name.title().replace('_', '')}Config"
        run = resolve_name(f"{__name__}.{module}:{name}")
        return cast(dict[str, float], run(compose(resolve_name(schema), overrides, **settings)))

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{does}; settings as for `compose`. Returns figures by name."
    return call


train = _command("training.train", "Trains a generator and a discriminator")
generate = _command("synthesis.generate", "Generates image-mask pairs")
train_segmenter = _command("training.train_segmenter", "Trains and evaluates a segmenter")
evaluate = _command("evaluation.evaluate", "Measures how good generated images are")
predict = _command("evaluation.predict", "Maps images with a segmenter")
trial = _command("trials.trial", "Measures whether generated pairs improve a segmenter")


def load_generator(path: str | Path, device: str = "cpu") -> "LoadedGenerator":
    """Reads a `G_e###.pt`, the last one of a run folder, or an export.

    Returns:
        A function from label maps and seeds to images.
    """
    from geoseg_gan.models import loaded

    return loaded.load_generator(_file(path, "generator"), device)


def load_segmenter(path: str | Path, device: str = "cpu") -> "LoadedSegmenter":
    """Reads a `segmenter.pt`, the one of a run folder, or an export.

    Returns:
        A function from images to label maps.
    """
    from geoseg_gan.models import loaded

    return loaded.load_segmenter(_file(path, "segmenter"), device)


def _file(path: str | Path, kind: "NetworkKind") -> Path:
    """The file of a network, which `path` is or holds."""
    from geoseg_gan.models.checkpoints import NETWORK_FILES
    from geoseg_gan.models.loaded import network_file
    from geoseg_gan.utils.errors import UserError

    advice = f"Give {NETWORK_FILES[kind]}, or its run folder."
    if not isinstance(path, str | Path) or not path:
        raise UserError(f"{path!r} is not a path. {advice}")
    try:
        return network_file(Path(path), kind)
    except OSError as error:
        shown = str(path)[:200]
        raise UserError(f"{shown} cannot be read ({error.strerror}). {advice}") from None


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
