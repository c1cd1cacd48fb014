"""Painting label maps with a trained generator."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from geoseg_gan.checkpoints import LoadedGenerator
from geoseg_gan.data.batch import one_hot_of
from geoseg_gan.models.noise import sample_noise


@torch.inference_mode()
def paint(
    generator: LoadedGenerator,
    labels: Sequence[npt.NDArray[np.uint8]],
    *,
    seed: int,
    indices: Sequence[int],
    device: torch.device,
) -> list[npt.NDArray[Any]]:
    """Paints one image for each label map.

    On a CPU each image is painted by itself, since the order of additions, and with it the last
    bit, would depend on the batch; little speed is lost there.

    Args:
        generator: A loaded generator, on `device`.
        labels: Label maps of one shape (H, W), uint8.
        seed: The run's seed.
        indices: Number of each pair, which with the seed fixes its noise.
        device: Where the generator is.

    Returns:
        Images of shape (H, W, K) in the stored dtype of the training images.
    """
    palette, scaling = generator.facts.palette, generator.facts.scaling
    spec = generator.network.noise
    step = 1 if device.type == "cpu" else len(labels)
    painted: list[npt.NDArray[Any]] = []
    for first in range(0, len(labels), step):
        part = np.stack(labels[first : first + step])
        one_hot = one_hot_of(torch.from_numpy(part).to(device), palette.num_classes)
        # Drawn on the CPU everywhere, so that every device paints from the same noise.
        noise = sample_noise(spec, seed, indices[first : first + step], part.shape[1:])
        images = generator.network(one_hot, noise.to(device)).float().cpu()
        painted += [scaling.to_stored(image) for image in images]
    return painted
