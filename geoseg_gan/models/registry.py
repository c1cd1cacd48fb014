"""Networks by name, as configs and checkpoints know them."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from geoseg_gan.models.discriminators.oasis import PixelDis
from geoseg_gan.models.discriminators.patch import PatchDis
from geoseg_gan.models.discriminators.projected import ProjectedDis
from geoseg_gan.models.generators.noise import NoiseSpec
from geoseg_gan.models.generators.spade import ModulatedGen
from geoseg_gan.models.generators.unet import UNetGen
from geoseg_gan.utils.errors import UserError, check_choice


class Generator(Protocol):
    """What painting needs of a generator, which is a `torch.nn.Module` besides.

    Attributes:
        noise: What its noise map is made of.
        stride: Height and width must be multiples of it.
    """

    noise: NoiseSpec
    stride: int

    def __call__(self, one_hot: Tensor, noise: Tensor) -> Tensor:
        """Paints (B, K, H, W) in [-1, 1] from one-hot (B, C, H, W) and noise (B, Z, H, W)."""


GENERATORS: dict[str, type[nn.Module]] = {"unet": UNetGen, "modulated": ModulatedGen}


DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "patch": PatchDis,
    "pixel": PixelDis,
    "projected": ProjectedDis,
}


def build_generator(
    settings: Mapping[str, Any], num_classes: int, image_channels: int
) -> nn.Module:
    """Builds the generator that `settings["name"]` names from its other entries.

    Raises:
        UserError: If the name or a value is not valid.
    """
    return _build("generator", GENERATORS, settings, num_classes, image_channels)


def build_discriminator(
    settings: Mapping[str, Any], num_classes: int, image_channels: int
) -> nn.Module:
    """Builds the discriminator that `settings["name"]` names from its other entries.

    Raises:
        UserError: If the name or a value is not valid.
    """
    return _build("discriminator", DISCRIMINATORS, settings, num_classes, image_channels)


def _build(
    kind: str,
    known: Mapping[str, type[nn.Module]],
    settings: Mapping[str, Any],
    num_classes: int,
    image_channels: int,
) -> nn.Module:
    check_choice(f"model.{kind}.name", settings["name"], known)
    rest = {key: value for key, value in settings.items() if key != "name"}
    try:
        network: nn.Module = known[settings["name"]](num_classes, image_channels, **rest)
    except ValueError as error:
        raise UserError(f"model.{kind}: {error}.") from None
    # Convolutions on CPUs and on tensor cores read all channels of a pixel together.
    return network.to(memory_format=torch.channels_last)
