"""Burnt layers of GeoPackages and shapefiles against pixels that were worked out by hand."""

import os
import re
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace

import fiona
import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize
from rasterio.warp import transform_geom
from shapes import (
    CODED,
    CODES,
    CRS,
    DATA,
    LEFT,
    SHAPES,
    TOP,
    burnt,
    expected,
    geojson,
    labelme,
    ring,
    write,
)

from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.palette import PaletteClass
from geoseg_gan.utils.errors import UserError, install


def write_layer(path, shapes=SHAPES, crs="EPSG:4326", kind="Polygon", field="str", **options):
    driver = {".gpkg": "GPKG", ".shp": "ESRI Shapefile"}[path.suffix]
    schema = {"geometry": kind, "properties": {"note": "str", "kind": field}}
    features = geojson(shapes, crs, kind=kind)["features"]
    for feature in features:
        feature["properties"]["note"] = "ü"
    with fiona.open(path, "w", driver=driver, crs=crs, schema=schema, **options) as target:
        target.writerecords(features)
    return path


@pytest.mark.parametrize("name", ["labels.gpkg", "labels.shp"])
@pytest.mark.parametrize("crs", ["EPSG:4326", CRS, "EPSG:3857"])
@pytest.mark.parametrize("kind", ["Polygon", "MultiPolygon"])
def test_layers_are_burnt(source, tmp_path, name, crs, kind):
    path = write_layer(tmp_path / name, crs=crs, kind=kind)
    found = burnt(source, path)
    np.testing.assert_array_equal(found, expected(255))
    # Once more, by rasterio alone.
    with fiona.open(path) as layer, rasterio.open(source / "images" / "a.tif") as image:
        geometries = [transform_geom(layer.crs_wkt, image.crs, f.geometry) for f in layer]
        values = [{"road": 1, "wood": 2, "ignore": 255}[f.properties["kind"]] for f in layer]
        shapes = zip(geometries, values, strict=True)
        alone = rasterize(shapes, image.shape, fill=255, transform=image.transform)
    np.testing.assert_array_equal(found, alone)


def test_one_of_several_layers_is_named(source, tmp_path):
    path = write_layer(tmp_path / "l.gpkg", [("wood", [ring(1, 1, 9, 9)])], layer="old")
    write_layer(path, layer="labels")
    with pytest.raises(UserError, match=r"several layers\. Set layer= to one of .* old, labels"):
        burnt(source, path)
    with pytest.raises(UserError, match=r"lacks layer=new\. Set layer= to one of .* old, labels"):
        burnt(source, path, layer="new")
    np.testing.assert_array_equal(burnt(source, path, layer="labels"), expected(255))
    path = write(tmp_path / "a.json", labelme())
    with pytest.raises(UserError, match=r"layer=old: .*a\.json has no layers"):
        burnt(source, path, layer="old")


def test_the_styles_that_qgis_keeps_in_a_geopackage_are_no_layer(source, tmp_path):
    path = write_layer(tmp_path / "l.gpkg")
    styles = {"geometry": "None", "properties": {"styleQML": "str"}}
    with fiona.open(path, "w", driver="GPKG", schema=styles, layer="layer_styles") as target:
        target.write({"type": "Feature", "geometry": None, "properties": {"styleQML": "<qgis/>"}})
    assert len(fiona.listlayers(path)) == 2
    np.testing.assert_array_equal(burnt(source, path), expected(255))


@pytest.mark.parametrize("encoding", ["UTF-8", "ISO-8859-1", "windows-1252"])
def test_names_of_classes_are_read_in_the_encoding_beside_a_shapefile(source, tmp_path, encoding):
    shapes = [("Straße", rings) for _, rings in SHAPES[:1]]
    path = write_layer(tmp_path / "l.shp", shapes, encoding=encoding)
    assert (tmp_path / "l.cpg").read_text().casefold() == encoding.casefold()
    named = replace(
        DATA, palette=[PaletteClass("Gewässer", [0, 0, 1]), PaletteClass("Straße", [0, 0, 2])]
    )
    label = np.where(expected(0) == 2, 1, expected(0) % 255)
    label[2:6, 16:30] = 0
    label[2:6, 16:20] = 1
    np.testing.assert_array_equal(burnt(source, path, "Gewässer", reader=mask_reader(named)), label)


@pytest.mark.parametrize(
    ("name", "field"),
    [("l.geojson", int), ("l.gpkg", "int32"), ("l.gpkg", "float"), ("l.shp", "int:9"),
     ("l.shp", "float:24.15")],
)  # fmt: skip
def test_numbers_of_classes_mean_what_they_mean_in_index_masks(source, tmp_path, name, field):
    kind = float if "float" in str(field) else int
    shapes = [(kind(CODES[label]), rings) for label, rings in SHAPES]
    if name == "l.geojson":
        path = write(tmp_path / name, geojson(shapes))
    else:
        path = write_layer(tmp_path / name, shapes, field=field)
    found = burnt(source, path, "water", reader=mask_reader(CODED))
    np.testing.assert_array_equal(found, expected(0))
    with pytest.raises(UserError, match=r"has the class 20.*data\.mask_format=index"):
        burnt(source, path)
    short = replace(CODED, index_map={10: "water", 20: "road", 0: "ignore", 31: "wood"})
    with pytest.raises(UserError, match=r"class 30(\.0)?, which is not in data\.index_map. Set"):
        burnt(source, path, reader=mask_reader(short))
    ignoring = mask_reader(replace(short, unknown="ignore"))
    with pytest.warns(UserWarning, match="1 polygon of unknown class numbers; burnt as ignore"):
        found = burnt(source, path, "water", reader=ignoring)
    np.testing.assert_array_equal(found, np.where(expected(0) == 2, 255, expected(0)))
    by_id = mask_reader(replace(DATA, mask_format="index"))
    ids = [({"road": 1, "wood": 2, "ignore": 255}[label], rings) for label, rings in SHAPES]
    path = write(tmp_path / "ids.geojson", geojson(ids))
    np.testing.assert_array_equal(burnt(source, path, "water", reader=by_id), expected(0))


def test_what_is_no_layer_is_one_line(source, tmp_path):
    tiff = (source / "images/a.tif").read_bytes()
    for name in ("o.gpkg", "o.shp"):
        (tmp_path / name).write_bytes(tiff)
        with pytest.raises(UserError, match=rf"{name} is no (GPKG|ESRI Shapefile) file"):
            burnt(source, tmp_path / name)
    path = write_layer(tmp_path / "l.gpkg")
    with pytest.raises(UserError, match=r"l\.gpkg has no field 'class'\. Its fields: note, kind"):
        burnt(source, path, field="class")
    (tmp_path / "cut.gpkg").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cut\.gpkg (does not open as GPKG|has no layer)") as error:
        burnt(source, tmp_path / "cut.gpkg")
    assert "\n" not in str(error.value)
    lines = {"geometry": "LineString", "properties": {"kind": "str"}}
    with fiona.open(tmp_path / "r.gpkg", "w", driver="GPKG", crs=CRS, schema=lines) as target:
        shape = {"type": "LineString", "coordinates": [(LEFT, TOP), (LEFT + 9, TOP)]}
        target.write({"type": "Feature", "geometry": shape, "properties": {"kind": "road"}})
    with pytest.raises(UserError, match="feature 1 is a LineString, which covers no pixels"):
        burnt(source, tmp_path / "r.gpkg")


def test_queries_of_a_geopackage_are_not_run(source, tmp_path):
    path = write_layer(tmp_path / "l.gpkg")
    endless = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x FROM r"
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"CREATE VIEW v AS {endless} WHERE x < 0")
        database.commit()
    with pytest.raises(UserError, match=r"l\.gpkg has the view 'v'\. Export its layer"):
        burnt(source, path)


def test_layers_are_bounded_in_size(source, tmp_path, monkeypatch):
    monkeypatch.setattr("geoseg_gan.data.layers._MOST_POSITIONS", 15)
    with pytest.raises(UserError, match=r"has more than 15 points\. Clip it to the pictures"):
        burnt(source, write_layer(tmp_path / "l.gpkg"))


def test_layers_without_fiona_are_one_line(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fiona", None)
    (tmp_path / "l.gpkg").write_bytes(b"")
    with pytest.raises(UserError, match=f"needs Fiona, .*{re.escape(install('vector'))}"):
        burnt(source, tmp_path / "l.gpkg")


def edited(path, *queries):
    """Runs queries on a GeoPackage, whose triggers would need GDAL."""
    with closing(sqlite3.connect(path)) as database:
        triggers = database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in triggers.fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        for query in queries:
            database.execute(query)
        database.commit()
    return path


def test_damaged_layers_are_refused_whole(source, tmp_path):
    path = edited(write_layer(tmp_path / "l.gpkg"), "UPDATE l SET geom = NULL WHERE fid = 3")
    assert not (burnt(source, path, "water") == 255).any()  # no geometry is no damage
    edited(path, "UPDATE l SET geom = substr(geom, 1, 60) WHERE fid = 2")
    with pytest.raises(UserError, match=r"l\.gpkg is damaged \(.*\)\. Export the polygons again"):
        burnt(source, path)
    path = write_layer(tmp_path / "l.shp")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"l\.shp is damaged \(.*\)\. Export the polygons again"):
        burnt(source, path)
    path = write_layer(tmp_path / "big.gpkg", SHAPES * 500)
    content = bytearray(path.read_bytes())
    middle = len(content) // 8192 * 4096
    content[middle : middle + 8192] = bytes(range(256)) * 32
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"big\.gpkg is damaged \(.*\)\. Export the poly") as error:
        burnt(source, path)
    assert "\n" not in str(error.value)


def test_parts_of_layers_are_files(source, tmp_path):
    for name in ("l.gpkg", "l.shp"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} is a pipe or device, not a file"):
            burnt(source, tmp_path / name)
    for suffix in (".shx", ".dbf", ".prj", ".cpg"):
        (tmp_path / suffix).mkdir()
        path = write_layer(tmp_path / suffix / "l.shp")
        part = path.with_suffix(suffix)
        part.unlink()
        if suffix in (".shx", ".dbf"):
            with pytest.raises(UserError, match=rf"l\.shp lacks its part {part.name}"):
                burnt(source, path)
        os.mkfifo(part)
        with pytest.raises(UserError, match=rf"{part.name} is a pipe or device"):
            burnt(source, path)


def test_computed_columns_of_a_geopackage_are_refused(source, tmp_path):
    path = write_layer(tmp_path / "l.gpkg")
    edited(path, "ALTER TABLE l ADD COLUMN more TEXT AS (hex(zeroblob(300000000)))")
    with pytest.raises(UserError, match=r"l\.gpkg has the computed column 'more' in 'l'"):
        burnt(source, path)


@pytest.mark.parametrize("code", [0, -1])
def test_a_geopackage_may_name_no_reference_system(source, tmp_path, code):
    path = write_layer(tmp_path / "l.gpkg", crs=CRS)
    tables = ("gpkg_contents", "gpkg_geometry_columns")
    edited(path, *(f"UPDATE {table} SET srs_id = {code}" for table in tables))
    with pytest.raises(UserError, match=r"l\.gpkg names no coordinate reference system"):
        burnt(source, path)
