"""Rasters too large for memory: read by rows, and written by rows as cloud-optimised GeoTIFFs.

What is written grows from top to bottom in a scratch file, which survives a kill: the same call
goes on where it ended.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import ENOSPC
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from geoseg_gan.data.georeference import Georeference, read_georeference
from geoseg_gan.data.image_files import ALONE, TIFF_SUFFIXES, UnreadableError, open_tiff, opened
from geoseg_gan.data.images import (
    Rows,
    Stored,
    mean_of,
    opaque_value,
    read_masked_image,
    read_stored,
)
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.utils.device import free_memory
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path, sync, write_json
from geoseg_gan.utils.reading import read_json, whole

_CACHE = 128 * 2**20  # bytes of blocks that GDAL keeps
_LARGEST_BLOCK = 2**28  # bytes of a block, which is read as a whole
_PIXELS = 2**22  # that are read at once
_LINES, _COMMIT, _MADE = "lines.part", "lines.json", "made.part"
_TYPES = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}
_RGB = ("Red", "Green", "Blue")


@contextmanager
def little_memory() -> Iterator[None]:
    """Within it GDAL keeps little in memory, and looks at no files beside those it is given."""
    with rasterio.Env(GDAL_CACHEMAX=_CACHE, **ALONE):
        yield


class Scene:
    """An image or a mask that is read a few rows at a time.

    A GeoTIFF stays in its file; a picture of another format is decoded at once, and must fit into
    memory, as must a GeoTIFF that is stored in a few large blocks.

    Attributes:
        path: The file.
        height: In pixels.
        width: In pixels.
        bands: How many bands an image has; one of transparency does not count.
        dtype: NumPy's name of the type that an image is kept in.
        place: Where it lies.
        step: How many rows, or about as many, are best read at once: whole blocks of the file.
    """

    def __init__(
        self, path: Path, reader: MaskReader | None = None, nodata: float | None = None
    ) -> None:
        """Opens a mask, where there is a reader of masks, or else an image.

        `nodata` is a value of an image that means no data, beside what it says of itself.

        Raises:
            UnreadableError: If it cannot be read.
        """
        self.path, self._reader, self.place = path, reader, read_georeference(path)
        self._nodata = nodata
        self._whole: tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None] | None = None
        self._unknown: dict[int, int] = {}
        self._opaque: float | None = None
        block = self._open() if path.suffix.lower() in TIFF_SUFFIXES else None
        if block is None:
            self._whole = (
                read_masked_image(path, nodata=nodata) if reader is None else (self._label(), None)
            )
            self.height, self.width = self._whole[0].shape[:2]
            block = 1
        self.step = -(-max(1, _PIXELS // self.width) // block) * block
        if reader is None:
            first = self.rows(0, 1)
            self.bands, self.dtype = first.shape[2], str(first.dtype)

    def _open(self) -> int | None:
        """Finds out what a GeoTIFF says of itself: the height of its blocks; None if too large."""
        with opened(self.path, as_bands=True, by_rows=True) as source:
            self.height, self.width = source.height, source.width
            rows, columns = source.block_shapes[0]
            size = rows * columns * source.count * np.dtype(source.dtypes[0]).itemsize
            if size > _LARGEST_BLOCK:
                whole = size * self.height * self.width / (rows * columns)
                if whole > free_memory() / 8:
                    raise UnreadableError(
                        f"{self.path} is stored in blocks of {columns:,}x{rows:,} pixels, each of "
                        "which is read as a whole. Store it in tiles, as gdal_translate -co "
                        "TILED=YES does."
                    )
                return None
            if ColorInterp.alpha in source.colorinterp:
                band = source.colorinterp.index(ColorInterp.alpha) + 1
                strip = max(rows, _PIXELS // self.width)
                windows = [
                    Window(0, first, self.width, min(strip, self.height - first))
                    for first in range(0, self.height, strip)
                ]
                self._opaque = opaque_value(lambda: (source.read(band, window=w) for w in windows))
        return int(rows)

    def rows(self, first: int, last: int) -> npt.NDArray[Any]:
        """Some rows: a mask's label map (n, W), or an image's stored values (n, W, K).

        Raises:
            UserError: If they cannot be read, or hold what is no class.
        """
        return self.masked_rows(first, last)[0]

    def masked_rows(
        self, first: int, last: int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
        """Some rows, and of those of an image where they have no data, as `read_masked_image`."""
        if self._whole is not None:
            pixels, missing = self._whole
            return pixels[first:last], None if missing is None else missing[first:last]
        if self._reader is not None:
            return self._label(first, last), None
        return self._stored(first, last).image(lambda: self._mean)

    @property
    def unknown(self) -> int:
        """Pixels of unknown colours or values in those rows of a mask that have been read.

        Rows that are read again count once, if the same rows are read at once as before.
        """
        return sum(self._unknown.values())

    def _label(self, first: int = 0, last: int | None = None) -> npt.NDArray[np.uint8]:
        assert self._reader is not None
        rows = None if last is None else Rows(first, last, self._opaque)
        label, self._unknown[first] = self._reader.read(self.path, rows=rows)
        return label

    def _stored(self, first: int, last: int) -> Stored:
        return read_stored(self.path, None, Rows(first, last, self._opaque), self._nodata)

    @cached_property
    def _mean(self) -> npt.NDArray[np.float64]:
        """What fills pixels without data: a pass over the whole file, made if there are any."""
        starts = range(0, self.height, self.step)
        return mean_of(self._stored(n, min(n + self.step, self.height)) for n in starts)

    def facts(self) -> dict[str, Any]:
        """By what a changed file is noticed."""
        size = {"height": self.height, "width": self.width}
        return {"name": self.path.name} | file_facts(self.path) | size


@dataclass(frozen=True)
class Export:
    """A GeoTIFF of some bands of a `LineStore`.

    Attributes:
        path: The file.
        bands: Which bands of the store it has, counted from 1.
        place: Where it lies; None if unknown.
        mask: The band of the store that is 0 where there are no data; None for none.
        nodata: The value that stands for no data; None for none.
        colors: RGB of the values 0 to 255, shape (256, 3), uint8; None where values are no classes.
        tags: Texts by name.
    """

    path: Path
    bands: Sequence[int]
    place: Georeference | None
    mask: int | None = None
    nodata: int | None = None
    colors: npt.NDArray[np.uint8] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


class LineStore:
    """The rows of a raster from top to bottom, in a folder that a killed call leaves behind.

    They stand uncompressed in a BigTIFF that has its full size from the start, so that writing does
    not change its structure; beside it stands how many of them are there.

    Attributes:
        done: How many rows are there.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], dtype: str, settings: Mapping[str, Any]
    ) -> None:
        """Opens the folder, or makes it.

        Args:
            folder: The folder, for nothing else.
            shape: Bands, height and width.
            dtype: NumPy's name of the values' type.
            settings: What the rows depend on, as JSON keeps it.

        Raises:
            UserError: If the folder holds rows of other settings.
        """
        self.done = 0
        self._folder, self._shape, self._dtype = folder, shape, dtype
        self._path, self._settings = folder / _LINES, dict(settings)
        if (folder / _COMMIT).is_file():
            advice = f"Remove {folder} to begin again."
            stored = read_json(folder / _COMMIT, {"settings": dict, "done": whole()}, advice)
            check_same_settings(folder, stored["settings"], self._settings)
            self.done = stored["done"]
            with open_tiff(self._path) as source:  # of the one format that it is written in
                if (source.count, *source.shape) != shape:
                    raise UserError(f"{self._path} has another shape. {advice}")
            return
        bands, height, width = shape
        profile = {"count": bands, "height": height, "width": width, "dtype": dtype}
        layout = {"BIGTIFF": "YES", "INTERLEAVE": "PIXEL", "PHOTOMETRIC": "MINISBLACK"}
        size = bands * height * width * np.dtype(dtype).itemsize
        full = OSError(ENOSPC, os.strerror(ENOSPC), str(self._path))
        with atomic_path(self._path) as scratch:
            # GDAL tells of a full disk or a limit on stderr, and not always.
            if shutil.disk_usage(scratch.parent).free < size:
                raise full
            with scratch.open("wb") as file:
                file.truncate(size)
            open_tiff(scratch, "w", blockysize=1, **layout, **profile).close()
            if scratch.stat().st_size < size:
                raise full
        self._commit()

    def append(self, lines: npt.NDArray[Any]) -> None:
        """Adds the next rows, shape (bands, n, W); they are on the disk when it returns."""
        count = lines.shape[1]
        with open_tiff(self._path, "r+") as target:
            target.write(lines, window=Window(0, self.done, self._shape[2], count))
        sync(self._path)
        self.done += count
        self._commit()

    def finish(self, exports: Sequence[Export]) -> None:
        """Makes GeoTIFFs of the rows, one after the other."""
        for export in exports:
            made = self._folder / _MADE
            resampling = "AVERAGE" if export.colors is None else "NEAREST"
            options = {"COMPRESS": "DEFLATE", "BIGTIFF": "IF_SAFER", "PREDICTOR": "YES"}
            options |= {"OVERVIEW_RESAMPLING": resampling}
            with open_tiff(self._virtual(export), driver="VRT") as source:
                rasterio.shutil.copy(source, made, driver="COG", **options)
            with atomic_path(export.path) as scratch:
                made.replace(scratch)

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self._folder)

    def _commit(self) -> None:
        write_json(self._folder / _COMMIT, {"settings": self._settings, "done": self.done})

    def _virtual(self, export: Export) -> str:
        """An export as GDAL's virtual raster, from which its driver for COGs makes the file."""
        _, height, width = self._shape
        root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
        if export.place is not None and export.place.crs is not None:
            ElementTree.SubElement(root, "SRS").text = export.place.crs.to_wkt()
        if export.place is not None:
            numbers = ", ".join(map(repr, export.place.transform.to_gdal()))
            ElementTree.SubElement(root, "GeoTransform").text = numbers
        tags = ElementTree.SubElement(root, "Metadata")
        for name, text in export.tags.items():
            ElementTree.SubElement(tags, "MDI", key=name).text = text
        is_rgb = len(export.bands) == 3 and self._dtype == "uint8"
        for number, band in enumerate(export.bands):
            node = self._band(root, band, self._dtype)
            if export.nodata is not None:
                ElementTree.SubElement(node, "NoDataValue").text = str(export.nodata)
            if export.colors is not None:
                ElementTree.SubElement(node, "ColorInterp").text = "Palette"
                table = ElementTree.SubElement(node, "ColorTable")
                for color in export.colors.tolist():
                    parts = {f"c{n}": str(v) for n, v in enumerate((*color, 255), 1)}
                    ElementTree.SubElement(table, "Entry", parts)
            elif is_rgb:
                ElementTree.SubElement(node, "ColorInterp").text = _RGB[number]
        if export.mask is not None:
            self._band(ElementTree.SubElement(root, "MaskBand"), export.mask, "uint8")
        return ElementTree.tostring(root, encoding="unicode")

    def _band(self, parent: ElementTree.Element, band: int, dtype: str) -> ElementTree.Element:
        node = ElementTree.SubElement(parent, "VRTRasterBand", dataType=_TYPES[dtype])
        source = ElementTree.SubElement(node, "SimpleSource")
        name = ElementTree.SubElement(source, "SourceFilename", relativeToVRT="0")
        name.text = str(self._path.absolute())
        ElementTree.SubElement(source, "SourceBand").text = str(band)
        return node


def file_facts(path: Path) -> dict[str, Any]:
    """By what a changed file is noticed without reading it."""
    status = path.stat()
    return {"bytes": status.st_size, "modified_time": status.st_mtime}


def check_same_settings(
    where: Path, stored: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Refuses, with a UserError, to go on with what a call with other settings has begun."""
    for key, value in settings.items():
        if stored.get(key) != value:
            raise UserError(
                f"{where} is of another call: {key} was {stored.get(key)}, now {value}. Repeat its "
                "settings, choose another folder, or remove it."
            )
