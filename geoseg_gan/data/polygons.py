"""Polygons of classes, which formats of maps and of drawings are read into."""

import math
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import DataError
from geoseg_gan.data.palette import IGNORE, UNKNOWN, class_ids
from geoseg_gan.utils.errors import plural
from geoseg_gan.utils.reading import Number

POSITION = [Number(-1e9, 1e9)]  # beyond, GDAL's rasterisation overflows
COORDINATES = {"Polygon": [[POSITION]], "MultiPolygon": [[[POSITION]]]}
"""What the coordinates of a geometry must be, as a shape of `utils.reading`."""

Rings = list[list[Sequence[float]]]


@dataclass(frozen=True)
class Polygon:
    """A polygon of one class.

    Attributes:
        rings: The outline, and outlines of holes; each a list of positions (x, y).
        label: The class ID, or 255 for ignore.
    """

    rings: Rings
    label: int

    @property
    def geometry(self) -> dict[str, Any]:
        """The polygon as GeoJSON has it."""
        rings = [[*ring, ring[0]] if ring[0] != ring[-1] else ring for ring in self.rings]
        return {"type": "Polygon", "coordinates": rings}


@dataclass(frozen=True)
class Drawing:
    """The polygons of one picture, in its pixels.

    Attributes:
        polygons: They, the uppermost last.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
    """

    polygons: list[Polygon]
    height: int
    width: int


class ClassLabels:
    """Labels by the names of classes, each looked up once, or by what numbers mean in masks."""

    def __init__(self, reader: MaskReader) -> None:
        """Takes the classes, and the meaning of numbers, from what reads masks."""
        self._reader = reader
        self._known = {name: label for label, name in enumerate(reader.palette.names)}
        self._known.setdefault("ignore", IGNORE)
        self._unknown = 0

    def of(self, name: Any, where: str) -> int:
        """The label of a class; `where` the name stands, for the message.

        Raises:
            UserError: If it is no name of a class, nor a number that masks may hold.
        """
        if isinstance(name, int | float) and not isinstance(name, bool):
            return self._of_number(name, where)
        names = ", ".join(self._reader.palette.names)
        if not isinstance(name, str):
            raise DataError(
                f"{where} has the class {name!r}, which is no name. Give the name of a class or "
                f"ignore: {names}."
            )
        if name in self._known:
            return self._known[name]
        return class_ids([name], self._reader.palette, where, " or ignore")[0]

    def warn(self, path: Path) -> None:
        """Warns of how many numbers `data.unknown` has made ignore."""
        if self._unknown:
            warnings.warn(
                f"{path}: {plural(self._unknown, 'polygon')} of unknown class numbers; burnt as "
                "ignore by data.unknown.",
                stacklevel=3,
            )

    def _of_number(self, number: float, where: str) -> int:
        reader, shown = self._reader, reprlib.repr(number)
        if reader.mask_format != "index":  # whether it counts from 0 or 1, nobody knows
            raise DataError(
                f"{where} has the class {shown}, which is no name. Give names of classes, or set "
                "data.mask_format=index, and data.index_map where numbers are no class IDs."
            )
        try:
            value = float(number)
        except OverflowError:  # a whole number beyond all floats
            value = math.inf
        label = int(reader.meaning_of(np.array(value)))
        if label != UNKNOWN:
            return label
        if reader.unknown == "error":
            known = "in data.index_map" if reader.index_map is not None else "a class ID"
            raise DataError(
                f"{where} has the class {shown}, which is not {known}. Set data.index_map to say "
                "what numbers mean, or data.unknown=ignore."
            )
        self._unknown += 1
        return IGNORE


def parts_of(geometry: Mapping[str, Any] | None, where: str) -> list[Rings]:
    """The polygons of a geometry as GeoJSON has it; none where there is no geometry.

    Raises:
        DataError: If it is something else than polygons, or one has too few points.
    """
    if geometry is None:
        return []
    kind = geometry.get("type")
    coordinates: Any = geometry.get("coordinates")
    if kind not in COORDINATES:
        raise DataError(
            f"{where} is a {kind}, which covers no pixels. Keep only polygons, or buffer it."
        )
    parts: list[Rings] = coordinates if kind == "MultiPolygon" else [coordinates]
    for part in parts:
        if not part:
            raise DataError(f"{where} is a polygon without an outline. Remove it.")
        for ring in part:
            check_ring(ring, where)
    return parts


def check_ring(ring: Sequence[Sequence[float]], where: str) -> None:
    """Refuses, with a DataError, outlines that enclose nothing."""
    if len(ring) < 3 or any(len(position) < 2 for position in ring):
        raise DataError(f"{where} is a polygon of fewer than three points. Remove it.")
