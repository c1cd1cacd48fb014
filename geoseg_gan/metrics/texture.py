"""Texture repetition: whether broad regions of one class repeat themselves."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_DECAYED = 0.2
"""Autocorrelation below which a lag counts as away from the centre."""

_OVERLAP = 0.4
"""Share of a window that two copies of it must share at a lag, for their likeness to mean much."""


def broad_windows(
    label: npt.NDArray[np.uint8], side: int, count: int, ignore: int = 255
) -> list[tuple[int, int, int]]:
    """Squares of a label map that show one class only, from different places.

    Args:
        label: Shape (H, W), uint8.
        side: Side of the squares in pixels.
        count: How many at most for each class.
        ignore: The label that is no class.

    Returns:
        Class, top and left of each.
    """
    found = []
    for kind in np.unique(label[label != ignore]).tolist():
        inside = np.zeros((label.shape[0] + 1, label.shape[1] + 1), np.int64)
        inside[1:, 1:] = (label == kind).cumsum(0).cumsum(1)
        sums = (
            inside[side:, side:]
            - inside[:-side, side:]
            - inside[side:, :-side]
            + inside[:-side, :-side]
        )
        free = sums == side**2
        for _ in range(count):
            places = np.argwhere(free)
            if not len(places):
                break
            top, left = places[len(places) // 2].tolist()
            found.append((kind, top, left))
            free[max(0, top - side + 1) : top + side, max(0, left - side + 1) : left + side] = False
    return found


def repetition(patch: Floats) -> float:
    """How much a patch repeats itself: the highest autocorrelation away from the centre.

    A slope of brightness is taken out first. Only local peaks beyond the lag at which the
    autocorrelation has first decayed count, and lags at which enough of the patch overlaps.

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
    # At each lag both copies have an energy of their own in what they share.
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
    is_peak = np.ones_like(likeness, bool)
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            is_peak &= likeness >= np.roll(likeness, (row, column), (0, 1))
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
        for kind, top, left in broad_windows(label, side, count):
            found.append((kind, repetition(gray[top : top + side, left : left + side])))
    return found


def _plane(patch: Floats) -> Floats:
    """The plane that fits a patch best."""
    side = len(patch)
    along = np.arange(side) - (side - 1) / 2
    weight = (along**2).sum() * side
    down = (patch * along[:, None]).sum() / weight
    right = (patch * along).sum() / weight
    plane: Floats = patch.mean() + down * along[:, None] + right * along
    return plane
