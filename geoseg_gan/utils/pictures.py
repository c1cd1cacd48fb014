"""Pictures for people: triples, grids and contact sheets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from geoseg_gan.utils.files import atomic_path

RGB = npt.NDArray[np.uint8]

_GAP = 2  # pixels between pictures


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most `count` of the positions 0..total-1, ascending and evenly spaced."""
    rows: list[int] = np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()
    return rows


def beside(pictures: Sequence[RGB], columns: int | None = None, titles: Sequence[str] = ()) -> RGB:
    """Sets pictures of one size in rows, with thin white lines between.

    Args:
        pictures: Each of shape (H, W, 3), uint8.
        columns: How many stand in a row; all by default.
        titles: What is written onto the first pictures.

    Returns:
        One picture, uint8, white where a row is not full.
    """
    columns = columns or len(pictures)
    pictures = [*map(captioned, pictures, titles), *pictures[len(titles) :]]
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full(
        (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8
    )
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        top, left = row * (height + _GAP), column * (width + _GAP)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def captioned(picture: RGB, text: str) -> RGB:
    """A copy of a picture with a line of text in its upper left corner."""
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(10, picture.shape[0] // 10))
    draw.text((3, 2), text, fill="white", font=font, stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def write_picture(path: Path, picture: RGB) -> None:
    """Writes a picture, whole or not at all, in the format its ending names."""
    with atomic_path(path) as scratch:
        # Pillow takes JPEG's options for every format and leaves them unused elsewhere.
        Image.fromarray(picture).save(scratch, quality=95, subsampling=0)
