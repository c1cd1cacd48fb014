"""The pictures of an evaluation. matplotlib takes a second to import, so plots.py does it late."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from geoseg_gan.pictures import RGB
from geoseg_gan.plots import drawn, figure


def spectrum_picture(
    frequency: npt.NDArray[np.float64], curves: Mapping[str, npt.NDArray[np.float64]]
) -> RGB:
    """Draws radially averaged power spectra.

    Args:
        frequency: Cycles a pixel, shape (F,).
        curves: Log10 of power by name, shape (F,) each.
    """
    sheet = figure(7, 4.5)
    axes = sheet.add_subplot()
    for name, power in curves.items():
        axes.plot(frequency, power, label=name)
    axes.set_xlabel("spatial frequency, cycles a pixel")
    axes.set_ylabel("power, log10")
    axes.set_title("Below real: blur. Above: noise. Spikes: a grid.")
    axes.legend()
    return drawn(sheet)


def values_picture(values: Mapping[str, tuple[float, float]], name: str) -> RGB:
    """Draws a figure beside its floors and controls.

    Args:
        values: Value and standard error by what was compared; the error may be NaN.
        name: What the figure is called.
    """
    sheet = figure(8, 0.8 + 0.33 * len(values))
    axes = sheet.add_subplot()
    rows = np.arange(len(values))
    numbers = np.array(list(values.values()))
    colors = ["tab:red" if row == 0 else "tab:gray" for row in rows]
    axes.barh(rows, numbers[:, 0], xerr=np.nan_to_num(2 * numbers[:, 1]), color=colors, capsize=2)
    axes.set_yticks(rows, [f"{label}: {value:.4f}" for label, (value, _) in values.items()])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"{name} (bars: two standard errors)")
    return drawn(sheet)


def histograms_picture(values: Mapping[str, Sequence[float]], label: str, title: str) -> RGB:
    """Draws how figures of single images spread, by kind of image.

    Args:
        values: The figures by name; a name without any is left out.
        label: What they are.
        title: How to read them.
    """
    sheet = figure(7, 4)
    axes = sheet.add_subplot()
    shown = {name: list(numbers) for name, numbers in values.items() if len(numbers)}
    top = max((max(numbers) for numbers in shown.values()), default=1.0)
    edges = np.linspace(0, max(top, 1e-9), 41).tolist()
    for name, numbers in shown.items():
        text = f"{name}: mean {np.mean(numbers):.3f}"
        axes.hist(numbers, edges, density=True, histtype="step", linewidth=1.5, label=text)
    axes.set_xlabel(label)
    axes.set_yticks([])
    axes.set_title(title)
    if shown:
        axes.legend()
    return drawn(sheet)
