"""Rasters that are cut a few rows at a time give the bytes of those that are read at once."""

import json
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
import rasterio.warp
from defaults import defaults
from PIL import Image
from rasterio import Affine
from rich.progress import Progress

from geoseg_gan.data import scene as scene_module
from geoseg_gan.data.image_files import open_tiff
from geoseg_gan.data.images import write_image
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.palette import PaletteClass
from geoseg_gan.data.settings import DataSettings, TileSettings
from geoseg_gan.data.tile import tile

COLORS = {"water": [0, 0, 200], "road": [90, 90, 90], "wood": [0, 120, 0]}
DATA = {
    "palette": [PaletteClass(name, color) for name, color in COLORS.items()],
    "ignore": [[0, 0, 0], [255, 255, 255]],
}
READER = mask_reader(defaults(DataSettings, **DATA))
CRS, PIXEL = "EPSG:32640", 0.3
HEIGHT, WIDTH = 75, 61


def write(path, pixels, left=0, hidden=None, crs=CRS, **profile):
    """A GeoTIFF; `hidden` pixels are outside its internal mask."""
    where = {"crs": crs, "transform": Affine(PIXEL, 0, 500_000 + left, 0, -PIXEL, 2_780_000)}
    height, width, bands = pixels.shape
    shape = {"height": height, "width": width, "count": bands, "dtype": pixels.dtype}
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", **shape, **where, **profile) as target,
    ):
        target.write(np.moveaxis(pixels, -1, 0))
        if hidden is not None:
            target.write_mask(~hidden)


def values(rng, bands, dtype="uint8"):
    if dtype == "float32":
        return rng.normal(size=(HEIGHT, WIDTH, bands)).astype(dtype)
    return rng.integers(1, 250, (HEIGHT, WIDTH, bands)).astype(dtype)


def add(source, stem, rng, kind):
    """A pair of a kind, and more settings of tile."""
    image, mask = source / "images" / f"{stem}.tif", source / "masks" / f"{stem}.tif"
    label = rng.integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)
    label[30:50, 10:40] = 255
    holes = rng.random((HEIGHT, WIDTH)) < 0.2
    left = 0 if stem == "a" else 1000
    write(mask, READER.palette.decode(label), left, tiled=True, blockxsize=16, blockysize=16)
    match kind:
        case "bands":
            write(image, values(rng, 6, "uint16"), left, tiled=True, blockxsize=32, blockysize=32)
        case "nodata":
            pixels = values(rng, 3, "int16")
            pixels[holes, 1] = -9999
            write(image, pixels, left, nodata=-9999)
        case "internal mask":
            write(image, values(rng, 3), left, hidden=holes)
        case "alpha":
            pixels = values(rng, 4)
            pixels[..., 3] = np.where(holes, 0, 255)
            write(image, pixels, left, photometric="rgb", alpha="yes", interleave="pixel")
        case "near infrared":  # which GDAL tags as alpha
            write(image, values(rng, 4), left, photometric="rgb", alpha="yes")
        case "NaN":
            pixels = values(rng, 2, "float32")
            pixels[holes] = np.nan
            write(image, pixels, left)
        case "index map":
            write(image, values(rng, 1), left, nodata=7)
            steps = np.array([40, 0, 80], np.uint8)[label % 3]
            steps[label == 255] = 255
            write(mask, steps[..., None], left, blockysize=5)
            index_map = {40: "water", 0: "road", 80: "wood", 255: "ignore"}
            return {"data": defaults(
                DataSettings, **DATA, mask_format="index", index_map=index_map
            )}  # fmt: skip
        case "unknown colours":
            write(image, values(rng, 3), left)
            write(mask, READER.palette.decode(label) // 2 * 2 + 1, left)
            return {"data": defaults(DataSettings, **DATA, unknown="nearest")}
        case "aligned":
            write(image, values(rng, 3), left)
            # Turned, and with another pixel size than the image.
            across, down = 0.9 * PIXEL * np.cos(0.3), 0.9 * PIXEL * np.sin(0.3)
            turned = Affine(across, down, 500_000 + left - 2, down, -across, 2_780_003)
            where = {"crs": CRS, "transform": turned}
            shape = {"height": 99, "width": 90, "count": 3, "dtype": "uint8"}
            with rasterio.open(mask, "w", driver="GTiff", **shape, **where) as target:
                other = rng.integers(0, 3, (99, 90)).astype(np.uint8)
                target.write(np.moveaxis(READER.palette.decode(other), -1, 0))
            return {"align": True}
        case "aligned, another system":
            write(image, values(rng, 3), left)
            with rasterio.open(image) as target:
                box = rasterio.warp.transform_bounds(CRS, "EPSG:4326", *target.bounds)
            across, down = (box[2] - box[0]) / 80, (box[3] - box[1]) / 90
            there = Affine(across, 0, box[0], 0, -down, box[3])
            shape = {"height": 90, "width": 80, "count": 3, "dtype": "uint8"}
            with rasterio.open(
                mask, "w", driver="GTiff", crs="EPSG:4326", transform=there, **shape
            ) as target:
                other = rng.integers(0, 3, (90, 80)).astype(np.uint8)
                target.write(np.moveaxis(READER.palette.decode(other), -1, 0))
            return {"align": True}
        case "polygons":
            write(image, values(rng, 3), left)
            features = []
            for n in range(30):
                corners = rng.uniform(0, (WIDTH * PIXEL, HEIGHT * PIXEL), (4, 2))
                ring = (corners * (1, -1) + (500_000 + left, 2_780_000)).round(1).tolist()
                geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
                properties = {"kind": list(COLORS)[n % 3]}
                feature = {"type": "Feature", "properties": properties, "geometry": geometry}
                features.append(feature)
            path = source / "labels.geojson"
            known = json.loads(path.read_text())["features"] if path.exists() else []
            system = {"type": "name", "properties": {"name": CRS}}
            content = {"type": "FeatureCollection", "features": known + features, "crs": system}
            path.write_text(json.dumps(content))
            return {"masks": str(path), "class_field": "kind"}
        case "picture":
            write_image(image.with_suffix(".png"), values(rng, 3))
            Image.fromarray(READER.palette.decode(label)).save(mask.with_suffix(".png"))
            mask.unlink()
        case _:
            write(image, values(rng, 3), left)
            if kind == "blocks of ground":
                return {"split": "spatial", "block_size": 30, "gap": 3, "overlap": 5}
    return {}


KINDS = (
    "bands", "nodata", "internal mask", "alpha", "near infrared", "NaN", "index map",
    "unknown colours", "aligned", "aligned, another system", "polygons", "picture",
    "blocks of ground",
)  # fmt: skip


def make(folder, kind):
    """A source of two pairs, and the settings by which it is cut."""
    rng = np.random.default_rng(KINDS.index(kind))
    for stem in "ab":
        more = add(folder / "source", stem, rng, kind)
    usual = {"tile_size": 24, "overlap": 3, "remainder": "shift", "max_ignore": 0.7, "seed": 1}
    usual |= {"data": defaults(DataSettings, **DATA)} | more
    return defaults(TileSettings, source=str(folder / "source"), data_root="", **usual)


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "config.yaml"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_rows_give_the_bytes_of_the_whole(kind, tmp_path, monkeypatch):
    settings = make(tmp_path, kind)
    made = {}
    for name, pixels in (("whole", 2**22), ("rows", 1)):
        monkeypatch.setattr(scene_module, "_PIXELS", pixels)
        monkeypatch.setattr("geoseg_gan.data.georeference.STRIP", 2**20 if pixels > 1 else 7)
        settings.data_root = str(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            reports = tile(settings)
        made[name] = (
            files_of(tmp_path / name),
            {
                split: (report.images, report.skipped, report.dropped, report.pixels.tolist())
                for split, report in reports.items()
            },
        )
    assert made["rows"] == made["whole"]
    assert len(made["whole"][0]) > 12


def test_the_bar_moves_within_a_picture(tmp_path, monkeypatch):
    moves = []

    class Bar(Progress):
        def advance(self, task_id, advance=1):
            moves.append(advance)

    monkeypatch.setattr("geoseg_gan.data.tile.Progress", Bar)
    monkeypatch.setattr(scene_module, "_PIXELS", 1)
    settings = make(tmp_path, "bands")
    settings.data_root = str(tmp_path / "out")
    tile(settings)
    assert sorted(moves) == 2 * [(HEIGHT - 64) * WIDTH] + 4 * [32 * WIDTH]  # blocks of 32 rows
    assert sum(moves) == 2 * HEIGHT * WIDTH


def test_memory_is_that_of_some_rows(tmp_path, monkeypatch):
    side = 2048
    source = tmp_path / "source"
    for stem in "ab":
        for part, bands in (("images", 3), ("masks", 1)):
            (source / part).mkdir(parents=True, exist_ok=True)
            layout = {"tiled": True, "blockxsize": 64, "blockysize": 64, "sparse_ok": True}
            shape = {"height": side, "width": side, "count": bands, "dtype": "uint8"}
            open_tiff(source / part / f"{stem}.tif", "w", **shape, **layout).close()
    data = defaults(DataSettings, **DATA, mask_format="index")
    places = {"source": str(source), "data_root": str(tmp_path / "out")}
    monkeypatch.setattr(scene_module, "_PIXELS", 2**16)
    monkeypatch.setattr("geoseg_gan.data.tile._IMAGES_AT_ONCE", 1)
    tracemalloc.start()
    tile(defaults(TileSettings, tile_size=256, data=data, **places))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2 * side**2  # bytes; image and label map alone are twice that


def test_cutting_loads_no_torch():  # which takes half a gigabyte
    code = "import sys, geoseg_gan.data.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
