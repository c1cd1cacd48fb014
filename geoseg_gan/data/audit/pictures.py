"""Pictures of pairs for the report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from geoseg_gan.data.images import read_image, read_stored
from geoseg_gan.data.masks import MaskReader, index_values, mask_colors
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.pictures import RGB, beside

_SIDE = 240  # pixels of a picture's longer side
_OVERLAY = 0.45  # weight of the mask's colours over the image
_MARK = (255, 0, 255)  # of pixels that stand out


def shown(path: Path, side: int = _SIDE) -> RGB | None:
    """An image as people look at it, at most so large; None where it does not decode.

    Of other types than 8 bit, each band is stretched from its 2nd to its 98th percentile.
    """
    try:
        pixels = read_image(path)
    except UserError:
        return None
    pixels = pixels[..., [0, 1, 2] if pixels.shape[2] >= 3 else [0, 0, 0]]
    pixels = _shrunk(pixels, side)
    if pixels.dtype != np.uint8:
        low, high = np.percentile(pixels.reshape(-1, 3), (2, 98), axis=0)
        pixels = ((pixels - low) * (255 / np.maximum(high - low, 1e-9))).clip(0, 255)
    return pixels.astype(np.uint8, copy=False)


def triple(image: Path, mask: Path, reader: MaskReader) -> RGB | None:
    """Image, mask and the mask over the image, side by side; None where one does not decode."""
    picture = shown(image)
    try:
        label, _ = reader.read(mask)
    except UserError:
        return None
    if picture is None:
        return None
    colors = reader.palette.color_table[_like(label, picture)]
    over = (1 - _OVERLAY) * picture + _OVERLAY * colors
    return beside([picture, colors, over.astype(np.uint8)])


def marked(image: Path, mask: Path, reader: MaskReader) -> RGB | None:
    """Image, mask, and in magenta what of the mask the reader does not know."""
    picture = shown(image)
    try:
        stored = read_stored(mask)
        label, _ = replace(reader, unknown="ignore").read(mask)
        if reader.mask_format == "index":
            values = index_values(stored)
            ignored = [value for value, meaning in reader.index_map or () if meaning == IGNORE]
            known = np.isin(values, [IGNORE, *ignored])
            colors = reader.palette.color_table[label]
        else:
            colors = mask_colors(stored)
            known = np.zeros(label.shape, bool)
            for color in reader.palette.ignore:
                known |= (colors == np.array(color, np.uint8)).all(-1)
    except UserError:
        return None
    if picture is None:
        return None
    unknown = ((label == IGNORE) & ~known).astype(np.float32)
    unknown = cv2.resize(unknown, picture.shape[1::-1], interpolation=cv2.INTER_AREA)
    unknown = cv2.dilate((unknown > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    small = cv2.resize(colors, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    found = (0.25 * small + 150).astype(np.uint8)
    found[unknown] = _MARK
    return beside([picture, small.astype(np.uint8), found])


def _like(label: npt.NDArray[np.uint8], picture: RGB) -> npt.NDArray[np.uint8]:
    """A label map at the size of a picture."""
    size = picture.shape[1::-1]
    return cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8)


def two(first: Path, second: Path) -> RGB | None:
    """Two images side by side, as squares; None where one does not decode."""
    pictures = [shown(path) for path in (first, second)]
    if any(picture is None for picture in pictures):
        return None
    return beside([_square(picture) for picture in pictures if picture is not None])


def _square(picture: RGB) -> RGB:
    side = max(picture.shape[:2])
    square = np.full((side, side, 3), 255, np.uint8)
    square[: picture.shape[0], : picture.shape[1]] = picture
    return cv2.resize(square, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _shrunk(pixels: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    longer = max(pixels.shape[:2])
    if longer <= side:
        return pixels
    size = tuple(max(1, round(length * side / longer)) for length in pixels.shape[1::-1])
    smaller: npt.NDArray[Any] = cv2.resize(
        np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA
    )
    return smaller
