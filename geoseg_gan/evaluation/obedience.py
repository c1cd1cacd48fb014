"""Agreement and diversity: whether images obey their masks, and how much they vary."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import torch

from geoseg_gan.checkpoints import LoadedGenerator
from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.evaluation.images import ImageSet, spread, tracked
from geoseg_gan.metrics.agreement import class_iou, confusion_matrix, mean_iou
from geoseg_gan.metrics.diversity import composition_pairs, feature_distance, layer_distance
from geoseg_gan.models.features import Lite0Features
from geoseg_gan.synthesis.paint import paint
from geoseg_gan.synthesis.recognizer import Recognizer

_MASKS = 64
"""Masks that are painted several times, and pairs of real tiles beside them, at most."""


def agreement(
    recognizer: Recognizer, images: ImageSet, names: list[str], title: str | None = None
) -> dict[str, Any]:
    """How well a segmenter finds the masks in the images.

    Args:
        recognizer: The segmenter.
        images: The images with their masks.
        names: The C classes.
        title: Of the progress bar; None for none.

    Returns:
        "miou", "pixel_accuracy", and "classes": IoU by name, NaN where a class does not occur.
    """
    total = torch.zeros(len(names), len(names), dtype=torch.int64)
    for row in tracked(range(len(images)), title):
        guess = recognizer.logits(images.pixels[row]).argmax(0)
        total += confusion_matrix(torch.from_numpy(images.counted[row]), guess, len(names))
    return {
        "miou": mean_iou(total),
        "pixel_accuracy": float(total.diagonal().sum() / max(1, int(total.sum()))),
        "classes": dict(zip(names, class_iou(total).tolist(), strict=True)),
    }


def diversity(
    network: Lite0Features,
    generator: LoadedGenerator,
    real: ImageSet,
    *,
    variants: int,
    seed: int,
    device: torch.device,
    title: str | None = None,
) -> dict[str, Any]:
    """Distances between images painted from one mask with different noise.

    Args:
        network: Gives features, on `device`.
        generator: On `device`.
        real: Whose label maps are painted.
        variants: Images for each mask, 2 or more.
        seed: Fixes the noise.
        device: Where both are.
        title: Of the progress bar; None for none.

    Returns:
        "features" and "layers", the mean distances (see metrics.diversity), "masks", how many were
        painted, and "deterministic", whether the generator takes no noise at all.
    """
    rows = spread(len(real), _MASKS)
    scaling = generator.facts.scaling
    found = []
    for row in tracked(rows, title):
        images = paint(
            generator,
            [real.labels[row]] * variants,
            seed=seed + 1,  # other noise than what was painted for the other figures
            indices=[row * variants + number for number in range(variants)],
            device=device,
        )
        found.append(_distances(network, np.stack(images), scaling, device, variants))
    means = np.mean(found, 0)
    return {
        "features": float(means[0]),
        "layers": float(means[1]),
        "masks": len(rows),
        "deterministic": generator.network.noise.channels == 0,
    }


def real_diversity(
    network: Lite0Features,
    real: ImageSet,
    scaling: ImageScaling,
    classes: int,
    device: torch.device,
) -> dict[str, float]:
    """The same distances between different real tiles of like composition.

    Args:
        network: Gives features, on `device`.
        real: Real images.
        scaling: From stored values to [-1, 1].
        classes: C.
        device: Where the network is.

    Returns:
        "features", "layers" and "pairs"; NaN where there are no two tiles.
    """
    pairs = composition_pairs(real.shares(classes), real.groups, _MASKS)
    if not pairs:
        return {"features": math.nan, "layers": math.nan, "pairs": 0}
    found = [_distances(network, real.pixels[list(pair)], scaling, device, 2) for pair in pairs]
    means = np.mean(found, 0)
    return {"features": float(means[0]), "layers": float(means[1]), "pairs": len(pairs)}


def _distances(
    network: Lite0Features,
    pixels: np.ndarray,
    scaling: ImageScaling,
    device: torch.device,
    count: int,
) -> tuple[float, float]:
    """Mean feature and layer distance over all pairs of some images (N, S, S, K)."""
    stacked = np.ascontiguousarray(np.moveaxis(pixels, -1, 1))
    images = scaling.to_network(torch.from_numpy(stacked).to(device))
    first, second = (list(side) for side in zip(*combinations(range(count), 2), strict=True))
    pooled, layers = network.pooled(images), network.layers(images)
    by_feature = feature_distance(pooled[first], pooled[second]).mean()
    by_layer = layer_distance([m[first] for m in layers], [m[second] for m in layers]).mean()
    return float(by_feature), float(by_layer)
