import re

import numpy as np
import pytest
from PIL import Image
from rasters import noise, write_geotiff

from geoseg_gan.data.images import MaskReader, UnreadableError, write_image
from geoseg_gan.data.palette import IGNORE, Palette, PaletteClass, UnknownColorError


def label_of(palette, height=20, width=31):
    values = np.array([*range(palette.num_classes), IGNORE], np.uint8)
    return np.random.default_rng(1).choice(values, (height, width))


def test_rgb_masks_round_trip_through_write_and_read(tmp_path, palette):
    reader = MaskReader(palette)
    label = label_of(palette)
    reader.write(tmp_path / "new" / "m.png", label)
    again, unknown = reader.read(tmp_path / "new" / "m.png")
    assert again.dtype == np.uint8 and unknown == 0
    np.testing.assert_array_equal(again, label)
    with Image.open(tmp_path / "new" / "m.png") as stored:
        assert stored.mode == "RGB"


def test_index_masks_round_trip_as_ids_to_programs_and_colours_to_the_eye(tmp_path, palette):
    reader = MaskReader(palette, "index")
    label = label_of(palette)
    reader.write(tmp_path / "m.png", label)
    again, unknown = reader.read(tmp_path / "m.png")
    assert again.dtype == np.uint8 and unknown == 0
    np.testing.assert_array_equal(again, label)
    with Image.open(tmp_path / "m.png") as stored:
        assert stored.mode == "P"
        np.testing.assert_array_equal(np.asarray(stored), label)
        np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), palette.decode(label))


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
        ("m.png", "rgb"),
        ("m.png", "rgba"),
        ("m.png", "palette"),
        ("m.bmp", "rgb"),
        ("m.tif", "rgb"),
        ("m.tif", "palette"),
        ("m.tif", "geotiff"),
        ("m.TIFF", "geotiff with alpha"),
    ],
)
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


def test_a_coloured_mask_read_as_index_is_refused(tmp_path, palette):
    MaskReader(palette).write(tmp_path / "m.png", label_of(palette))
    with pytest.raises(UnreadableError, match=r"m\.png: has 3 channels.*mask_format=rgb"):
        MaskReader(palette, "index").read(tmp_path / "m.png")


def test_an_index_mask_read_as_colours_hints_at_the_knob(tmp_path, palette):
    Image.fromarray(np.ones((4, 4), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(UnknownColorError, match=r"m\.png: colour \(1, 1, 1\).*mask_format=index"):
        MaskReader(palette).read(tmp_path / "m.png")


def test_an_unknown_colour_names_the_file(tmp_path, palette):
    Image.fromarray(np.full((2, 3, 3), (1, 2, 3), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(
        UnknownColorError, match=re.escape(f"{tmp_path / 'm.png'}: colour (1, 2, 3) in 6 pixels")
    ):
        MaskReader(palette).read(tmp_path / "m.png")


def test_an_unknown_id_names_the_file_and_the_range(tmp_path, palette):
    Image.fromarray(np.array([[0, 7, 7, 9]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(
        UnknownColorError, match=r"m\.png: class ID 7 in 2 pixels, .* IDs 0 to 2 .*=ignore"
    ):
        MaskReader(palette, "index").read(tmp_path / "m.png")


def test_unknown_ids_can_be_ignored_and_are_counted(tmp_path, palette):
    ids = np.array([[0, 1, 2, 3, -1, 255, 254, 1000]], np.int16)
    write_image(tmp_path / "m.tif", ids[..., None])
    read, unknown = MaskReader(palette, "index", "ignore").read(tmp_path / "m.tif")
    assert read.tolist() == [[0, 1, 2, 255, 255, 255, 255, 255]]
    assert unknown == 4


def test_what_is_no_whole_number_is_an_unknown_id(tmp_path, palette):
    ids = np.array([[0, 1, 1.5, np.nan, 255, np.inf]], np.float32)
    write_image(tmp_path / "m.tif", ids[..., None])
    read, unknown = MaskReader(palette, "index", "ignore").read(tmp_path / "m.tif")
    assert read.tolist() == [[0, 1, 255, 255, 255, 255]] and unknown == 3
    with pytest.raises(UnknownColorError, match="class ID"):
        MaskReader(palette, "index").read(tmp_path / "m.tif")


def test_unknown_colours_follow_the_policy(tmp_path, palette):
    mask = np.array([[[168, 232, 84], [169, 232, 84], [255, 214, 33]]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "m.png")
    for policy, expected in (("ignore", [[1, 255, 2]]), ("nearest", [[1, 1, 2]])):
        read, unknown = MaskReader(palette, "rgb", policy).read(tmp_path / "m.png")
        assert read.tolist() == expected and unknown == 1


def test_a_coloured_mask_of_16_bit_is_refused(tmp_path, palette):
    write_image(tmp_path / "m.tif", noise(3, "uint16"))
    with pytest.raises(UnreadableError, match=r"m\.tif: holds uint16 values, .* 8-bit"):
        MaskReader(palette).read(tmp_path / "m.tif")


@pytest.mark.parametrize("mask_format", ["rgb", "index"])
@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_a_broken_mask_is_named(tmp_path, palette, mask_format, name):
    (tmp_path / name).write_text("not a picture")
    with pytest.raises(UnreadableError, match=re.escape(str(tmp_path / name))):
        MaskReader(palette, mask_format).read(tmp_path / name)
