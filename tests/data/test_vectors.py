"""Burnt GeoJSON against rectangles of pixels that were worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio
from defaults import defaults
from rasterio import Affine
from rasterio.warp import transform
from shapes import (
    CODED,
    CRS,
    DATA,
    LEFT,
    READER,
    SHAPES,
    TOP,
    burnt,
    expected,
    geojson,
    ring,
    write,
)

from geoseg_gan.data.georeference import Georeference, overlapping, read_georeference
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.pairs import Pair
from geoseg_gan.data.settings import TileSettings
from geoseg_gan.data.tile import tile
from geoseg_gan.data.vectors import read_vectors
from geoseg_gan.utils.errors import UserError

MAPS = {
    "longitude and latitude": geojson(),
    "the images' system": geojson(crs=CRS, name="urn:ogc:def:crs:EPSG::32640"),
    "another system": geojson(crs="EPSG:3857", name="EPSG:3857"),
    "as QGIS writes": geojson(name="urn:ogc:def:crs:OGC:1.3:CRS84"),
    "of many parts": geojson(kind="MultiPolygon"),
}


@pytest.mark.parametrize("content", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize(("background", "label"), [("ignore", 255), ("water", 0)])
def test_polygons_of_a_map_are_burnt_onto_the_grid_of_the_image(
    source, tmp_path, content, background, label
):
    found = burnt(source, write(tmp_path / "labels.geojson", content), background)
    np.testing.assert_array_equal(found, expected(label))


def test_tile_cuts_images_and_polygons(source, tmp_path):
    path = write(tmp_path / "labels.geojson", geojson())
    settings = defaults(
        TileSettings, source=str(source), data_root=str(tmp_path / "out"), tile_size=16, data=DATA,
        masks=str(path), class_field="kind", background="water", val_groups=["b"],
    )  # fmt: skip
    with pytest.warns(UserWarning, match="val has no pixel of what train has: road, wood"):
        tile(settings)
    whole = expected(0)
    for row in range(2):
        for col in range(3):
            name = f"a_r{row:02d}_c{col:02d}.tif"
            label = READER.read(tmp_path / "out" / "train" / "masks" / name)[0]
            part = whole[16 * row : 16 * row + 16, 16 * col : 16 * col + 16]
            np.testing.assert_array_equal(label, part)
    with rasterio.open(tmp_path / "out" / "train" / "masks" / "a_r01_c02.tif") as mask:
        assert mask.crs == CRS and (mask.transform.c, mask.transform.f) == (LEFT + 16, TOP - 8)


POINT = {"type": "Point", "coordinates": [1, 2]}
FAR = [("road", [[[1e6, 0], [1e6 + 9, 0], [1e6, 9]]])]
WRONG = {
    "unknown class": ("l.geojson", geojson([("raod", [ring(1, 1, 9, 9)])]), "raod.*1 'road'"),
    "number": ("l.geojson", geojson([(3, [ring(1, 1, 9, 9)])]), "feature 1 has the class 3, which"),
    "no class": ("l.geojson", geojson([(None, [ring(1, 1, 9, 9)])]), "has the class None"),
    "no such field": (
        "l.geojson", {"type": "FeatureCollection", "features": [
            {"properties": {"name": "road"}, "geometry": None}]},
        "feature 1 has no field 'kind'. Its fields: name",
    ),
    "point": (
        "l.geojson", {"type": "FeatureCollection", "features": [
            {"properties": {"kind": "road"}, "geometry": POINT}]},
        "feature 1 is a Point, which covers no pixels",
    ),
    "numbers without end": (
        "l.geojson", geojson([("road", [[[0, 0], [1e300, 0], [1, 1]]])], crs=CRS), "l.geojson",
    ),
    "elsewhere": ("l.geojson", geojson(FAR, crs=CRS, name="EPSG:32640"), "none of the polygons"),
    "a file as system": ("l.geojson", geojson(name="/etc/passwd"), "'/etc/passwd' is unknown"),
    "no such system": ("l.geojson", geojson(name="EPSG:999999"), "EPSG:999999 is unknown"),
    "no JSON": ("l.geojson", None, "l.geojson"),
    "another format": ("l.kml", {}, r"l\.kml: polygons are read from .*\.geojson"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_burnt_is_one_line(source, tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as error:
        burnt(source, path)
    assert str(error.value).count("\n") == 0


def test_what_is_missing_is_one_line(source, tmp_path):
    path = write(tmp_path / "labels.geojson", geojson())
    with pytest.raises(UserError, match="needs class_field"):
        burnt(source, path, field=None)
    with pytest.raises(UserError, match="background: 'grass' is not a class"):
        burnt(source, path, "grass")
    with pytest.raises(UserError, match=r"nowhere\.geojson does not exist"):
        burnt(source, tmp_path / "nowhere.geojson")
    with pytest.raises(UserError, match="without LabelMe"):
        burnt(source, source)
    image = source / "images" / "a.tif"
    vectors = read_vectors(path, "kind", "ignore", READER, None)
    pair, place = Pair("a", image, path, "a"), read_georeference(image)
    with pytest.raises(UserError, match="does not say where it lies"):
        vectors.check([pair], [None])
    with pytest.raises(UserError, match=r"a\.tif names no coordinate reference system"):
        vectors.check([pair], [replace(place, crs=None)])


WORLD = [[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]


def test_a_polygon_of_the_whole_world_is_cut_to_the_pictures(source, tmp_path):
    content = geojson(SHAPES)
    world = {"type": "Polygon", "coordinates": [WORLD]}
    content["features"].insert(0, {"properties": {"kind": "water"}, "geometry": world})
    path = write(tmp_path / "l.geojson", content)
    np.testing.assert_array_equal(burnt(source, path), np.where(SHOWN, expected(255), 0))


# Where the shapes are; elsewhere, the world is.
SHOWN = expected(7) != 7


@pytest.mark.parametrize("system", ["EPSG:32660", "EPSG:32601", "EPSG:4326"])
@pytest.mark.parametrize("longitudes", ["cut", "beyond 180", "below -180"])
@pytest.mark.parametrize("name", [None, "EPSG:4326"])
def test_polygons_are_burnt_across_the_antimeridian(tmp_path, system, longitudes, name):
    """0.4 degrees about the line, on pictures that reach farther."""
    left, step = {
        "EPSG:32660": (800_000, 1000), "EPSG:32601": (133_000, 1000), "EPSG:4326": (179.7, 0.009)
    }[system]  # fmt: skip
    place = Georeference(
        rasterio.CRS.from_string(system), Affine(step, 0, left, 0, -step, step * 32), 32, 64
    )

    def box(west, east):
        ring = [[west, 0.0], [east, 0.0], [east, 0.2], [west, 0.2], [west, 0.0]]
        return {"type": "Polygon", "coordinates": [ring]}

    boxes = {
        "cut": [box(179.8, 180), box(-180, -179.8)],
        "beyond 180": [box(179.8, 180.2)],
        "below -180": [box(-180.2, -179.8)],
    }[longitudes]
    features = [{"properties": {"kind": "road"}, "geometry": one} for one in boxes]
    content = {"type": "FeatureCollection", "features": features}
    if name:
        content["crs"] = {"type": "name", "properties": {"name": name}}
    path = write(tmp_path / "l.geojson", content)
    vectors = read_vectors(path, "kind", "water", READER, None)
    pair = Pair("a", path, path, "a")
    vectors.check([pair], [place])
    columns, rows = np.meshgrid(np.arange(64) + 0.5, np.arange(32) + 0.5)
    x, y = place.point(columns, rows)
    lon, lat = transform(place.crs, "EPSG:4326", x.ravel(), y.ravel())
    lon, lat = np.array(lon).reshape(32, 64) % 360, np.array(lat).reshape(32, 64)
    wanted = (abs(lon - 180) < 0.2) & (lat > 0) & (lat < 0.2)
    assert wanted[:, :1].sum() == 0 < wanted.sum()
    np.testing.assert_array_equal(vectors.burn(pair, place, (32, 64), 0, 32), wanted)


def test_pictures_overlap_across_the_antimeridian():
    """Both are 20 km wide about 180 degrees; the third is of another place."""
    places = [
        Georeference(rasterio.CRS.from_epsg(code), Affine(1000, 0, x, 0, -1000, 20_000), 20, 20)
        for code, x in ((32660, 824_000), (32601, 156_000), (32660, 700_000))
    ]
    assert overlapping(places) == [0, 0, 2]
    places = [
        Georeference(rasterio.CRS.from_epsg(4326), Affine(0.1, 0, x, 0, -0.1, 1), 9, 9)
        for x in (179.5, -180.5, 0)
    ]
    assert overlapping(places) == [0, 0, 2]


def test_numbers_beyond_all_floats_are_one_line(source, tmp_path):
    vast = int("9" * 400)
    path = write(tmp_path / "l.geojson", geojson([(vast, SHAPES[0][1])]))
    with pytest.raises(UserError, match=r"feature 1 has the class 9+\.\.\.9+, which is not in"):
        burnt(source, path, reader=mask_reader(CODED))
