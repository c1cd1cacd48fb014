"""Reading and writing of images and masks."""

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EISDIR
from pathlib import Path
from typing import Any, BinaryIO, cast

import cv2
import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image, UnidentifiedImageError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geoseg_gan.data.palette import IGNORE, Palette, UnknownColorError, UnknownPolicy
from geoseg_gan.data.settings import DataSettings, MaskFormat
from geoseg_gan.utils.device import free_memory
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path

_FORMATS = {
    **{".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"},
    **{".bmp": "BMP", ".webp": "WEBP"},
}
IMAGE_SUFFIXES = tuple(_FORMATS)
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
MAX_PIXELS = 2**30
"""Pixels of the largest image that is read, such as 32,768 x 32,768."""

DTYPES = ("uint8", "uint16", "int16", "float32")
"""NumPy's names of the types that images are kept in; others become float32."""

_MAX_SIDE = 2**17  # pixels: more is no image, but an attack on the time that reading takes
_MAX_BANDS = 2048  # GDAL's time grows with their square
_MAX_SCANS = 200  # of a JPEG: each costs as much time as the whole image, but a few bytes
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
_TIFF = (".tif", ".tiff")
_FILTERS = threading.Lock()
_SMALL = 2**26  # bytes that are taken without asking how much memory is free
# No other files beside a GeoTIFF, which could be of any format and lead anywhere.
_ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}


class UnreadableError(UserError):
    """A file that does not decode as what its name says.

    Attributes:
        errno: The system's number of the error where the file could not be read at all, else None.
    """

    errno: int | None = None


def read_image(path: Path, content: bytes | None = None) -> npt.NDArray[Any]:
    """Reads an image with all its bands in its stored dtype.

    Args:
        path: A picture (8-bit, shown as RGB) or a GeoTIFF of any number of bands.
        content: The file's content where it is known; no file is read then.

    Returns:
        Array of shape (H, W, K) in uint8, uint16, int16 or float32 (what other types become).

    Raises:
        UnreadableError: If the file does not decode as the format that its ending names, or is too
            large for this machine's memory.
    """
    pixels = (
        _read_tiff(path, content)
        if path.suffix.lower() in _TIFF
        else _read_picture(path, content, keep=("L", "I;16", "RGB"))
    )
    return pixels if str(pixels.dtype) in DTYPES else pixels.astype(np.float32)


def write_image(path: Path, pixels: npt.NDArray[Any], quality: int = 95) -> None:
    """Writes an image whole or not at all, in the format its ending names.

    Args:
        path: Ending in .jpg, .png or .tif.
        pixels: Shape (H, W, K). JPEG and PNG take uint8 with 1 or 3 bands, TIFF takes all.
        quality: JPEG quality; colours are kept at full resolution (4:4:4), since a network can
            learn compression artefacts.
    """
    with atomic_path(path) as scratch:
        if path.suffix.lower() in _TIFF:
            _write_tiff(scratch, pixels)
            return
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        if path.suffix.lower() in (".jpg", ".jpeg"):
            picture.save(scratch, quality=quality, subsampling=0)
        else:
            picture.save(scratch)


@dataclass(frozen=True)
class MaskReader:
    """Turns mask files into label maps and back.

    Attributes:
        palette: Classes and colours.
        mask_format: "rgb" for colours of the palette, "index" for one channel of class IDs (255 is
            ignore; a palette-mode PNG holds IDs as its indices).
        unknown: How colours or IDs outside the palette are treated.
    """

    palette: Palette
    mask_format: MaskFormat = "rgb"
    unknown: UnknownPolicy = "error"

    def to_dict(self) -> dict[str, Any]:
        """What decides how masks become label maps, as plain types."""
        return {
            "palette": self.palette.to_dict(),
            "mask_format": self.mask_format,
            "unknown": self.unknown,
        }

    def read(self, path: Path, content: bytes | None = None) -> tuple[npt.NDArray[np.uint8], int]:
        """Reads a mask, from the file's content where it is given, as a label map.

        Returns:
            Label map of shape (H, W), uint8, and the number of pixels of unknown colour.

        Raises:
            UnreadableError: If the file does not decode.
            UnknownColorError: If a colour or ID is unknown and the policy is "error".
        """
        try:
            if self.mask_format == "index":
                return self._check_ids(self._read_index(path, content))
            is_tiff = path.suffix.lower() in _TIFF
            if is_tiff and (pixels := _read_tiff(path, content)).shape[-1] >= 3:
                if pixels.dtype != np.uint8:
                    raise UnreadableError(
                        f"{path}: holds {pixels.dtype} values, but coloured masks are 8-bit. "
                        "Convert it to 8-bit RGB."
                    )
                # Copied because the colour look-up needs three contiguous bands.
                rgb = np.ascontiguousarray(pixels[..., :3])
            else:
                rgb = _read_picture(path, content, keep=("RGB",))
            _check_size(path, rgb.shape[0], rgb.shape[1], 16)
            return self.palette.encode(rgb, self.unknown)
        except UnknownColorError as error:
            raise UnknownColorError(f"{path}: {error}") from None

    def write(self, path: Path, label: npt.NDArray[np.uint8]) -> None:
        """Writes a label map as PNG, so that `read` gives it back exactly.

        Index masks are written in palette mode: IDs to a program, colours to the eye.
        """
        if self.mask_format == "index":
            picture = Image.fromarray(label).convert("P")
            picture.putpalette(self.palette.color_table.ravel().tolist())
        else:
            picture = Image.fromarray(self.palette.decode(label))
        with atomic_path(path) as scratch:
            picture.save(scratch)

    def _read_index(self, path: Path, content: bytes | None) -> npt.NDArray[Any]:
        pixels = (
            _read_tiff(path, content)
            if path.suffix.lower() in _TIFF
            else _read_picture(path, content, keep=("1", "L", "P", "I", "I;16"))
        )
        if pixels.ndim == 3 and pixels.shape[-1] > 1:
            raise UnreadableError(
                f"{path}: has {pixels.shape[-1]} channels, but data.mask_format=index expects one "
                "channel of class IDs. Use data.mask_format=rgb for coloured masks."
            )
        return pixels.reshape(pixels.shape[:2])

    def _check_ids(self, ids: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], int]:
        # Spelt so that NaN, which compares false with everything, is unknown too.
        unlisted = ~(((ids >= 0) & (ids < self.palette.num_classes)) | (ids == IGNORE))
        if np.issubdtype(ids.dtype, np.floating):
            unlisted |= ids != np.floor(ids)
        count = int(np.count_nonzero(unlisted))
        if count and self.unknown == "error":
            values, pixels = np.unique(ids[unlisted], return_counts=True)
            raise UnknownColorError(
                f"class ID {values[pixels.argmax()]} in {pixels.max()} pixels, but the palette has "
                f"IDs 0 to {self.palette.num_classes - 1} (and 255 for ignore). Correct "
                "data.palette, or set data.unknown=ignore."
            )
        label = np.where(unlisted, IGNORE, ids).astype(np.uint8)
        return label, count


def mask_reader(settings: DataSettings) -> MaskReader:
    """The mask reader that data settings describe."""
    return MaskReader(
        settings.classes(),
        cast(MaskFormat, settings.mask_format),
        cast(UnknownPolicy, settings.unknown),
    )


def count_pixels(path: Path) -> int:
    """How many pixels an image has, by its first bytes; an UnreadableError as of `read_image`."""
    with _opened(path, None, path.suffix.lower() in _TIFF) as source:
        return int(source.height * source.width)


def _read_picture(path: Path, content: bytes | None, keep: tuple[str, ...]) -> npt.NDArray[Any]:
    """Decodes with Pillow; modes not named in `keep` become RGB."""
    with _opened(path, content) as picture:
        pixels = np.asarray(picture if picture.mode in keep else picture.convert("RGB"))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _read_tiff(path: Path, content: bytes | None) -> npt.NDArray[Any]:
    with _opened(path, content, as_bands=True) as source:
        bands = source.read()
    # Copied because OpenCV would copy the whole frame each time it takes a crop from it.
    return np.ascontiguousarray(np.moveaxis(bands, 0, -1))


def _write_tiff(path: Path, pixels: npt.NDArray[Any]) -> None:
    height, width, bands = pixels.shape
    profile = {"compress": "deflate", "dtype": pixels.dtype}
    with _open_tiff(path, "w", height=height, width=width, count=bands, **profile) as target:
        target.write(np.moveaxis(pixels, -1, 0))


@contextmanager
def _opened(path: Path, content: bytes | None, as_bands: bool = False) -> Iterator[Any]:
    """Opens an image as the one format that its ending names, within bounds of its size.

    Pillow opens it, or rasterio a TIFF `as_bands`. What fails in the block is an UnreadableError.
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
                place = Path(os.path.abspath(path)) if content is None else file  # noqa: PTH100
                with rasterio.Env(**_ALONE), _open_tiff(place) as source:
                    if source.count > _MAX_BANDS:
                        raise ValueError(f"{source.count} bands, where {_MAX_BANDS} are the limit")
                    values = sum(np.dtype(name).itemsize for name in source.dtypes)
                    _check_size(path, source.height, source.width, 2 * values)
                    yield source
                return
            if kind == "JPEG":
                file = io.BytesIO(data := file.read())
                if (scans := data.count(b"\xff\xda")) > _MAX_SCANS:
                    raise ValueError(f"{scans} scans, where {_MAX_SCANS} are the limit")
            with Image.open(file, formats=[kind]) as picture:
                # Pillow keeps 4 bytes a pixel, and up to as many are made of them.
                _check_size(path, picture.height, picture.width, 8)
                yield picture
    except (
        *(RasterioError, OSError, ValueError, SyntaxError, MemoryError),
        *(struct.error, zlib.error, Image.DecompressionBombError),
    ) as error:
        raise _unreadable(path, error, content is None) from None


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
        f"{path}: does not decode ({why}). Export it again or remove the pair."
        if number is None
        else f"{path} cannot be read: {why}. Bring it back or remove the pair."
    )
    wrong.errno = number
    return wrong


def _check_size(path: Path, height: int, width: int, per_pixel: int) -> None:
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


def _open_tiff(path: Path | BinaryIO, mode: str = "r", **profile: Any) -> Any:
    """Opens with rasterio, without its warning about images that are not georeferenced."""
    # Warning filters belong to the whole process: without the lock, threads restore each other's.
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, mode, **{"driver": "GTiff", **profile})


def resize_image(pixels: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Resizes (H, W, K) to (size, size, K): area averages to shrink, cubic to enlarge."""
    shrinking = min(pixels.shape[:2]) >= size
    method = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    parts = [
        cv2.resize(pixels[..., k : k + 4], (size, size), interpolation=method)
        # OpenCV averages the areas of at most four bands at a time.
        for k in range(0, pixels.shape[-1], 4)
    ]
    return np.concatenate([part.reshape(size, size, -1) for part in parts], axis=-1)


def resize_label(label: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Resizes (H, W) to (size, size) by nearest neighbour, so that no new class appears."""
    resized = cv2.resize(label, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(np.uint8, copy=False)
