"""Masks that are burnt from polygons, on a map or in pixels of pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio import Affine
from rasterio.features import rasterize
from rasterio.warp import transform_geom

from geoseg_gan.data.drawings import DRAWING_SUFFIXES, read_drawings
from geoseg_gan.data.georeference import Box, Georeference, bounds_in
from geoseg_gan.data.image_files import without_place
from geoseg_gan.data.layers import LAYER_SUFFIXES, read_layer
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import DataError, Pair
from geoseg_gan.data.polygons import ClassLabels, Drawing, Polygon, Rings, parts_of


@dataclass(frozen=True)
class Vectors:
    """All polygons of a file or folder.

    Attributes:
        path: The file or folder.
        background: The label of ground without a polygon.
        crs: The coordinate reference system of `polygons`; None if the file names none.
        polygons: Those in coordinates of a map, the uppermost last.
        drawings: Those in pixels, by the stem of the picture; None where they are on a map.
    """

    path: Path
    background: int
    crs: Any = None
    polygons: list[Polygon] = field(default_factory=list)
    drawings: Mapping[str, Drawing] | None = None

    def check(self, pairs: Sequence[Pair], places: Sequence[Georeference | None]) -> None:
        """Refuses, with a DataError, pictures without polygons, and polygons on no picture."""
        if self.drawings is not None:
            for pair in pairs:
                if pair.stem not in self.drawings:
                    raise DataError(
                        f"{pair.image} is not in {self.path}, which has "
                        f"{len(self.drawings):,} pictures. Export it too, or remove the picture."
                    )
            return
        found = 0
        for pair, place in zip(pairs, places, strict=True):
            if place is None:
                raise DataError(
                    f"{pair.image} does not say where it lies, so that polygons of {self.path} "
                    "cannot be burnt onto it. Give GeoTIFFs."
                )
            if bool(place.crs) != bool(self.crs):
                lacking = pair.image if self.crs else self.path
                raise DataError(
                    f"{lacking} names no coordinate reference system, which the other of image "
                    "and polygons does. Set it, as gdal_edit.py -a_srs and ogr2ogr -a_srs do."
                )
            found += len(self._near(place))
        if not found:
            raise DataError(
                f"none of the polygons of {self.path} lies on one of the {len(pairs):,} pictures, "
                f"such as {pairs[0].image}. Check the coordinate reference system of both."
            )

    def burn(
        self, pair: Pair, place: Georeference | None, size: tuple[int, int], first: int, last: int
    ) -> npt.NDArray[np.uint8]:
        """Rows of a picture's label map; a pixel is of the uppermost polygon at its centre.

        Args:
            pair: The picture.
            place: Where it lies.
            size: Its height and width.
            first: The first row.
            last: The one behind the last one.

        Returns:
            Labels of shape (last - first, W).

        Raises:
            DataError: If the polygons were drawn on a picture of another size.
        """
        height, width = size
        transform, polygons = Affine.translation(0, first), self.polygons
        if self.drawings is not None:
            drawing = self.drawings[pair.stem]
            polygons = drawing.polygons
            if (drawing.height, drawing.width) != (height, width):
                raise DataError(
                    f"{pair.image} is {width}x{height}, but {self.path} has polygons of it at "
                    f"{drawing.width}x{drawing.height} (width x height). Give the picture that "
                    "was drawn on."
                )
            geometries = [polygon.geometry for polygon in polygons]
        elif place is not None:
            part = place.part(first, 0, last - first, width)
            transform, near = part.transform, self._near(part)
            if self.crs == place.crs and len(_turns_of(self.crs)) == 1:
                polygons = [self.polygons[n] for n in near]
            else:
                polygons = self._warped(near, place)
            geometries = [polygon.geometry for polygon in polygons]
        label = np.full((last - first, width), self.background, np.uint8)
        if polygons:
            labels = [polygon.label for polygon in polygons]
            with without_place():
                rasterize(zip(geometries, labels, strict=True), out=label, transform=transform)
        return label

    def _warped(self, numbers: Sequence[int], place: Georeference) -> list[Polygon]:
        """Polygons, by number, in the reference system of a picture, cut to its surroundings.

        Elsewhere on Earth, its system may have no coordinates, or those of another place.
        """
        left, bottom, right, top = self._box_of(place)
        x, y = right - left, top - bottom
        around = (left - x, bottom - y, right + x, top + y)
        cut = []
        for number in numbers:
            polygon, (least, _, most, _) = self.polygons[number], self._boxes[number]
            for turn in _turns_of(self.crs):
                limits = (around[0] + turn, around[1], around[2] + turn, around[3])
                if most < limits[0] or least > limits[2]:
                    continue
                rings = [_cut(ring, limits) for ring in polygon.rings]
                if rings[0]:
                    kept = [ring for ring in rings if ring]
                    cut.append(Polygon(kept, polygon.label))
        if not cut:
            return []
        try:
            found = transform_geom(self.crs, place.crs, [polygon.geometry for polygon in cut])
        except Exception as error:  # GDAL's errors have no common type
            raise self._no_system(str(error)) from None
        warped = []
        for polygon, geometry in zip(cut, found, strict=True):
            for rings in parts_of(geometry, f"a polygon of {self.path}"):
                for turn in _turns_of(place.crs):
                    moved: Rings = [[(p[0] + turn, p[1]) for p in ring] for ring in rings]
                    if not np.isfinite(moved[0]).all():
                        raise self._no_system("a place without coordinates in it")
                    warped.append(Polygon(moved, polygon.label))
        return warped

    def _no_system(self, problem: str) -> DataError:
        return DataError(
            f"polygons of {self.path} cannot be brought into the coordinate reference system "
            f"of the pictures ({problem}). Check those of both."
        )

    def _box_of(self, place: Georeference) -> Box:
        """The box of a raster in the coordinate reference system of the polygons."""
        if self.crs == place.crs:
            return place.box
        try:
            box = bounds_in(place.crs, self.crs, place.box)
        except Exception as error:  # GDAL's errors have no common type
            raise self._no_system(str(error)) from None
        if not np.isfinite(box).all():
            raise self._no_system("a place without coordinates in it")
        return box

    @cached_property
    def _boxes(self) -> npt.NDArray[np.float64]:
        """Left, bottom, right and top of each polygon, shape (N, 4)."""
        boxes = np.zeros((len(self.polygons), 4))
        for row, polygon in enumerate(self.polygons):
            outline = np.array([position[:2] for position in polygon.rings[0]])
            boxes[row] = *outline.min(0), *outline.max(0)
        return boxes

    def _near(self, place: Georeference) -> list[int]:
        """The polygons whose boxes meet a raster, in order."""
        left, bottom, right, top = self._box_of(place)
        meets = np.zeros(len(self._boxes), bool)
        for turn in _turns_of(self.crs):
            meets |= (self._boxes[:, 0] <= right + turn) & (self._boxes[:, 2] >= left + turn)
        meets &= (self._boxes[:, 1] <= top) & (self._boxes[:, 3] >= bottom)
        near: list[int] = np.flatnonzero(meets).tolist()
        return near


def _turns_of(crs: Any) -> tuple[int, ...]:
    """What longitudes of the same place may differ by; 0 where there are none."""
    return (-360, 0, 360) if crs and crs.is_geographic else (0,)


def _cut(ring: list[Sequence[float]], limits: Box) -> list[Sequence[float]]:
    """The part of an outline within limits, along these where it leaves them (Sutherland-Hodgman).

    Returns:
        Its positions (x, y), none if it lies outside; the outline as it is if it lies inside.
    """
    points = np.array([position[:2] for position in ring])
    low, high = np.array(limits[:2]), np.array(limits[2:])
    if (points >= low).all() and (points <= high).all():
        return ring
    for axis, sign, limit in ((0, 1, low[0]), (0, -1, high[0]), (1, 1, low[1]), (1, -1, high[1])):
        inside = sign * (points[:, axis] - limit)  # how far
        following, then = np.roll(points, -1, 0), np.roll(inside, -1)
        crosses = (inside < 0) != (then < 0)
        share = np.divide(inside, inside - then, out=np.zeros_like(inside), where=crosses)
        crossings = points + share[:, None] * (following - points)
        kept = np.stack([inside >= 0, crosses], 1).ravel()
        points = np.stack([points, crossings], 1).reshape(-1, 2)[kept]
    found: list[Sequence[float]] = points.tolist()
    return found if len(found) > 2 else []


def read_vectors(
    path: Path, class_field: str | None, background: str, reader: MaskReader, layer: str | None
) -> Vectors:
    """Reads polygons and their classes, as the format that the ending names.

    Args:
        path: A layer (.geojson, .gpkg, .shp), drawings of pictures (.json of COCO or LabelMe, .xml
            of CVAT), or a folder of LabelMe's files.
        class_field: The field that names the class in formats of maps.
        background: The class of ground without a polygon, or "ignore".
        reader: What knows the classes, and what numbers in place of names mean.
        layer: The layer of a file of several.

    Raises:
        UserError: If the file is none of these, or holds what is no polygon or no class.
    """
    labels = ClassLabels(reader)
    ground = labels.of(background, "background")
    suffix = path.suffix.lower()
    if not path.exists():
        raise DataError(f"masks={path} does not exist. Give a file or folder of polygons.")
    if layer is not None and suffix not in LAYER_SUFFIXES:
        raise DataError(f"layer={layer}: {path} has no layers. Leave it out.")
    if path.is_dir() or suffix in DRAWING_SUFFIXES:
        return Vectors(path, ground, drawings=read_drawings(path, labels))
    if suffix not in LAYER_SUFFIXES:
        known = ", ".join((*LAYER_SUFFIXES, *DRAWING_SUFFIXES))
        raise DataError(
            f"masks={path}: polygons are read from {known} and folders of LabelMe's files. Save "
            "them as one of these."
        )
    if class_field is None:
        raise DataError(
            f"masks={path} needs class_field, the name of the field that holds the class of a "
            "polygon."
        )
    crs, features = read_layer(path, class_field, layer)
    polygons = []
    for number, (name, geometry) in enumerate(features, 1):
        where = f"{path}: feature {number}"
        parts = parts_of(geometry, where)
        label = labels.of(name, where) if parts else ground
        polygons += [Polygon(rings, label) for rings in parts]
    labels.warn(path)
    return Vectors(path, ground, crs, polygons)
