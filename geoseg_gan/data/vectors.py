"""Masks that are burnt from polygons, on a map or in pixels of pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio import Affine
from rasterio.features import rasterize
from rasterio.warp import transform_bounds, transform_geom

from geoseg_gan.data.drawings import DRAWING_SUFFIXES, read_drawings
from geoseg_gan.data.georeference import Georeference
from geoseg_gan.data.images import without_place
from geoseg_gan.data.layers import LAYER_SUFFIXES, read_layer
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import DataError, Pair
from geoseg_gan.data.polygons import ClassLabels, Drawing, Polygon, parts_of


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
        """Refuses pictures that cannot have polygons, and polygons that lie on no picture.

        Raises:
            DataError: Naming the first picture.
        """
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
            place = place.part(first, 0, last - first, width)
            transform, polygons = place.transform, [self.polygons[n] for n in self._near(place)]
            geometries = [polygon.geometry for polygon in polygons]
            if geometries and self.crs != place.crs:
                geometries = self._warped(transform_geom, self.crs, place.crs, geometries)
        label = np.full((last - first, width), self.background, np.uint8)
        if polygons:
            labels = [polygon.label for polygon in polygons]
            with without_place():
                rasterize(zip(geometries, labels, strict=True), out=label, transform=transform)
        return label

    def _warped(self, warp: Callable[..., Any], *values: Any) -> Any:
        try:
            return warp(*values)
        except Exception as error:  # GDAL's errors have no common type
            raise DataError(
                f"polygons of {self.path} cannot be brought into the coordinate reference system "
                f"of the pictures ({error}). Check those of both."
            ) from None

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
        corners = [place.point(x, y) for x in (0, place.width) for y in (0, place.height)]
        box = (*np.min(corners, 0).tolist(), *np.max(corners, 0).tolist())
        if self.crs != place.crs:
            box = self._warped(transform_bounds, place.crs, self.crs, *box)
        left, bottom, right, top = box
        meets = (self._boxes[:, 0] <= right) & (self._boxes[:, 2] >= left)
        meets &= (self._boxes[:, 1] <= top) & (self._boxes[:, 3] >= bottom)
        near: list[int] = np.flatnonzero(meets).tolist()
        return near


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
