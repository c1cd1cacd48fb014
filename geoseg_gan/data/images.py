"""Reading and writing of image files."""

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image, UnidentifiedImageError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

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
_MERGED = 512  # bands that OpenCV takes
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
TIFF_SUFFIXES = (".tif", ".tiff")
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
_ORIENTATION = 274  # the tag's number, in EXIF and TIFF
_BINARY = [[0, 0, 0], [255, 255, 255]]  # the colour table of two grey levels
_CLEAR = 0.02  # share of full opacity by which alpha may be off
_NO_NUMBER = 1e30  # floating-point values of this size are fillers, such as -3.4e38
_FILTERS = threading.Lock()
_SMALL = 2**26  # bytes that are taken without asking how much memory is free
# No other files beside a GeoTIFF, which could be of any format and lead anywhere.
ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}


class UnreadableError(UserError):
    """A file that does not decode as what its name says.

    Attributes:
        errno: The system's number of the error where the file could not be read at all, else None.
    """

    errno: int | None = None


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
        is_aside = source.getexif().get(_ORIENTATION, 1) in _ASIDE
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
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
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
        if struct.unpack_from(f"{order}H", entries, start)[0] == _ORIENTATION:
            turned = struct.unpack_from(f"{order}H", entries, start + value_at)[0]
            if turned in _TURNS:
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
        f"{path}: does not decode ({why}). Export it again or remove the pair."
        if number is None
        else f"{path} cannot be read: {why}. Bring it back or remove the pair."
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
