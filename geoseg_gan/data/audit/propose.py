"""A data config for masks that no known one fits: classes, numbers, colours to ignore."""

import colorsys
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.audit.values import Peaks, Values, find_peaks, gray_of, ladder, rgb_of
from geoseg_gan.data.palette import IGNORE, MAX_CLASSES, Palette

_SAME_COLOR = 3.0  # distance in RGB of a colour and a known one that it stands for
_SAME_DAMAGED = 24.0  # the same after JPEG
_MOSTLY_EMPTY = 0.9  # share of a value's pixels on empty ones of the image: it stands for no data
_FITS = 0.99  # share of the pixels that a config of the package has to have the colours of
_FITS_SET = 0.5  # the same of the config that is set
_SMALL = 0.05  # share of pixels up to which black, white or grey is taken for "unlabelled"
_IN_FEW = 0.5  # share of the masks up to which it is


@dataclass(frozen=True)
class ProposedClass:
    """A class, or what is ignored, as a config lists it."""

    name: str
    color: tuple[int, int, int]
    value: int | None  # in masks of numbers
    pixels: int
    masks: int
    remark: str = ""


@dataclass(frozen=True)
class Proposal:
    """A data config, and why."""

    mask_format: str
    classes: list[ProposedClass]
    ignored: list[ProposedClass]
    unknown: str  # error, or nearest or ignore where masks are damaged
    total: int  # pixels of all masks
    masks: int
    repaired: int = 0  # pixels of other colours, which are read as the nearest class
    source: str | None = None  # the config whose classes it has; "" for that which was set
    rivals: Sequence[str] = field(default=())  # other configs that have the same colours
    notes: Sequence[str] = field(default=())
    more: Mapping[str, Any] = field(default_factory=dict)  # group_regex, gsd, fit

    @property
    def index_map(self) -> dict[int, int | str] | None:
        """The class of each number; None where numbers are class IDs already."""
        if self.mask_format != "index":
            return None
        table: dict[int, int | str] = {
            entry.value: number
            for number, entry in enumerate(self.classes)
            if entry.value is not None
        }
        ignored = {entry.value: "ignore" for entry in self.ignored if entry.value is not None}
        if all(value == number for value, number in table.items()) and set(ignored) <= {IGNORE}:
            return None
        return {**table, **ignored}

    @property
    def ignore_colors(self) -> list[tuple[int, int, int]]:
        """Colours that are read as ignore, and with which ignored pixels are written."""
        listed = [entry.color for entry in self.ignored if entry.value is None]
        taken = [entry.color for entry in self.classes]
        if listed or (self.unknown != "nearest" and (0, 0, 0) not in taken):
            return listed or [(0, 0, 0)]
        # Far from all classes, so that no damaged colour is nearest to it.
        corners = [_triple(corner) for corner in product((0, 255), repeat=3)]
        return [max(corners, key=lambda corner: min(_distance(corner, c) for c in taken))]

    def counted(self, pixels: npt.NDArray[np.int64]) -> "Proposal":
        """The same with pixels and masks of each class as they are read by it.

        `pixels` are those of every class and, last, of ignore in each mask: shape (N, C + 1).
        """
        classes = [
            replace(entry, pixels=int(column.sum()), masks=int((column > 0).sum()))
            for entry, column in zip(self.classes, pixels.T, strict=False)
        ]
        return replace(self, classes=classes)

    def lines(self, head: Sequence[str]) -> list[str]:
        """The config as YAML, with what was found as comments; `head` becomes comments too."""
        ignored = [entry for entry in self.ignored if entry.value is None]
        text = [*(f"# {line}" for line in head), "defaults: [landcover]", "palette:"]
        text += [
            f"  - {{name: {_yaml(entry.name)}, color: {list(entry.color)}}}  # {self._found(entry)}"
            for entry in self.classes
        ]
        if ignored:
            text.append("ignore:")
            text += [f"  - {list(entry.color)}  # {self._found(entry)}" for entry in ignored]
        elif self.ignore_colors != [(0, 0, 0)]:
            text.append(
                f"ignore: {[list(c) for c in self.ignore_colors]}  # to write ignored pixels"
            )
        text.append(f"mask_format: {self.mask_format}")
        if self.index_map is not None:
            text.append(
                "index_map:  # numbers in the masks: classes by their position above, from 0"
            )
            known = {entry.value: entry.remark for entry in (*self.classes, *self.ignored)}
            for value, target in self.index_map.items():
                text.append(f"  {value}: {target}" + f"  # {known[value]}" * bool(known[value]))
        if self.unknown != "error":
            share = self.repaired / max(1, self.total)
            text.append(f"unknown: {self.unknown}  # {self.repaired:,} pixels ({share:.2%})")
        for key, (value, remark) in self.more.items():
            text.append(f"{key}: {_yaml(value)}  # {remark}")
        return [*text, *(f"# {note}" for note in self.notes)]

    def _found(self, entry: ProposedClass) -> str:
        share = entry.pixels / max(1, self.total)
        found = f"{share:.2%} of pixels, in {entry.masks:,} of {self.masks:,} masks"
        if entry.value is not None:
            found = f"{entry.value} in the masks: {found}"
        return f"{found}; {entry.remark}" if entry.remark else found


def propose_colors(
    values: Values, even: Values, is_lossy: bool, masks: int, known: Mapping[str, Palette]
) -> Proposal | None:
    """A config for masks of colours.

    Args:
        values: Their colours.
        even: Those apart from edges.
        is_lossy: Whether some are JPEGs.
        masks: How many masks there are.
        known: Palettes by the name of their config, "" for the one that is set; that which fits
            best names the classes.

    Returns:
        None where no palette can be made of them.
    """
    peaks = find_peaks(values, even, is_lossy, rgb_of)
    tolerance = _SAME_COLOR if peaks.is_exact else _SAME_DAMAGED
    sources = _fitting(peaks, known, tolerance)
    source = sources[0] if sources else None
    palette = None if source is None else known[source]
    entries = [_entry(values, peaks, number) for number in range(len(peaks.places))]
    classes: list[ProposedClass] = []
    ignored: list[ProposedClass] = []
    rest = entries
    if palette is not None:
        matches = [_match(palette, entry.color, tolerance) for entry in entries]
        for label, known_class in enumerate(palette.classes):
            mine = [entry for entry, match in zip(entries, matches, strict=True) if match == label]
            color = _triple(known_class.color)
            pixels, held = sum(e.pixels for e in mine), max((e.masks for e in mine), default=0)
            remark = "" if mine else "never occurs"
            classes.append(ProposedClass(known_class.name, color, None, pixels, held, remark))
        for color in map(_triple, palette.ignore):
            mine = [e for e in entries if _distance(e.color, color) <= tolerance]
            pixels, held = sum(e.pixels for e in mine), max((e.masks for e in mine), default=0)
            ignored.append(ProposedClass("ignore", color, None, pixels, held, ""))
        rest = [entry for entry, match in zip(entries, matches, strict=True) if match is None]
    for entry in rest:
        reason = _unlabelled(values, peaks, entries.index(entry), source)
        if reason:
            ignored.append(_named(entry, "ignore", f"{reason}, so it is ignored here"))
        else:
            remark = "" if source is None else "new"
            if _is_gray(entry.color) and _mostly_colored(peaks):
                remark = "if this stands for unlabelled, move it to ignore"
            new = sum(name.startswith("class_") for name in (c.name for c in classes))
            classes.append(_named(entry, f"class_{new + 1}", remark))
    if not 2 <= len(classes) <= MAX_CLASSES:
        return None
    notes = [
        f"left out as a slip: {_triple(rgb_of([int(values.values[place])])[0])}, "
        f"{int(values.pixels[place]):,} pixels in {int(values.masks[place])} masks"
        for place in peaks.strays[:10]
    ]
    return Proposal(
        mask_format="rgb",
        classes=classes,
        ignored=ignored,
        unknown="nearest" if peaks.repaired else "error",
        total=values.total,
        masks=masks,
        repaired=peaks.repaired,
        source=source,
        rivals=sources[1:],
        notes=notes,
    )


def propose_numbers(
    values: Values,
    even: Values,
    is_lossy: bool,
    masks: int,
    colors: Mapping[int, int],
    nodata: Collection[int] = (),
) -> Proposal | None:
    """A config for masks of numbers: class IDs from 0 or 1, 0 and 255, or in steps.

    Damaged ones, as JPEGs are, become grey colours, of which the nearest can be taken.

    Args:
        values: The numbers.
        even: Those apart from edges.
        is_lossy: Whether some masks are JPEGs.
        masks: How many masks there are.
        colors: 24-bit colour codes by number, where masks have colour tables.
        nodata: Numbers that files say to be no data.

    Returns:
        None where no palette can be made of them.
    """
    peaks = find_peaks(values, even, is_lossy, gray_of)
    numbers = [int(values.values[place]) for place in peaks.places]
    is_damaged = bool(peaks.repaired) and not peaks.strays
    if is_damaged and values.values.min() >= 0 and values.values.max() < 256:
        as_colors, even_colors = (
            replace(part, values=part.values * 0x010101) for part in (values, even)
        )
        return propose_colors(as_colors, even_colors, True, masks, {})
    entries = [_entry(values, peaks, number) for number in range(len(peaks.places))]
    ordered = sorted(zip(numbers, range(len(numbers)), strict=True))
    reasons = _ignored_numbers(values, peaks, [number for number, _ in ordered])
    reasons |= {number: "no data, as the files say" for number in nodata if number in numbers}
    kept = [(number, place) for number, place in ordered if number not in reasons]
    if not 2 <= len(kept) <= MAX_CLASSES:
        return None
    shown = _colors([number for number, _ in kept], colors)
    classes = [
        ProposedClass(
            name=f"class_{number}",
            color=shown[number],
            value=number,
            pixels=entries[place].pixels,
            masks=entries[place].masks,
            remark="if 0 stands for unlabelled, map it to ignore"
            if number == 0 and [n for n, _ in kept[:3]] == [0, 1, 2]
            else "",
        )
        for number, place in kept
    ]
    ignored = [
        ProposedClass("ignore", (0, 0, 0), number, entries[p].pixels, entries[p].masks, why)
        for number, p in ordered
        if (why := reasons.get(number))
    ]
    return Proposal(
        mask_format="index",
        classes=classes,
        ignored=ignored,
        unknown="ignore" if peaks.repaired else "error",
        total=values.total,
        masks=masks,
        repaired=peaks.repaired,
        notes=_about_numbers([number for number, _ in kept]),
    )


def _ignored_numbers(values: Values, peaks: Peaks, ordered: Sequence[int]) -> dict[int, str]:
    """Numbers that stand for no class, with the reason."""
    reasons: dict[int, str] = {}
    for place in peaks.places:
        if values.pixels[place] and values.empty[place] >= _MOSTLY_EMPTY * values.pixels[place]:
            reasons[int(values.values[place])] = "lies on empty pixels of the images"
    for special in (255, 65_535, -1, -128, -9_999, -32_768):
        rest = [number for number in ordered if number != special and number not in reasons]
        steps = ladder(rest)
        if special in ordered and steps and special not in reasons:
            beside = (rest[-1] + steps[1], rest[0] - steps[1]) if special > 0 else ()
            if not any(abs(special - number) <= 1 for number in beside):
                reasons[special] = f"{special} stands apart, as ignore does"
    rest = [number for number in ordered if number not in reasons]
    if rest[:3] == [0, 1, 2]:
        place = int(np.flatnonzero(values.values == 0)[0])
        few = values.masks[place] <= _IN_FEW * values.masks.max()
        if values.share(place) <= _SMALL and few:
            reasons[0] = "0 is rare and in few masks: probably unlabelled"
    if len(ordered) - len(reasons) < 2:  # all but one: then they are no such thing
        return {}
    return reasons


def _about_numbers(numbers: Sequence[int]) -> list[str]:
    """What is peculiar about the numbers of classes, in words."""
    steps = ladder(numbers)
    if steps is None:
        return []
    first, step = steps
    notes = []
    if set(numbers) == {0, 255}:
        notes.append("The masks hold 0 and 255.")
    elif step > 1:
        notes.append(f"The numbers go in steps of {step}, from {first}.")
    elif first:
        notes.append(f"The numbers begin at {first}.")
    absent = sorted(set(range(first, max(numbers), step)) - set(numbers))
    if absent and len(absent) <= len(numbers):
        named = ", ".join(map(str, absent[:10]))
        notes.append(f"Never found: {named}. Add them if they are classes.")
    return notes


def _entry(values: Values, peaks: Peaks, number: int) -> ProposedClass:
    place = peaks.places[number]
    color = _triple(peaks.colors[number])
    return ProposedClass("", color, None, int(peaks.pixels[number]), int(values.masks[place]))


def _named(entry: ProposedClass, name: str, remark: str) -> ProposedClass:
    return ProposedClass(name, entry.color, None, entry.pixels, entry.masks, remark)


def _unlabelled(values: Values, peaks: Peaks, number: int, source: str | None) -> str:
    """Why a colour seems to stand for no class; empty where it does not."""
    place, color = peaks.places[number], _triple(peaks.colors[number])
    if values.empty[place] >= _MOSTLY_EMPTY * values.pixels[place]:
        return "lies on empty pixels of the images"
    share = float(peaks.pixels[number]) / max(1, values.total)
    if share > _SMALL or values.masks[place] > _IN_FEW * values.masks.max():
        return ""
    if _is_gray(color) and _mostly_colored(peaks):
        return "is grey among colours, rare, and in few masks"
    return "" if source is None else "is in no known class, rare, and in few masks"


def _mostly_colored(peaks: Peaks) -> bool:
    return sum(not _is_gray(_triple(color)) for color in peaks.colors) > len(peaks.colors) / 2


def _is_gray(color: tuple[int, int, int]) -> bool:
    return max(color) - min(color) <= 4


def _fitting(peaks: Peaks, known: Mapping[str, Palette], tolerance: float) -> list[str]:
    """The configs whose palettes have the colours, the best first.

    Data sets share colours, as pure red, so that a config of the package must have all of them; the
    one that is set, "", may lack some.
    """
    total = max(1, int(peaks.pixels.sum()))
    found = []
    for name, palette in known.items():
        matches = [_match(palette, _triple(color), tolerance) for color in peaks.colors]
        fits = [match is not None for match in matches]
        share = float(peaks.pixels[fits].sum()) / total
        classes = {match for match in matches if match is not None and match != IGNORE}
        if share >= (_FITS if name else _FITS_SET) and len(classes) >= 2:
            found.append((share, len(classes) / palette.num_classes, name))
    return [name for *_, name in sorted(found, key=lambda entry: entry[:2], reverse=True)]


def _match(palette: Palette, color: tuple[int, int, int], tolerance: float) -> int | None:
    """The label of a palette's colour that is near to this one."""
    listed = [(_triple(c.color), label) for label, c in enumerate(palette.classes)]
    listed += [(_triple(c), IGNORE) for c in palette.ignore]
    distance, label = min((_distance(color, other), label) for other, label in listed)
    return label if distance <= tolerance else None


def _distance(one: Sequence[int], other: Sequence[int]) -> float:
    return float(np.linalg.norm(np.subtract(one, other)))


def _triple(color: Any) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in color)
    return red, green, blue


def _colors(numbers: Sequence[int], table: Mapping[int, int]) -> dict[int, tuple[int, int, int]]:
    """A colour for each number: those of the colour table where all differ, else made up."""
    listed = [_triple(rgb_of([table[number]])[0]) for number in numbers if number in table]
    if len(set(listed)) == len(numbers) and (0, 0, 0) not in listed:
        return dict(zip(numbers, listed, strict=True))
    made = {}
    for place, number in enumerate(numbers):
        # Steps of the golden ratio around the colour circle stay apart, however many they are.
        hue, value = (0.08 + 0.618034 * place) % 1, 0.95 - 0.2 * (place % 3)
        made[number] = _triple(255 * np.array(colorsys.hsv_to_rgb(hue, 0.75, value)))
    return made


def _yaml(value: Any) -> str:
    """A value as YAML has it; texts that could be anything else are quoted."""
    if not isinstance(value, str):
        return str(value)
    words = value.casefold() not in ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
    if words and re.fullmatch(r"[A-Za-z][\w ]*\w", value):
        return value
    return "'" + value.replace("'", "''") + "'"
