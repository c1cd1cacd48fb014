"""Masks: what their colours and values mean, as label maps, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from geoseg_gan.data.image_files import TIFF_SUFFIXES, UnreadableError, check_size
from geoseg_gan.data.images import Rows, Stored, read_masked_image, read_stored
from geoseg_gan.data.palette import (
    IGNORE,
    LARGEST_VALUE,
    UNKNOWN,
    Palette,
    UnknownColorError,
    UnknownPolicy,
    colors_of,
    index_map_ids,
    index_map_text,
)
from geoseg_gan.data.settings import DataSettings, MaskFormat
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path


@dataclass(frozen=True)
class MaskReader:
    """Turns mask files into label maps and back.

    Attributes:
        palette: Classes and colours.
        mask_format: "rgb" for colours of the palette, "index" for one channel of class IDs (255 is
            ignore; a palette-mode PNG holds IDs as its indices).
        unknown: How colours or IDs outside the palette are treated.
        index_map: What the values of index masks mean, pairs of value and class ID or 255; None
            where values are IDs. Values that it lacks are unknown, but 255 is ignore.
        nodata: A value of images that means no data, beside what they say of themselves; or None.
    """

    palette: Palette
    mask_format: MaskFormat = "rgb"
    unknown: UnknownPolicy = "error"
    index_map: tuple[tuple[int, int], ...] | None = None
    nodata: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """What decides how masks become label maps, and of which images, as plain types."""
        return {
            "palette": self.palette.to_dict(),
            "mask_format": self.mask_format,
            "unknown": self.unknown,
            "index_map": None if self.index_map is None else [list(p) for p in self.index_map],
            "nodata": self.nodata,
        }

    @property
    def can_write_ignore(self) -> bool:
        """Whether masks have a colour or a value for ignored pixels."""
        if self.mask_format == "rgb":
            return bool(self.palette.ignore)
        return bool(self._written[IGNORE] >= 0)

    def read(
        self, path: Path, content: bytes | None = None, rows: Rows | None = None
    ) -> tuple[npt.NDArray[np.uint8], int]:
        """Reads a mask, from the file's content where it is given, as a label map.

        Of a TIFF only `rows` are read where they are given; it may be of any size then. What a
        GeoTIFF says to be empty becomes ignore: alpha of 0, the nodata value (a colour, if bands
        have it), and what its internal mask hides. Alpha of other pictures changes nothing.

        Returns:
            Label map of shape (H, W), uint8, and the number of pixels of unknown colour.

        Raises:
            UnreadableError: If the file does not decode, or contradicts the settings.
            UnknownColorError: If a colour or ID is unknown and the policy is "error".
        """
        return self.label(read_stored(path, content, rows))

    def label(self, stored: Stored) -> tuple[npt.NDArray[np.uint8], int]:
        """The label map of a mask that is decoded already, as `read` gives it."""
        try:
            if self.mask_format == "index":
                return self._read_ids(stored)
            return self._read_colors(stored)
        except UnknownColorError as error:
            raise UnknownColorError(f"{stored.path}: {error}") from None

    def labels_of(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The labels of single values of masks, shape (N,); 255 where a value is unknown.

        They are numbers in index masks, else 24-bit codes of colours, red in the lowest byte.
        """
        if self.mask_format == "index":
            labels = self.meaning_of(values)
            labels[labels == UNKNOWN] = IGNORE
            return labels
        colors = colors_of(values).astype(np.uint8)
        policy: UnknownPolicy = "nearest" if self.unknown == "nearest" else "ignore"
        return self.palette.encode(colors[None], policy)[0].reshape(-1)

    def read_pair(
        self, image: Path, mask: Path, contents: tuple[bytes, bytes] | None = None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8], int]:
        """Reads an image and its mask, from their contents where they are given.

        Returns:
            The image as `read_image` gives it, the label map and the number of unknown pixels as
            `read` gives them; the label is ignore where the image has no data.

        Raises:
            UnreadableError: As `read_image` and `read` do.
            UnknownColorError: As `read` does.
        """
        image_content, mask_content = contents or (None, None)
        pixels, missing = read_masked_image(image, image_content, self.nodata)
        label, unknown = self.read(mask, mask_content)
        if missing is not None and missing.shape == label.shape:  # else a scan refuses the pair
            label[missing] = IGNORE
        return pixels, label, unknown

    def write(self, path: Path, label: npt.NDArray[np.uint8]) -> None:
        """Writes a label map as PNG, so that `read` gives it back exactly.

        Index masks are written in palette mode: IDs to a program, colours to the eye; with values
        above 255 in 16 bits.

        Raises:
            UserError: If pixels are ignored, but masks have no colour or value for that.
        """
        if not self.can_write_ignore and (label == IGNORE).any():
            key = "data.ignore=[[0,0,0]]"
            if self.mask_format == "index":
                taken = {value for value, _ in self.index_map or ()}
                unused = max(set(range(IGNORE)) - taken, default=max(taken) + 1)
                key = f"'{unused}: ignore' in data.index_map"
            raise UserError(
                f"{path}: some pixels are to be ignored, for which masks have no "
                f"{'colour' if self.mask_format == 'rgb' else 'value'}. Give one, e.g. {key}."
            )
        if self.mask_format == "rgb":
            picture = Image.fromarray(self.palette.decode(label))
        elif (largest := int(self._written.max())) > IGNORE:
            picture = Image.fromarray(self._written.take(label).astype(np.uint16))
        else:
            colors = np.zeros((256, 3), np.uint8)
            listed = self._written >= 0
            colors[self._written[listed]] = self.palette.color_table[listed]
            picture = Image.fromarray(self._written.take(label).astype(np.uint8)).convert("P")
            picture.putpalette(colors[: largest + 1].ravel().tolist())
        with atomic_path(path) as scratch:
            picture.save(scratch)

    @cached_property
    def _listed(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """The values that index masks may hold, ascending, and the label of each."""
        known = self.index_map
        if known is None:
            known = tuple((label, label) for label in range(self.palette.num_classes))
        values, labels = zip(*sorted(({IGNORE: IGNORE} | dict(known)).items()), strict=True)
        return np.array(values, np.int64), np.array(labels, np.uint8)

    @cached_property
    def _written(self) -> npt.NDArray[np.int64]:
        """The value that stands for each label in index masks, shape (256,); -1 for none."""
        written = np.full(256, -1, np.int64)
        known = (*(self.index_map or zip(*self._listed, strict=True)), (IGNORE, IGNORE))
        taken = dict(self.index_map or ())
        for value, label in known:
            free = 0 <= value <= LARGEST_VALUE and taken.get(value, label) == label
            if written[label] < 0 and free:  # the first one that a PNG can hold
                written[label] = value
        return written

    @cached_property
    def _tables(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Labels of all values of the types in which most index masks are."""
        sizes = {"uint8": 1 << 8, "uint16": 1 << 16}
        return {name: self.meaning_of(np.arange(size)) for name, size in sizes.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the look-up tables out of pickles; they are built again on first use."""
        return {name: vars(self)[name] for name in self.__dataclass_fields__}

    def meaning_of(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """The labels of an index mask's values; UNKNOWN for those that mean nothing."""
        listed, labels = self._listed
        at = np.searchsorted(listed, values).clip(max=len(listed) - 1)
        return np.where(listed[at] == values, labels[at], np.uint8(UNKNOWN))  # NaN equals nothing

    def _read_colors(self, stored: Stored) -> tuple[npt.NDArray[np.uint8], int]:
        colors, blank = mask_colors(stored), _empty(stored)
        if stored.nodata and (found := _is_nodata_color(stored)) is not None:
            self._check_nodata_color(stored.path, colors[found][:1])
            blank = found if blank is None else blank | found
        if blank is not None:
            colors = np.where(blank[..., None], self.palette.color_table[0], colors)
        label, unknown = self.palette.encode(colors, self.unknown)
        if blank is not None:
            label[blank] = IGNORE
        return label, unknown

    def _check_nodata_color(self, path: Path, color: npt.NDArray[np.uint8]) -> None:
        """Refuses a nodata value, of which one pixel is given if there are any, that is a class."""
        if not len(color):
            return
        label = int(self.palette.encode(color[None], "ignore")[0][0, 0])
        if label != IGNORE:
            raise UnreadableError(
                f"{path} says of itself that {tuple(color[0].tolist())} is nodata, but that is the "
                f"class {self.palette.describe(label)}. Move the colour from data.palette to "
                "data.ignore, or remove the tag, as gdal_edit.py -unsetnodata does."
            )

    def _read_ids(self, stored: Stored) -> tuple[npt.NDArray[np.uint8], int]:
        values = index_values(stored)
        if stored.table is not None and self.index_map is None:
            self._check_colors(stored.path, values, stored.table)
        table = self._tables.get(values.dtype.name)
        label = self.meaning_of(values) if table is None else table.take(values)
        blank = self._blank(stored)
        if blank is not None:
            label[blank] = IGNORE
        unlisted = label == UNKNOWN
        count = int(np.count_nonzero(unlisted))
        if count and self.unknown == "error":
            self._refuse_values(values, unlisted)
        label[unlisted] = IGNORE
        return label, count

    def _blank(self, stored: Stored) -> npt.NDArray[np.bool_] | None:
        """Which pixels of an index mask its file itself says to be empty; None for none."""
        found, empty = stored.is_nodata(0), _empty(stored)
        if found is None:
            return empty
        label = int(self.meaning_of(np.array(stored.nodata[0])))
        if label < self.palette.num_classes:
            if self.index_map is None and found.any():
                names = dict(enumerate(self.palette.names))
                examples = (
                    index_map_text(names | {label: text})
                    for text in ("ignore", self.palette.names[label])
                )
                raise UnreadableError(
                    f"{stored.path} says of itself that {label} is nodata, but {label} is the "
                    f"class {self.palette.describe(label)}. Say which holds: set "
                    f"{' or '.join(examples)}."
                )
            return empty
        return found if empty is None else found | empty

    def _check_colors(
        self, path: Path, values: npt.NDArray[Any], table: npt.NDArray[np.uint8]
    ) -> None:
        """Refuses a mask whose indices are of one class and whose colours are of another.

        Colours of ignore do not count: a grey or a customary table often has black at index 0.
        """
        shown, _ = self.palette.encode(table[None], "ignore")
        shown, own = shown[0], self.meaning_of(np.arange(len(table)))
        wrong = (shown != IGNORE) & (shown != own)
        if not wrong.any():
            return
        used = np.flatnonzero(np.bincount(values.ravel(), minlength=len(table)))
        for index in used[wrong[used]].tolist():
            label = int(own[index])
            reading = "no class" if label == UNKNOWN else self.palette.describe(label)
            names = self.palette.names
            meant = {i: names[shown[i]] for i in used.tolist() if shown[i] != IGNORE}
            raise UnreadableError(
                f"{path}: index {index} has the colour of {self.palette.describe(shown[index])} in "
                f"the file's colour table, but data.mask_format=index reads {index} as {reading}. "
                "Set data.mask_format=rgb to go by colours, or say what indices mean, as in "
                f"{index_map_text(meant)}."
            )

    def _refuse_values(self, values: npt.NDArray[Any], unlisted: npt.NDArray[np.bool_]) -> None:
        found, pixels = np.unique(values[unlisted], return_counts=True)
        worst = f"{found[pixels.argmax()]} in {pixels.max()} pixels"
        if self.index_map is not None:
            raise UnknownColorError(
                f"the value {worst} is not in data.index_map. Add it, as a class or as ignore, or "
                "set data.unknown=ignore."
            )
        names, last = self.palette.names, self.palette.num_classes - 1
        example = index_map_text({0: "ignore", **dict(enumerate(names, 1))})
        raise UnknownColorError(
            f"class ID {worst}, but the palette has IDs 0 to {last} (and 255 for ignore). If masks "
            f"number classes otherwise, say how, as in {example}, which scripts/check_data.py "
            "proposes; else correct data.palette, or set data.unknown=ignore."
        )


def mask_reader(settings: DataSettings) -> MaskReader:
    """The mask reader that data settings describe."""
    return stored_mask_reader(settings.classes(), vars(settings))


def stored_mask_reader(palette: Palette, data: Mapping[str, Any]) -> MaskReader:
    """The mask reader of a run's data settings, as its checkpoints keep them.

    Raises:
        UserError: If their index map is not as it must be.
    """
    index_map = data.get("index_map")  # which older checkpoints lack, as they do nodata
    return MaskReader(
        palette,
        cast(MaskFormat, data["mask_format"]),
        cast(UnknownPolicy, data["unknown"]),
        None if index_map is None else index_map_ids(index_map, palette),
        data.get("nodata"),
    )


def mask_colors(stored: Stored) -> npt.NDArray[np.uint8]:
    """A mask's colours, shape (H, W, 3), contiguous; an UnreadableError where it has none."""
    pixels = stored.shown()
    bands = pixels.shape[-1]
    if pixels.dtype != np.uint8:
        advice = "Convert it to 8-bit RGB."
        if bands == 1:
            advice = "Set data.mask_format=index if they are class IDs."
        raise UnreadableError(
            f"{stored.path}: holds {pixels.dtype} values, but coloured masks are 8-bit. {advice}"
        )
    if bands == 2:
        raise UnreadableError(
            f"{stored.path}: has 2 bands, but coloured masks have 3, or 1 of grey. Convert it to "
            "8-bit RGB."
        )
    check_size(stored.path, pixels.shape[0], pixels.shape[1], 16)
    if bands == 1:
        return pixels.repeat(3, 2)
    return np.ascontiguousarray(pixels[..., :3])


def _empty(stored: Stored) -> npt.NDArray[np.bool_] | None:
    """What a GeoTIFF hides by its mask or by alpha; None for nothing, as of other pictures."""
    if stored.path.suffix.lower() not in TIFF_SUFFIXES:
        return None
    if stored.hidden is None or stored.transparent is None:
        return stored.hidden if stored.transparent is None else stored.transparent
    return stored.hidden | stored.transparent


def _is_nodata_color(stored: Stored) -> npt.NDArray[np.bool_] | None:
    """Where all bands of a coloured mask have their nodata value; None where some have none."""
    planes = [stored.is_nodata(band) for band in range(len(stored.nodata))]
    known = [plane for plane in planes if plane is not None]
    if len(known) < len(planes):
        return None
    found: npt.NDArray[np.bool_] = np.logical_and.reduce(known)
    return found


def index_values(stored: Stored) -> npt.NDArray[Any]:
    """An index mask's values, shape (H, W); an UnreadableError where its channels differ."""
    first = stored.values[..., 0]
    if (stored.values[..., 1:] != first[..., None]).any():
        raise UnreadableError(
            f"{stored.path}: has {stored.values.shape[-1]} channels that differ, but "
            "data.mask_format=index expects class IDs: one channel, or equal ones. Use "
            "data.mask_format=rgb for coloured masks."
        )
    return first
