"""Agreement of images with their masks, and diversity of the images of one mask."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.evaluation.images import Floats, ImageSet, tracked
from geoseg_gan.models.loaded import LoadedGenerator
from geoseg_gan.models.pretrained.features import Lite0Features
from geoseg_gan.synthesis.generate_images import generate_images
from geoseg_gan.synthesis.recognizer import Recognizer
from geoseg_gan.utils.confusion import class_iou, confusion_matrix, mean_iou
from geoseg_gan.utils.pictures import evenly_spaced

_MASKS = 64
"""How many masks are generated several times, and pairs of real tiles compared, at most."""


def predicted_confusion(
    recognizer: Recognizer,
    images: ImageSet,
    num_classes: int,
    title: str | None = None,
    *,
    batch_size: int = 16,
) -> Tensor:
    """Counts the pixels of images by class of their mask and class that a segmenter predicts.

    Args:
        recognizer: The segmenter.
        images: The images with their masks.
        num_classes: C.
        title: Of the progress bar; None for none.
        batch_size: Images predicted at once on a GPU.

    Returns:
        Shape (C, C), int64: rows are the classes of the masks.
    """
    total = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for first in tracked(range(0, len(images), batch_size), title):
        rows = slice(first, first + batch_size)
        predicted = recognizer.batch_logits(torch.from_numpy(images.pixels[rows])).argmax(1).cpu()
        total += confusion_matrix(torch.from_numpy(images.counted[rows]), predicted, num_classes)
    return total


def agreement(total: Tensor, names: list[str]) -> dict[str, Any]:
    """How well predictions agree with the masks, from the counts of `predicted_confusion`.

    Returns:
        "miou", "pixel_accuracy", and "classes": IoU by name, NaN where a class does not occur.
    """
    return {
        "miou": mean_iou(total),
        "pixel_accuracy": float(total.diagonal().sum() / max(1, int(total.sum()))),
        "classes": dict(zip(names, class_iou(total).tolist(), strict=True)),
    }


def diversity_rows(count: int) -> list[int]:
    """Which of `count` masks are generated several times: at most 64, evenly spread."""
    return evenly_spaced(count, _MASKS)


def noise_distances(
    network: Lite0Features,
    generator: LoadedGenerator,
    labels: Sequence[npt.NDArray[np.uint8]],
    numbers: Sequence[int],
    *,
    variants: int,
    seed: int,
    device: torch.device,
    title: str | None = None,
) -> Floats:
    """Distances between images generated from one mask with different noise.

    Args:
        network: Computes features, on `device`.
        generator: On `device`.
        labels: The masks, each of shape (S, S), uint8.
        numbers: The index of each, which together with the seed fixes its noise.
        variants: Images for each mask, 2 or more.
        seed: Fixes the noise.
        device: Where both are.
        title: Of the progress bar; None for none.

    Returns:
        The mean distances of every mask by features and by layers, shape (M, 2).
    """
    found = []
    for label, number in tracked(list(zip(labels, numbers, strict=True)), title):
        images = generate_images(
            generator,
            [label] * variants,
            seed=seed + 1,  # not the noise of the images that the other figures are of
            indices=[number * variants + variant for variant in range(variants)],
            device=device,
        )
        found.append(_distances(network, np.stack(images), generator.facts.scaling, device))
    return np.array(found, np.float64).reshape(-1, 2)


def diversity(distances: Floats, generator: LoadedGenerator) -> dict[str, Any]:
    """How much the images of one mask vary, from the distances of `noise_distances`.

    Returns:
        "features" and "layers", the mean distances, "masks", how many there were, and
        "deterministic", whether the generator takes no noise at all.
    """
    features, layers = distances.mean(0).tolist()
    return {
        "features": features,
        "layers": layers,
        "masks": len(distances),
        "deterministic": generator.network.noise.channels == 0,
    }


def real_diversity(
    network: Lite0Features,
    real: ImageSet,
    scaling: ImageScaling,
    classes: int,
    device: torch.device,
) -> dict[str, float]:
    """The same distances between different real tiles of similar composition.

    Returns:
        "features", "layers" and "pairs"; NaN where there are no two tiles.
    """
    pairs = composition_pairs(real.shares(classes), real.groups, _MASKS)
    if not pairs:
        return {"features": math.nan, "layers": math.nan, "pairs": 0}
    found = [_distances(network, real.pixels[list(pair)], scaling, device) for pair in pairs]
    features, layers = np.mean(found, 0).tolist()
    return {"features": features, "layers": layers, "pairs": len(pairs)}


def layer_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Perceptual distance in the manner of LPIPS, with all channels weighted alike.

    Every feature map is brought to length 1 along its channels; squared differences are summed over
    channels and averaged over space and layers (Zhang et al. 2018, equation 1, without the weights
    learnt from human judgement, which exist for other networks only).

    Args:
        first: Feature maps (B, C, H, W) of several layers.
        second: The same of other images.

    Returns:
        Shape (B,), in 0..4; 0 for equal images.
    """
    gaps = (_unit(ours) - _unit(theirs) for ours, theirs in zip(first, second, strict=True))
    return torch.stack([gap.square().sum(1).mean((1, 2)) for gap in gaps]).mean(0)


def feature_distance(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distance of pooled features (B, D) brought to length 1, as in `fidelity.nearest`.

    Returns:
        Shape (B,), in 0..2.
    """
    return (_unit(first) - _unit(second)).square().sum(1).sqrt()


def composition_pairs(
    shares: Floats, groups: Sequence[str] | npt.NDArray[np.str_], count: int
) -> list[tuple[int, int]]:
    """Pairs of tiles of similar composition, from different location groups if there are several.

    Args:
        shares: Share of every class in each tile, shape (N, C).
        groups: The location group of each tile.
        count: How many pairs at most.

    Returns:
        Positions of the tiles; pairs that differ least in composition (L1) come first, and no tile
        stands in two pairs.
    """
    names = np.unique(groups, return_inverse=True)[1]
    gaps = np.abs(shares[:, None] - shares).sum(2)
    allowed = names[:, None] != names
    if not allowed.any():
        allowed = ~allowed
    upper = np.argwhere(np.triu(allowed, 1))
    order = upper[np.argsort(gaps[upper[:, 0], upper[:, 1]], kind="stable")]
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    for one, other in order.tolist():
        if len(pairs) == count:
            break
        if one not in used and other not in used:
            pairs.append((one, other))
            used |= {one, other}
    return pairs


def _unit(features: Tensor) -> Tensor:
    """Features (B, C, ...) brought to length 1 along their channels."""
    return F.normalize(features.float(), dim=1)


def _distances(
    network: Lite0Features, pixels: npt.NDArray[Any], scaling: ImageScaling, device: torch.device
) -> tuple[float, float]:
    """Mean feature and layer distance over all pairs of some images (N, S, S, K)."""
    stacked = np.ascontiguousarray(np.moveaxis(pixels, -1, 1))
    images = scaling.to_network(torch.from_numpy(stacked).to(device))
    first, second = (list(side) for side in zip(*combinations(range(len(pixels)), 2), strict=True))
    pooled, layers = network.pooled(images), network.layers(images)
    by_feature = feature_distance(pooled[first], pooled[second]).mean()
    by_layer = layer_distance([m[first] for m in layers], [m[second] for m in layers]).mean()
    return float(by_feature), float(by_layer)
