import io

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin
from rasters import noise, write_geotiff

from geoseg_gan.data.images import read_image, resize_image, resize_label, write_image


@pytest.mark.parametrize(
    ("suffix", "bands", "dtype"),
    [
        (".png", 1, "uint8"), (".png", 3, "uint8"), (".png", 1, "uint16"), (".tiff", 1, "uint8"),
        (".TIF", 3, "uint8"), (".tif", 1, "float32"), (".tif", 2, "int16"),
        (".tif", 13, "uint16"),
    ],
)  # fmt: skip
def test_lossless_images_keep_their_values_bands_and_dtype(tmp_path, suffix, bands, dtype):
    write_image(tmp_path / f"a{suffix}", noise(bands, dtype))
    pixels = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(pixels, noise(bands, dtype), strict=True)


@pytest.mark.parametrize("profile", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
def test_a_16_bit_multi_band_geotiff_is_read_whole(tmp_path, profile):
    path = write_geotiff(tmp_path / "a.tif", noise(6, "uint16"), **profile)
    np.testing.assert_array_equal(read_image(path), noise(6, "uint16"), strict=True)


@pytest.mark.parametrize("dtype", ["float64", "int32", "uint32"])
def test_other_types_become_float32(tmp_path, dtype):
    pixels = read_image(write_geotiff(tmp_path / "a.tif", noise(2, dtype)))
    np.testing.assert_array_equal(pixels, noise(2, dtype).astype(np.float32), strict=True)


def test_pictures_are_shown_as_rgb_without_alpha(tmp_path):
    pixels = noise(4).clip(1)  # alpha of 0 means no data
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels[..., :3])
    picture = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).convert("P")
    colors = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    picture.putpalette(colors.ravel().tolist())
    picture.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), colors[:12].reshape(3, 4, 3))


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".jpeg", ".JPG"])
def test_the_other_endings_are_read(tmp_path, suffix):
    picture = np.full((16, 24, 3), (200, 90, 30), np.uint8)
    Image.fromarray(picture).save(tmp_path / f"a{suffix}", quality=100)
    pixels = read_image(tmp_path / f"a{suffix}")
    assert pixels.shape == (16, 24, 3) and pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.astype(int), picture, atol=6)


def test_jpegs_are_written_at_quality_95_with_colours_at_full_resolution(tmp_path):
    write_image(tmp_path / "a.jpg", noise())
    reference = io.BytesIO()
    Image.fromarray(noise()).save(reference, "JPEG", quality=95)
    with Image.open(tmp_path / "a.jpg") as stored, Image.open(reference) as expected:
        assert stored.format == "JPEG"
        assert JpegImagePlugin.get_sampling(stored) == 0  # 4:4:4
        assert JpegImagePlugin.get_sampling(expected) != 0
        assert stored.quantization == expected.quantization
    write_image(tmp_path / "b.jpg", noise(), quality=60)
    assert (tmp_path / "b.jpg").stat().st_size < (tmp_path / "a.jpg").stat().st_size


def test_a_gray_jpeg_stays_gray(tmp_path):
    write_image(tmp_path / "a.jpg", np.full((8, 9, 1), 77, np.uint8))
    pixels = read_image(tmp_path / "a.jpg")
    assert pixels.shape == (8, 9, 1) and (pixels == 77).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_failed_write_leaves_nothing(tmp_path, suffix):
    with pytest.raises(Exception):  # noqa: B017  # each library has its own
        write_image(tmp_path / f"a{suffix}", np.zeros((4, 4, 3), np.complex128)[:0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bands", "dtype"), [(1, "float32"), (3, "uint8"), (4, "int16"), (6, "uint16")]
)
@pytest.mark.parametrize("size", [10, 40])
def test_images_of_all_bands_and_types_are_resized(bands, dtype, size):
    image = np.broadcast_to(np.arange(1, bands + 1, dtype=dtype) * 20, (20, 30, bands))
    resized = resize_image(image, size)
    assert resized.dtype == dtype and resized.shape == (size, size, bands)
    np.testing.assert_allclose(resized, image[:1, :1].repeat(size, 0).repeat(size, 1), atol=1e-4)


def test_shrinking_averages_areas():
    image = noise(3, "float32", 16, 16)
    expected = image.reshape(8, 2, 8, 2, 3).mean((1, 3))
    np.testing.assert_allclose(resize_image(image, 8), expected, atol=1e-6)


def test_resizing_a_label_makes_no_new_class_and_shows_the_middle_of_what_it_covers():
    label = np.random.default_rng(0).choice(np.array([0, 7, 200, 255], np.uint8), (33, 57))
    for size in (8, 20, 100):
        resized = resize_label(label, size)
        assert resized.shape == (size, size) and resized.dtype == np.uint8
        assert set(np.unique(resized)) <= {0, 7, 200, 255}
    label = np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8)
    np.testing.assert_array_equal(resize_label(label, 8), label[1::3, 1::3])


@pytest.mark.parametrize("axis", [0, 1])
def test_enlarged_labels_and_images_stay_aligned(axis):
    stripes = np.repeat(np.array([0, 1, 1, 0, 1, 0, 0, 1], np.uint8), 4)
    label = np.ascontiguousarray(np.broadcast_to(np.expand_dims(stripes, axis), (32, 32)))
    larger = resize_label(label, 96)
    np.testing.assert_array_equal(larger, label.repeat(3, 0).repeat(3, 1))
    shown = resize_image(label[..., None].astype(np.float32), 96)[..., 0]
    np.testing.assert_array_equal(shown > 0.5, larger == 1)
