"""Fidelity and memorisation: painted images against real ones in feature space."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.dataset import WindowDataset
from geoseg_gan.evaluation.images import ImageSet, collect, spread, tracked
from geoseg_gan.metrics.fidelity import fid, kid, kid_error, nearest, precision_recall
from geoseg_gan.models.features import InceptionFeatures, Lite0Features

Floats = npt.NDArray[np.float64]
Change = Callable[[Floats, int], Floats]
"""Damages an image (S, S, K) in [-1, 1] that has a position among all."""

BLURS = (0.5, 1.0, 2.0, 4.0)
"""Standard deviations of the blur of control images, in pixels."""
NOISES = (4.0, 8.0, 16.0, 32.0)
"""Standard deviations of the noise of control images, in 255ths of the range of values."""

_SPLITS = 5


@dataclass(frozen=True)
class Extractor:
    """What turns images into features.

    Attributes:
        network: The feature network, on `device`.
        scaling: From stored values to [-1, 1].
        device: Where it is.
        batch_size: Images at once.
    """

    network: Lite0Features | InceptionFeatures
    scaling: ImageScaling
    device: torch.device
    batch_size: int = 16

    def __call__(self, images: ImageSet, title: str | None = None) -> Floats:
        """Pooled features, shape (N, D); with a title, under a progress bar."""
        if not len(images):
            return np.empty((0, 0))
        count = -(-len(images) // self.batch_size)
        batches = images.batches(self.scaling, self.batch_size, self.device)
        rows = [self.network.pooled(next(batches)) for _ in tracked(range(count), title)]
        features: Floats = torch.cat(rows).cpu().double().numpy()
        return features

    def of_windows(
        self, dataset: WindowDataset, rows: Sequence[int], title: str | None = None
    ) -> Floats:
        """Pooled features of more windows than memory may hold, shape (N, D)."""
        firsts = range(0, len(rows), self.batch_size)
        parts = [rows[first : first + self.batch_size] for first in firsts]
        found = [self(collect(dataset, part)) for part in tracked(parts, title)]
        return np.concatenate(found) if found else np.empty((0, 0))


def compare(real: Floats, fake: Floats, *, paired: bool = False) -> dict[str, float]:
    """KID with its standard error, and FID, of two sets of features.

    FID falls with the number of images, so it takes as many of both sets, evenly spread.

    Args:
        real: Features of real images, shape (N, D).
        fake: Those of others, shape (M, D).
        paired: Whether a row of both is the same image, changed (see `metrics.fidelity.kid`).

    Returns:
        "kid", "kid_error", "fid", and "images", of how many of each kind FID was taken.
    """
    return {
        "kid": kid(real, fake, paired=paired),
        "kid_error": kid_error(real, fake, paired=paired),
        "fid": fid(*_as_many(real, fake)),
        "images": min(len(real), len(fake)),
    }


def halves(real: Floats, groups: list[str], seed: int) -> dict[str, float]:
    """The floor: real images against real images, averaged over random halves.

    Whole groups of ground go to a half; images do where one group holds nearly all of them.

    Args:
        real: Features of real images, shape (N, D).
        groups: The ground that each shows.
        seed: Fixes the halves.
    """
    rng = np.random.default_rng(seed)
    names, member = np.unique(groups, return_inverse=True)
    found = []
    for _ in range(_SPLITS):
        first = np.isin(member, rng.permutation(len(names))[: len(names) // 2])
        if 2 <= first.sum() <= len(real) - 2:
            found.append(compare(real[first], real[~first]))
    if not found:
        return halves(real, [str(row) for row in range(len(real))], seed)
    return {key: float(np.mean([entry[key] for entry in found])) for key in found[0]}


def controls(
    extract: Extractor, real: ImageSet, seed: int, *, first: int = 0, quiet: bool = False
) -> dict[str, Floats]:
    """Features of real images with known damage: blurred and noised.

    Args:
        extract: Gives features.
        real: Real images.
        seed: With an image's position it fixes its noise.
        first: Position of the first image, where the set is part of a larger one.
        quiet: Whether there is no progress bar.

    Returns:
        Features of all the images, shape (N, D), by the damage.
    """

    def blur(sigma: float) -> Change:
        return lambda image, _: np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float64)

    def noise(sigma: float) -> Change:
        def change(image: Floats, position: int) -> Floats:
            rng = np.random.default_rng((seed, position, NOISES.index(sigma)))
            return image + rng.normal(0, 2 * sigma / 255, image.shape)

        return change

    changes = {f"blurred by {s:g} px": blur(s) for s in BLURS}
    changes |= {f"noise of {s:g}/255": noise(s) for s in NOISES}
    return {
        name: extract(
            _changed(real, extract.scaling, change, first),
            None if quiet else f"Features of images, {name}",
        )
        for name, change in changes.items()
    }


def coverage(real: Floats, fake: Floats) -> dict[str, float]:
    """Improved precision and recall, of as many images of both, since they depend on that."""
    precision, recall = precision_recall(*_as_many(real, fake))
    return {"precision": precision, "recall": recall}


def memorisation(train: Floats, fake: Floats, held_out: Floats) -> dict[str, Any]:
    """How near painted images come to training images, beside real images never trained on.

    Args:
        train: Features of the training images, shape (N, D).
        fake: Those of painted images, shape (M, D).
        held_out: Those of held-out real images.

    Returns:
        Under "painted" and "held_out" the distance of each image to its nearest training image,
        and under "rows" which one it is for the painted ones.
    """
    rows, distance = nearest(fake, train)
    return {"rows": rows, "painted": distance, "held_out": nearest(held_out, train)[1]}


def _as_many(real: Floats, fake: Floats) -> tuple[Floats, Floats]:
    fewest = min(len(real), len(fake))
    return real[spread(len(real), fewest)], fake[spread(len(fake), fewest)]


def _changed(images: ImageSet, scaling: ImageScaling, change: Change, first: int) -> ImageSet:
    scaled = (image for part in images.parts() for image in part.scaled(scaling))
    values = (change(_channels_last(image), number) for number, image in enumerate(scaled, first))
    changed = [scaling.to_stored(torch.from_numpy(_channels_first(value))) for value in values]
    return replace(images, pixels=np.stack(changed)) if changed else images


def _channels_last(image: Floats) -> Floats:
    return np.ascontiguousarray(np.moveaxis(image, 0, -1))


def _channels_first(image: Floats) -> Floats:
    # OpenCV drops the axis of a single band.
    return np.ascontiguousarray(np.moveaxis(image.reshape(*image.shape[:2], -1), -1, 0))
