"""The picture of a trial. matplotlib takes a second to import, so it is imported inside."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from geoseg_gan.trials.arms import ONLY, REAL, mix_of
from geoseg_gan.trials.statistics import Comparison, Estimate
from geoseg_gan.trials.verdict import signed
from geoseg_gan.utils.pictures import RGB
from geoseg_gan.utils.plots import drawn, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Support = Sequence[Mapping[str, float]]


def trial_picture(
    comparison: Comparison, picked: str | None, names: Sequence[str], support: Support
) -> RGB:
    """Draws gains by arm, and gains by class against the class's share.

    Args:
        comparison: The runs.
        picked: The mixed arm that the verdict is about.
        names: The C classes.
        support: Of each class its "share" of the training pixels, and "tiles".
    """
    sheet = figure(11, 5)
    left, right = sheet.subplots(1, 2, width_ratios=[1, 1.1])
    _gains(left, comparison, picked)
    _gains_by_share(right, comparison, picked, names, support)
    return drawn(sheet)


def _gains(axes: "Axes", comparison: Comparison, picked: str | None) -> None:
    arms = [arm for arm in comparison.arms if arm != REAL]
    ends: list[float] = [0.0]
    for row, arm in enumerate(arms):
        gain = comparison.difference(arm)
        if math.isnan(gain.miou.value):
            continue
        color = "tab:red" if arm == picked else "tab:blue"
        dots, value, reach = 100 * np.array(gain.by_seed), 100 * gain.miou.value, _reach(gain.miou)
        axes.plot(dots, [row + 0.15] * len(dots), "k.", alpha=0.4)
        axes.errorbar(value, row, xerr=reach, fmt="o", color=color, capsize=3)
        mine = [*dots, value - reach, value + reach]
        if arm != ONLY:
            ends += mine
        elif min(mine) < min(ends):  # its loss would squash what the others differ by
            text = f"further left: {signed(gain.miou.value)}"
            axes.text(0.02, row - 0.15, text, transform=axes.get_yaxis_transform(), fontsize=8)
    space = 0.06 * (max(ends) - min(ends)) or 1.0
    axes.set_xlim(min(ends) - space, max(ends) + space)
    axes.axvline(0, color="gray", linewidth=1)
    labels = [f"{arm} (picked)" if arm == picked else arm for arm in arms]
    axes.set_yticks(range(len(arms)), labels)
    axes.set_ylim(max(1, len(arms)) - 0.5, -0.5)
    axes.set_xlabel("difference to real only, points of mIoU")
    axes.set_title("Gain by arm: 95 % intervals, one dot per seed")


def _gains_by_share(
    axes: "Axes",
    comparison: Comparison,
    picked: str | None,
    names: Sequence[str],
    support: Support,
) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.axhline(0, color="gray", linewidth=1)
    shares = [100 * max(entry["share"], 1e-6) for entry in support]
    mixed = [arm for arm in comparison.arms if mix_of(arm) is not None]
    for arm in sorted(mixed, key=lambda arm: arm == picked):  # names are placed above all points
        gains = comparison.difference(arm).classes
        values = [100 * gain.value for gain in gains]
        if arm != picked:
            axes.plot(shares, values, "o", color="lightgray", markersize=4)
            continue
        for share, gain in zip(shares, gains, strict=True):
            if not math.isnan(gain.value):
                axes.errorbar(
                    share, 100 * gain.value, _reach(gain), fmt="o", color="tab:red", capsize=3
                )
        _name_points(axes, names, shares, values, support)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("share of the training pixels, %")
    axes.set_ylabel("difference to real only, points of IoU")
    axes.set_title("Gain by class: picked arm red, others gray")


def _name_points(
    axes: "Axes",
    names: Sequence[str],
    shares: Sequence[float],
    values: Sequence[float],
    support: Support,
) -> None:
    """Writes the names of points evenly spaced along the top, where they cannot overlap."""
    shown = sorted(
        (c for c in range(len(names)) if not math.isnan(values[c])), key=shares.__getitem__
    )
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.6 * (top - bottom))
    for number, c in enumerate(shown):
        axes.annotate(
            f"{names[c]}: {support[c]['tiles']:.0f} tiles",
            (shares[c], values[c]),
            xytext=((number + 0.5) / len(shown), 0.98),
            textcoords="axes fraction",
            rotation=90,
            ha="center",
            va="top",
            fontsize=7,
            arrowprops={"arrowstyle": "-", "color": "lightgray"},
        )


def _reach(estimate: Estimate) -> float:
    return 100 * (estimate.high - estimate.low) / 2 if estimate.has_interval else 0.0
