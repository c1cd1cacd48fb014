"""Image files, each opened as the one format that its ending names, within bounds of its size."""

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import rasterio
from PIL import Image, UnidentifiedImageError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geoseg_gan.utils.device import free_memory
from geoseg_gan.utils.errors import UserError

_FORMATS = {
    **{".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"},
    **{".bmp": "BMP", ".webp": "WEBP"},
}
IMAGE_SUFFIXES = tuple(_FORMATS)
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")
MAX_PIXELS = 2**30
"""Pixels of the largest image that is read, such as 32,768 x 32,768."""

ORIENTATION = 274
"""The number of the tag of how an image is turned, in EXIF and TIFF; 1 is upright."""

# No other files beside a GeoTIFF, which could be of any format and lead anywhere.
ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}

_MAX_SIDE = 2**17  # pixels: more is no image, but an attack on the time that reading takes
_MAX_BANDS = 2048  # GDAL's time grows with their square
_MAX_SCANS = 200  # of a JPEG: each costs as much time as the whole image, but a few bytes
_FILTERS = threading.Lock()
_SMALL = 2**26  # bytes that are taken without asking how much memory is free
_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
    b"BM": "BMP",
    b"RIFF": "WEBP",
    b"GIF8": "GIF",
    b"%!PS": "PostScript",
    b"%PDF": "PDF",
    b"<VRT": "VRT",
    b"<": "XML or HTML",
}


class UnreadableError(UserError):
    """A file that does not decode as what its name says.

    Attributes:
        errno: The system's number of the error where the file could not be read at all, else None.
    """

    errno: int | None = None


@contextmanager
def opened(
    path: Path, content: bytes | None = None, as_bands: bool = False, by_rows: bool = False
) -> Iterator[Any]:
    """Opens an image as the one format that its ending names, within bounds of its size.

    Pillow opens it, or rasterio a TIFF `as_bands`; one that is read `by_rows` may be of any size.
    What fails in the block is an UnreadableError.
    """
    kind = _FORMATS[path.suffix.lower()]
    try:
        with _open_file(path) if content is None else io.BytesIO(content) as file:
            begin = file.read(12)
            names = [name for start, name in _BEGINNINGS.items() if begin.startswith(start)]
            if not begin:
                raise ValueError("the file is empty")
            if kind not in names:
                like = names[0] if names else repr(begin)[1:]
                raise UnreadableError(
                    f"{path} is not a {kind} file (it begins like {like}). Rename or convert it."
                )
            file.seek(0)
            if as_bands:
                _check_upright(path, file)
                place = Path(os.path.abspath(path)) if content is None else file  # noqa: PTH100
                with rasterio.Env(**ALONE), open_tiff(place) as source:
                    if source.count > _MAX_BANDS:
                        raise ValueError(f"{source.count} bands, where {_MAX_BANDS} are the limit")
                    values = sum(np.dtype(name).itemsize for name in source.dtypes)
                    if not by_rows:
                        check_size(path, source.height, source.width, 2 * values)
                    if pages := len(source.subdatasets):
                        raise UnreadableError(
                            f"{path} has {pages} pages, of which all but one would be lost. Save "
                            "each as a file of its own, or all as bands of one page."
                        )
                    yield source
                return
            if kind == "JPEG":
                file = io.BytesIO(data := file.read())
                if (scans := data.count(b"\xff\xda")) > _MAX_SCANS:
                    raise ValueError(f"{scans} scans, where {_MAX_SCANS} are the limit")
            with Image.open(file, formats=[kind]) as picture:
                # The second frame of a JPEG is a preview, as cameras write it.
                frames = 1 if kind == "JPEG" else getattr(picture, "n_frames", 1)
                if frames > 1:
                    raise UnreadableError(
                        f"{path} has {frames} frames, of which all but one would be lost. Save "
                        "each as a file of its own."
                    )
                # Pillow keeps 4 bytes a pixel, and up to as many are made of them.
                check_size(path, picture.height, picture.width, 8)
                yield picture
    except Image.DecompressionBombError as error:
        raise UnreadableError(
            f"{path} is too large to train on. {error} Cut it with scripts/tile.py."
        ) from None
    except (
        *(RasterioError, OSError, ValueError, SyntaxError, MemoryError),
        *(struct.error, zlib.error),
    ) as error:
        raise _unreadable(path, error, content is None) from None


def _check_upright(path: Path, file: BinaryIO) -> None:
    """Refuses a TIFF that is to be shown turned: GDAL does not say so, and GIS show it as stored.

    The file is read from its beginning, and stands there again afterwards.
    """
    order = "<" if file.read(2) == b"II" else ">"
    is_big = struct.unpack(f"{order}H", file.read(2))[0] == 43
    head, counter, entry, value_at = ("4xQ", "Q", 20, 12) if is_big else ("I", "H", 12, 8)

    def take(layout: str) -> int:
        size = struct.calcsize(f"{order}{layout}")
        return int(struct.unpack(f"{order}{layout}", file.read(size))[0])

    file.seek(min(take(head), 2**62))
    entries = file.read(entry * min(take(counter), 1 << 12))
    file.seek(0)
    for start in range(0, len(entries) - entry + 1, entry):
        if struct.unpack_from(f"{order}H", entries, start)[0] == ORIENTATION:
            turned = struct.unpack_from(f"{order}H", entries, start + value_at)[0]
            if 2 <= turned <= 8:
                raise UnreadableError(
                    f"{path} is stored turned or mirrored (tag Orientation is {turned}), which "
                    "programs show differently. Save it upright, as its mask is."
                )


def _open_file(path: Path) -> BinaryIO:
    """Opens a file for reading; what is no file, such as a pipe, would never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(EISDIR, "it is not a file", str(path))
    return os.fdopen(handle, "rb")


def _unreadable(path: Path, error: Exception, is_file: bool) -> UnreadableError:
    number, why = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    if isinstance(error, UnidentifiedImageError):
        why = "the file is damaged"
    if is_file and number is None:  # GDAL does not tell a disk that fails from a file that is cut
        try:
            with _open_file(path) as file:
                while file.read(2**20):
                    pass
        except OSError as lost:
            number, why = lost.errno, lost.strerror
    wrong = UnreadableError(
        f"{path}: does not decode ({why}). Export it again or leave it out."
        if number is None
        else f"{path} cannot be read: {why}. Bring it back or leave it out."
    )
    wrong.errno = number
    return wrong


def check_size(path: Path | str, height: int, width: int, per_pixel: int) -> None:
    """Refuses an image of too many pixels, or of more than fit into memory."""
    size, needed = f"{path} has {width:,} x {height:,} pixels", height * width * per_pixel
    if height * width > MAX_PIXELS or max(height, width) > _MAX_SIDE:
        most = f"{MAX_PIXELS:,} in all and {_MAX_SIDE:,} a side"
        raise UnreadableError(f"{size}, but the limits are {most}. Cut it into smaller images.")
    if needed > _SMALL and needed > 0.8 * free_memory():
        free = f"{free_memory() / 2**30:.1f} GiB are free"
        raise UnreadableError(
            f"{size}, for which reading needs {needed / 2**30:.1f} GiB of memory, but {free}. Cut "
            "it into smaller images, or use a machine with more memory."
        )


def open_tiff(path: Path | BinaryIO | str, mode: str = "r", **profile: Any) -> Any:
    """Opens with rasterio, without its warning about images that are not georeferenced."""
    with without_place():
        return rasterio.open(path, mode, **{"driver": "GTiff", **profile})


@contextmanager
def without_place() -> Iterator[None]:
    """Within it rasterio does not warn of what is not georeferenced, in one thread at a time.

    What of rasterio works on arrays in memory belongs into it as well: it changes the filters of
    warnings, too, which are those of the whole process, so that threads restore each other's.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
