import errno
import io
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from rasters import noise, write_geotiff

from geoseg_gan.data import image_files as module
from geoseg_gan.data.image_files import UnreadableError
from geoseg_gan.data.images import picture_size, read_image, write_image
from geoseg_gan.data.masks import MaskReader


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp", ".webp"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_image(path, noise(3, height=64, width=64))
    content = path.read_bytes()
    message = f"{re.escape(str(path))}: does not decode .*Export it again or leave it out"
    for share in (0.0, 0.02, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UnreadableError, match=message):
            read_image(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tif", b"<VRTDataset/>", "is not a TIFF file (it begins like VRT). Rename or convert"),
        ("a.tif", b"<GDAL_WMS/>", "is not a TIFF file (it begins like XML or HTML)"),
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0", "is not a PNG file (it begins like PostScript)"),
        ("a.jpg", b"\x89PNG\r\n\x1a\n", "is not a JPEG file (it begins like PNG)"),
        ("a.bmp", b"GIF89a", "is not a BMP file (it begins like GIF)"),
        ("a.webp", b"hello", "is not a WEBP file (it begins like 'hello')"),
    ],
)
@pytest.mark.parametrize("as_content", [False, True])
def test_only_the_format_that_the_ending_names_is_opened(
    tmp_path, palette, name, content, message, as_content
):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_image, MaskReader(palette).read, MaskReader(palette, "index").read):
        with pytest.raises(UnreadableError, match=re.escape(f"{path} {message}")):
            read(path, content if as_content else None)


def test_a_geotiff_is_read_without_the_files_beside_it(tmp_path):
    path = write_geotiff(tmp_path / "a.tif", noise())
    for ending in (".aux.xml", ".ovr", ".msk"):
        os.mkfifo(f"{path}{ending}")  # whoever opened one of them would wait forever
    np.testing.assert_array_equal(read_image(path), noise())


def claimed(path, width, height, bands=1):
    """Writes a TIFF of a few kB that says it is as large."""
    profile = {"sparse_ok": True, "tiled": True, "dtype": "uint8"}
    with module.open_tiff(path, "w", width=width, height=height, count=bands, **profile):
        return path


def test_sizes_are_bounded_before_pixels_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda: 10**9)
    for size, message in (
        ((2**17, 2**14), r"has 131,072 x 16,384 pixels, but the limits are 1,073,741,824 in all"),
        ((2**18, 16), r"has 262,144 x 16 pixels, but the limits are .* 131,072 a side"),
        ((2**15, 2**15), r"reading needs 2.0 GiB of memory, but 0.9 GiB are free"),
        ((1, 1, 3000), "3000 bands, where 2048 are the limit"),
    ):
        with pytest.raises(UnreadableError, match=message):
            read_image(claimed(tmp_path / "a.tif", *size))
    assert picture_size(claimed(tmp_path / "a.tif", 2**17, 2**14)) == (2**14, 2**17)
    Image.fromarray(noise()).save(tmp_path / "a.jpg", progressive=True)
    content = (tmp_path / "a.jpg").read_bytes()
    last_scan = content[content.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(content[:-2] + 300 * last_scan + content[-2:])
    with pytest.raises(UnreadableError, match="scans, where 200 are the limit"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UnreadableError, match="cannot be read: it is not a file"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_a_disk_that_fails_midway_is_told_from_a_file_that_is_cut(tmp_path, name, monkeypatch):
    write_image(tmp_path / name, noise(height=64, width=64))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableError, match="does not decode") as cut:
        read_image(tmp_path / name)
    assert cut.value.errno is None

    class Failing(io.FileIO):
        def read(self, size=-1):
            if 0 <= size <= 12:
                return super().read(size)
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module.os, "fdopen", lambda handle, mode: Failing(handle, mode))
    with pytest.raises(UnreadableError, match="cannot be read: Input/output error") as lost:
        read_image(tmp_path / name)
    assert lost.value.errno == errno.EIO


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_what_is_not_there_or_is_a_folder_is_named(tmp_path, name):
    with pytest.raises(UnreadableError, match=name):
        read_image(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(UnreadableError, match=name):
        read_image(tmp_path / name)


def test_threads_that_read_pictures_without_a_place_hear_no_warning(tmp_path):
    write_image(tmp_path / "a.tif", noise())
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(read_image, [tmp_path / "a.tif"] * 200))
    assert all(np.array_equal(pixels, noise()) for pixels in read)
