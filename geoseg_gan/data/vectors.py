"""Polygons that people drew, in coordinates of a map or of pictures, and the masks they make."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import rasterize
from rasterio.warp import transform_bounds, transform_geom

from geoseg_gan.data.georeference import Georeference
from geoseg_gan.data.images import without_place
from geoseg_gan.data.pairs import DataError, Pair, normal
from geoseg_gan.data.palette import IGNORE, Palette, class_ids
from geoseg_gan.utils.reading import Number, check_content, read_json, whole

_POSITION = [Number(-1e9, 1e9)]  # beyond, GDAL's rasterisation overflows
_COORDINATES = {"Polygon": [[_POSITION]], "MultiPolygon": [[[_POSITION]]]}
_SIDES = {"width": whole(1), "height": whole(1)}
_GEOJSON = {
    "type": {"FeatureCollection"},
    "features": [{"properties": (dict, None), "geometry": (dict, None)}],
    "crs?": ({"properties": {"name": str}}, None),
}
_LABELME = {
    "shapes": [{"label": str, "points": [_POSITION], "shape_type?": (str, None)}],
    "imageWidth": whole(1),
    "imageHeight": whole(1),
}
_COCO = {
    "images": [{"id": (whole(), str), "file_name": str, **_SIDES}],
    "categories": [{"id": whole(), "name": str}],
    "annotations": [{"image_id": (whole(), str), "category_id": whole(), "segmentation?": object}],
}
_CRS_NAME = re.compile(
    r"(?:urn:ogc:def:crs:)?(?:EPSG:(?:[\d.]*:)?(\d{1,6})|OGC:(?:[\d.]*:)?CRS84)", re.I
)

Rings = list[list[Sequence[float]]]


@dataclass(frozen=True)
class Polygon:
    """A polygon of one class.

    Attributes:
        rings: The outline, and outlines of holes; each a list of positions (x, y).
        label: The class ID, or 255 for ignore.
    """

    rings: Rings
    label: int

    @property
    def geometry(self) -> dict[str, Any]:
        """The polygon as GeoJSON has it."""
        rings = [[*ring, ring[0]] if ring[0] != ring[-1] else ring for ring in self.rings]
        return {"type": "Polygon", "coordinates": rings}


@dataclass(frozen=True)
class Drawing:
    """The polygons of one picture, in its pixels.

    Attributes:
        polygons: They, the uppermost last.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
    """

    polygons: list[Polygon]
    height: int
    width: int


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
        self, pair: Pair, place: Georeference | None, height: int, width: int
    ) -> npt.NDArray[np.uint8]:
        """The label map (H, W) of a picture; a pixel is of the uppermost polygon at its centre.

        Raises:
            DataError: If the polygons were drawn on a picture of another size.
        """
        transform, polygons = Affine.identity(), self.polygons
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
            transform, polygons = place.transform, [self.polygons[n] for n in self._near(place)]
            geometries = [polygon.geometry for polygon in polygons]
            if geometries and self.crs != place.crs:
                geometries = self._warped(transform_geom, self.crs, place.crs, geometries)
        label = np.full((height, width), self.background, np.uint8)
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


def read_vectors(path: Path, class_field: str | None, background: str, palette: Palette) -> Vectors:
    """Reads polygons and their classes, as the format that the ending names.

    Args:
        path: GeoJSON (.geojson), COCO or LabelMe (.json), or a folder of LabelMe's files.
        class_field: The field that names the class in formats of maps.
        background: The class of ground without a polygon, or "ignore".
        palette: The classes.

    Raises:
        UserError: If the file is none of these, or holds what is no polygon or no class.
    """
    labels = _Labels(palette)
    ground = labels.of(background, "background")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".json")
        if not files:
            raise DataError(f"masks={path} is a folder without LabelMe's .json files.")
        return Vectors(path, ground, drawings={normal(f.stem): _labelme(f, labels) for f in files})
    if not path.is_file():
        raise DataError(f"masks={path} does not exist. Give a file or folder of polygons.")
    suffix = path.suffix.lower()
    if suffix == ".json":
        return Vectors(path, ground, drawings=_pixel_json(path, labels))
    if suffix not in _MAPS:
        raise DataError(
            f"masks={path}: polygons are read from {', '.join((*_MAPS, '.json'))} and folders of "
            "LabelMe's files. Save them as one of these."
        )
    if class_field is None:
        raise DataError(
            f"masks={path} needs class_field, the name of the field that holds the class of a "
            "polygon."
        )
    crs, features = _MAPS[suffix](path)
    polygons = []
    for number, (properties, geometry) in enumerate(features, 1):
        where = f"{path}: feature {number}"
        if class_field not in properties:
            known = ", ".join(list(properties)[:10]) or "none"
            raise DataError(f"{where} has no field '{class_field}'. Its fields: {known}.")
        label = labels.of(properties[class_field], where)
        polygons += [Polygon(rings, label) for rings in _parts(geometry, where)]
    return Vectors(path, ground, crs, polygons)


class _Labels:
    """Labels by the names of classes, each looked up once."""

    def __init__(self, palette: Palette) -> None:
        self._palette = palette
        self._known = {name: label for label, name in enumerate(palette.names)}
        self._known.setdefault("ignore", IGNORE)

    def of(self, name: Any, where: str) -> int:
        """The label of a class; `where` the name stands, for the message."""
        if not isinstance(name, str):  # whether a number counts from 0 or 1, nobody knows
            raise DataError(
                f"{where} has the class {name!r}, which is no name. Give the name of a class or "
                f"ignore: {', '.join(self._palette.names)}."
            )
        if name in self._known:
            return self._known[name]
        return class_ids([name], self._palette, where, " or ignore")[0]


def _parts(geometry: Mapping[str, Any] | None, where: str) -> list[Rings]:
    """The polygons of a geometry; none where there is no geometry."""
    if geometry is None:
        return []
    kind = geometry.get("type")
    coordinates: Any = geometry.get("coordinates")
    if kind not in _COORDINATES:
        raise DataError(
            f"{where} is a {kind}, which covers no pixels. Keep only polygons, or buffer it."
        )
    parts: list[Rings] = coordinates if kind == "MultiPolygon" else [coordinates]
    for part in parts:
        if not part:
            raise DataError(f"{where} is a polygon without an outline. Remove it.")
        for ring in part:
            _check_ring(ring, where)
    return parts


def _check_ring(ring: Sequence[Sequence[float]], where: str) -> None:
    if len(ring) < 3 or any(len(position) < 2 for position in ring):
        raise DataError(f"{where} is a polygon of fewer than three points. Remove it.")


def _geojson(path: Path) -> tuple[Any, list[tuple[dict[str, Any], dict[str, Any] | None]]]:
    advice = "Export the polygons as a GeoJSON FeatureCollection."
    content = read_json(path, _GEOJSON, advice)
    name = "OGC:CRS84"  # longitude and latitude, unless an older file says otherwise
    if content.get("crs"):
        given = content["crs"]["properties"]["name"]
        # Only codes: GDAL would also read a file or an address as a system.
        found = _CRS_NAME.fullmatch(given)
        if found is None:
            raise DataError(f"{path}: the coordinate reference system {given!r} is unknown.")
        name = f"EPSG:{found[1]}" if found[1] else name
    try:
        with rasterio.Env():  # which keeps GDAL from writing to stderr
            crs = CRS.from_user_input(name)
    except CRSError:
        raise DataError(f"{path}: the coordinate reference system {name} is unknown.") from None
    features = []
    for number, feature in enumerate(content["features"], 1):
        geometry = feature["geometry"]
        if geometry is not None and (kind := geometry.get("type")) in _COORDINATES:
            shape = {"coordinates": _COORDINATES[kind], "*": object}
            check_content(f"{path}: feature {number}", geometry, shape, advice)
        features.append((feature["properties"] or {}, geometry))
    return crs, features


def _labelme(path: Path, labels: _Labels) -> Drawing:
    """The polygons and rectangles of one of LabelMe's files."""
    content = read_json(path, _LABELME, "Save it with LabelMe, which gives each picture a file.")
    polygons = []
    for number, shape in enumerate(content["shapes"], 1):
        where, points = f"{path}: shape {number}", shape["points"]
        kind = shape.get("shape_type") or "polygon"
        if kind == "rectangle" and len(points) == 2 and min(map(len, points)) >= 2:
            ring = _rectangle(*points[0][:2], *points[1][:2])
        elif kind == "polygon":
            ring = points
            _check_ring(ring, where)
        else:
            raise DataError(f"{where} is a {kind}. Only polygons and rectangles are read.")
        polygons.append(Polygon([ring], labels.of(shape["label"], where)))
    return Drawing(polygons, content["imageHeight"], content["imageWidth"])


def _rectangle(left: float, top: float, right: float, bottom: float) -> list[Sequence[float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _pixel_json(path: Path, labels: _Labels) -> dict[str, Drawing]:
    """The polygons of COCO's file of many pictures, or of one of LabelMe's files."""
    content = read_json(path, dict, "Give COCO's or LabelMe's JSON, or GeoJSON as .geojson.")
    if "shapes" in content:
        return {normal(path.stem): _labelme(path, labels)}
    advice = "Give COCO's or LabelMe's JSON, or GeoJSON as .geojson."
    check_content(path, content, _COCO, advice)
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    drawings: dict[str, Drawing] = {}
    of_image: dict[int | str, Drawing] = {}
    for image in content["images"]:
        drawing = Drawing([], image["height"], image["width"])
        of_image[image["id"]] = drawing
        _add(drawings, image["file_name"], drawing, path)
    for number, annotation in enumerate(content["annotations"], 1):
        where = f"{path}: annotation {number}"
        if annotation["image_id"] not in of_image or annotation["category_id"] not in names:
            raise DataError(f"{where} is of an image or a category that the file does not list.")
        outlines = annotation.get("segmentation")
        if not isinstance(outlines, list) or not outlines:
            kind = "a run-length code" if outlines else "no outline"
            raise DataError(f"{where} has {kind} as its segmentation. Export polygons.")
        check_content(where, {"segmentation": outlines}, {"segmentation": [_POSITION]}, advice)
        label = labels.of(names[annotation["category_id"]], where)
        for outline in outlines:
            ring: list[Sequence[float]] = list(zip(outline[::2], outline[1::2], strict=False))
            _check_ring(ring, where)
            of_image[annotation["image_id"]].polygons.append(Polygon([ring], label))
    return drawings


def _add(drawings: dict[str, Drawing], name: str, drawing: Drawing, path: Path) -> None:
    """Notes a picture's polygons by the stem of its name, which may stand after folders."""
    stem = normal(PureWindowsPath(name).stem)  # which knows both kinds of slashes
    if stem in drawings:
        raise DataError(f"{path} has two pictures '{stem}'. Export the folders one by one.")
    drawings[stem] = drawing


_MAPS: dict[str, Callable[[Path], tuple[Any, list[Any]]]] = {".geojson": _geojson}
