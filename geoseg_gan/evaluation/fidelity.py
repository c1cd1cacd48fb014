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
Change = Callable[[Floats], Floats]

BLURS = (0.5, 1.0, 2.0, 4.0)
"""Standard deviations of the blur of control images, in pixels."""
NOISES = (4.0, 8.0, 16.0, 32.0)
"""Standard deviations of the noise of control images, in 255ths of the range of values."""

_SPLITS = 5
_WINDOWS = 64  # that are held at once, of as many as there are


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
        rows = [
            self.network.pooled(batch.to(self.device)).cpu()
            for part in tracked(list(images.parts()), title)
            for batch in part.batches(self.scaling, self.batch_size)
        ]
        features: Floats = torch.cat(rows).double().numpy()
        return features

    def of_windows(self, dataset: WindowDataset, rows: Sequence[int], title: str) -> Floats:
        """Pooled features of more windows than memory may hold, shape (N, D)."""
        parts = [rows[first : first + _WINDOWS] for first in range(0, len(rows), _WINDOWS)]
        return np.concatenate([self(collect(dataset, part)) for part in tracked(parts, title)])


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
    extract: Extractor, real: ImageSet, features: Floats, seed: int
) -> dict[str, dict[str, float]]:
    """What known damage costs: real images against the same, blurred and noised.

    Args:
        extract: Gives features.
        real: Real images.
        features: Theirs.
        seed: Fixes the noise.
    """
    rng = np.random.default_rng(seed)

    def blur(sigma: float) -> Change:
        return lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float64)

    def noise(sigma: float) -> Change:
        return lambda image: image + rng.normal(0, 2 * sigma / 255, image.shape)

    changes = {f"blurred by {s:g} px": blur(s) for s in BLURS}
    changes |= {f"noise of {s:g}/255": noise(s) for s in NOISES}
    return {
        name: compare(
            features,
            extract(_changed(real, extract.scaling, change), f"Features of images, {name}"),
            paired=True,
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


def _changed(images: ImageSet, scaling: ImageScaling, change: Change) -> ImageSet:
    changed = [
        scaling.to_stored(torch.from_numpy(_channels_first(change(_channels_last(image)))))
        for part in images.parts()
        for image in part.scaled(scaling)
    ]
    return replace(images, pixels=np.stack(changed))


def _channels_last(image: Floats) -> Floats:
    return np.ascontiguousarray(np.moveaxis(image, 0, -1))


def _channels_first(image: Floats) -> Floats:
    # OpenCV drops the axis of a single band.
    return np.ascontiguousarray(np.moveaxis(image.reshape(*image.shape[:2], -1), -1, 0))
