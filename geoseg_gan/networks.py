"""Whether two networks, a loss and an image size fit together."""

from typing import cast

import torch

from geoseg_gan.config import plain
from geoseg_gan.errors import UserError
from geoseg_gan.losses.settings import ObjectiveSettings
from geoseg_gan.models.discriminator import Discriminator
from geoseg_gan.models.registry import Generator, build_discriminator, build_generator
from geoseg_gan.schemas import ModelSettings


def check_networks(
    model: ModelSettings, loss: ObjectiveSettings, num_classes: int, image_size: int
) -> None:
    """Refuses networks that cannot be built, do not take this image size, or do not fit together.

    Args:
        model: Settings of generator and discriminator.
        loss: The recipe that is to train them.
        num_classes: How many classes the palette has.
        image_size: Side of the images in pixels.

    Raises:
        UserError: Naming the setting and the sizes that fit.
    """
    settings = plain(model)
    with torch.device("meta"):  # shapes only: no memory, no time
        generator = cast(Generator, build_generator(settings["generator"], num_classes, 3))
        discriminator = cast(
            Discriminator, build_discriminator(settings["discriminator"], num_classes, 3)
        )
    loss.check_fit(discriminator.judges, generator.noise.channels)
    if image_size % generator.stride:
        fitting = max(1, round(image_size / generator.stride)) * generator.stride
        raise UserError(
            f"image_size={image_size} is not a multiple of {generator.stride}, which "
            f"model.generator={settings['generator']['name']} needs. Use e.g. "
            f"image_size={fitting}, or a smaller model.generator.depth."
        )
    if image_size < discriminator.minimum_size:
        raise UserError(
            f"image_size={image_size} is too small for the discriminator, which needs "
            f"{discriminator.minimum_size}. Enlarge it, or lower model.discriminator.scales or "
            "layers."
        )
