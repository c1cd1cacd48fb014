"""Artefacts: power spectra and texture repetition of generated images beside real ones."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.evaluation.images import Floats, ImageSet

_PERIODS = (2, 4, 8)
"""Pixels after which the patterns of strided and transposed convolutions repeat."""

_TINY_POWER = 1e-12
_SMALLEST_REGION = 24
_DECAYED = 0.2
"""Autocorrelation below which a lag counts as away from the centre."""

_OVERLAP = 0.4
"""Share of a patch that it and its shifted copy must have in common for a lag to count."""


@dataclass(frozen=True)
class SpectrumGap:
    """How the spectrum of generated images differs from that of real ones, in log10 of power.

    Attributes:
        low: Mean difference below a quarter of the highest frequency (0.5 cycles a pixel).
        middle: The same between a quarter and a half.
        high: The same above a half: below 0 for blur, above 0 for noise.
        checkerboard: Excess of the highest peak at a period of 2, 4 or 8 pixels over its
            neighbourhood, less the same in real images; 1 is ten times the power (Odena et al.
            2016). Being a maximum over several peaks it is a little above 0 for real images too:
            compare it with that. NaN for images of an odd side.
    """

    low: float
    middle: float
    high: float
    checkerboard: float


def mean_power(images: Floats) -> Floats:
    """Mean power spectrum of square images, grey and under a Hann window.

    The window suppresses the broadband leakage that the image border causes.

    Args:
        images: Shape (N, K, S, S), S at least 16.

    Returns:
        Shape (S, S), frequency 0 first in both directions (as `numpy.fft.fft2`).
    """
    side = images.shape[-1]
    window = np.hanning(side + 1)[:side]
    total = np.zeros((side, side))
    for image in images:
        gray = image.mean(0)
        total += np.abs(np.fft.fft2((gray - gray.mean()) * np.outer(window, window))) ** 2
    return total / len(images)


def radial_profile(power: Floats) -> tuple[Floats, Floats]:
    """Averages a spectrum over all directions (Durall et al. 2020, equation 2).

    Args:
        power: From `mean_power`, shape (S, S).

    Returns:
        Frequencies in cycles a pixel, above 0 and up to 0.5, shape (S / 2,), and log10 of power.
    """
    side = len(power)
    cycles = np.fft.fftfreq(side) * side
    ring = np.rint(np.hypot(cycles[:, None], cycles)).astype(int)
    sums = np.bincount(ring.ravel(), power.ravel())
    counts = np.bincount(ring.ravel())
    rings = np.arange(1, side // 2 + 1)
    return rings / side, np.log10(np.maximum(sums[rings] / counts[rings], _TINY_POWER))


def spectrum_gap(real: Floats, fake: Floats) -> SpectrumGap:
    """Compares two spectra of `mean_power`, shape (S, S)."""
    frequency, ours = radial_profile(fake)
    gap = ours - radial_profile(real)[1]
    edges = (frequency <= 0.125, (frequency > 0.125) & (frequency <= 0.25), frequency > 0.25)
    low, middle, high = (float(gap[band].mean()) for band in edges)
    peaks = [a - b for a, b in zip(_peaks(fake), _peaks(real), strict=True)]
    return SpectrumGap(low, middle, high, max(peaks, default=math.nan))


def power(images: ImageSet, scaling: ImageScaling) -> Floats:
    """Mean power spectrum of a set of images, see `mean_power`."""
    parts = [mean_power(part.scaled(scaling)) * len(part) for part in images.parts()]
    return np.asarray(np.sum(parts, 0) / len(images))


def spectra(real: ImageSet, fake: ImageSet, scaling: ImageScaling) -> dict[str, Any]:
    """Compares power spectra, also of real images with other real images.

    Returns:
        "gap", and as its floor "real_gap" between two halves of the real images, each a dict of
        `SpectrumGap`; "frequency" and "curves", log10 of power by name.
    """
    half = len(real) // 2
    halves = real.part(range(half)), real.part(range(half, len(real)))
    ours, theirs = power(fake, scaling), power(real, scaling)
    frequency, curve = radial_profile(theirs)
    return {
        "gap": vars(spectrum_gap(theirs, ours)),
        "real_gap": vars(spectrum_gap(*(power(part, scaling) for part in halves))),
        "frequency": frequency,
        "curves": {"real": curve, "generated": radial_profile(ours)[1]},
    }


def texture(
    real: ImageSet, fake: ImageSet, scaling: ImageScaling, names: list[str]
) -> dict[str, Any]:
    """Compares repetition inside broad regions of one class, of which `names` has all.

    Returns:
        For "real" and "generated" a list of repetitions; "side" of the squares in pixels;
        "classes": mean repetition of both, and how many squares there were, by class.
    """
    side = max(_SMALLEST_REGION, real.pixels.shape[1] // 3)
    found = {
        name: [
            entry
            for part in images.parts()
            for entry in repetitions(part.scaled(scaling), part.labels, side)
        ]
        for name, images in (("real", real), ("generated", fake))
    }
    classes = {}
    for class_id, name in enumerate(names):
        of_class = {k: [value for c, value in v if c == class_id] for k, v in found.items()}
        if all(of_class.values()):
            means = {key: float(np.mean(values)) for key, values in of_class.items()}
            classes[name] = {**means, "squares": len(of_class["generated"])}
    lists = {key: [value for _, value in values] for key, values in found.items()}
    return {**lists, "side": side, "classes": classes}


def broad_windows(
    label: npt.NDArray[np.uint8], side: int, count: int
) -> list[tuple[int, int, int]]:
    """Squares of a label map that hold one class only and do not overlap within it.

    Args:
        label: Shape (H, W), uint8; 255 is ignore.
        side: Side of the squares in pixels.
        count: How many at most for each class.

    Returns:
        Class, top and left of each.
    """
    found = []
    for class_id in np.unique(label[label != IGNORE]).tolist():
        inside = np.zeros((label.shape[0] + 1, label.shape[1] + 1), np.int64)
        inside[1:, 1:] = (label == class_id).cumsum(0).cumsum(1)
        rows = inside[side:] - inside[:-side]
        free = rows[:, side:] - rows[:, :-side] == side**2
        for _ in range(count):
            places = np.argwhere(free)
            if not len(places):
                break
            top, left = places[len(places) // 2].tolist()
            found.append((class_id, top, left))
            free[max(0, top - side + 1) : top + side, max(0, left - side + 1) : left + side] = False
    return found


def repetition(patch: Floats) -> float:
    """How much a patch repeats itself: the highest autocorrelation away from the centre.

    The best-fitting plane is subtracted first. Only local peaks count, at lags beyond the first
    decay of the autocorrelation and with enough overlap.

    Args:
        patch: Grey values, shape (S, S).

    Returns:
        In 0..1: near 1 for a texture that repeats exactly, low for one without a period; 0 for a
        patch without texture.
    """
    side = len(patch)
    rest = patch - _plane(patch)
    if rest.std() < 1e-3 * max(1.0, float(np.abs(patch).max())):
        return 0.0
    size = 2 * side
    spectrum = np.fft.rfft2(rest, (size, size))
    products = np.fft.irfft2(np.abs(spectrum) ** 2, (size, size))
    ones = np.fft.rfft2(np.ones((side, side)), (size, size))
    overlap = np.fft.irfft2(np.abs(ones) ** 2, (size, size))
    # Normalised at each lag by the energy of both copies within their overlap.
    squares = np.fft.rfft2(rest**2, (size, size))
    energy = np.fft.irfft2(squares * np.conj(ones), (size, size))
    mirrored = np.roll(energy[::-1, ::-1], 1, (0, 1))
    scale = np.sqrt(np.maximum(energy * mirrored, 1e-12))
    likeness = np.fft.fftshift(products / scale)
    shared = np.fft.fftshift(overlap) >= _OVERLAP * side**2
    lags = np.arange(size) - side
    distance = np.hypot(lags[:, None], lags)
    rings = np.rint(distance).astype(int)
    total = np.bincount(rings.ravel(), (likeness * shared).ravel())
    profile = total / np.maximum(np.bincount(rings.ravel(), shared.ravel()), 1)
    decayed = np.flatnonzero(profile < _DECAYED)
    first = int(decayed[0]) if len(decayed) else side
    is_peak = likeness == maximum_filter(likeness, 3, mode="wrap")
    counted = likeness[is_peak & shared & (distance > first)]
    return float(np.clip(counted.max(initial=0.0), 0, 1))


def repetitions(
    images: Floats, labels: npt.NDArray[np.uint8], side: int, count: int = 2
) -> list[tuple[int, float]]:
    """Repetition of all broad regions of a set of images.

    Args:
        images: Shape (N, K, S, S).
        labels: Shape (N, S, S), uint8.
        side: Side of the squares in pixels.
        count: How many at most for each image and class.

    Returns:
        Class and repetition of every square; none where no region is broad enough.
    """
    found = []
    for image, label in zip(images, labels, strict=True):
        gray = image.mean(0)
        for class_id, top, left in broad_windows(label, side, count):
            found.append((class_id, repetition(gray[top : top + side, left : left + side])))
    return found


def _peaks(power: Floats) -> list[float]:
    """Log10 of power at the periods, along both axes and diagonals, over the neighbourhood."""
    side = len(power)
    logs = np.log10(np.maximum(power, _TINY_POWER))
    peaks = []
    for period in _PERIODS:
        if side % period:
            continue
        step = side // period
        for row, column in ((0, step), (step, 0), (step, step), (step, -step)):
            rows, columns = (np.arange(c - 4, c + 5) % side for c in (row, column))
            near = logs[np.ix_(rows, columns)]
            # A Hann window spreads a peak over one more bin on each side.
            around = np.ones((9, 9), bool)
            around[3:6, 3:6] = False
            peaks.append(float(near[4, 4] - np.median(near[around])))
    return peaks


def _plane(patch: Floats) -> Floats:
    """The least-squares plane of a patch, shape (S, S)."""
    side = len(patch)
    along = np.arange(side) - (side - 1) / 2
    weight = (along**2).sum() * side
    down = (patch * along[:, None]).sum() / weight
    right = (patch * along).sum() / weight
    plane: Floats = patch.mean() + down * along[:, None] + right * along
    return plane
