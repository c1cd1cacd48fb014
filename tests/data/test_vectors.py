"""Burnt masks against rectangles of pixels that were worked out by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from defaults import defaults
from PIL import Image
from rasterio import Affine
from rasterio.warp import transform

from geoseg_gan.data.georeference import read_georeference
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.pairs import Pair
from geoseg_gan.data.palette import PaletteClass
from geoseg_gan.data.settings import DataSettings, TileSettings
from geoseg_gan.data.tile import tile
from geoseg_gan.data.vectors import read_vectors
from geoseg_gan.utils.errors import UserError

CRS, LEFT, TOP, PIXEL = "EPSG:32640", 500_000, 2_780_000, 0.5
NAMES = ("water", "road", "wood")
DATA = defaults(
    DataSettings,
    palette=[PaletteClass(name, [0, 0, 80 * (n + 1)]) for n, name in enumerate(NAMES)],
    ignore=[[0, 0, 0]],
)
READER = mask_reader(DATA)


def ring(left, top, right, bottom):
    """A closed rectangle in pixels, a quarter of a pixel wider than the pixels it covers."""
    left, top, right, bottom = left - 0.25, top - 0.25, right + 0.25, bottom + 0.25
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def on_map(pixels, crs=CRS):
    xs, ys = [LEFT + PIXEL * x for x, _ in pixels], [TOP - PIXEL * y for _, y in pixels]
    return [list(point) for point in zip(*transform(CRS, crs, xs, ys), strict=True)]


# Of 32 rows and 48 columns: road, with a hole; wood above a part of it; something to ignore.
SHAPES = [
    ("road", [ring(4, 2, 20, 18), ring(8, 6, 12, 10)]),
    ("wood", [ring(16, 2, 30, 6)]),
    ("ignore", [ring(40, 28, 48, 32)]),
]


def expected(background):
    label = np.full((32, 48), background, np.uint8)
    hole = label[6:10, 8:12].copy()
    label[2:18, 4:20] = 1
    label[6:10, 8:12] = hole
    # The hole's outline lies a quarter of a pixel outside, between the centres of pixels.
    label[2:6, 16:30] = 2
    label[28:32, 40:48] = 255
    return label


def geojson(shapes=SHAPES, crs="EPSG:4326", name=None, kind="Polygon"):
    features = []
    for label, rings in shapes:
        coordinates = [on_map(one, crs) for one in rings]
        coordinates = [coordinates] if kind == "MultiPolygon" else coordinates
        geometry = {"type": kind, "coordinates": coordinates}
        features.append({"type": "Feature", "properties": {"kind": label}, "geometry": geometry})
    content = {"type": "FeatureCollection", "features": features}
    return content | ({"crs": {"type": "name", "properties": {"name": name}}} if name else {})


def labelme(shapes=SHAPES):
    drawn = [
        {"label": label, "points": one[:4], "shape_type": "polygon"} for label, [one, *_] in shapes
    ]
    return {"version": "5", "shapes": drawn, "imageHeight": 32, "imageWidth": 48, "imageData": None}


def coco(shapes=SHAPES, name="photos/a.png"):
    known = ["ignore", *NAMES]
    annotations = [
        {"id": n, "image_id": 7, "category_id": known.index(label) + 1, "iscrowd": 0,
            "segmentation": [[value for point in one[:4] for value in point]]}
        for n, (label, [one, *_]) in enumerate(shapes)
    ]  # fmt: skip
    return {
        "images": [{"id": 7, "file_name": name, "height": 32, "width": 48}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(known, 1)],
        "annotations": annotations,
    }


@pytest.fixture
def source(tmp_path):
    """Two pictures side by side on the ground: a (where the shapes are) and b."""
    folder = tmp_path / "source" / "images"
    folder.mkdir(parents=True)
    for n, stem in enumerate("ab"):
        where = {"crs": CRS, "transform": Affine(PIXEL, 0, LEFT + n * 24, 0, -PIXEL, TOP)}
        pixels = np.random.default_rng(n).integers(1, 255, (3, 32, 48), np.uint8)
        shape = {"height": 32, "width": 48, "count": 3, "dtype": "uint8"}
        with rasterio.open(folder / f"{stem}.tif", "w", driver="GTiff", **shape, **where) as target:
            target.write(pixels)
    return folder.parent


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def burnt(source, path, background="ignore", field="kind"):
    image = source / "images" / "a.tif"
    pair, place = Pair("a", image, path, "a"), read_georeference(image)
    vectors = read_vectors(path, field, background, READER.palette)
    vectors.check([pair], [place])
    return vectors.burn(pair, place, 32, 48)


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


def without_hole(background):
    label = expected(background)
    label[6:10, 8:12] = 1
    return label


@pytest.mark.parametrize("content", [labelme(), coco()], ids=["LabelMe", "COCO"])
def test_polygons_in_pixels_are_burnt(source, tmp_path, content):
    found = burnt(source, write(tmp_path / "a.json", content), "water", None)
    np.testing.assert_array_equal(found, without_hole(0))


def test_rectangles_of_a_folder_of_labelme(source, tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    shape = {"label": "wood", "points": [[30.2, 20.1], [10.4, 5.9]], "shape_type": "rectangle"}
    write(folder / "a.json", labelme([]) | {"shapes": [shape]})
    label = np.zeros((32, 48), np.uint8)
    label[6:20, 10:30] = 2
    np.testing.assert_array_equal(burnt(source, folder, "water"), label)


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


def test_pictures_of_any_format_match_polygons_by_name(source, tmp_path):
    for path in (source / "images").iterdir():
        path.unlink()
    for stem in "ab":
        Image.new("RGB", (48, 32), (9, 9, 9)).save(source / "images" / f"{stem}.jpg")
    path = write(tmp_path / "all.json", coco())
    settings = defaults(
        TileSettings, source=str(source), data_root=str(tmp_path / "out"), tile_size=32, data=DATA,
        masks=str(path), background="road", val_groups=["b"],
    )  # fmt: skip
    with pytest.raises(UserError, match=r"b\.jpg is not in .*all\.json, which has 1 pictures"):
        tile(settings)
    content = coco()
    content["images"].append({"id": 8, "file_name": "c\\b.jpg", "height": 32, "width": 48})
    write(path, content)
    with pytest.warns(UserWarning, match="val has no pixel"):
        tile(settings)
    np.testing.assert_array_equal(
        READER.read(tmp_path / "out" / "train" / "masks" / "a_r00_c00.png")[0],
        without_hole(1)[:, :32],
    )
    content["images"][1]["height"] = 31
    write(path, content)
    with pytest.raises(UserError, match=r"b\.jpg is 48x32, but .* has polygons of it at 48x31"):
        tile(replace(settings, data_root=str(tmp_path / "other")))


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
    "neither": ("a.json", {"images": []}, "lacks 'categories'. Give COCO's or LabelMe's"),
    "circle": (
        "a.json", labelme([]) | {"shapes": [{"label": "road", "points": [[1, 1], [2, 2]],
            "shape_type": "circle"}]}, "shape 1 is a circle. Only polygons",
    ),
    "two points": ("a.json", labelme([("road", [[[1, 1], [2, 2]]])]), "fewer than three points"),
    "unknown label": ("a.json", labelme([("sea", [ring(1, 1, 9, 9)])]), "sea' is not a class"),
    "run lengths": (
        "a.json", coco() | {"annotations": [{"image_id": 7, "category_id": 1,
            "segmentation": {"counts": "a", "size": [32, 48]}}]}, "1 has a run-length code",
    ),
    "no such image": (
        "a.json", coco() | {"annotations": [{"image_id": 8, "category_id": 1}]}, "does not list",
    ),
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
    vectors = read_vectors(path, "kind", "ignore", READER.palette)
    pair, place = Pair("a", image, path, "a"), read_georeference(image)
    with pytest.raises(UserError, match="does not say where it lies"):
        vectors.check([pair], [None])
    with pytest.raises(UserError, match=r"a\.tif names no coordinate reference system"):
        vectors.check([pair], [replace(place, crs=None)])
