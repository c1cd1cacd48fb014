"""Power spectra of images: where painted ones have too much or too little detail."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_PERIODS = (2, 4, 8)
"""Pixels after which the patterns of strided and transposed convolutions repeat."""

_SMALLEST = 1e-12


@dataclass(frozen=True)
class SpectrumGap:
    """How the spectrum of painted images differs from that of real ones, in log10 of power.

    Attributes:
        low: Mean difference below a quarter of the highest frequency (0.5 cycles a pixel).
        middle: The same between a quarter and a half.
        high: The same above a half: below 0 for blur, above 0 for noise.
        checkerboard: How much higher the highest peak at a period of 2, 4 or 8 pixels stands over
            its neighbourhood than in real images; 1 is ten times the power. As the highest of
            several peaks it comes out a little above 0 for real images too: compare it with that.
            NaN for images of an odd side.
    """

    low: float
    middle: float
    high: float
    checkerboard: float


def mean_power(images: Floats) -> Floats:
    """Mean power spectrum of square images, grey and under a Hann window.

    The window keeps what a picture's border cuts off from filling all frequencies.

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
        power: As `mean_power` gives it, shape (S, S).

    Returns:
        Frequencies in cycles a pixel, above 0 and up to 0.5, shape (S / 2,), and log10 of power.
    """
    side = len(power)
    cycles = np.fft.fftfreq(side) * side
    ring = np.rint(np.hypot(cycles[:, None], cycles)).astype(int)
    sums = np.bincount(ring.ravel(), power.ravel())
    counts = np.bincount(ring.ravel())
    rings = np.arange(1, side // 2 + 1)
    return rings / side, np.log10(np.maximum(sums[rings] / counts[rings], _SMALLEST))


def spectrum_gap(real: Floats, fake: Floats) -> SpectrumGap:
    """Compares two spectra.

    Args:
        real: As `mean_power` gives it, shape (S, S).
        fake: The same of painted images.
    """
    frequency, ours = radial_profile(fake)
    gap = ours - radial_profile(real)[1]
    edges = (frequency <= 0.125, (frequency > 0.125) & (frequency <= 0.25), frequency > 0.25)
    low, middle, high = (float(gap[band].mean()) for band in edges)
    peaks = [a - b for a, b in zip(_peaks(fake), _peaks(real), strict=True)]
    return SpectrumGap(low, middle, high, max(peaks, default=math.nan))


def _peaks(power: Floats) -> list[float]:
    """Log10 of power at the periods, along both axes and diagonals, over the neighbourhood."""
    side = len(power)
    logs = np.log10(np.maximum(power, _SMALLEST))
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
