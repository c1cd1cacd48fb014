"""Figures drawn as pictures: a confusion matrix, a histogram of scores.

matplotlib takes a second to import, which only those who draw shall pay: it is imported inside.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.utils.pictures import RGB
from geoseg_gan.utils.tables import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100
_BAR = 0.02  # width of a histogram's bar


def confusion_picture(confusion: npt.NDArray[np.int64], names: Sequence[str]) -> RGB:
    """Draws a confusion matrix, every row as shares of its true class.

    Args:
        confusion: Pixels by true class (rows) and predicted class (columns), shape (C, C).
        names: The classes.
    """
    totals = confusion.sum(1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    side = 2.5 + 0.6 * len(names)
    sheet = figure(side + 0.5, side)
    axes = sheet.add_subplot()
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, column in np.ndindex(*shares.shape):
        shown = f"{shares[row, column]:.0%}" if totals[row, 0] else "-"
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, shown, ha="center", va="center", color=color, fontsize=8)
    return drawn(sheet)


def score_histogram(
    kept: Sequence[float], dropped: Sequence[float], tau: float, held_out: Sequence[float]
) -> RGB:
    """Draws where the threshold cuts through the scores of generated pairs.

    Args:
        kept: Scores above the threshold, in 0..1; they are drawn in per cent.
        dropped: Scores that are not.
        tau: The threshold.
        held_out: Scores of real held-out windows, drawn as an outline; none if empty.
    """
    sheet = figure(7, 4)
    axes = sheet.add_subplot()
    # No bar holds both kept and dropped ones: tau is an edge.
    edges = tau + _BAR * np.arange(-math.ceil(tau / _BAR), math.ceil((1 - tau) / _BAR) + 1)
    axes.hist(
        [list(kept), list(dropped)],
        edges.tolist(),
        stacked=True,
        color=["tab:blue", "lightgray"],
        label=[f"kept: {len(kept):,}", f"dropped: {len(dropped):,}"],
    )
    if held_out:
        # Scaled to the area of the generated ones, so that the shapes can be compared.
        heights, _ = np.histogram(held_out, edges)
        scale = (len(kept) + len(dropped)) / len(held_out)
        axes.stairs(
            heights * scale,
            edges,
            color="black",
            label=f"real, held out: {len(held_out):,} (heights scaled)",
        )
    axes.axvline(tau, color="tab:red", linestyle="--", label=f"tau = {tau:.3f}: {percent(tau)} %")
    axes.set_xlabel("agreement of segmenter and mask, mIoU in %")
    axes.set_ylabel("pairs")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}")
    axes.legend()
    return drawn(sheet)


def figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, without a window of its own."""
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=_DPI, layout="tight")


def drawn(sheet: "Figure") -> RGB:
    """A figure's pixels, shape (H, W, 3), uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(sheet)  # whose methods carry no types
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
