"""Random geometry for masks, and for images together with their masks.

All steps are composed into one map of source coordinates, so that pixels are interpolated once:
nearest neighbour for labels, cubic for images. Borders are reflected. No new class can appear.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from geoseg_gan.data.settings import JitterSettings

FloatArray = npt.NDArray[np.float32]
Window = tuple[int, int, int]
"""Top, left and side length of a square, in pixels."""

_ROUNDS = 8  # fixed-point iterations that invert the elastic step; each shrinks the error


@dataclass(frozen=True)
class Warp:
    """One random geometry: plain numbers that always give the same source map.

    Attributes:
        flip: Whether left and right are mirrored, after the turn.
        quarter_turns: Quarter turns counter-clockwise, 0 to 3.
        affine: Row-major 2x2 matrix and shift (dx, dy as shares of the width and height) from the
            centred output to the centred source; None where off.
        elastic: Seed, amplitude and wavelength in pixels; None where off.
    """

    flip: bool = False
    quarter_turns: int = 0
    affine: tuple[float, ...] | None = None
    elastic: tuple[int, float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The steps that act, as manifests keep them."""
        steps: dict[str, Any] = {}
        if self.elastic is not None:
            seed, amplitude, wavelength = self.elastic
            steps["elastic"] = {"seed": seed, "amplitude": amplitude, "wavelength": wavelength}
        if self.affine is not None:
            steps["affine"] = list(self.affine)
        if self.quarter_turns:
            steps["quarter_turn"] = self.quarter_turns
        if self.flip:
            steps["flip"] = True
        return steps

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the warped frame."""
        return (width, height) if self.quarter_turns % 2 else (height, width)

    def source_map(self, height: int, width: int, window: Window) -> tuple[FloatArray, FloatArray]:
        """Where the pixels of a window of the warped frame come from in a source of this size.

        Returns:
            Source columns and rows, each of shape (side, side), float32, in pixels.
        """
        top, left, side = window
        rows, columns = np.mgrid[top : top + side, left : left + side].astype(np.float32)
        if self.flip:
            columns = self.shape(height, width)[1] - 1 - columns
        x, y = columns, rows
        match self.quarter_turns:
            case 1:
                x, y = width - 1 - rows, columns
            case 2:
                x, y = width - 1 - columns, height - 1 - rows
            case 3:
                x, y = rows, height - 1 - columns
        if self.affine is not None:
            a, b, c, d, dx, dy = self.affine
            centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
            from_centre_x, from_centre_y = x - centre_x, y - centre_y
            x = a * from_centre_x + b * from_centre_y + centre_x + dx * width
            y = c * from_centre_x + d * from_centre_y + centre_y + dy * height
        if self.elastic is not None:
            shift_x, shift_y = _displacement(height, width, self.elastic, x, y)
            x, y = x + shift_x, y + shift_y
        return np.ascontiguousarray(x, np.float32), np.ascontiguousarray(y, np.float32)

    def frame_points(
        self, height: int, width: int, x: npt.NDArray[Any], y: npt.NDArray[Any]
    ) -> tuple[FloatArray, FloatArray]:
        """Where points of the source lie in the warped frame, the inverse of `source_map`.

        Args:
            height: The source's height.
            width: The source's width.
            x: Source columns of the points, shape (N,), in pixels.
            y: Their source rows.

        Returns:
            Columns and rows of the warped frame, each of shape (N,), float32, in pixels; outside of
            the frame where the warp moves a point out of it.
        """
        x, y = x.astype(np.float32), y.astype(np.float32)
        if self.elastic is not None:
            bent_x, bent_y = x, y
            for _ in range(_ROUNDS):
                shift_x, shift_y = _displacement(height, width, self.elastic, x[None], y[None])
                x, y = bent_x - shift_x[0], bent_y - shift_y[0]
        if self.affine is not None:
            a, b, c, d, dx, dy = self.affine
            centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
            from_centre_x, from_centre_y = x - centre_x - dx * width, y - centre_y - dy * height
            area = a * d - b * c
            x = (d * from_centre_x - b * from_centre_y) / area + centre_x
            y = (a * from_centre_y - c * from_centre_x) / area + centre_y
        columns, rows = x, y
        match self.quarter_turns:
            case 1:
                columns, rows = y, width - 1 - x
            case 2:
                columns, rows = width - 1 - x, height - 1 - y
            case 3:
                columns, rows = height - 1 - y, x
        if self.flip:
            columns = self.shape(height, width)[1] - 1 - columns
        return np.asarray(columns, np.float32), np.asarray(rows, np.float32)


def draw_warp(settings: JitterSettings, rng: np.random.Generator) -> Warp:
    """Draws one warp; the same state of `rng` gives the same warp."""
    # Every number is drawn whether it is used or not, so that switching a step on or off does not
    # change the others.
    chance = rng.random(4)
    turns = int(rng.integers(1, 4))
    # Plain floats: NumPy's would turn every map into float64.
    angle, shear, shift_x, shift_y = rng.uniform(-1, 1, 4).tolist()
    zoom = float(rng.random())
    seed = int(rng.integers(2**31))
    affine = settings.affine
    matrix = None
    if chance[1] < affine.p:
        theta = math.radians(angle * affine.degrees)
        slant = math.tan(math.radians(shear * affine.degrees / 3))
        smallest, largest = affine.scale
        shrink = 1 / (smallest * (largest / smallest) ** zoom)
        cos, sin = math.cos(theta) * shrink, math.sin(theta) * shrink
        shift = (shift_x * affine.translate, shift_y * affine.translate)
        matrix = (cos, cos * slant - sin, sin, sin * slant + cos, *shift)
    elastic = settings.elastic
    return Warp(
        flip=bool(chance[3] < settings.flip.p),
        quarter_turns=turns if chance[2] < settings.quarter_turn.p else 0,
        affine=matrix,
        elastic=(seed, elastic.amplitude, elastic.wavelength) if chance[0] < elastic.p else None,
    )


def draw_window(
    height: int,
    width: int,
    side: int,
    rng: np.random.Generator,
    pixel: tuple[int, int] | None = None,
) -> Window:
    """Draws the place of a square crop within a frame, uniformly; all in pixels.

    `pixel` is the row and column in the frame that the crop must contain; None for any crop.
    """
    tops, lefts = (0, height - side + 1), (0, width - side + 1)
    if pixel is not None:
        tops, lefts = (
            (max(first, at - side + 1), min(end, at + 1))
            for (first, end), at in zip((tops, lefts), pixel, strict=True)
        )
    return int(rng.integers(*tops)), int(rng.integers(*lefts)), side


def sample_label(
    label: npt.NDArray[np.uint8], maps: tuple[FloatArray, FloatArray]
) -> npt.NDArray[np.uint8]:
    """Reads a label map (H, W) at source coordinates, nearest neighbour, borders reflected."""
    sampled = cv2.remap(label, *maps, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)
    return sampled.astype(np.uint8, copy=False)


def sample_image(image: npt.NDArray[Any], maps: tuple[FloatArray, FloatArray]) -> npt.NDArray[Any]:
    """Reads an image (H, W, K) at source coordinates, cubic, borders reflected."""
    parts = [
        cv2.remap(part, *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        # OpenCV remaps at most four bands at a time.
        for part in (image[..., k : k + 4] for k in range(0, image.shape[-1], 4))
    ]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1)


def _displacement(
    height: int, width: int, elastic: tuple[int, float, float], x: FloatArray, y: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """A smooth random field read at (x, y): cubic interpolation of coarse Gaussian noise."""
    seed, amplitude, wavelength = elastic
    rng = np.random.default_rng(seed)
    shape = (math.ceil(height / wavelength) + 3, math.ceil(width / wavelength) + 3, 2)
    coarse = (amplitude * rng.standard_normal(shape)).astype(np.float32)
    at = (x / np.float32(wavelength) + 1, y / np.float32(wavelength) + 1)
    shift = cv2.remap(coarse, *at, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    shift_x, shift_y = np.moveaxis(shift.astype(np.float32, copy=False), -1, 0)
    return shift_x, shift_y
