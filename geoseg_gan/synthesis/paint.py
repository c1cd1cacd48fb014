"""Painting label maps with a trained generator."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from geoseg_gan.checkpoints import LoadedGenerator
from geoseg_gan.data.batch import one_hot_of, regions_of
from geoseg_gan.models.noise import sample_noise
from geoseg_gan.synthesis.masks import Candidate, CandidateMasks

Painted = tuple[Candidate, npt.NDArray[Any] | None]
"""A candidate and its image (H, W, K) in the stored dtype; None where it was not worth painting."""


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
        part = torch.from_numpy(np.stack(labels[first : first + step]))
        one_hot = one_hot_of(part.to(device), palette.num_classes)
        # Drawn on the CPU everywhere, so that every device paints from the same noise.
        regions = regions_of(part) if spec.region else part
        noise = sample_noise(spec, seed, indices[first : first + step], regions)
        images = generator.network(one_hot, noise.to(device)).float().cpu()
        painted += [scaling.to_stored(image) for image in images]
    return painted


def paint_candidates(
    generator: LoadedGenerator,
    candidates: CandidateMasks,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Iterator[Painted]:
    """Paints candidates in order while workers draw the next masks.

    Those that lack a required class are handed on unpainted.

    Args:
        generator: A loaded generator, on `device`.
        candidates: The masks; their seed also fixes the noise.
        batch_size: Images painted at once on a GPU.
        num_workers: Processes that read and jitter masks.
        device: Where the generator is.
    """
    loader: DataLoader[Candidate] = DataLoader(
        candidates,
        batch_size=batch_size,
        num_workers=min(num_workers, len(candidates)),
        collate_fn=list,
    )
    for batch in loader:
        wanted = [candidate for candidate in batch if not candidate.lacks]
        images = paint(
            generator,
            [candidate.label for candidate in wanted],
            seed=candidates.seed,
            indices=[candidate.index for candidate in wanted],
            device=device,
        )
        painted = dict(zip([candidate.index for candidate in wanted], images, strict=True))
        for candidate in batch:
            yield candidate, painted.get(candidate.index)
