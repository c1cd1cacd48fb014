"""Images: what files hold as arrays, reading, writing and resizing."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from geoseg_gan.data.image_files import (
    ALONE,
    ORIENTATION,
    TIFF_SUFFIXES,
    UnreadableError,
    check_size,
    open_tiff,
    opened,
)
from geoseg_gan.utils.files import atomic_path

DTYPES = ("uint8", "uint16", "int16", "float32")
"""NumPy's names of the types that images are kept in; others become float32."""

_MERGED = 512  # bands that OpenCV takes
_TURNS: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}
"""What makes an image upright, by the EXIF tag Orientation; 1 is upright."""

_ASIDE = (5, 6, 7, 8)  # orientations of images that lie on their side
_BINARY = [[0, 0, 0], [255, 255, 255]]  # the colour table of two grey levels
_CLEAR = 0.02  # share of full opacity by which alpha may be off
_NO_NUMBER = 1e30  # floating-point values of this size are fillers, such as -3.4e38


class Rows(NamedTuple):
    """Some rows of a TIFF.

    Attributes:
        first: The first one.
        last: The one behind the last one.
        opaque: Of the whole file, what `opaque_value` says of a band that is tagged as alpha.
    """

    first: int
    last: int
    opaque: float | None


class Stored(NamedTuple):
    """What a file holds, upright; alpha is no band.

    Attributes:
        path: The file.
        values: Shape (H, W, K), as stored: indices where there is a colour table.
        table: RGB colours of the indices, shape (N, 3), uint8; None without a colour table.
        step: What one grey level counts where pixels have fewer than 8 bits, else 1.
        transparent: Where alpha is 0, shape (H, W); None for nowhere.
        hidden: What the file's own mask hides, shape (H, W); None for nothing.
        nodata: The nodata value of each band, perhaps None; empty for none at all.
        unsaid: A value that means no data, but of which the file says nothing; None for none.
    """

    path: Path
    values: npt.NDArray[Any]
    table: npt.NDArray[np.uint8] | None = None
    step: int = 1
    transparent: npt.NDArray[np.bool_] | None = None
    hidden: npt.NDArray[np.bool_] | None = None
    nodata: tuple[float | None, ...] = ()
    unsaid: float | None = None

    def shown(self) -> npt.NDArray[Any]:
        """The pixels as an image, with colours in place of indices."""
        if self.table is not None:
            return self.table.take(self.values[..., 0], axis=0)
        return self.values if self.step == 1 else self.values * np.uint8(self.step)

    def missing(self) -> npt.NDArray[np.bool_] | None:
        """Where an image has no data; None where it has everywhere."""
        found = [part for part in (self.transparent, self.hidden) if part is not None]
        planes = [self.is_nodata(band) for band in range(self.values.shape[2])]
        if known := [plane for plane in planes if plane is not None]:
            # Of 8-bit images, black or white may well be a value of a single band.
            merge = np.logical_and if self.values.dtype == np.uint8 else np.logical_or
            found.append(merge.reduce(known))
        if np.issubdtype(self.values.dtype, np.floating):
            # Most images are plain: their extremes, which NaN would be, tell so at once.
            extremes = float(self.values.min()), float(self.values.max())
            if not -_NO_NUMBER < extremes[0] <= extremes[1] < _NO_NUMBER:
                found.append(~(np.abs(self.values) < _NO_NUMBER).all(-1))
        if not found:
            return None
        missing: npt.NDArray[np.bool_] = np.logical_or.reduce(found)
        return missing if missing.any() else None

    def image(
        self, mean: Callable[[], npt.NDArray[np.float64]]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
        """What `read_masked_image` gives; `mean` is asked for what fills pixels without data."""
        pixels, missing = self.shown(), self.missing()
        if missing is not None:
            fill = np.rint(mean()) if np.issubdtype(pixels.dtype, np.integer) else mean()
            pixels = pixels.copy()
            pixels[missing] = fill.astype(pixels.dtype)
        return pixels if str(pixels.dtype) in DTYPES else pixels.astype(np.float32), missing

    def is_nodata(self, band: int) -> npt.NDArray[np.bool_] | None:
        """Where a band has a nodata value, shape (H, W); None where it has no such value."""
        said = self.nodata[band] if self.nodata else None
        planes = [_equal(self.values[..., band], v) for v in (said, self.unsaid) if v is not None]
        found: npt.NDArray[np.bool_] | None = np.logical_or.reduce(planes) if planes else None
        return found


def _equal(values: npt.NDArray[Any], nodata: float) -> npt.NDArray[np.bool_]:
    """Where values are nodata, which files of floating point keep in their own precision."""
    equal: npt.NDArray[np.bool_]
    if np.isnan(nodata):
        equal = np.isnan(values)
    elif np.issubdtype(values.dtype, np.floating):
        with np.errstate(over="ignore"):
            equal = np.equal(values, np.float64(nodata).astype(values.dtype))
    else:
        is_whole = abs(nodata) < 2**62 and nodata == int(nodata)
        equal = np.equal(values, int(nodata) if is_whole else nodata)
    return equal


def mean_of(parts: Iterable[Stored]) -> npt.NDArray[np.float64]:
    """The mean of each band (K,) of an image in parts, over its pixels that have data; else 0."""
    total, count = np.zeros(()), 0
    for part in parts:
        pixels, missing = part.shown(), part.missing()
        seen = pixels.reshape(-1, pixels.shape[2]) if missing is None else pixels[~missing]
        total, count = total + seen.sum(0, np.float64), count + len(seen)
    return total / max(1, count)


def read_image(path: Path, content: bytes | None = None) -> npt.NDArray[Any]:
    """Reads an image with all its bands in its stored dtype, upright.

    Args:
        path: A picture (8 or 16 bits, colour tables shown as RGB) or a GeoTIFF of any bands.
        content: The file's content where it is known; no file is read then.

    Returns:
        Array of shape (H, W, K) in uint8, uint16, int16 or float32 (what other types become).
        Alpha is no band; pixels without data are as `read_masked_image` fills them.

    Raises:
        UnreadableError: If the file does not decode as the format that its ending names, says
            something of itself that cannot be honoured, or is too large for this machine's memory.
    """
    return read_masked_image(path, content)[0]


def read_masked_image(
    path: Path, content: bytes | None = None, nodata: float | None = None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """Reads an image as `read_image` does, and which pixels have no data.

    Those are pixels of alpha 0, outside the file's internal mask, of its nodata value or `nodata`
    (in all bands of 8-bit images, where black may be nodata and shadow, else in any band), NaN or
    infinite. They are given the mean of the others: resampling mixes them with their neighbours,
    networks need finite numbers, and a value far from the others would be an edge to learn.

    Returns:
        The pixels, and a map of shape (H, W), true where there is no data; None where there is
        everywhere.
    """
    stored = read_stored(path, content, nodata=nodata)
    return stored.image(lambda: mean_of([stored]))


def write_image(path: Path, pixels: npt.NDArray[Any], quality: int = 95) -> None:
    """Writes an image whole or not at all, in the format its ending names.

    Args:
        path: Ending in .jpg, .png or .tif.
        pixels: Shape (H, W, K). JPEG and PNG take uint8 with 1 or 3 bands, TIFF takes all.
        quality: JPEG quality; colours are kept at full resolution (4:4:4), since a network can
            learn compression artefacts.
    """
    with atomic_path(path) as scratch:
        if path.suffix.lower() in TIFF_SUFFIXES:
            _write_tiff(scratch, pixels)
            return
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        if path.suffix.lower() in (".jpg", ".jpeg"):
            picture.save(scratch, quality=quality, subsampling=0)
        else:
            picture.save(scratch)


class Head(NamedTuple):
    """What the head of an image says: its size when upright, and how it is stored.

    Images that are stored in the same way have equally many bands of the same type, unless one of
    these is transparency by its values.
    """

    height: int
    width: int
    storage: str


def picture_head(path: Path) -> Head:
    """Reads the head of an image; an UnreadableError as of `read_image`."""
    is_tiff = path.suffix.lower() in TIFF_SUFFIXES  # which are refused if they are turned
    with opened(path, None, is_tiff, by_rows=True) as source:
        height, width = int(source.height), int(source.width)
        if is_tiff:
            return Head(height, width, f"{source.dtypes} {source.colorinterp}")
        storage = f"{source.format} {source.mode} {[part[3] for part in source.tile]}"
        is_aside = source.getexif().get(ORIENTATION, 1) in _ASIDE
    return Head(width, height, storage) if is_aside else Head(height, width, storage)


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of an upright image, by its head; an UnreadableError as of `read_image`."""
    return picture_head(path)[:2]


def read_stored(
    path: Path,
    content: bytes | None = None,
    rows: Rows | None = None,
    nodata: float | None = None,
) -> Stored:
    """Reads what a file holds as it is stored; an UnreadableError as of `read_image`."""
    is_tiff = path.suffix.lower() in TIFF_SUFFIXES
    stored = _read_tiff(path, content, rows) if is_tiff else _read_picture(path, content)
    return stored._replace(unsaid=nodata)


def _read_picture(path: Path, content: bytes | None) -> Stored:
    """Decodes with Pillow, or with GDAL the PNGs that Pillow would cut to 8 bits."""
    table, step, alpha = None, 1, None
    with opened(path, content) as picture:
        raw = str(picture.tile[0][3]) if picture.format == "PNG" else ""
        if raw in ("RGB;16B", "LA;16B", "RGBA;16B"):
            values = _read_deep_png(path, picture)
            if raw != "RGB;16B":
                values, alpha = values[..., :-1], values[..., -1]
        else:
            clear = picture.info.get("transparency")
            known = ("1", "L", "P", "LA", "RGB", "RGBA", "I", "I;16", "I;16B")
            shown = picture if picture.mode in known else picture.convert("RGB")
            values = np.asarray(shown)
            values = values if values.ndim == 3 else values[..., None]
            if shown.mode == "P":
                table = np.zeros((256, 3), np.uint8)
                colors = np.array(shown.getpalette("RGB"), np.uint8).reshape(-1, 3)
                table[: len(colors)] = colors
            elif shown.mode == "1":
                values, step = np.asarray(shown.convert("L"))[..., None] & np.uint8(1), 255
            elif raw in ("L;2", "L;4"):  # which Pillow shows as 8 bits
                step = {"L;2": 85, "L;4": 17}[raw]
                values = values // np.uint8(step)
            elif shown.mode in ("LA", "RGBA"):
                values, alpha = values[..., :-1], values[..., -1]
            if clear is not None and shown.mode in ("1", "L", "P", "RGB"):
                alpha = _opacity(values, clear)
        turn = _TURNS.get(picture.getexif().get(ORIENTATION, 1))
    transparent = None if alpha is None or alpha.all() else alpha == 0
    if turn is not None:
        values = np.ascontiguousarray(turn(values))
        transparent = None if transparent is None else turn(transparent)
    return Stored(path, values, table, step, transparent)


def _opacity(
    values: npt.NDArray[Any], clear: bytes | int | tuple[int, ...]
) -> npt.NDArray[np.uint8 | np.bool_]:
    """Alpha of pixels (H, W, K) by a PNG's tRNS: opacities of indices, or one clear colour."""
    if isinstance(clear, bytes):
        opacity = np.full(256, 255, np.uint8)
        opacity[: len(clear)] = np.frombuffer(clear, np.uint8)[:256]
        return opacity.take(values[..., 0])
    opaque: npt.NDArray[np.bool_] = (values != np.array(clear)).any(-1)
    return opaque


def _read_deep_png(path: Path, picture: Any) -> npt.NDArray[Any]:
    """Reads all bands of a PNG in 16 bits, shape (H, W, K), alpha last."""
    check_size(path, picture.height, picture.width, 24)
    picture.fp.seek(0)
    # From memory, so that no file beside it is opened.
    with (
        io.BytesIO(picture.fp.read()) as file,
        rasterio.Env(**ALONE),
        open_tiff(file, driver="PNG") as source,
    ):
        return np.ascontiguousarray(np.moveaxis(source.read(), 0, -1))


def _read_tiff(path: Path, content: bytes | None, rows: Rows | None) -> Stored:
    with opened(path, content, as_bands=True, by_rows=rows is not None) as source:
        window = rows and Window(0, rows.first, source.width, rows.last - rows.first)
        bands = source.read(window=window)
        kinds, flags = source.colorinterp, source.mask_flag_enums
        described: dict[str, str] = {}
        if source.count == 1:
            parts = (source.tags(ns="IMAGE_STRUCTURE"), source.tags(1, ns="IMAGE_STRUCTURE"))
            described = parts[0] | parts[1]
        colormap = None
        if ColorInterp.palette in kinds:
            colormap = np.array(list(source.colormap(1).values()), np.uint8)[:, :3]
        own_mask = [flag for flag in flags if flag == [MaskFlags.per_dataset]]
        hidden = source.read_masks(1, window=window) == 0 if own_mask else None
        nodata = source.nodatavals
    if bands.dtype.kind == "c":
        raise UnreadableError(
            f"{path} holds complex numbers, which are no pixel values. Convert it to real ones."
        )
    if ColorInterp.cyan in kinds:
        raise UnreadableError(
            f"{path} holds {bands.dtype} values of CMYK. Convert it to RGB, or to 8 bits."
        )
    transparent = None
    if ColorInterp.alpha in kinds:
        band = kinds.index(ColorInterp.alpha)
        alpha = bands[band]
        opaque = opaque_value(lambda: [alpha]) if rows is None else rows.opaque
        if opaque is not None:
            bands = np.delete(bands, band, 0)
            nodata = (*nodata[:band], *nodata[band + 1 :])
            clear = alpha <= _CLEAR * opaque
            transparent = clear if clear.any() else None
    values = _interleaved(bands)
    bits = int(described.get("NBITS", 0))
    is_inverted = described.get("MINISWHITE") == "YES"
    if is_inverted and bands.dtype.kind == "u":
        most = (1 << bits if bits else int(np.iinfo(values.dtype).max) + 1) - 1
        values = values.dtype.type(most) - values
        nodata = tuple(None if value is None else most - value for value in nodata)
    step = {1: 255, 2: 85, 4: 17}.get(bits, 1)
    table = None
    # GDAL gives a colour table to black and white too.
    if colormap is not None and not (bits == 1 and is_inverted) and colormap.tolist() != _BINARY:
        step, table = 1, np.zeros((max(256, np.iinfo(values.dtype).max + 1), 3), np.uint8)
        table[: len(colormap)] = colormap
    nodata = nodata if any(value is not None for value in nodata) else ()
    return Stored(path, values, table, step, transparent, hidden, nodata)


def _interleaved(bands: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Bands (K, H, W) as pixels (H, W, K).

    Contiguous, because OpenCV would copy the whole frame each time it takes a crop from it; and by
    OpenCV, because NumPy takes several times as long as the decoding.
    """
    if str(bands.dtype) in DTYPES and 1 < len(bands) <= _MERGED:
        merged: npt.NDArray[Any] = cv2.merge(list(bands))
        return merged
    return np.ascontiguousarray(np.moveaxis(bands, 0, -1))


def opaque_value(parts: Callable[[], Iterable[npt.NDArray[Any]]]) -> float | None:
    """The greatest value of a band that is tagged as alpha; None where it is no alpha.

    GDAL tags the fourth of four 8-bit bands as alpha unless told otherwise, so that it often is
    near infrared. Alpha is clear or opaque but for a few pixels, and off by little after JPEG.

    Args:
        parts: Gives the band in parts, each time that it is called.
    """
    most = max(float(part.max()) for part in parts())
    found = pixels = 0
    for part in parts():
        found += int(np.count_nonzero((part <= _CLEAR * most) | (part >= (1 - _CLEAR) * most)))
        pixels += part.size
    return most if found / pixels >= 0.9 else None


def _write_tiff(path: Path, pixels: npt.NDArray[Any]) -> None:
    height, width, bands = pixels.shape
    # Otherwise GDAL would call the fourth of four 8-bit bands alpha.
    profile = {"compress": "deflate", "dtype": pixels.dtype, "alpha": "NO"}
    # Through a file of Python's: GDAL tells of a full disk on stderr, and not always.
    with (
        path.open("wb") as file,
        open_tiff(file, "w", height=height, width=width, count=bands, **profile) as target,
    ):
        target.write(np.moveaxis(pixels, -1, 0))


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
