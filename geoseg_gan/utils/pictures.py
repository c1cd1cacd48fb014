"""Pictures for people: triples, grids and contact sheets."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from geoseg_gan.utils.files import atomic_path

RGB = npt.NDArray[np.uint8]

_GAP = 2  # pixels between pictures
_LEGEND = 14  # pixels of a class's colour and name


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
    """A copy of a picture with a text in its upper left corner, on as many lines as it takes."""
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(10, picture.shape[0] // 10))
    lines = [""]
    for word in re.findall(r"[^ _]+[ _]*", text):
        if lines[-1] and draw.textlength(lines[-1] + word.rstrip(), font) > canvas.width - 5:
            lines.append("")
        lines[-1] += word
    shown = "\n".join(lines)
    draw.text((3, 2), shown, fill="white", font=font, stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def with_legend(sheet: RGB, names: Sequence[str], colors: npt.NDArray[np.uint8]) -> RGB:
    """A picture above the names of classes, each behind a square of its colour.

    Args:
        sheet: Shape (H, W, 3), uint8.
        names: The classes.
        colors: Their colours, shape (C, 3), uint8.

    Returns:
        A higher picture, wider where a name is wider than `sheet`, uint8.
    """
    font = ImageFont.load_default(size=_LEGEND)
    widths = [2 * _LEGEND + round(font.getlength(name)) + _LEGEND // 2 for name in names]
    width = max(sheet.shape[1], *widths)
    places, left, row = [], 0, 0
    for wide in widths:
        if left + wide > width:
            left, row = 0, row + 1
        places.append((left, sheet.shape[0] + _LEGEND // 2 + 3 * row * _LEGEND // 2))
        left += wide
    canvas = Image.new("RGB", (width, places[-1][1] + 3 * _LEGEND // 2), "white")
    canvas.paste(Image.fromarray(sheet))
    draw = ImageDraw.Draw(canvas)
    for (x, y), name, color in zip(places, names, colors.tolist(), strict=True):
        square = (x + 2, y, x + 2 + _LEGEND, y + _LEGEND)
        draw.rectangle(square, fill=tuple(color), outline="gray")
        draw.text((x + 3 * _LEGEND // 2, y - 2), name, fill="black", font=font)
    return np.asarray(canvas)


def write_picture(path: Path, picture: RGB) -> None:
    """Writes a picture, whole or not at all, in the format its ending names."""
    with atomic_path(path) as scratch:
        # Pillow takes JPEG's options for every format and leaves them unused elsewhere.
        Image.fromarray(picture).save(scratch, quality=95, subsampling=0)
