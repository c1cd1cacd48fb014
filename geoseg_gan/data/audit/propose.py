"""A data config for masks that no known one fits: classes, numbers, colours to ignore."""

import colorsys
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from geoseg_gan.data.audit.facts import Ints, MaskFacts, Values
from geoseg_gan.data.palette import (
    IGNORE,
    LARGEST_VALUE,
    MAX_CLASSES,
    NEAR,
    Palette,
    PaletteClass,
    colors_of,
)
from geoseg_gan.data.settings import DataSettings

RGB = tuple[int, int, int]
Colors = npt.NDArray[np.float64]

_MOST_EXACT = 64  # values up to which masks are taken to be free of damage, unless they are JPEGs
_MOST_COMPARED = 4096  # most frequent colours that are compared with each other
_MASS_RADIUS = 20.0  # distance in RGB within which JPEG spreads an even region
_LEAST_MASS = 5e-4  # share of all pixels that a class has at least among damaged colours
_ON_EDGE = 24.0  # distance in RGB from the line between two colours: anti-aliased edges
_EDGE_SHARE = 0.05  # of the smaller class beside it: edges hold less than that
_STRAY = 1e-5  # share of pixels below which an exact colour of one or two masks is a slip
_STRAY_MASKS = 2
_SAME_COLOR = 3.0  # distance in RGB of a colour and a known one that it stands for
_SAME_DAMAGED = 24.0  # the same after JPEG
_STRANGE = 0.3  # share of pixels of other colours above which images are no masks
_MOSTLY_EMPTY = 0.9  # share of a value's pixels on empty ones of the image: it stands for no data
_FITS = 0.99  # share of the pixels that a config of the package has to have the colours of
_FITS_SET = 0.5  # the same of the config that is set
_SMALL = 0.05  # share of pixels up to which black, white or grey is taken for "unlabelled"
_IN_FEW = 0.5  # share of the masks up to which it is
_SPECIAL = (255, 65_535, -1, -128, -9_999, -32_768)  # numbers that often mean ignore


@dataclass(frozen=True)
class ProposedClass:
    """A value of the masks, as a class or as what is ignored."""

    color: RGB
    value: int  # a 24-bit code in masks of colours
    pixels: int
    masks: int
    is_empty: bool = False  # whether it lies on empty pixels of the images
    name: str = "ignore"
    remark: str = ""

    @property
    def is_gray(self) -> bool:
        """Whether it has no colour."""
        return max(self.color) - min(self.color) <= 4


@dataclass(frozen=True)
class Peaks:
    """The values that seem to stand for classes, the most frequent first, and the others."""

    found: list[ProposedClass]  # each with the pixels of damaged colours near it
    repaired: int  # pixels of the others
    strays: list[str]  # exact values of so few pixels that they are slips
    total: int  # pixels of all masks
    masks: int


@dataclass(frozen=True)
class Proposal:
    """A data config, and why."""

    mask_format: str
    classes: list[ProposedClass]
    ignored: list[ProposedClass]
    unknown: str  # error, or nearest or ignore where masks are damaged
    peaks: Peaks
    source: str | None = None  # the config whose classes it has; "" for that which was set
    rivals: Sequence[str] = ()  # other configs that have the same colours
    is_known: bool = False  # whether that config needs no change
    notes: Sequence[str] = ()
    more: Mapping[str, tuple[Any, str]] = field(default_factory=dict)  # further settings, and why

    @property
    def index_map(self) -> dict[int, int | str] | None:
        """The class of each number; None where numbers are class IDs already."""
        table: dict[int, int | str] = {c.value: label for label, c in enumerate(self.classes)}
        ignored = {entry.value: "ignore" for entry in self.ignored}
        is_plain = all(value == label for value, label in table.items()) and {*ignored} <= {IGNORE}
        return None if self.mask_format != "index" or is_plain else {**table, **ignored}

    @property
    def ignore_colors(self) -> list[RGB]:
        """Colours that are read as ignore, and with which ignored pixels are written."""
        listed = [entry.color for entry in self.ignored if self.mask_format == "rgb"]
        taken = [entry.color for entry in self.classes]
        if listed or (self.unknown != "nearest" and (0, 0, 0) not in taken):
            return listed or [(0, 0, 0)]
        # Far from all classes, so that no damaged colour is nearest to it.
        corners = [_triple(corner) for corner in product((0, 255), repeat=3)]
        return [max(corners, key=lambda corner: min(_distance(corner, c) for c in taken))]

    def settings(self, given: DataSettings) -> DataSettings:
        """Data settings with what it says of masks."""
        return replace(
            given,
            palette=[PaletteClass(entry.name, list(entry.color)) for entry in self.classes],
            ignore=[list(color) for color in self.ignore_colors],
            mask_format=self.mask_format,
            index_map=self.index_map,
            unknown=self.unknown,
        )

    def lines(self, head: Sequence[str]) -> list[str]:
        """The config as YAML, with what was found as comments; `head` becomes comments too."""
        in_color, index_map = self.mask_format == "rgb", self.index_map
        text = [*(f"# {line}" for line in head), "defaults: [landcover]", "palette:"]
        text += [
            f"  - {{name: {json.dumps(c.name)}, color: {list(c.color)}}}  # {self._found(c)}"
            for c in self.classes
        ]
        if in_color and self.ignored:
            text += ["ignore:", *(f"  - {[*e.color]}  # {self._found(e)}" for e in self.ignored)]
        elif self.ignore_colors != [(0, 0, 0)]:
            text.append(f"ignore: {[*map(list, self.ignore_colors)]}  # to write ignored pixels")
        text.append(f"mask_format: {self.mask_format}")
        if index_map is not None:
            text.append("index_map:  # numbers in masks: classes by their position above, from 0")
            remarks = {e.value: f"  # {e.remark}" * bool(e.remark) for e in self.ignored}
            text += [f"  {v}: {to}{remarks.get(v, '')}" for v, to in index_map.items()]
        if self.unknown != "error":
            text.append(f"unknown: {self.unknown}  # {self._share(self.peaks.repaired)}")
        text += [f"{key}: {json.dumps(value)}  # {why}" for key, (value, why) in self.more.items()]
        return [*text, *(f"# {note}" for note in self.notes)]

    def _share(self, pixels: int) -> str:
        return f"{pixels:,} pixels ({pixels / max(1, self.peaks.total):.2%})"

    def _found(self, entry: ProposedClass) -> str:
        found = f"{self._share(entry.pixels)}, in {entry.masks:,} of {self.peaks.masks:,} masks"
        found = f"{entry.value} in masks: {found}" if self.mask_format == "index" else found
        return f"{found}; {entry.remark}" if entry.remark else found

    def __str__(self) -> str:
        """What was found, in a sentence or some."""
        what = "colours" if self.mask_format == "rgb" else "numbers"
        text = f"The masks hold {len(self.classes)} classes by their {what}"
        if self.source is not None:
            named = f"data={self.source}" if self.source else "the data config"
            new = sum(entry.remark == "new" for entry in self.classes)
            text = f"The masks have the classes of {named}" + f", and {new} more" * bool(new)
        if self.unknown != "error":
            to = "ignore" if self.unknown == "ignore" else "the class of the nearest"
            text += f"; {self._share(self.peaks.repaired)} of other {what} are read as {to}"
        return " ".join([f"{text}.", *self.notes])

    @property
    def advice(self) -> str:
        """Which config to use."""
        if self.is_known:
            same = f" ({', '.join(self.rivals)} has the same colours)" if self.rivals else ""
            return f"Use data={self.source}{same}."
        named = "Fill in the names in the proposed config, and use it."
        is_new = any(entry.name.startswith("class_") for entry in self.classes)
        return named if is_new else "Use the proposed config."


def propose(masks: Sequence[MaskFacts], known: Mapping[str, DataSettings]) -> Proposal | None:
    """A config by what masks hold.

    Args:
        masks: The masks.
        known: Data settings by the name of their config, "" for those that are set; of those of
            colours, that which fits best names the classes.

    Returns:
        None where no palette can be made of them.
    """
    in_color = any(mask.shows_colors() for mask in masks)
    peaks = find_peaks(masks, in_color)
    if in_color:
        found = _of_colors(peaks, known)
    elif peaks.repaired and not peaks.strays:
        found = _of_colors(peaks, {})  # grey ones, of which the nearest can be taken
    else:
        found = _of_numbers(peaks, masks)
        if any(not 0 <= entry.value <= LARGEST_VALUE for entry in found.classes):
            return None  # no such mask can be written
    return found if 2 <= len(found.classes) <= MAX_CLASSES else None


def find_peaks(masks: Sequence[MaskFacts], in_color: bool) -> Peaks:
    """Finds the values that stand for classes among damaged ones.

    JPEG spreads a colour over those around it, and anti-aliasing puts blends of two colours between
    them. Both happen at edges, so that classes are looked for inside of regions: colours are taken
    by their frequency there, and one is a class if it is far from those before it, and no blend of
    two of them. Numbers are taken for grey colours.
    """
    values, even = (
        Values.joined(mask.read_as(in_color, part) for mask in masks) for part in (False, True)
    )
    to_rgb = colors_of if in_color else lambda numbers: numbers[:, None].repeat(3, 1)
    rgb, shares = to_rgb(values.values), values.shares
    places, strays = np.arange(len(shares)), np.zeros(0, np.int64)
    colors, pixels = rgb, values.pixels
    is_lossy = any(mask.is_lossy for mask in masks) or _is_damaged(values, shares, rgb)
    if is_lossy and (in_color or not {*values.values.tolist()} - {*range(256)}):
        source = even if even.total else values
        centres = _centres(to_rgb(source.values[:_MOST_COMPARED]).astype(float), source)
        places = np.zeros(0, np.int64)
        if len(centres):
            places, colors = cKDTree(rgb).query(centres)[1], centres.round().astype(np.int64)
            distances, nearest = cKDTree(centres).query(rgb)
            pixels = np.bincount(nearest, values.pixels, len(centres)).astype(np.int64)
            if shares[distances > _SAME_DAMAGED].sum() > _STRANGE:  # photographs, not masks
                places = places[:0]
    else:
        is_stray = (shares < _STRAY) & (values.masks <= _STRAY_MASKS)
        places, strays = np.flatnonzero(~is_stray), np.flatnonzero(is_stray)
        colors, pixels = colors[places], pixels[places]
    found = [
        ProposedClass(
            _triple(color),
            int(values.values[at]),
            int(count),
            int(values.masks[at]),
            bool(values.empty[at] >= _MOSTLY_EMPTY * max(1, values.pixels[at])),
        )
        for at, color, count in zip(places, colors, pixels, strict=False)
    ]
    slips = [
        f"left out as a slip: {_triple(rgb[at]) if in_color else values.values[at]}, "
        f"{values.pixels[at]:,} pixels in {values.masks[at]} masks"
        for at in strays
    ]
    rest = values.total - int(values.pixels[np.unique(places)].sum())
    return Peaks(found, rest, slips, values.total, len(masks))


def _centres(colors: Colors, values: Values) -> Colors:
    """RGB colours of the classes among damaged colours, shape (P, 3), the most frequent first."""
    chosen, masses, pixels = np.zeros((0, 3)), list[float](), values.pixels[: len(colors)]
    ends, weaker = _pairs(chosen), np.zeros(0)
    for color in colors:
        if len(chosen) > MAX_CLASSES:  # no palette can be made of these
            return chosen[:0]
        if (((chosen - color) ** 2).sum(1) < NEAR**2).any():
            continue
        mass = float(pixels[((colors - color) ** 2).sum(1) <= _MASS_RADIUS**2].sum())
        is_blend = (_are_blends(color, ends) & (mass < _EDGE_SHARE * weaker)).any()
        if mass >= _LEAST_MASS * values.total and not is_blend:
            chosen, masses = np.vstack([chosen, color]), [*masses, mass]
            ends, weaker = _pairs(chosen), np.array([min(two) for two in combinations(masses, 2)])
    return chosen


def _is_damaged(values: Values, shares: Colors, rgb: Ints) -> bool:
    """Whether many rare colours are blends of few frequent ones."""
    if len(shares) > _MOST_EXACT:
        # A map of many classes has many frequent values.
        return int(np.count_nonzero(shares >= _LEAST_MASS)) <= len(shares) / 4
    ends, rare = _pairs(rgb[shares >= 0.005].astype(float)), rgb[shares < _LEAST_MASS].astype(float)
    blends = sum(bool(_are_blends(color, ends).any()) for color in rare)
    return blends >= 8 and blends >= 0.6 * len(rare)


def _pairs(colors: Colors) -> Colors:
    """Each two of the colours (N, 3): shape (N (N - 1) / 2, 2, 3)."""
    return np.array([*combinations(colors, 2)]).reshape(-1, 2, 3)


def _are_blends(color: Colors, ends: Colors) -> npt.NDArray[np.bool_]:
    """Between which two colours (M, 2, 3) another lies, close to the line that joins them."""
    way = ends[:, 1] - ends[:, 0]
    at = ((color - ends[:, 0]) * way).sum(1) / np.maximum((way**2).sum(1), 1e-9)
    off = color - ends[:, 0] - at[:, None] * way
    flags: npt.NDArray[np.bool_] = (at > 0.02) & (at < 0.98) & ((off**2).sum(1) <= _ON_EDGE**2)
    return flags


def _of_colors(peaks: Peaks, known: Mapping[str, DataSettings]) -> Proposal:
    palettes = {name: s.classes() for name, s in known.items() if s.mask_format == "rgb"}
    tolerance = _SAME_DAMAGED if peaks.repaired else _SAME_COLOR
    sources = _fitting(peaks, palettes, tolerance)
    classes: list[ProposedClass] = []
    ignored: list[ProposedClass] = []
    rest = peaks.found
    if sources:
        palette = palettes[sources[0]]
        labels = _labels(palette, rest, tolerance)
        colors = [(label, c.color, c.name) for label, c in enumerate(palette.classes)]
        colors += [(IGNORE, list(color), "ignore") for color in palette.ignore]
        for label, color, name in colors:
            mine = [e for e, its in zip(rest, labels, strict=True) if its == label
                    and (its != IGNORE or _distance(e.color, color) <= tolerance)]  # fmt: skip
            counts = sum(e.pixels for e in mine), max((e.masks for e in mine), default=0)
            remark = "" if mine or label == IGNORE else "never occurs"
            entry = ProposedClass(_triple(color), 0, *counts, name=name, remark=remark)
            (ignored if label == IGNORE else classes).append(entry)
        rest = [entry for entry, label in zip(rest, labels, strict=True) if label is None]
    colored = sum(not entry.is_gray for entry in peaks.found) > len(peaks.found) / 2
    before = len(classes), len(ignored)
    for entry in rest:
        if reason := _unlabelled(entry, peaks, colored, bool(sources)):
            ignored.append(replace(entry, remark=f"{reason}, so it is ignored here"))
            continue
        remark = "new" if sources else ""
        if entry.is_gray and colored:
            remark = "if this stands for unlabelled, move it to ignore"
        name = f"class_{len(classes) - before[0] + 1}"
        classes.append(replace(entry, name=name, remark=remark))
    is_known = bool(sources and sources[0]) and len(classes) == before[0] and not peaks.repaired
    if is_known and len(ignored) > before[1]:
        is_known = known[sources[0]].unknown == "ignore"
    unknown = "nearest" if peaks.repaired else "error"
    return Proposal(
        mask_format="rgb",
        classes=classes,
        ignored=ignored,
        unknown=unknown,
        peaks=peaks,
        source=sources[0] if sources else None,
        rivals=[f"data={name}" for name in sources[1:] if name],
        is_known=is_known,
        notes=peaks.strays[:10],
    )


def _unlabelled(entry: ProposedClass, peaks: Peaks, colored: bool, has_source: bool) -> str:
    """Why a colour seems to stand for no class; empty where it does not."""
    if entry.is_empty:
        return "lies on empty pixels of the images"
    most = max(other.masks for other in peaks.found)
    if entry.pixels > _SMALL * peaks.total or entry.masks > _IN_FEW * most:
        return ""
    if entry.is_gray and colored:
        return "is grey among colours, rare, and in few masks"
    return "is in no known class, rare, and in few masks" if has_source else ""


def _fitting(peaks: Peaks, known: Mapping[str, Palette], tolerance: float) -> list[str]:
    """The configs whose palettes have the colours, the best first.

    Data sets share colours, as pure red, so that a config of the package must have all of them; the
    one that is set, "", may lack some.
    """
    found = []
    pixels = np.array([entry.pixels for entry in peaks.found])
    for name, palette in known.items():
        labels = _labels(palette, peaks.found, tolerance)
        share = pixels[[label is not None for label in labels]].sum() / max(1, pixels.sum())
        classes = {*labels} - {None, IGNORE}
        if share >= (_FITS if name else _FITS_SET) and len(classes) >= 2:
            found.append((share, len(classes) / palette.num_classes, name))
    return [name for *_, name in sorted(found, key=lambda entry: entry[:2], reverse=True)]


def _labels(
    palette: Palette, entries: Sequence[ProposedClass], tolerance: float
) -> list[int | None]:
    """The label of the palette's colour that is near to that of each; None where none is."""
    labels, distances = palette.nearest(np.array([entry.color for entry in entries]).reshape(-1, 3))
    is_near = (distances <= tolerance).tolist()
    return [label if near else None for label, near in zip(labels.tolist(), is_near, strict=True)]


def _of_numbers(peaks: Peaks, masks: Sequence[MaskFacts]) -> Proposal:
    """Of class IDs from 0 or 1, 0 and 255, or in steps."""
    ordered = sorted(peaks.found, key=lambda entry: entry.value)
    reasons = _ignored_numbers(ordered, peaks.total)
    reasons |= {m.nodata: "no data, as the files say" for m in masks if m.nodata is not None}
    kept = [entry for entry in ordered if entry.value not in reasons]
    numbers, colors = [entry.value for entry in kept], _colors(kept, masks)
    hint = "if 0 stands for unlabelled, map it to ignore"
    classes = [
        replace(
            entry,
            name=f"class_{entry.value}",
            color=color,
            remark=hint if entry.value == 0 and numbers[:3] == [0, 1, 2] else "",
        )
        for entry, color in zip(kept, colors, strict=True)
    ]
    ignored = [replace(e, remark=reasons[e.value]) for e in ordered if e.value in reasons]
    unknown = "ignore" if peaks.repaired else "error"
    return Proposal("index", classes, ignored, unknown, peaks, notes=_about_numbers(numbers))


def _ignored_numbers(ordered: Sequence[ProposedClass], total: int) -> dict[int, str]:
    """Numbers that stand for no class, with the reason."""
    reasons = {e.value: "lies on empty pixels of the images" for e in ordered if e.is_empty}
    numbers = [entry.value for entry in ordered]
    for special in {*_SPECIAL} & {*numbers} - {*reasons}:
        rest = [number for number in numbers if number != special and number not in reasons]
        if len(rest) >= 2:
            step = int(np.gcd.reduce(np.diff(rest)))
            beside = (rest[-1] + step, rest[0] - step) if special > 0 else ()
            if not any(abs(special - number) <= 1 for number in beside):
                reasons[special] = f"{special} stands apart, as ignore does"
    rest = [number for number in numbers if number not in reasons]
    if rest[:3] == [0, 1, 2]:
        zero, most = ordered[numbers.index(0)], max(entry.masks for entry in ordered)
        if zero.pixels <= _SMALL * total and zero.masks <= _IN_FEW * most:
            reasons[0] = "0 is rare and in few masks: probably unlabelled"
    return reasons if len(numbers) - len(reasons) >= 2 else {}


def _about_numbers(numbers: Sequence[int]) -> list[str]:
    """What is peculiar about the numbers of classes, in words."""
    if len(numbers) < 2:
        return []
    first, step = numbers[0], int(np.gcd.reduce(np.diff(numbers)))
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


def _colors(kept: Sequence[ProposedClass], masks: Sequence[MaskFacts]) -> list[RGB]:
    """A colour for each number: of the colour tables where all differ, else made up."""
    table = shared_colors(masks) or {}
    listed = [_triple(colors_of(np.array(table[e.value]))) for e in kept if e.value in table]
    if len(set(listed)) == len(kept) and (0, 0, 0) not in listed:
        return listed
    # Steps of the golden ratio around the colour circle stay apart, however many they are.
    circle = [((0.08 + 0.618034 * n) % 1, 0.75, 0.95 - 0.2 * (n % 3)) for n in range(len(kept))]
    return [_triple(255 * np.array(colorsys.hsv_to_rgb(*place))) for place in circle]


def shared_colors(masks: Sequence[MaskFacts]) -> dict[int, int] | None:
    """The colour code of every index in all colour tables; None where two tables contradict."""
    known: dict[int, int] = {}
    for mask in masks:
        if any(known.setdefault(index, code) != code for index, code in mask.table.items()):
            return None
    return known


def _distance(one: Any, other: Any) -> float:
    return float(np.linalg.norm(np.subtract(one, other)))


def _triple(color: Any) -> RGB:
    red, green, blue = (int(value) for value in color)
    return red, green, blue
