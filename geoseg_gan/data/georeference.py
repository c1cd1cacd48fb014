"""Where rasters lie on the ground: whether pairs agree, which pictures overlap, tiles' places."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.warp import reproject, transform, transform_bounds

from geoseg_gan.data.image_files import TIFF_SUFFIXES, open_tiff, opened, without_place
from geoseg_gan.data.palette import IGNORE

STRIP = 512
"""Rows of a label map that are warped at once."""

_MARGIN = 2  # rows by which warped positions may be off
_NEAR = 0.5  # pixels by which the corners of an image and its mask may differ

Box = tuple[float, float, float, float]
"""Left, bottom, right and top."""


@dataclass(frozen=True)
class Georeference:
    """Where a raster lies.

    Attributes:
        crs: Its coordinate reference system, of rasterio; None if it names none.
        transform: From columns and rows to coordinates (affine).
        height: In pixels.
        width: In pixels.
    """

    crs: Any
    transform: Any
    height: int
    width: int

    @property
    def name(self) -> str:
        """The coordinate reference system in a few words."""
        if self.crs is None:
            return "no coordinate reference system"
        code = self.crs.to_epsg()
        return f"EPSG:{code}" if code else str(self.crs.to_wkt())[:60]

    @property
    def pixel_size(self) -> float:
        """The width of a pixel in units of the reference system."""
        return float(np.hypot(self.transform.a, self.transform.d))

    @property
    def meters(self) -> float | None:
        """The width of a pixel in metres; None where the system measures degrees, or is unknown."""
        if self.crs is None or not self.crs.is_projected:
            return None
        return round(self.pixel_size * float(self.crs.linear_units_factor[1]), 6)

    @property
    def resolution(self) -> str:
        """The size of a pixel in words."""
        if self.meters is not None:
            return f"{self.meters:.4g} m"
        return f"{self.pixel_size:.4g} {'units' if self.crs is None else 'degrees'}"

    def point(self, column: float, row: float) -> tuple[float, float]:
        """The coordinates of a place in pixels, counted from the upper left corner."""
        t = self.transform
        return t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f

    def pixel(self, x: float, y: float) -> tuple[float, float]:
        """Column and row of coordinates, the reverse of `point`."""
        return replace(self, transform=~self.transform).point(x, y)

    @property
    def box(self) -> Box:
        """Left, bottom, right and top."""
        corners = [self.point(x, y) for x in (0, self.width) for y in (0, self.height)]
        return (*np.min(corners, 0).tolist(), *np.max(corners, 0).tolist())

    def part(self, top: int, left: int, height: int, width: int) -> "Georeference":
        """The place of a part of it, in pixels."""
        t, (x, y) = self.transform, self.point(left, top)
        transform = Affine(t.a, t.b, x, t.d, t.e, y)
        return replace(self, transform=transform, height=height, width=width)


def read_georeference(path: Path) -> Georeference | None:
    """Where a GeoTIFF lies; None for what is none, or does not say.

    Raises:
        UnreadableError: If it does not decode.
    """
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return None
    with opened(path, None, as_bands=True, by_rows=True) as source:
        if source.transform.is_identity:
            return None
        return Georeference(source.crs, source.transform, source.height, source.width)


def write_georeference(path: Path, place: Georeference) -> None:
    """Gives a GeoTIFF its place."""
    with open_tiff(path) as source:
        profile, bands = source.profile, source.read()
        has_table = source.colorinterp[0] == ColorInterp.palette
        colors = source.colormap(1) if has_table else None
    profile |= {"crs": place.crs, "transform": place.transform, "compress": "deflate"}
    with path.open("wb") as file, open_tiff(file, "w", **profile) as target:
        target.write(bands)
        if colors:
            target.write_colormap(1, colors)


def georeference_problem(image: Path, mask: Path) -> str | None:
    """What is wrong with an image and a mask that lie elsewhere; None where they do not say.

    Raises:
        UnreadableError: If one of them does not decode.
    """
    theirs = read_georeference(mask)
    ours = None if theirs is None else read_georeference(image)
    if ours is None or theirs is None:
        return None
    if ours.crs and theirs.crs and ours.crs != theirs.crs:
        wrong = f"{image} is in {ours.name}, but {mask} in {theirs.name}"
    elif (apart := _pixels_apart(ours, theirs)) > _NEAR:
        wrong = f"{image} and {mask} show other ground: their corners are {apart:,.1f} pixels apart"
    else:
        return None
    return (
        f"{wrong}. Export both from the same window, or cut them with scripts/tile.py align=true."
    )


def _pixels_apart(ours: Georeference, theirs: Georeference) -> float:
    """The greatest distance between corners of the same name, in pixels of the first raster."""
    distances = []
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = ours.pixel(*theirs.point(x * theirs.width, y * theirs.height))
        distances.append(np.hypot(column - x * ours.width, row - y * ours.height))
    return float(max(distances))


def aligned(
    rows: Callable[[int, int], npt.NDArray[np.uint8]], source: Georeference, target: Georeference
) -> npt.NDArray[np.uint8]:
    """A label map on the grid of another raster, (H, W) of that; 255 where it does not reach.

    Args:
        rows: Reads rows of the label map, from a first one to before a last one. Its strips always
            begin at the same rows, so that they can be kept.
        source: Where the label map lies.
        target: The other raster, or a part of it.
    """
    warped = np.full((target.height, target.width), IGNORE, np.uint8)
    systems = (target.crs or source.crs, source.crs or target.crs)
    first, last = _rows_below(target, source, systems)
    for top in range(first - first % STRIP, last, STRIP):
        strip = rows(top, min(top + STRIP, source.height))
        with without_place():
            reproject(
                strip,
                warped,
                src_transform=source.part(top, 0, *strip.shape).transform,
                src_crs=systems[1],
                dst_transform=target.transform,
                dst_crs=systems[0],
                src_nodata=IGNORE,
                dst_nodata=IGNORE,
                init_dest_nodata=False,  # keeps what other strips have put there
                resampling=Resampling.nearest,
            )
    return warped


def _rows_below(target: Georeference, source: Georeference, systems: Any) -> tuple[int, int]:
    """The rows of a raster that lie where another one does, from the first to before the last."""
    steps = np.linspace(0, 1, 33)
    outline = [(x, y) for side in (0, 1) for s in steps for x, y in ((s, side), (side, s))]
    points = [target.point(x * target.width, y * target.height) for x, y in outline]
    if systems[0] != systems[1]:
        points = list(zip(*transform(*systems, *zip(*points, strict=True)), strict=True))
    rows = np.array([source.pixel(*point)[1] for point in points])
    if not np.isfinite(rows).all():
        return 0, source.height
    return max(0, int(rows.min()) - _MARGIN), min(source.height, int(rows.max()) + 1 + _MARGIN)


def overlapping(places: Sequence[Georeference | None]) -> list[int]:
    """Numbers rasters so that those which show the same ground, also through others, share one.

    Rasters that touch, or overlap by a pixel at most, do not. Those without a place are alone.
    """
    crossing = any(place is not None and place.crs and place.crs.is_geographic for place in places)
    known = [row for row, place in enumerate(places) if place is not None]
    systems = {place.name for place in places if place is not None and place.crs}
    boxes = np.array([_box(place, len(systems) > 1) for place in places if place is not None])
    # The same longitude may be given as another one, a whole turn away.
    turns = (-360, 0, 360) if crossing or len(systems) > 1 else (0,)
    number = list(range(len(places)))

    def root(row: int) -> int:
        while number[row] != row:
            row = number[row]
        return row

    for position, row in enumerate(known):
        left, bottom, right, top = boxes[position]
        others = boxes[position + 1 :]
        meets = np.zeros(len(others), bool)
        for turn in turns:
            meets |= (others[:, 0] + turn < right) & (others[:, 2] + turn > left)
        meets &= (others[:, 1] < top) & (others[:, 3] > bottom)
        for other in np.flatnonzero(meets).tolist():
            first, second = sorted((root(row), root(known[position + 1 + other])))
            number[second] = first
    return [root(row) for row in range(len(places))]


def _box(place: Georeference, to_degrees: bool) -> Box:
    """Left, bottom, right and top, half a pixel inside; several systems meet in degrees."""
    left, bottom, right, top = place.box
    x, y = (right - left) / place.width / 2, (top - bottom) / place.height / 2
    box = (left + x, bottom + y, right - x, top - y)
    if to_degrees and place.crs:
        box = bounds_in(place.crs, "EPSG:4326", box)
    return box


def bounds_in(crs: Any, other: Any, box: Box) -> Box:
    """Left, bottom, right and top in another coordinate reference system.

    In degrees, the right of what crosses the antimeridian is greater than 180.
    """
    left, bottom, right, top = transform_bounds(crs, other, *box)
    return left, bottom, right + 360 if right < left else right, top
