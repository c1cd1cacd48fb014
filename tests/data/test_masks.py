import re

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasters import noise, write_geotiff

from geoseg_gan.data.image_files import UnreadableError
from geoseg_gan.data.images import write_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.palette import IGNORE, Palette, PaletteClass, UnknownColorError


def label_of(palette, height=20, width=31):
    values = np.array([*range(palette.num_classes), IGNORE], np.uint8)
    return np.random.default_rng(1).choice(values, (height, width))


@pytest.mark.parametrize(("mask_format", "mode"), [("rgb", "RGB"), ("index", "P")])
def test_masks_round_trip_and_show_their_colours(tmp_path, palette, mask_format, mode):
    reader, label, path = (
        MaskReader(palette, mask_format),
        label_of(palette),
        tmp_path / "new/m.png",
    )
    reader.write(path, label)
    again, unknown = reader.read(path)
    assert unknown == 0
    np.testing.assert_array_equal(again, label, strict=True)
    with Image.open(path) as stored:
        assert stored.mode == mode
        np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), palette.decode(label))
        if mode == "P":  # IDs to programs, colours to the eye
            np.testing.assert_array_equal(np.asarray(stored), label)


def test_an_index_mask_with_254_classes_round_trips(tmp_path):
    palette = Palette([PaletteClass(f"{i}", [i, 7, 7]) for i in range(254)], [[0, 0, 0]])
    label = np.array([[*range(254), 255]], np.uint8)
    MaskReader(palette, "index").write(tmp_path / "m.png", label)
    np.testing.assert_array_equal(MaskReader(palette, "index").read(tmp_path / "m.png")[0], label)


def save_as(palette, label, path, how):
    rgb = palette.decode(label)
    match how:
        case "rgb":
            Image.fromarray(rgb).save(path)
        case "rgba":
            alpha = np.random.default_rng(0).integers(0, 256, label.shape, np.uint8)
            Image.fromarray(np.dstack([rgb, alpha])).save(path)
        case "palette":
            # Indices that are not the class IDs: only the colours count.
            picture = Image.fromarray(rgb).quantize(colors=256)
            assert picture.mode == "P"
            picture.save(path)
        case "geotiff":
            write_geotiff(path, rgb)
        case "geotiff with alpha":
            write_geotiff(path, np.dstack([rgb, np.full(label.shape, 255, np.uint8)]))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("m.png", "rgb"), ("m.png", "rgba"), ("m.png", "palette"), ("m.bmp", "rgb"),
        ("m.tif", "rgb"), ("m.tif", "palette"), ("m.tif", "geotiff"),
        ("m.TIFF", "geotiff with alpha"),
    ],
)  # fmt: skip
def test_coloured_masks_are_read_however_they_are_stored(tmp_path, palette, name, how):
    label = label_of(palette)
    save_as(palette, label, tmp_path / name, how)
    read, unknown = MaskReader(palette).read(tmp_path / name)
    np.testing.assert_array_equal(read, label)
    assert unknown == 0


@pytest.mark.parametrize(
    ("name", "convert"),
    [
        ("m.png", lambda label: Image.fromarray(label)),
        ("m.png", lambda label: Image.fromarray(label.astype(np.uint16))),
        ("m.png", lambda label: Image.fromarray(label).convert("P")),
        ("m.tif", lambda label: Image.fromarray(label)),
        ("m.tif", lambda label: Image.fromarray(label.astype(np.int16))),
        ("m.tif", lambda label: Image.fromarray(label.astype(np.float32))),
    ],
)
def test_index_masks_are_read_in_every_depth(tmp_path, palette, name, convert):
    label = label_of(palette)
    convert(label).save(tmp_path / name)
    read, unknown = MaskReader(palette, "index").read(tmp_path / name)
    assert read.dtype == np.uint8 and unknown == 0
    np.testing.assert_array_equal(read, label)


def test_a_two_colour_index_png_holds_ids_0_and_1(tmp_path, palette):
    label = label_of(palette) % 2
    Image.fromarray(label.astype(bool)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(MaskReader(palette, "index").read(tmp_path / "m.png")[0], label)


@pytest.mark.parametrize(
    ("name", "pixels", "mask_format", "error", "message"),
    [
        ("m.png", noise(3), "index", UnreadableError, "has 3 channels.*mask_format=rgb"),
        ("m.png", np.ones((4, 4, 1), np.uint8), "rgb", UnknownColorError,
         r"colour \(1, 1, 1\).*mask_format=index"),
        ("m.png", np.uint8([[[0], [7], [7], [9]]]), "index", UnknownColorError,
         "class ID 7 in 2 pixels, .* IDs 0 to 2 .*=ignore"),
        ("m.tif", noise(3, "uint16"), "rgb", UnreadableError, "holds uint16 values, .* 8-bit RGB"),
        ("m.tif", noise(2), "rgb", UnreadableError, "has 2 bands, but .* 8-bit RGB"),
        ("m.tif", np.ones((4, 4, 1)), "rgb", UnreadableError, "holds float64 .*mask_format=index"),
    ],
)  # fmt: skip
def test_a_mask_of_another_kind_is_refused_with_a_hint(
    tmp_path, palette, name, pixels, mask_format, error, message
):
    write_image(tmp_path / name, pixels)
    with pytest.raises(error, match=f"{re.escape(name)}: {message}"):
        MaskReader(palette, mask_format).read(tmp_path / name)


def test_unknown_ids_and_what_is_no_whole_number_can_be_ignored_and_are_counted(tmp_path, palette):
    path, reader = tmp_path / "m.tif", MaskReader(palette, "index", "ignore")
    write_image(path, np.array([[0, 1, 2, 3, -1, 255, 254, 1000]], np.int16)[..., None])
    read, unknown = reader.read(path)
    assert read.tolist() == [[0, 1, 2, 255, 255, 255, 255, 255]] and unknown == 4
    write_image(path, np.array([[0, 1, 1.5, np.nan, 255, np.inf]], np.float32)[..., None])
    read, unknown = reader.read(path)
    assert read.tolist() == [[0, 1, 255, 255, 255, 255]] and unknown == 3
    with pytest.raises(UnknownColorError, match="class ID"):
        MaskReader(palette, "index").read(path)


def test_unknown_colours_follow_the_policy(tmp_path, palette):
    mask = np.array([[[168, 232, 84], [169, 232, 84], [255, 214, 33]]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "m.png")
    for policy, expected in (("ignore", [[1, 255, 2]]), ("nearest", [[1, 1, 2]])):
        read, unknown = MaskReader(palette, "rgb", policy).read(tmp_path / "m.png")
        assert read.tolist() == expected and unknown == 1


@pytest.mark.parametrize("mask_format", ["rgb", "index"])
@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_a_broken_mask_is_named(tmp_path, palette, mask_format, name):
    (tmp_path / name).write_text("not a picture")
    with pytest.raises(UnreadableError, match=re.escape(str(tmp_path / name))):
        MaskReader(palette, mask_format).read(tmp_path / name)


HIDDEN = np.random.default_rng(2).random((20, 31)) < 0.3


@pytest.mark.parametrize("how", ["alpha", "internal mask", "nodata", "nodata of grey"])
def test_what_a_coloured_geotiff_says_to_be_empty_is_ignored(tmp_path, palette, how):
    label = label_of(palette)
    rgb = palette.decode(label)
    expected = np.where(HIDDEN, np.uint8(IGNORE), label)
    empty = np.array([9, 9, 9], np.uint8)  # which is no colour of the palette
    path = tmp_path / "m.tif"
    rgb[HIDDEN] = empty
    if how == "alpha":
        alpha = np.where(HIDDEN, 0, 255).astype(np.uint8)
        write_geotiff(path, np.dstack([rgb, alpha]), photometric="rgb", alpha="yes")
    elif how == "internal mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write_geotiff(path, rgb)
            with rasterio.open(path, "r+") as target:
                target.write_mask(np.where(HIDDEN, 0, 255).astype(np.uint8))
    elif how == "nodata":
        write_geotiff(path, rgb, nodata=9)
    else:
        grey = [PaletteClass("a", [50] * 3), PaletteClass("b", [60] * 3)]
        palette, expected = Palette(grey), np.where(HIDDEN, np.uint8(IGNORE), label % 2)
        values = np.where(HIDDEN, 9, np.where(label % 2, 60, 50)).astype(np.uint8)
        write_geotiff(path, values[..., None], nodata=9)
    with rasterio.open(path) as source:  # what GDAL says of it
        np.testing.assert_array_equal(source.dataset_mask() == 0, HIDDEN)
    for content in (None, path.read_bytes()):
        read, unknown = MaskReader(palette).read(path, content)
        np.testing.assert_array_equal(read, expected, strict=True)
        assert unknown == 0


def test_a_nodata_colour_that_is_a_class_must_be_decided(tmp_path):
    classes = [PaletteClass("ground", [0, 0, 0]), PaletteClass("roof", [255, 0, 0])]
    label = np.random.default_rng(0).integers(0, 2, (20, 31), np.uint8)
    reader = MaskReader(Palette(classes))
    path = write_geotiff(tmp_path / "m.tif", reader.palette.decode(label), nodata=0)
    message = r"m\.tif says of itself that \(0, 0, 0\) is nodata, but that is the class 'ground'"
    with pytest.raises(UnreadableError, match=message):
        reader.read(path)
    ignoring = MaskReader(Palette([*classes[1:], PaletteClass("b", [1, 1, 1])], [[0, 0, 0]]))
    expected = np.where(label == 0, np.uint8(IGNORE), np.uint8(0))
    np.testing.assert_array_equal(ignoring.read(path)[0], expected)
    write_geotiff(path, np.full((4, 4, 3), (255, 0, 0), np.uint8), nodata=0)
    assert (reader.read(path)[0] == 1).all()  # a tag that no pixel has


def test_alpha_of_a_geotiff_of_ids_is_ignore(tmp_path, palette):
    label = label_of(palette)
    alpha = np.where(HIDDEN, 0, 255).astype(np.uint8)
    path = write_geotiff(tmp_path / "m.tif", np.dstack([label, alpha]), alpha="yes")
    read, _ = MaskReader(palette, "index").read(path)
    np.testing.assert_array_equal(read, np.where(HIDDEN, np.uint8(IGNORE), label))
