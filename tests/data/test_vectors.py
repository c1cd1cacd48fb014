"""Burnt masks against rectangles of pixels that were worked out by hand."""

import json
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
from defaults import defaults
from PIL import Image
from rasterio import Affine
from rasterio.features import rasterize
from rasterio.warp import transform, transform_geom

from geoseg_gan.data.georeference import Georeference, overlapping, read_georeference
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.pairs import Pair
from geoseg_gan.data.palette import PaletteClass
from geoseg_gan.data.settings import DataSettings, TileSettings
from geoseg_gan.data.tile import tile
from geoseg_gan.data.vectors import read_vectors
from geoseg_gan.utils.errors import UserError, install

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


def burnt(source, path, background="ignore", field="kind", reader=READER, layer=None):
    image = source / "images" / "a.tif"
    pair, place = Pair("a", image, path, "a"), read_georeference(image)
    vectors = read_vectors(path, field, background, reader, layer)
    vectors.check([pair], [place])
    return np.concatenate(
        [vectors.burn(pair, place, (32, 48), *ends) for ends in ((0, 9), (9, 32))]
    )


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


CODES = {"water": 10, "road": 20, "wood": 30, "ignore": 0}
CODED = replace(DATA, mask_format="index", index_map={10: "water", 20: "road", 30: 2, 0: "ignore"})


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


def cvat(*shapes, name="photos/a.png", extra=""):
    drawn = "".join(shapes)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        f'<meta><task><name>t</name></task></meta>{extra}<image id="0" name="{name}" width="48" '
        f'height="32"><tag label="sunny" source="manual"></tag>{drawn}</image></annotations>'
    )


def cvat_polygon(label, points, order=0):
    listed = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return (
        f'<polygon label="{label}" source="manual" occluded="0" points="{listed}" '
        f'z_order="{order}"><attribute name="age">3</attribute></polygon>'
    )


BOX = '<box label="road" occluded="0" xtl="3.75" ytl="1.75" xbr="20.25" ybr="18.25" z_order="{}"/>'
# Columns 16 to 29 of a box that is 16 wide: runs of 0 and 1 in turn, along its rows.
RLE = (
    '<mask label="wood" source="auto" rle="0, 14, 2, 14, 2, 14, 2, 14, 2" left="16" top="2" '
    'width="16" height="4" z_order="{}"/>'
)


@pytest.mark.parametrize("order", [(0, 0, 0), (1, 2, 0), (-3, 0, -7)])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_what_was_drawn_in_cvat_is_burnt_from_the_lowest_on(source, tmp_path, order, is_mixed):
    shapes = [cvat_polygon(n, r[0][:4], o) for (n, r), o in zip(SHAPES, order, strict=True)]
    if is_mixed:
        shapes[:2] = [BOX.format(order[0]), RLE.format(order[1])]
    path = tmp_path / "annotations.xml"
    path.write_text(cvat(*shapes))
    np.testing.assert_array_equal(burnt(source, path, "water", None), without_hole(0))


def test_a_turned_box_of_cvat_is_burnt(source, tmp_path):
    box = '<box label="road" xtl="10" ytl="10" xbr="30" ybr="14" rotation="90.00" z_order="0"/>'
    (tmp_path / "a.xml").write_text(cvat(box))
    label = np.zeros((32, 48), np.uint8)
    label[2:22, 18:22] = 1  # about its middle, at (20, 12)
    np.testing.assert_array_equal(burnt(source, tmp_path / "a.xml", "water", None), label)


def run_lengths(mask):
    """COCO's, down the columns, beginning with those of 0."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends, len(flat)]).tolist()
    return lengths if flat[0] == 0 else [0, *lengths]


def packed(lengths):
    """As COCO's C code packs them: differences to the last but one, 5 bits a character."""
    text = ""
    for n, length in enumerate(lengths):
        value = length - lengths[n - 2] if n > 2 else length
        while True:
            low, value = value & 31, value >> 5
            done = value == (-1 if low & 16 else 0)
            text += chr(48 + (low if done else low | 32))
            if done:
                break
    return text


def test_cocos_text_of_run_lengths_is_as_published():
    """What pycocotools gives for the mask of these runs."""
    assert packed([6, 1, 40, 4, 5, 4, 5, 4, 21]) == "61X13mN000`0"


@pytest.mark.parametrize("pack", [list, packed])
@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_of_coco_cover_the_same_pixels(source, tmp_path, pack, seed):
    mask = (np.random.default_rng(seed).random((32, 48)) < (0.5, 0.03, 0.97)[seed]).astype(int)
    content = coco()
    segmentation = {"counts": pack(run_lengths(mask)), "size": [32, 48]}
    content["annotations"] = [{
        "id": 1, "image_id": 7, "category_id": 3, "iscrowd": 1, "segmentation": segmentation,
    }]  # fmt: skip
    path = write(tmp_path / "a.json", content)
    np.testing.assert_array_equal(burnt(source, path, "water", None), mask)


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
    "damaged run lengths": (
        "a.json", coco() | {"annotations": [{"image_id": 7, "category_id": 1,
            "segmentation": {"counts": "a", "size": [32, 48]}}]}, "whose runs do not fill it",
    ),
    "run lengths of another size": (
        "a.json", coco() | {"annotations": [{"image_id": 7, "category_id": 1,
            "segmentation": {"counts": [9, 9], "size": [3, 6]}}]}, "another size than its image",
    ),
    "a box alone": (
        "a.json", coco() | {"annotations": [{"image_id": 7, "category_id": 1,
            "segmentation": []}]}, "1 has no segmentation. Export polygons or masks, not boxes",
    ),
    "no such image": (
        "a.json", coco() | {"annotations": [{"image_id": 8, "category_id": 1}]}, "does not list",
    ),
}  # fmt: skip


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>'
WRONG_CVAT = {
    "entities": (cvat().replace("<annotations>", BOMB + "<annotations>"), "document type a"),
    "a foreign file": (
        '<!DOCTYPE a [<!ENTITY b SYSTEM "/etc/passwd">]><a>&b;</a>', "document type a",
    ),
    "entities in UTF-16": (
        (f'<?xml version="1.0" encoding="utf-16"?>{BOMB}<a>&c;</a>').encode("utf-16"),
        "declares the document type a",
    ),
    "cut": (cvat()[:-9], "cannot be read"),
    "video": ("<annotations><track id='0' label='road'/></annotations>", "'CVAT for images'"),
    "ellipse": (cvat('<ellipse label="road" cx="1" cy="2" rx="3" ry="4"/>'), "1 is a ellipse"),
    "other class": (cvat(cvat_polygon("sea", [(1, 1), (2, 2), (3, 1)])), "'sea' is not a class"),
    "no numbers": (cvat('<polygon label="road" points="a,b;c,d;e,f"/>'), "are no numbers"),
    "no points": (cvat('<polygon label="road"/>'), "lacks 'points'"),
    "infinite": (cvat('<polygon label="road" points="1,1;inf,2;3,3"/>'), "shape 1 "),
    "huge mask": (
        cvat('<mask label="road" rle="0,4" left="0" top="0" width="99999" height="99999"/>'),
        "99,999 x 99,999 pixels",
    ),
    "runs too short": (
        cvat('<mask label="road" rle="0,4" left="0" top="0" width="9" height="9"/>'), "fill it",
    ),
    "negative runs": (
        cvat('<mask label="road" rle="-1,5" left="0" top="0" width="2" height="2"/>'), "fill it",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), WRONG_CVAT.values(), ids=WRONG_CVAT)
def test_what_cvat_does_not_export_is_one_line(source, tmp_path, content, message):
    path = tmp_path / "annotations.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        burnt(source, path, "water", None)
    assert str(error.value).count("\n") == 0 and "annotations.xml" in str(error.value)


def test_masks_that_cvat_exports_as_pictures_are_explained(source, tmp_path):
    folder = tmp_path / "export"
    (folder / "SegmentationClass").mkdir(parents=True)
    (folder / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,0::\n"
    )
    wanted = (
        r"labelmap\.txt is of CVAT's export of masks.*SegmentationClass.*"
        r"\"data\.palette=\[{name: 'background', color: \[0,0,0\]},{name: 'road', "
        r"color: \[128,64,0\]}\]\" \"data\.ignore=\[\]\""
    )
    with pytest.raises(UserError, match=wanted):
        burnt(source, folder / "SegmentationClass")
    settings = defaults(
        TileSettings, source=str(folder), data_root=str(tmp_path / "out"), data=DATA
    )
    with pytest.raises(UserError, match=wanted):
        tile(settings)


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


def test_ids_of_coco_are_unique(source, tmp_path):
    for kind in ("images", "categories"):
        content = coco()
        content[kind].append(content[kind][0] | {"file_name": "b.png", "name": "water"})
        path = write(tmp_path / "a.json", content)
        with pytest.raises(UserError, match=rf"has the id [17] twice in '{kind}'"):
            burnt(source, path)


def test_numbers_beyond_all_floats_are_one_line(source, tmp_path):
    vast = int("9" * 400)
    path = write(tmp_path / "l.geojson", geojson([(vast, SHAPES[0][1])]))
    with pytest.raises(UserError, match=r"feature 1 has the class 9+\.\.\.9+, which is not in"):
        burnt(source, path, reader=mask_reader(CODED))
    path = write(tmp_path / "a.json", labelme([("road", [[[vast, 1], [2, 2], [3, 1]]])]))
    with pytest.raises(UserError, match=r"a\.json has 'shapes\[0\]\.points"):
        burnt(source, path)
    path = tmp_path / "a.xml"
    path.write_text(cvat(RLE.format(0).replace('rle="0, 14', f'rle="0, {vast}')))
    with pytest.raises(UserError, match="whose runs do not fill it"):
        burnt(source, path)


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
