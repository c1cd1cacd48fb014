"""Class palettes: names, RGB colours and class IDs, and the way between them."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from geoseg_gan.utils.confusion import IGNORE as IGNORE
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.reading import whole

MAX_CLASSES = 254
UNKNOWN = 254
"""What stands in a label map for a colour or value of no class, until the policy is applied."""

LARGEST_VALUE = 65_535
"""The largest value of an index mask that can be written: PNG has 16 bits."""

UnknownPolicy = Literal["error", "ignore", "nearest"]

NEAR = 48.0
"""Distance in RGB within which a colour is a damaged one of a class's colour."""

_LARGEST_KEY = 2**31  # in size, of a value of a mask

COLOR = [whole(0, 255)]
PALETTE = {"classes": [{"name": str, "color": COLOR}], "ignore": [COLOR]}
"""What `Palette.to_dict` gives, as a shape of `utils.reading`."""


class UnknownColorError(UserError):
    """A mask holds a colour that the palette lacks."""


@dataclass
class PaletteClass:
    """One class: its name and its RGB colour (three integers in 0..255)."""

    name: str
    color: list[int]


@dataclass(frozen=True)
class Palette:
    """An ordered list of classes; a class's position is its ID.

    Attributes:
        classes: Named classes with their RGB colours.
        ignore: Colours read as 255 (ignore); 255 is written as the first of them.

    Raises:
        UserError: For fewer than two or more than 254 classes, a malformed colour, or a duplicate
            colour or name.
    """

    classes: Sequence[PaletteClass]
    ignore: Sequence[Sequence[int]] = field(default=())

    def __post_init__(self) -> None:
        """Refuses palettes that are not one-to-one."""
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise UserError(
                f"data.palette: {len(self.classes)} classes; it needs 2 to {MAX_CLASSES}."
            )
        seen: dict[tuple[int, ...], str] = {}
        entries = [(c.name, c.color) for c in self.classes]
        for name, color in entries + [("ignore", c) for c in self.ignore]:
            code = tuple(color)
            if len(code) != 3 or not all(0 <= v <= 255 for v in code):
                raise UserError(
                    f"data.palette: the colour {code} of '{name}' is not three integers in 0..255."
                )
            if code in seen:
                raise UserError(
                    f"data.palette: the colour {code} stands for both '{seen[code]}' and '{name}'; "
                    "give each its own."
                )
            seen[code] = name
        if len(set(self.names)) < len(self.names):
            raise UserError(f"data.palette: a class name stands twice in {self.names}.")

    @property
    def names(self) -> list[str]:
        """The class names in ID order."""
        return [c.name for c in self.classes]

    @property
    def num_classes(self) -> int:
        """How many classes there are, ignore not counted."""
        return len(self.classes)

    def encode(
        self, rgb: npt.NDArray[np.uint8], unknown: UnknownPolicy = "error"
    ) -> tuple[npt.NDArray[np.uint8], int]:
        """Maps colours to class IDs by look-up of the 24-bit colour code.

        Args:
            rgb: Mask of shape (H, W, 3), uint8.
            unknown: How colours outside the palette are treated: as an error, as ignore (255), or
                as the class of the nearest colour (Euclidean in RGB; ignore colours included).

        Returns:
            The label map of shape (H, W), uint8, and the number of pixels of unknown colour.

        Raises:
            UnknownColorError: If `unknown` is "error" and a colour is not in the palette; names the
                most frequent such colour, its pixels and the nearest class; or says that the
                palette does not fit, where most pixels of the mask are far from its colours.
        """
        codes = color_codes(rgb)
        label: npt.NDArray[np.uint8] = self._table.take(codes)
        unlisted = label == UNKNOWN
        count = int(np.count_nonzero(unlisted))
        if count == 0:
            return label, 0
        colors, inverse, pixels = np.unique(
            codes[unlisted], return_inverse=True, return_counts=True
        )
        if unknown == "ignore":
            label[unlisted] = IGNORE
            return label, count
        nearest, distances = self.nearest(colors_of(colors))
        if unknown == "nearest":
            label[unlisted] = nearest[inverse]
            return label, count
        worst = int(pixels.argmax())
        color = tuple(int(v) for v in colors_of(colors)[worst])
        others = f" (and {len(colors) - 1} more unknown colours)" if len(colors) > 1 else ""
        is_gray = len(set(color)) == 1
        hint = " If the mask holds class IDs, set data.mask_format=index." if is_gray else ""
        text = f"colour {color} in {int(pixels[worst])} pixels is not in the palette{others}"
        if 2 * pixels[distances > NEAR].sum() > label.size:
            raise UnknownColorError(
                f"{text}. Most of the mask has other colours than the palette, which does not fit: "
                "name the data config of these masks (data=...), or run scripts/check_data.py, "
                f"which proposes one.{hint}"
            )
        raise UnknownColorError(
            f"{text}; nearest is {self.describe(int(nearest[worst]))}. Add it to data.palette or "
            f"data.ignore, or set data.unknown=nearest or data.unknown=ignore.{hint}"
        )

    def decode(self, label: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Maps class IDs (H, W) back to colours (H, W, 3), uint8; 255 to the first ignore colour.

        For colours of the palette it is the exact inverse of `encode`.

        Raises:
            ValueError: For an ID without a class, or 255 where the palette has no ignore colour.
        """
        unlisted = np.unique(label[label >= self.num_classes]).tolist()
        if self.ignore and IGNORE in unlisted:
            unlisted.remove(IGNORE)
        if unlisted:
            raise ValueError(f"labels {unlisted} have no colour in a palette of {self.names}")
        return self.color_table.take(label, axis=0)

    @cached_property
    def color_table(self) -> npt.NDArray[np.uint8]:
        """RGB colour of every label, shape (256, 3), uint8; black where there is none."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = [c.color for c in self.classes]
        if self.ignore:
            table[IGNORE] = self.ignore[0]
        return table

    def describe(self, label: int) -> str:
        """A class as messages show it: name and colour."""
        name = "ignore" if label == IGNORE else self.names[label]
        return f"'{name}' {tuple(int(v) for v in self.color_table[label])}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, as checkpoints and JSON files keep them."""
        return {
            "classes": [{"name": c.name, "color": list(c.color)} for c in self.classes],
            "ignore": [list(c) for c in self.ignore],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        classes = [PaletteClass(c["name"], list(c["color"])) for c in content["classes"]]
        return cls(classes, [list(c) for c in content["ignore"]])

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the 16 MiB look-up table out of pickles; it is built again on first use."""
        return {"classes": self.classes, "ignore": self.ignore}

    @cached_property
    def _table(self) -> npt.NDArray[np.uint8]:
        table = np.full(1 << 24, UNKNOWN, np.uint8)
        colors, labels = self._known
        table[colors @ (1, 1 << 8, 1 << 16)] = labels
        return table

    @property
    def _known(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """All colours and their labels."""
        colors = [*(c.color for c in self.classes), *self.ignore]
        labels = [*range(self.num_classes), *[IGNORE] * len(self.ignore)]
        return np.array(colors, np.int64), np.array(labels, np.uint8)

    def nearest(
        self, colors: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
        """The label of the nearest known colour of each (N, 3), and the distance to it in RGB."""
        known, labels = self._known
        # Chunks bound the memory: a lossy mask can hold thousands of colours.
        chunks = np.array_split(colors, len(colors) // 4096 + 1)
        found = np.concatenate([((c[:, None] - known) ** 2).sum(-1).argmin(-1) for c in chunks])
        return labels[found], np.linalg.norm(colors - known[found], axis=-1)


def index_map_ids(index_map: Mapping[Any, Any], palette: Palette) -> tuple[tuple[int, int], ...]:
    """What `data.index_map` says of the values of index masks: pairs of value and class ID or 255.

    Raises:
        UserError: If it is no mapping; or naming the value that is no whole number, the class that
            is none, or the class that has no value which a mask can be written with.
    """
    key = "data.index_map"
    if not isinstance(index_map, Mapping) or not index_map:
        raise UserError(
            f"{key}={index_map}: list values and what they mean, as in "
            f"{index_map_text(dict(enumerate(palette.names, 1)))}, or use null."
        )
    pairs = []
    for value, meaning in index_map.items():
        if type(value) is not int or abs(value) > _LARGEST_KEY:
            raise UserError(
                f"{key}: {value!r} is no value of a mask. Give whole numbers, as in "
                f"{index_map_text(dict(enumerate(palette.names, 1)))}."
            )
        if meaning == "ignore" and "ignore" not in palette.names:
            pairs.append((value, IGNORE))
        else:
            pairs.append((value, class_ids([meaning], palette, key, " or ignore")[0]))
    written = {label for value, label in pairs if 0 <= value <= LARGEST_VALUE}
    for label in sorted({label for _, label in pairs} - {IGNORE} - written):
        raise UserError(
            f"{key}: no value of '{palette.names[label]}' is from 0 to {LARGEST_VALUE:,}, so that "
            "its masks could not be written. Add one; the masks may have no pixel of it."
        )
    return tuple(pairs)


def index_map_text(names: Mapping[int, str]) -> str:
    """A setting of `data.index_map` as a command line takes it."""
    entries = []
    for value, name in sorted(names.items()):
        is_plain = re.fullmatch(r"[^\W\d][\w -]*", name)
        entries.append(f"{value}: {name if is_plain else repr(name)}")
    return f'"data.index_map={{{", ".join(entries)}}}"'


def class_ids(
    classes: Sequence[str | int], palette: Palette, key: str, other: str = ""
) -> list[int]:
    """The class IDs that the setting `key` lists by name or ID, each once and in its order.

    `other` is what may stand there beside classes, for the message.

    Raises:
        UserError: Naming the key, the value that is no class, and all classes, for a name the
            nearest first.
    """
    ids: list[int] = []
    for value in classes:
        if isinstance(value, str) and value in palette.names:
            ids.append(palette.names.index(value))
        elif type(value) is int and 0 <= value < palette.num_classes:  # True is an int as well
            ids.append(value)
        else:
            known = list(enumerate(palette.names))
            if isinstance(value, str):
                known.sort(key=lambda entry: -_likeness(value, entry[1]))
            listed = ", ".join(f"{number} '{name}'" for number, name in known)
            raise UserError(
                f"{key}: {value!r} is not a class. Give names or IDs of these{other}: {listed}."
            )
    return list(dict.fromkeys(ids))


def _likeness(value: str, name: str) -> float:
    return difflib.SequenceMatcher(None, value.casefold(), name.casefold()).ratio()


def color_codes(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The 24-bit codes (H, W) of colours (H, W, 3), red in the lowest byte."""
    import cv2  # not above: --help needs no OpenCV

    # A fourth byte makes every pixel one aligned 32-bit word, so that the code is a view.
    words = cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0]
    codes: npt.NDArray[np.int64]
    codes = np.bitwise_and(words, 0xFFFFFF, dtype=np.int64, casting="unsafe")
    return codes


def colors_of(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The colours (N, 3) of 24-bit codes (N,), the reverse of `color_codes`."""
    return np.stack([codes & 255, codes >> 8 & 255, codes >> 16 & 255], -1)
