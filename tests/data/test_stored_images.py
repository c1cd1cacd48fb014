"""What a file says of itself: alpha, nodata, masks, orientation, pages, colour tables, bit depth.

Every kind is compared, value by value, with what Pillow, rasterio or numbers written out say.
"""

import io
import re

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image, ImageOps
from rasters import noise, write_geotiff

from geoseg_gan.data.image_files import UnreadableError
from geoseg_gan.data.images import read_image, read_masked_image, write_image

ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


def write_png(path, pixels):
    """Writes a PNG of whatever bit depth with GDAL, which Pillow cannot."""
    write_geotiff(path.with_suffix(".tif"), pixels)
    rasterio.shutil.copy(path.with_suffix(".tif"), path, driver="PNG")
    return path


def filled(pixels, missing):
    """Pixels with the mean of the others where data is missing."""
    expected = pixels.copy()
    for band in range(pixels.shape[2]):
        mean = pixels[..., band][~missing].astype(np.float64).mean()
        whole = np.issubdtype(pixels.dtype, np.integer)
        expected[..., band][missing] = round(mean) if whole else mean
    return expected


def check_missing(path, pixels, missing):
    read, found = read_masked_image(path)
    np.testing.assert_array_equal(found, missing)
    np.testing.assert_allclose(read, filled(pixels, missing), rtol=1e-6)
    assert read.dtype == pixels.dtype and np.isfinite(read).all()
    again, found = read_masked_image(path, path.read_bytes())
    np.testing.assert_array_equal(again, read)
    np.testing.assert_array_equal(found, missing)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint16", 65_535), ("int16", -9999), ("float32", -3.4e38), ("float32", 0.1), ("uint8", 0)],
)
@pytest.mark.parametrize("is_tagged", [False, True])
def test_a_value_that_is_named_means_no_data_as_a_tag_does(tmp_path, dtype, nodata, is_tagged):
    pixels = noise(3, dtype)
    pixels[SOME] = nodata
    tag = {"nodata": 77 if dtype == "uint8" else 7} if is_tagged else {}
    path = write_geotiff(tmp_path / "a.tif", pixels, **tag)
    missing = SOME.copy()
    if is_tagged:
        pixels[0, :3] = tag["nodata"]
        write_geotiff(path, pixels, **tag)
        missing[0, :3] = True
    if dtype != "uint8":  # in any band
        pixels[1, 1, 2], missing[1, 1] = nodata, True
        write_geotiff(path, pixels, **tag)
        missing |= (pixels == np.array(nodata).astype(dtype)).any(-1)
        missing |= (pixels == 7).any(-1) if is_tagged else False
    else:
        missing |= (pixels == 0).all(-1)
    read, found = read_masked_image(path, nodata=nodata)
    np.testing.assert_array_equal(found, missing)
    np.testing.assert_allclose(read, filled(pixels, missing), rtol=1e-6)


SOME = noise(1, height=20, width=31)[..., 0] > 200


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_colour_pngs_of_16_bits_keep_their_values(tmp_path, bands):
    pixels = 200 + noise(bands, "uint16") % 2551
    if bands != 3:
        pixels[..., -1] = np.where(SOME, 0, 65535)
    path = write_png(tmp_path / "a.png", pixels)
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(np.moveaxis(source.read(), 0, -1), pixels)
    if bands == 3:
        np.testing.assert_array_equal(read_image(path), pixels, strict=True)
    else:
        check_missing(path, pixels[..., :-1], SOME)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UnreadableError, match="does not decode"):
        read_image(path)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_levels_of_few_bits_span_black_to_white(tmp_path, bits):
    levels = noise(1) % (1 << bits)
    write_geotiff(tmp_path / "a.tif", levels, nbits=bits)
    if bits == 1:  # which GDAL writes with a colour table
        Image.fromarray(levels[..., 0] > 0).save(tmp_path / "a.png")
    else:
        rasterio.shutil.copy(tmp_path / "a.tif", tmp_path / "a.png", driver="PNG", nbits=bits)
    with Image.open(tmp_path / "a.png") as picture:
        expected = np.asarray(picture.convert("L"))[..., None]
    np.testing.assert_array_equal(expected, levels * (255 // ((1 << bits) - 1)))
    for suffix in (".png", ".tif"):
        np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), expected)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_honoured(tmp_path, form, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"a{ENDINGS[form]}"
    options = {"lossless": True} if form == "WEBP" else {}
    Image.fromarray(noise()).save(path, exif=exif, **options)
    with Image.open(path) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    assert expected.shape[:2] == ((20, 31) if orientation < 5 else (31, 20))
    np.testing.assert_array_equal(read_image(path), expected, strict=True)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_that_is_to_be_shown_turned_is_refused(tmp_path, big):
    path = tmp_path / "a.tif"
    Image.fromarray(noise()).save(path, tiffinfo={274: 1}, big_tiff=big)
    np.testing.assert_array_equal(read_image(path), noise())
    Image.fromarray(noise()).save(path, tiffinfo={274: 6}, big_tiff=big)
    for content in (None, path.read_bytes()):
        with pytest.raises(UnreadableError, match=r"a\.tif is stored turned .*Orientation is 6"):
            read_image(path, content)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_moving_pictures_are_refused(tmp_path, suffix):
    first, *others = (Image.fromarray(noise(3) // (n + 1)) for n in range(3))
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=others, duration=50)
    with pytest.raises(UnreadableError, match=rf"a\{suffix} has 3 frames, of which all but one"):
        read_image(tmp_path / f"a{suffix}")
    first.save(tmp_path / f"b{suffix}", save_all=True, lossless=True)
    np.testing.assert_array_equal(read_image(tmp_path / f"b{suffix}"), noise(3))


def test_the_preview_behind_the_picture_of_a_camera_is_left_out(tmp_path):
    """Drones write JPEGs of two pictures (MPO), of which the second is small."""
    first = Image.fromarray(np.full((32, 48, 3), 90, np.uint8))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[first.resize((6, 4))])
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.n_frames == 2
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), np.full((32, 48, 3), 90))


def test_bands_that_were_written_as_pages_are_refused(tmp_path):
    first, *others = (Image.fromarray(noise(4)[..., band]) for band in range(4))
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    with pytest.raises(UnreadableError, match=r"a\.tif has 4 pages, of which all but one .*bands"):
        read_image(tmp_path / "a.tif")


def test_a_cog_with_overviews_and_an_internal_mask_is_one_page(tmp_path):
    pixels = noise(3, height=300, width=280)
    hidden = noise(1, height=300, width=280)[..., 0] > 100
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_geotiff(tmp_path / "b.tif", pixels)
        with rasterio.open(tmp_path / "b.tif", "r+") as target:
            target.write_mask(~hidden)
        options = {"overviews": "IGNORE_EXISTING", "blocksize": 128, "bigtiff": "YES"}
        rasterio.shutil.copy(tmp_path / "b.tif", tmp_path / "a.tif", driver="COG", **options)
    with rasterio.open(tmp_path / "a.tif") as source:
        assert source.overviews(1) and (source.dataset_mask() == 0).sum() == hidden.sum()
    check_missing(tmp_path / "a.tif", pixels, hidden)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_alpha_is_no_band_and_where_it_is_0_there_is_no_data(tmp_path, suffix):
    pixels = noise(4)
    pixels[..., 3] = np.where(SOME, 0, 255)
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", **options)
    check_missing(tmp_path / f"a{suffix}", pixels[..., :3], SOME)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", **options)
    read, missing = read_masked_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read, pixels[..., :3], strict=True)
    assert missing is None


def test_grey_with_alpha_stays_grey(tmp_path):
    pixels = np.dstack([noise(1)[..., 0], np.where(SOME, 0, 255).astype(np.uint8)])
    for suffix in (".png", ".tif"):
        Image.fromarray(pixels, "LA").save(tmp_path / f"a{suffix}")
        check_missing(tmp_path / f"a{suffix}", pixels[..., :1], SOME)


def test_near_infrared_that_gdal_calls_alpha_stays_a_band(tmp_path):
    path = write_geotiff(tmp_path / "a.tif", noise(4))
    with rasterio.open(path) as source:
        assert source.colorinterp[3].name == "alpha"
    np.testing.assert_array_equal(read_image(path), noise(4), strict=True)
    pixels = noise(4)
    pixels[..., 3] = np.where(SOME, 0, 255)  # as a band of one's own writing may be
    write_image(path, pixels)
    np.testing.assert_array_equal(read_image(path), pixels, strict=True)


def test_a_clear_colour_of_a_png_is_no_data(tmp_path):
    levels = noise(1) // 64
    Image.fromarray(levels[..., 0]).save(tmp_path / "l.png", transparency=2)
    check_missing(tmp_path / "l.png", levels, levels[..., 0] == 2)
    colors = np.uint8([[9, 8, 7], [1, 2, 3], [40, 50, 60], [250, 0, 9]])
    rgb = colors[levels[..., 0]]
    Image.fromarray(rgb).save(tmp_path / "c.png", transparency=(40, 50, 60))
    check_missing(tmp_path / "c.png", rgb, levels[..., 0] == 2)
    indexed = Image.fromarray(levels[..., 0]).convert("P")
    indexed.putpalette(colors.ravel().tolist())
    for clear in (2, b"\xff\xff\x00\x80"):
        indexed.save(tmp_path / "p.png", transparency=clear)
        check_missing(tmp_path / "p.png", rgb, levels[..., 0] == 2)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("float32", -9999), ("float32", -3.4028234663852886e38), ("float64", -3.4e38),
        ("float32", np.nan), ("int16", -9999), ("uint16", 65535), ("uint16", 0),
    ],
)  # fmt: skip
def test_nodata_in_any_band_is_no_data(tmp_path, dtype, nodata):
    pixels = noise(3, dtype)
    pixels[pixels == nodata] = 5
    pixels[..., 1][SOME] = nodata
    path = write_geotiff(tmp_path / "a.tif", pixels, nodata=nodata)
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(source.read_masks(2) == 0, SOME)
    check_missing(path, pixels.astype(np.float32) if dtype == "float64" else pixels, SOME)


def test_nodata_of_8_bits_is_meant_for_all_bands_together(tmp_path):
    pixels = noise(3)
    pixels[0, 0], pixels[0, 1] = (0, 0, 0), (0, 9, 0)
    missing = (pixels == 0).all(-1)
    assert missing.sum() == 1
    check_missing(write_geotiff(tmp_path / "a.tif", pixels, nodata=0), pixels, missing)


def test_floating_point_fillers_without_a_tag_are_no_data(tmp_path):
    pixels = noise(2, "float32")
    pixels[0, :4, 0] = np.nan, np.inf, -np.inf, -3.4e38
    missing = np.zeros((20, 31), bool)
    missing[0, :4] = True
    check_missing(write_geotiff(tmp_path / "a.tif", pixels), pixels, missing)
    pixels[:] = np.nan
    read, missing = read_masked_image(write_geotiff(tmp_path / "a.tif", pixels))
    assert missing.all() and (read == 0).all()


def test_a_nodata_value_that_the_type_cannot_hold_hides_nothing(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "b.tif", tiffinfo={42113: "-9999"})
    with Image.open(tmp_path / "b.tif") as stored:
        assert stored.tag_v2[42113] == "-9999"
    read, missing = read_masked_image(tmp_path / "b.tif")
    np.testing.assert_array_equal(read, noise(3))
    assert missing is None


@pytest.mark.parametrize("colors", [16, 256])
def test_a_tiff_with_a_colour_table_is_shown_as_the_same_png(tmp_path, colors):
    picture = Image.fromarray(noise()).quantize(colors)
    expected = np.asarray(picture.convert("RGB"))
    for suffix in (".png", ".tif", ".bmp"):
        picture.save(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), expected, strict=True)
    table = {n: (n, 255 - n, 7, 255) for n in range(256)}
    path = write_geotiff(tmp_path / "g.tif", noise(1))
    with rasterio.open(path, "r+") as target:
        target.write_colormap(1, table)
    shown = np.array([color[:3] for color in table.values()], np.uint8)[noise(1)[..., 0]]
    np.testing.assert_array_equal(read_image(path), shown, strict=True)


@pytest.mark.parametrize("nbits", [1, 8])
def test_min_is_white_is_turned_to_min_is_black(tmp_path, nbits):
    stored = noise(1) >> (8 - nbits)
    path = write_geotiff(tmp_path / "a.tif", stored, photometric="MINISWHITE", nbits=nbits)
    with Image.open(path) as picture:
        expected = np.asarray(picture.convert("L"))[..., None]
    np.testing.assert_array_equal(expected, 255 - stored * (255 // ((1 << nbits) - 1)))
    np.testing.assert_array_equal(read_image(path), expected, strict=True)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_is_shown_as_rgb(tmp_path, suffix):
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[...] = 255, 0, 0, 51  # cyan, and a fifth of black
    Image.fromarray(ink, "CMYK").save(
        tmp_path / f"a{suffix}", **{"quality": 100} if suffix == ".jpg" else {}
    )
    pixels = read_image(tmp_path / f"a{suffix}").astype(int)
    np.testing.assert_allclose(pixels, np.broadcast_to((0, 204, 204), (16, 16, 3)), atol=3)


def test_jpeg_in_a_tiff_is_shown_as_rgb(tmp_path):
    pixels = np.broadcast_to(np.uint8([200, 90, 30]), (32, 32, 3))
    path = write_geotiff(tmp_path / "a.tif", pixels)
    profile = {"photometric": "YCBCR", "tiled": True, "blockxsize": 16, "blockysize": 16}
    rasterio.shutil.copy(path, tmp_path / "b.tif", driver="GTiff", compress="jpeg", **profile)
    np.testing.assert_allclose(read_image(tmp_path / "b.tif").astype(int), pixels, atol=6)


def test_bigtiffs_and_other_byte_orders_are_read(tmp_path):
    for name, profile in {"big": {"bigtiff": "YES"}, "order": {"endianness": "BIG"}}.items():
        path = write_geotiff(tmp_path / f"{name}.tif", noise(5, "int16"), **profile)
        np.testing.assert_array_equal(read_image(path), noise(5, "int16"), strict=True)
    assert (tmp_path / "big.tif").read_bytes()[2] == 43


def test_complex_numbers_are_refused(tmp_path):
    path = write_geotiff(tmp_path / "a.tif", noise(1, "float32").astype(np.complex64))
    with pytest.raises(UnreadableError, match=r"a\.tif holds complex numbers"):
        read_image(path)


def test_a_picture_too_large_for_training_is_to_be_cut(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", noise())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableError, match=r"a\.png is too large .*620 pixels.*tile\.py"):
        read_image(tmp_path / "a.png")


def test_what_tiff_tags_say_is_read_within_bounds(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(noise()).save(buffer, "TIFF")
    for start in (b"II*\0\xff\xff\xff\xff", b"II+\0\x08\0\0\0" + b"\xff" * 8, b"II*\0\x04\0\0"):
        (tmp_path / "a.tif").write_bytes(start + buffer.getvalue()[len(start) :])
        with pytest.raises(UnreadableError, match=re.escape(str(tmp_path / "a.tif"))):
            read_image(tmp_path / "a.tif")
