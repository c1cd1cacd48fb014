"""Layers of maps: features with a class and a geometry, in a coordinate reference system."""

import logging
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import rasterio
from rasterio.crs import CRS
from rasterio.errors import CRSError

from geoseg_gan.data.pairs import DataError
from geoseg_gan.data.polygons import COORDINATES, POSITION
from geoseg_gan.utils.errors import UserError, install
from geoseg_gan.utils.reading import check_content, read_json

_GEOJSON = {
    "type": {"FeatureCollection"},
    "features": [{"properties": (dict, None), "geometry": (dict, None)}],
    "crs?": ({"properties": {"name": str}}, None),
}
_CRS_NAME = re.compile(
    r"(?:urn:ogc:def:crs:)?(?:EPSG:(?:[\d.]*:)?(\d{1,6})|OGC:(?:[\d.]*:)?CRS84)", re.I
)
_UNDEFINED = re.compile(r'\w+\["Undefined ')  # what GeoPackage calls no reference system
_DRIVERS = {".gpkg": ("GPKG", b"SQLite format 3\0"), ".shp": ("ESRI Shapefile", b"\0\0\x27\x0a")}
LAYER_SUFFIXES = (".geojson", *_DRIVERS)
_MOST_POSITIONS = 2**25  # of all polygons: they take about 4 GiB

Features = list[tuple[Any, Mapping[str, Any] | None]]
"""The class of each feature, as its field has it, and its geometry as GeoJSON has it."""


def read_layer(path: Path, class_field: str, layer: str | None) -> tuple[Any, Features]:
    """Reads a layer of a GeoJSON file, GeoPackage or Shapefile.

    Args:
        path: The file; its ending names the format, the only one that it is opened as.
        class_field: The field of the class.
        layer: The layer of a GeoPackage of several.

    Returns:
        The coordinate reference system, of rasterio, None if the file names none; and the features.

    Raises:
        UserError: If the file is not as it must be.
    """
    if path.suffix.lower() in _DRIVERS:
        return _read_by_gdal(path, class_field, layer)
    if layer is not None:
        raise DataError(f"layer={layer}: {path} has one layer, without a name. Leave it out.")
    return _read_geojson(path, class_field)


def _read_geojson(path: Path, class_field: str) -> tuple[Any, Features]:
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
    features: Features = []
    for number, feature in enumerate(content["features"], 1):
        where, geometry = f"{path}: feature {number}", feature["geometry"]
        if geometry is not None and (kind := geometry.get("type")) in COORDINATES:
            shape = {"coordinates": COORDINATES[kind], "*": object}
            check_content(where, geometry, shape, advice)
        properties = feature["properties"] or {}
        _check_field(class_field, properties, where)
        features.append((properties[class_field], geometry))
    return crs, features


def _check_field(class_field: str, known: Mapping[str, Any], where: Path | str) -> None:
    if class_field not in known:
        names = ", ".join(list(known)[:10]) or "none"
        raise DataError(f"{where} has no field '{class_field}'. Its fields: {names}.")


def _read_by_gdal(path: Path, class_field: str, layer: str | None) -> tuple[Any, Features]:
    """The layer of that name, or the only one that has geometries."""
    try:
        import fiona
    except ImportError:
        raise DataError(
            f"masks={path} needs Fiona, which is not installed: {install('vector')}."
        ) from None
    driver, start = _DRIVERS[path.suffix.lower()]
    parts = _files_of(path)
    with path.open("rb") as file:
        if file.read(len(start)) != start:
            raise DataError(f"{path} is no {driver} file. Rename or convert it.")
    if driver != "GPKG":
        for suffix in (".shx", ".dbf"):
            if path.stem.casefold() + suffix not in parts:
                missing = path.with_suffix(suffix).name
                raise DataError(f"{path} lacks its part {missing}. Copy that beside it.")
    # Absolute, and of one driver: GDAL would take other paths for addresses or archives.
    options = {"fp": path.absolute(), "enabled_drivers": [driver]}
    try:
        if driver == "GPKG":
            _check_database(path)
        # Layers without geometries are notes of other programs, such as QGIS' layer_styles.
        found = []
        for name in fiona.listlayers(options["fp"]):
            with fiona.open(**options, layer=name) as source:
                if source.schema["geometry"] != "None":
                    found.append(name)
        if layer is None and len(found) == 1:
            layer = found[0]
        if layer not in found:
            if not found:
                raise DataError(f"{path} has no layer of polygons. Export them again.")
            wrong = f"{path} has several layers" if layer is None else f"{path} lacks layer={layer}"
            raise DataError(f"{wrong}. Set layer= to one of these: {', '.join(found)}.")
        with fiona.open(**options, layer=layer) as source:
            _check_field(class_field, source.schema["properties"], path)
        with (
            fiona.open(**options, layer=layer, include_fields=[class_field]) as source,
            _gdal_errors() as errors,
        ):
            wkt = "" if _UNDEFINED.match(source.crs_wkt) else source.crs_wkt
            features: Features = list(_features(path, class_field, source))
        if errors:
            raise _damaged(path, errors[0])
        return CRS.from_wkt(wkt) if wkt else None, features
    except UserError:
        raise
    except Exception as error:  # GDAL's errors have no common type
        raise DataError(
            f"{path} does not open as {driver} ({error}). Export the polygons again."
        ) from None


def _files_of(path: Path) -> set[str]:
    """The names, in lower case, of the files beside it that GDAL may open with it.

    Raises:
        DataError: If one is a pipe or device, which GDAL would wait for.
    """
    stem, known = path.stem.casefold(), set[str]()
    for file in path.parent.iterdir():
        name = file.name.casefold()
        if not name.startswith((f"{stem}.", f"{path.name.casefold()}-")):
            continue
        known.add(name)
        if file.exists() and not file.is_file() and not file.is_dir():
            raise DataError(f"{file} is a pipe or device, not a file. Remove it.")
    return known


def _check_database(path: Path) -> None:
    """Refuses a damaged GeoPackage, and one that computes what it gives, perhaps for ever."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        view = database.execute("SELECT name FROM sqlite_master WHERE type = 'view'").fetchone()
        if view:
            raise DataError(f"{path} has the view '{view[0]}'. Export its layer of polygons alone.")
        computed = database.execute(
            "SELECT t.name, c.name FROM sqlite_master t, pragma_table_xinfo(t.name) c "
            "WHERE t.type = 'table' AND t.sql NOT LIKE 'CREATE VIRTUAL%' AND c.hidden IN (2, 3)"
        ).fetchone()
        if computed:
            raise DataError(
                f"{path} has the computed column '{computed[1]}' in '{computed[0]}'. Export its "
                "layer of polygons, which stores the values."
            )
        database.execute("PRAGMA ignore_check_constraints = ON")  # they are expressions, too
        (state,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if state != "ok":
        raise _damaged(path, state)


def _damaged(path: Path, problem: str) -> DataError:
    words = " ".join(problem.split())
    return DataError(f"{path} is damaged ({words}). Export the polygons again.")


@contextmanager
def _gdal_errors() -> Iterator[list[str]]:
    """Notes GDAL's first error, for which Fiona leaves out geometries and features in silence."""
    errors: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR:
            return True
        if not errors:
            errors.append(record.getMessage())
        return False  # it is not shown by itself

    log = logging.getLogger("fiona._env")
    log.addFilter(note)
    try:
        yield errors
    finally:
        log.removeFilter(note)


def _features(
    path: Path, class_field: str, source: Any
) -> Iterator[tuple[Any, dict[str, Any] | None]]:
    positions = 0
    for number, feature in enumerate(source, 1):
        geometry = feature.geometry and feature.geometry.__geo_interface__
        if geometry is not None and geometry["type"] in COORDINATES:
            flat = list(_flat(geometry["coordinates"]))
            if not all(POSITION[0].holds(value) for position in flat for value in position[:2]):
                raise DataError(f"{path}: feature {number} has coordinates beyond 1e9. Remove it.")
            positions += len(flat)
            if positions > _MOST_POSITIONS:
                raise DataError(
                    f"{path} has more than {_MOST_POSITIONS:,} points. Clip it to the pictures, "
                    "as ogr2ogr -clipsrc does."
                )
        yield feature.properties[class_field], geometry


def _flat(coordinates: Any) -> Iterator[Any]:
    """All positions of nested coordinates."""
    for part in coordinates:
        if part and isinstance(part[0], int | float):
            yield part
        else:
            yield from _flat(part)
