"""Networks by name, as configs and checkpoints know them."""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from geoseg_gan.models.discriminators.oasis import OasisDis
from geoseg_gan.models.discriminators.patch import PatchDis
from geoseg_gan.models.discriminators.projected import ProjectedDis
from geoseg_gan.models.generators.noise import NoiseSpec
from geoseg_gan.models.generators.spade import SpadeGen
from geoseg_gan.models.generators.unet import UNetGen
from geoseg_gan.utils.device import free_memory
from geoseg_gan.utils.errors import UserError, check_choice, check_range

GENERATORS: dict[str, type[nn.Module]] = {"unet": UNetGen, "spade": SpadeGen}

DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "patch": PatchDis,
    "oasis": OasisDis,
    "projected": ProjectedDis,
}

_LEVELS = ("depth", "layers", "scales", "texture_octaves")  # each of half the size, or twice it
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class Generator(Protocol):
    """What the package needs of a generator, which is a `torch.nn.Module` too.

    Attributes:
        noise: The channels of its noise map.
        stride: Height and width must be multiples of it.
    """

    noise: NoiseSpec
    stride: int

    def __call__(self, one_hot: Tensor, noise: Tensor) -> Tensor:
        """Maps one-hot (B, C, H, W) and noise (B, Z, H, W) to images (B, K, H, W) in [-1, 1]."""


def build_generator(
    settings: Mapping[str, Any], num_classes: int, image_channels: int
) -> nn.Module:
    """Builds the generator `settings["name"]` with the other settings as arguments.

    Raises:
        UserError: If the name, a key or a value is not valid.
    """
    return _build("generator", GENERATORS, settings, num_classes, image_channels)


def build_discriminator(
    settings: Mapping[str, Any], num_classes: int, image_channels: int
) -> nn.Module:
    """Builds a discriminator; like `build_generator`."""
    return _build("discriminator", DISCRIMINATORS, settings, num_classes, image_channels)


def check_memory(network: nn.Module, key: str) -> None:
    """Refuses, with a UserError, a network whose training cannot fit: its weights, four times.

    Beside them stand their gradients and Adam's two averages.

    Args:
        network: It may be on the meta device.
        key: What it is called in the configuration.
    """
    count = sum(parameter.numel() for parameter in network.parameters())
    if 4 * 4 * count > (free := free_memory()):
        raise UserError(
            f"{key} has {count / 1e6:,.0f} M parameters, whose training takes "
            f"{16 * count / 1e9:,.0f} GB of memory; {free / 1e9:,.0f} GB are free. Make it smaller."
        )


def fitting_size(image_size: int, step: int) -> str:
    """Advice for an image size that is not a multiple of `step`, or too small."""
    fitting = max(image_size // step, 1) * step
    larger = ", with data.fit=resize where tiles are smaller" * (fitting > image_size)
    return f"Use e.g. image_size={fitting}{larger}."


def _build(
    kind: str,
    known: Mapping[str, type[nn.Module]],
    settings: Mapping[str, Any],
    num_classes: int,
    image_channels: int,
) -> nn.Module:
    name: Any = settings.get("name")
    check_choice(f"model.{kind}.name", name, known)
    arguments = {key: value for key, value in settings.items() if key != "name"}
    _check_arguments(f"model.{kind}", name, known[name], arguments)
    try:
        network: nn.Module = known[name](num_classes, image_channels, **arguments)
    except ValueError as error:
        raise UserError(f"model.{kind}: {error}.") from None
    # With the channels of a pixel side by side, convolutions are faster on CPUs and tensor cores.
    return network.to(memory_format=torch.channels_last)


def _check_arguments(
    prefix: str, name: str, network_class: type[nn.Module], arguments: Mapping[str, Any]
) -> None:
    """Refuses keys that the constructor does not have, and values of another type."""
    parameters = inspect.signature(network_class).parameters.values()
    types = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    for key, value in arguments.items():
        if key not in types:
            raise UserError(
                f"{prefix}.{key}={value}: {name} has no such setting. It has {', '.join(types)}."
            )
        allowed = (int, float) if types[key] is float else (types[key],)
        if type(value) not in allowed:
            raise UserError(f"{prefix}.{key}={value}: use {_TYPES[types[key]]}.")
        if types[key] in (int, float):  # from what number on, the network itself says
            check_range(f"{prefix}.{key}", value, 0, 16 if key in _LEVELS else 65_536)
