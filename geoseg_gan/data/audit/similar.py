"""Images that show the same: copies and near-duplicates."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

SIDE = 32
"""Side of the thumbnails by which images are compared, in pixels."""

TURNS = (
    *("", "turned by 90 degrees", "turned by 180 degrees", "turned by 270 degrees"),
    *("mirrored", "mirrored and turned by 90 degrees", "mirrored and turned by 180 degrees"),
    "mirrored and turned by 270 degrees",
)
"""How one of two images that are alike is turned; the position is `Match.turn`."""

_COARSE = 16  # side of the vectors that all images are compared by
_FLAT = 2.0  # grey levels: images that vary less show nothing to compare
_ALIKE = 0.9  # least correlation of the coarse vectors of two images that are looked at closely
_SAME = 0.95  # least correlation of the thumbnails
_SAME_DETAIL = 0.8  # least correlation of what remains of them without their broad gradients
_MOST = 8  # matches of an image that are looked at closely
_BLOCK = 1024  # images that are compared with all others at a time
_MOST_TURNED = 20_000  # images up to which turned ones are looked for: the time grows with N²


@dataclass(frozen=True)
class Match:
    """Two images that show the same."""

    first: int
    second: int
    correlation: float  # of their thumbnails
    turn: int  # of the second to the first, see `TURNS`


def thumbnail(gray: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A grey image (H, W) as a thumbnail (32, 32), uint8: the mean over areas."""
    return np.asarray(cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def near_duplicates(thumbnails: npt.NDArray[np.uint8]) -> list[Match]:
    """Pairs of images that show the same, though brightness, contrast or encoding differ.

    An image may also be turned by quarters or mirrored. Every image is compared with every other
    by the correlation of 16 x 16 pixels, in blocks; those that are alike are compared by 32 x 32
    pixels with and without broad gradients, which many images share. Flat images match none.

    Args:
        thumbnails: Of N images, shape (N, 32, 32).
    """
    varied = np.flatnonzero(thumbnails.std((1, 2)) >= _FLAT)
    images = thumbnails[varied].astype(np.float32)
    vectors = _vectors(images)
    matches: dict[tuple[int, int], Match] = {}
    for turn in range(len(TURNS) if len(images) <= _MOST_TURNED else 1):
        turned = _vectors(_turned(images, turn))
        for first, second in _alike(vectors, turned):
            correlation = _closeness(images[first], _turned(images[second], turn))
            key = (int(varied[first]), int(varied[second]))
            if correlation and (key not in matches or matches[key].correlation < correlation):
                matches[key] = Match(*key, correlation, turn)
    return sorted(matches.values(), key=lambda match: -match.correlation)


def _alike(vectors: Floats, turned: Floats) -> Iterator[tuple[int, int]]:
    """Positions of images whose coarse vectors correlate, the lower one first."""
    for start in range(0, len(vectors), _BLOCK):
        similarity = vectors[start : start + _BLOCK] @ turned.T
        rows = np.arange(start, start + len(similarity))
        # Each two images once; an image that is its own mirror image is no copy.
        similarity[np.arange(len(vectors)) <= rows[:, None]] = 0
        for row in np.flatnonzero((similarity >= _ALIKE).any(1)):
            found = np.flatnonzero(similarity[row] >= _ALIKE)
            best = found[np.argsort(-similarity[row, found])[:_MOST]]
            yield from ((int(rows[row]), int(other)) for other in best)


def _vectors(images: Floats) -> Floats:
    """Coarse vectors of unit length, without the mean: shape (N, 256)."""
    step = SIDE // _COARSE
    coarse = images.reshape(len(images), _COARSE, step, _COARSE, step).mean((2, 4))
    flat = coarse.reshape(len(images), _COARSE**2)
    flat = flat - flat.mean(1, keepdims=True)
    vectors: Floats = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return vectors


def _turned(images: Floats, turn: int) -> Floats:
    """Images (..., H, W) as `TURNS` says."""
    return np.rot90(images[..., ::-1] if turn >= 4 else images, turn % 4, axes=(-2, -1))


def _closeness(one: Floats, other: Floats) -> float:
    """The correlation of two thumbnails; 0 where they do not show the same."""
    whole = _correlation(one, other)
    if whole < _SAME:
        return 0.0
    details = (image - cv2.blur(np.ascontiguousarray(image), (9, 9)) for image in (one, other))
    return whole if _correlation(*details) >= _SAME_DETAIL else 0.0


def _correlation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
