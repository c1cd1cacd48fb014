"""Rasters are read by rows as they are read whole, and written by rows as COGs."""

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasters import noise, write_geotiff

from geoseg_gan.data.image_files import open_tiff
from geoseg_gan.data.images import read_image, write_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.scene import Export, LineStore, Scene, little_memory
from geoseg_gan.utils.errors import UserError

TRANSFORM = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)


def rows_of(scene, step=7):
    starts = range(0, scene.height, step)
    return np.concatenate([scene.rows(s, min(s + step, scene.height)) for s in starts])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_rows_of_an_image_are_those_of_the_whole(bands, dtype, tmp_path):
    path = write_geotiff(tmp_path / "a.tif", noise(bands, dtype), tiled=True)
    scene = Scene(path)
    assert (scene.height, scene.width, scene.bands, scene.dtype) == (20, 31, bands, dtype)
    assert (scene.place.crs, scene.place.transform) == ("EPSG:32633", TRANSFORM)
    np.testing.assert_array_equal(rows_of(scene), read_image(path))
    assert scene.masked_rows(0, 20)[1] is None


def test_pictures_are_decoded_at_once(tmp_path):
    write_image(tmp_path / "a.png", noise())
    scene = Scene(tmp_path / "a.png")
    np.testing.assert_array_equal(rows_of(scene), noise())
    assert scene.place is None and scene.rows(2, 5).shape == (3, 31, 3)


def test_pixels_without_data_are_not_valid(tmp_path):
    values = noise(1, "int16")
    values[3, 4] = -9999
    path = write_geotiff(tmp_path / "a.tif", values, nodata=-9999)
    scene = Scene(path)
    _, missing = scene.masked_rows(0, 20)
    assert missing[3, 4] and missing.sum() == 1
    # They are filled with the mean of the whole image, whichever rows are read.
    np.testing.assert_array_equal(rows_of(scene), read_image(path))


def test_a_value_that_is_named_means_no_data(tmp_path):
    values = noise(1, "int16")
    values[3, 4] = -9999
    path = write_geotiff(tmp_path / "a.tif", values)
    assert Scene(path).masked_rows(0, 20)[1] is None
    _, missing = Scene(path, nodata=-9999).masked_rows(0, 20)
    assert missing[3, 4] and missing.sum() == 1


def test_alpha_is_no_band_of_an_image_but_says_where_it_has_data(tmp_path):
    values = noise(4)
    for opaque in (255, 1):
        values[..., 3] = opaque
        values[5, 6, 3] = 0
        path = write_geotiff(tmp_path / "a.tif", values, photometric="rgb", alpha="yes")
        scene = Scene(path)
        np.testing.assert_array_equal(scene.masked_rows(0, 20)[1], values[..., 3] == 0)
        assert scene.bands == 3
        np.testing.assert_array_equal(rows_of(scene), read_image(path))


@pytest.fixture
def label():
    label = np.random.default_rng(1).integers(0, 3, (20, 31)).astype(np.uint8)
    label[2, 3] = IGNORE
    return label


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("mask_format", ["rgb", "index"])
def test_rows_of_a_mask_are_its_label_map(mask_format, suffix, label, palette, tmp_path):
    reader, path = MaskReader(palette, mask_format), tmp_path / f"a{suffix}"
    if suffix == ".png":
        reader.write(path, label)
    else:
        pixels = label[..., None] if mask_format == "index" else palette.decode(label)
        write_geotiff(path, pixels)
    np.testing.assert_array_equal(rows_of(Scene(path, reader)), label)


def test_a_mask_s_colour_table_and_nodata_are_followed(label, palette, tmp_path):
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "height": 20, "width": 31, "count": 1, "dtype": "uint8"}
    order = np.array([2, 0, 1], np.uint8)  # whose colours contradict its numbers
    with rasterio.open(path, "w", crs="EPSG:32633", transform=TRANSFORM, nodata=9, **profile) as f:
        f.write(np.where(label == IGNORE, 9, order[label % 3]).astype(np.uint8), 1)
        f.write_colormap(1, {int(order[n]): tuple(palette.color_table[n]) for n in range(3)})
    np.testing.assert_array_equal(rows_of(Scene(path, MaskReader(palette))), label)


def test_a_raster_in_one_piece_must_fit_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("geoseg_gan.data.scene._LARGEST_BLOCK", 1000)
    path = write_geotiff(tmp_path / "a.tif", noise(), blockysize=20)
    np.testing.assert_array_equal(rows_of(Scene(path)), noise())
    monkeypatch.setattr("geoseg_gan.data.scene.free_memory", lambda: 10_000)
    with pytest.raises(UserError, match=r"stored in blocks of 31x20 pixels.* TILED=YES"):
        Scene(path)


def make_store(folder, settings, count=2, shape=(4, 20, 31)):
    """A store of which some appends are done, each of seven rows."""
    store = LineStore(folder, shape, "uint8", settings)
    values = np.moveaxis(noise(4), -1, 0)
    for _ in range(count):
        store.append(values[:, store.done : store.done + 7])
    return store, values


def test_rows_become_a_cog_with_mask_and_place(tmp_path):
    store, values = make_store(tmp_path / "a.part", {}, 0)
    values[3] = np.where(values[3] > 99, 255, 0)
    store.append(values)
    place = Scene(write_geotiff(tmp_path / "p.tif", noise())).place
    with little_memory():
        store.finish([Export(tmp_path / "a.tif", [1, 2, 3], place, mask=4, tags={"A": "é <b>"})])
    store.remove()
    with rasterio.open(tmp_path / "a.tif", driver="GTiff") as source:
        np.testing.assert_array_equal(source.read(), values[:3])
        np.testing.assert_array_equal(source.dataset_mask(), values[3])
        assert (source.crs, source.transform) == ("EPSG:32633", TRANSFORM)
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.tags()["A"] == "é <b>" and source.nodata is None
        assert source.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tif", "p.tif"}


def test_classes_have_a_colour_table(palette, tmp_path):
    store, values = make_store(tmp_path / "a.part", {}, 3)
    colors = palette.color_table
    store.finish([Export(tmp_path / "a.tif", [1], None, nodata=255, colors=colors)])
    with open_tiff(tmp_path / "a.tif") as source:
        np.testing.assert_array_equal(source.read(1), values[0])
        assert source.nodata == 255 and source.crs is None
        table = source.colormap(1)
        assert [table[n][:3] for n in range(3)] == [tuple(c.color) for c in palette.classes]


def test_a_store_goes_on_where_it_was_left(tmp_path):
    make_store(tmp_path / "a.part", {"seed": 1}, 2)
    store = LineStore(tmp_path / "a.part", (4, 20, 31), "uint8", {"seed": 1})
    assert store.done == 14
    values = np.moveaxis(noise(4), -1, 0)
    store.append(values[:, 14:])
    with open_tiff(tmp_path / "a.part" / "lines.part") as source:
        np.testing.assert_array_equal(source.read(), values)
    with pytest.raises(UserError, match="seed was 1, now 2"):
        LineStore(tmp_path / "a.part", (4, 20, 31), "uint8", {"seed": 2})
    with pytest.raises(UserError, match="has another shape"):
        LineStore(tmp_path / "a.part", (4, 20, 30), "uint8", {"seed": 1})
