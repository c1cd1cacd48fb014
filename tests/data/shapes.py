"""Polygons on a picture, as files of several formats, and the label map that they are burnt to."""

import json
from dataclasses import replace

import numpy as np
from defaults import defaults
from rasterio.warp import transform

from geoseg_gan.data.georeference import read_georeference
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.pairs import Pair
from geoseg_gan.data.palette import PaletteClass
from geoseg_gan.data.settings import DataSettings
from geoseg_gan.data.vectors import read_vectors

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


def without_hole(background):
    label = expected(background)
    label[6:10, 8:12] = 1
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


CODES = {"water": 10, "road": 20, "wood": 30, "ignore": 0}
CODED = replace(DATA, mask_format="index", index_map={10: "water", 20: "road", 30: 2, 0: "ignore"})


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
