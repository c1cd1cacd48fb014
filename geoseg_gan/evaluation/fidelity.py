"""Fidelity and memorisation: distances of generated and real images in feature space."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.dataset import WindowDataset
from geoseg_gan.evaluation.images import Floats, ImageSet, collect, tracked
from geoseg_gan.models.pretrained.features import InceptionFeatures, Lite0Features
from geoseg_gan.utils.pictures import evenly_spaced

Change = Callable[[Floats, int], Floats]
"""Damages an image (S, S, K) in [-1, 1], given its position among all."""

FID_MINIMUM = 2048
"""With fewer images than this, FID depends more on their number than on their quality: it is biased
upwards (Chong & Forsyth 2020), and below the number of features the covariance is singular."""

BLURS = (0.5, 1.0, 2.0, 4.0)
"""Standard deviations of the blur of control images, in pixels."""

NOISES = (4.0, 8.0, 16.0, 32.0)
"""Standard deviations of the noise of control images, in 255ths of the range of values."""

_ROWS = 1024  # of a distance matrix that are held at once
_BLOCKS = 10  # of the jackknife
_DIVISIONS = 5  # into halves, whose figures are averaged


@dataclass(frozen=True)
class Extractor:
    """Turns images into pooled features.

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
        batches = images.batches(self.scaling, self.batch_size, self.device)
        firsts = range(0, len(images), self.batch_size)
        rows = [self.network.pooled(next(batches)) for _ in tracked(firsts, title)]
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
        paired: Whether a row of both is the same image, changed (see `kid`).

    Returns:
        "kid", "kid_error", "fid", and "images", of how many of each kind FID was taken.
    """
    return {
        "kid": kid(real, fake, paired=paired),
        "kid_error": kid_error(real, fake, paired=paired),
        "fid": fid(*_as_many(real, fake)),
        "images": min(len(real), len(fake)),
    }


def halves(
    real: Floats, groups: Sequence[str] | npt.NDArray[np.str_], seed: int
) -> dict[str, float]:
    """The floor: real images against real images, averaged over random halves.

    Location groups stay whole, unless one of them holds nearly all images.

    Args:
        real: Features of real images, shape (N, D).
        groups: The location group of each.
        seed: Fixes the halves.
    """
    rng = np.random.default_rng(seed)
    names, member = np.unique(groups, return_inverse=True)
    found = []
    for _ in range(_DIVISIONS):
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
        extract: Computes features.
        real: Real images.
        seed: With an image's position it fixes its noise.
        first: Position of the first image, where the set is part of a larger one.
        quiet: Without progress bars.

    Returns:
        Features of all the images, shape (N, D), by the damage.
    """

    def blur(sigma: float, image: Floats, _: int) -> Floats:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float64)

    def noise(sigma: float, image: Floats, position: int) -> Floats:
        rng = np.random.default_rng((seed, position, NOISES.index(sigma)))
        return image + rng.normal(0, 2 * sigma / 255, image.shape)

    changes: dict[str, Change] = {f"blurred by {s:g} px": partial(blur, s) for s in BLURS}
    changes |= {f"noise of {s:g}/255": partial(noise, s) for s in NOISES}
    return {
        name: extract(
            _changed(real, extract.scaling, change, first),
            None if quiet else f"Features of images, {name}",
        )
        for name, change in changes.items()
    }


def coverage(real: Floats, fake: Floats, k: int = 3) -> dict[str, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, equations 1 and 2).

    They depend on the numbers of images: as many of both sets are taken, evenly spread.

    Args:
        real: Features of real images, shape (N, D).
        fake: Those of others, shape (M, D).
        k: Which neighbour's distance bounds the ball around each image.

    Returns:
        "precision", the share of the fake images within the real ones' balls, and "recall", the
        share of the real ones within the fake ones'; NaN without a k-th neighbour.
    """
    real, fake = _as_many(real, fake)
    if len(real) <= k:
        return {"precision": math.nan, "recall": math.nan}
    return {"precision": _covered(fake, real, k), "recall": _covered(real, fake, k)}


def memorisation(train: Floats, fake: Floats, held_out: Floats) -> dict[str, Any]:
    """Distances of generated images to the training images, beside those of held-out real ones.

    Args:
        train: Features of the training images, shape (N, D).
        fake: Those of generated images, shape (M, D).
        held_out: Those of held-out real images.

    Returns:
        Under "generated" and "held_out" the distance of each image to its nearest training image,
        and under "rows" the row of that image for the generated ones.
    """
    rows, distance = nearest(fake, train)
    return {"rows": rows, "generated": distance, "held_out": nearest(held_out, train)[1]}


def kid(real: Floats, fake: Floats, *, paired: bool = False) -> float:
    """Kernel Inception Distance: the unbiased squared MMD of a cubic kernel.

    k(x, y) = (x.y / D + 1)^3 over all pairs of different images (Binkowski et al. 2018, section
    4), without random subsets. It may fall below 0 for sets that are alike.

    Args:
        real: Shape (N, D), N at least 2.
        fake: Shape (M, D), M at least 2.
        paired: Whether row i of both comes from the same image, as when one set is the other one
            blurred: such pairs, more alike than independent images, are left out as well (Gretton
            et al. 2012, equation 4), without which the figure would be too low. N is M then.
    """
    within = [_kernel_sum(part, part, skip_same=True) for part in (real, fake)]
    n, m = len(real), len(fake)
    across = _kernel_sum(real, fake, skip_same=paired)
    pairs = n * (n - 1) if paired else n * m
    return within[0] / (n * (n - 1)) + within[1] / (m * (m - 1)) - 2 * across / pairs


def kid_error(real: Floats, fake: Floats, *, paired: bool = False) -> float:
    """Standard error of `kid`, by leaving out a tenth of the images at a time.

    The delete-a-group jackknife (Efron & Tibshirani 1993, chapter 11) with runs of neighbours as
    groups, since windows of one tile, which stand side by side, are no independent images.

    Arguments are those of `kid`. NaN for fewer than 4 images.
    """
    blocks = min(_BLOCKS, len(real) // 2, len(fake) // 2)
    if blocks < 2:
        return math.nan
    left_out = (np.array_split(np.arange(len(rows)), blocks) for rows in (real, fake))
    values = [
        kid(np.delete(real, one, 0), np.delete(fake, other, 0), paired=paired)
        for one, other in zip(*left_out, strict=True)
    ]
    return float(np.sqrt((blocks - 1) * np.var(values)))


def fid(real: Floats, fake: Floats) -> float:
    """Frechet Inception Distance (Heusel et al. 2017, equation 6).

    |mean difference|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), where the last trace is taken as the sum of
    the singular values of X1 X2^T of the centred features, which is the same and stays real where
    there are fewer images than features.

    Args:
        real: Shape (N, D), N at least 2.
        fake: Shape (M, D), M at least 2.
    """
    gap = real.mean(0) - fake.mean(0)
    roots = [_root(part) for part in (real, fake)]
    traces = sum(float((root**2).sum()) for root in roots)
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(gap @ gap + traces - 2 * cross)


def nearest(queries: Floats, references: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """The most similar reference (M, D) of every query (N, D).

    Returns:
        Its row, shape (N,), and the Euclidean distance of the features brought to length 1, in
        0..2: 0 for the same image.
    """
    ours, theirs = (
        part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
        for part in (queries, references)
    )
    rows = np.concatenate([square.argmin(1) for square in _squares(ours, theirs)])
    # Computed again: for equal images the expanded square has lost all its digits.
    return rows, np.linalg.norm(ours - theirs[rows], axis=1)


def _as_many(real: Floats, fake: Floats) -> tuple[Floats, Floats]:
    fewest = min(len(real), len(fake))
    return real[evenly_spaced(len(real), fewest)], fake[evenly_spaced(len(fake), fewest)]


def _changed(images: ImageSet, scaling: ImageScaling, change: Change, first: int) -> ImageSet:
    scaled = (image for part in images.parts() for image in part.scaled(scaling))
    changed = []
    for number, image in enumerate(scaled, first):
        value = change(np.ascontiguousarray(np.moveaxis(image, 0, -1)), number)
        value = value.reshape(*value.shape[:2], -1)  # OpenCV drops the axis of a single band
        bands_first = np.ascontiguousarray(np.moveaxis(value, -1, 0))
        changed.append(scaling.to_stored(torch.from_numpy(bands_first)))
    return replace(images, pixels=np.stack(changed)) if changed else images


def _kernel_sum(first: Floats, second: Floats, *, skip_same: bool) -> float:
    total = 0.0
    size = first.shape[1]
    for start in range(0, len(first), _ROWS):
        total += float(((first[start : start + _ROWS] @ second.T / size + 1) ** 3).sum())
    if skip_same:
        total -= float((((first * second).sum(1) / size + 1) ** 3).sum())
    return total


def _root(features: Floats) -> Floats:
    """A matrix R of at most D rows whose R^T R is the covariance of the features."""
    centred: Floats = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    if len(centred) > centred.shape[1]:
        centred = np.asarray(np.linalg.qr(centred, mode="r"))
    return centred


def _covered(queries: Floats, references: Floats, k: int) -> float:
    """Share of the queries within the ball around any reference."""
    # The 0th neighbour is the image itself.
    radii = [np.partition(square, k, 1)[:, k] for square in _squares(references, references)]
    # The expanded square is rounded, which must not push an image out of its own ball.
    limit = np.concatenate(radii) * (1 + 1e-9) + 1e-12
    inside = sum(int((s <= limit).any(1).sum()) for s in _squares(queries, references))
    return inside / len(queries)


def _squares(first: Floats, second: Floats) -> Iterator[Floats]:
    """Squared distances of two sets (N, D) and (M, D), some rows of the (N, M) at once."""
    lengths = (second**2).sum(1)
    for start in range(0, len(first), _ROWS):
        rows = first[start : start + _ROWS]
        yield np.maximum((rows**2).sum(1)[:, None] + lengths - 2 * rows @ second.T, 0)
