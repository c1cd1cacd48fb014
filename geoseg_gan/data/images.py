"""Reading and writing of images and masks."""

import io
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geoseg_gan.data.palette import IGNORE, Palette, UnknownColorError, UnknownPolicy
from geoseg_gan.data.settings import DataSettings, MaskFormat
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
_TIFF = (".tif", ".tiff")
_FILTERS = threading.Lock()
_KEPT_DTYPES = (np.uint8, np.uint16, np.int16, np.float32)


class UnreadableError(UserError):
    """A file that does not decode as what its name says."""


def read_image(path: Path, content: bytes | None = None) -> npt.NDArray[Any]:
    """Reads an image with all its bands in its stored dtype.

    Args:
        path: A picture (8-bit, shown as RGB) or a GeoTIFF of any number of bands.
        content: The file's content where it is known; no file is read then.

    Returns:
        Array of shape (H, W, K) in uint8, uint16, int16 or float32 (what other types become).

    Raises:
        UnreadableError: If the file does not decode.
    """
    pixels = (
        _read_tiff(path, content)
        if path.suffix.lower() in _TIFF
        else _read_picture(path, content, keep=("L", "I;16", "RGB"))
    )
    return pixels if pixels.dtype in _KEPT_DTYPES else pixels.astype(np.float32)


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


def _read_picture(path: Path, content: bytes | None, keep: tuple[str, ...]) -> npt.NDArray[Any]:
    """Decodes with Pillow; modes not named in `keep` become RGB."""
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as picture:
            pixels = np.asarray(picture if picture.mode in keep else picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableError(
            f"{path}: does not decode ({error}). Export it again or remove the pair."
        ) from None
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _read_tiff(path: Path, content: bytes | None) -> npt.NDArray[Any]:
    try:
        with _open_tiff(path if content is None else io.BytesIO(content)) as source:
            bands = source.read()
    except RasterioError as error:
        raise UnreadableError(
            f"{path}: does not decode ({error}). Export it again or remove the pair."
        ) from None
    # Copied because OpenCV would copy the whole frame each time it takes a crop from it.
    return np.ascontiguousarray(np.moveaxis(bands, 0, -1))


def _write_tiff(path: Path, pixels: npt.NDArray[Any]) -> None:
    height, width, bands = pixels.shape
    profile = {"driver": "GTiff", "compress": "deflate", "dtype": pixels.dtype}
    with _open_tiff(path, "w", height=height, width=width, count=bands, **profile) as target:
        target.write(np.moveaxis(pixels, -1, 0))


def _open_tiff(path: Path | io.BytesIO, mode: str = "r", **profile: Any) -> Any:
    """Opens with rasterio, without its warning about images that are not georeferenced."""
    # Warning filters belong to the whole process: without the lock, threads restore each other's.
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, mode, **profile)


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
