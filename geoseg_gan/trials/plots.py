"""The picture of a trial. matplotlib takes a second to import, so it is imported inside."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING

from geoseg_gan.trials.arms import ONLY, REAL, mix_of
from geoseg_gan.trials.statistics import Comparison, Estimate
from geoseg_gan.trials.verdict import signed
from geoseg_gan.utils.errors import plural
from geoseg_gan.utils.pictures import RGB
from geoseg_gan.utils.plots import drawn, figure
from geoseg_gan.utils.tables import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Support = Sequence[Mapping[str, float]]

_WIDE = 6  # times the typical interval, from which on one may leave the frame
_CAPTION = (
    "Large points: mean over the seeds; left of 0 is worse than real tiles only. Bars: 95 % "
    "intervals, from resampling seeds and location groups; one that crosses 0 shows no measurable "
    "difference.\nFigures beside the frames: the same, also of what leaves the frame."
)


@dataclass(frozen=True)
class _Row:
    """A gain: its name, its estimate, smaller points beside it, and how it is drawn."""

    name: str
    gain: Estimate
    others: Sequence[float]
    color: str
    more: str = ""
    framed: bool = True


def trial_picture(
    comparison: Comparison, picked: str | None, names: Sequence[str], support: Support
) -> RGB:
    """Draws the difference of every arm to real tiles only, and by class that of the picked arm.

    Args:
        comparison: The runs.
        picked: The mixed arm that the verdict is about.
        names: The C classes.
        support: Of each class its "share" of the training pixels, and "tiles".
    """
    arms = [_arm_row(comparison, arm, picked) for arm in comparison.arms if arm != REAL]
    classes = _class_rows(comparison, picked, names, support)
    sheet = figure(15, 2.2 + 0.45 * max(3, len(arms), len(classes)))
    left, right = sheet.subplots(1, 2)
    _draw(left, arms)
    left.set_title("By arm (small dots: single seeds)")
    left.set_xlabel("difference in mIoU to real tiles only, percentage points")
    _draw(right, classes)
    right.set_title("By class, in the picked arm (gray dots: other mixed arms)")
    right.set_xlabel("difference in IoU to real tiles only, percentage points")
    sheet.supxlabel(_CAPTION, fontsize=9)
    return drawn(sheet)


def _arm_row(comparison: Comparison, arm: str, picked: str | None) -> _Row:
    gain = comparison.difference(arm)
    color = "tab:red" if arm == picked else "tab:blue"
    name = f"{arm} (picked)" if arm == picked else arm
    seeds = plural(len(gain.seeds), "seed")
    return _Row(name, gain.miou, gain.by_seed, color, f", {seeds}", arm != ONLY)


def _class_rows(
    comparison: Comparison, picked: str | None, names: Sequence[str], support: Support
) -> list[_Row]:
    mixed = [arm for arm in comparison.arms if mix_of(arm) is not None and arm != picked]
    others = [comparison.difference(arm).classes for arm in mixed]
    nothing = [Estimate(math.nan, math.nan, math.nan)] * len(names)
    gains = nothing if picked is None else comparison.difference(picked).classes
    return [
        _Row(
            f"{name}: {percent(entry['share'])} % of pixels, {entry['tiles']:.0f} tiles",
            gain,
            [other[c].value for other in others],
            "tab:red",
        )
        for c, (name, entry, gain) in enumerate(zip(names, support, gains, strict=True))
    ]


def _draw(axes: "Axes", rows: Sequence[_Row]) -> None:
    """Draws gains from top to bottom, each with its figures at the right."""
    reaches = [reach for row in rows if row.framed and (reach := _reach(row.gain))]
    widest = _WIDE * median_low(reaches or [0.0])
    ends: list[float] = [0.0]
    for number, row in enumerate(rows):
        value, reach, others = 100 * row.gain.value, _reach(row.gain), [100 * v for v in row.others]
        color = "k" if row.more else "gray"
        axes.plot(others, [number + 0.25] * len(others), ".", color=color, alpha=0.5)
        axes.errorbar(value, number, xerr=reach, fmt="o", color=row.color, capsize=3)
        if row.framed:
            shown = reach if reach <= widest else 0.0
            ends += [end for end in (*others, value - shown, value + shown) if not math.isnan(end)]
    space = 0.06 * (max(ends) - min(ends)) or 1.0
    axes.set_xlim(min(ends) - space, max(ends) + space)
    axes.axvline(0, color="black", linewidth=1)
    axes.grid(axis="x", alpha=0.3)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(max(1, len(rows)) - 0.5, -0.5)
    figures = axes.twinx()
    figures.set_ylim(axes.get_ylim())
    figures.set_yticks(range(len(rows)), [_figures(row) for row in rows])
    figures.tick_params(length=0)


def _figures(row: _Row) -> str:
    if math.isnan(row.gain.value):
        return "-"
    bounds = ""
    if row.gain.has_interval:
        bounds = f" ({signed(row.gain.low)} to {signed(row.gain.high)})"
    return f"{signed(row.gain.value)}{bounds}{row.more}"


def _reach(estimate: Estimate) -> float:
    return 100 * (estimate.high - estimate.low) / 2 if estimate.has_interval else 0.0
