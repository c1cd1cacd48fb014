"""Artefacts: spectra and repetition of painted images beside those of real ones."""

from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.evaluation.images import ImageSet
from geoseg_gan.metrics.spectrum import mean_power, radial_profile, spectrum_gap
from geoseg_gan.metrics.texture import repetitions

_SMALLEST_REGION = 24


def power(images: ImageSet, scaling: ImageScaling) -> npt.NDArray[np.float64]:
    """Mean power spectrum of a set of images, as `metrics.spectrum.mean_power` gives it."""
    parts = [mean_power(part.scaled(scaling)) * len(part) for part in images.parts()]
    total: npt.NDArray[np.float64] = np.sum(parts, 0) / len(images)
    return total


def spectra(real: ImageSet, fake: ImageSet, scaling: ImageScaling) -> dict[str, Any]:
    """Compares power spectra, also of real images with other real images.

    Args:
        real: Real images.
        fake: Painted images.
        scaling: From stored values to [-1, 1].

    Returns:
        "gap", and as its floor "real_gap" between two halves of the real images, each a dict of
        `SpectrumGap`; "frequency" and "curves", log10 of power by name.
    """
    half = len(real) // 2
    powers = {
        name: power(images, scaling)
        for name, images in (
            ("real", real),
            ("painted", fake),
            ("first", real.part(range(half))),
            ("second", real.part(range(half, len(real)))),
        )
    }
    frequency = radial_profile(powers["real"])[0]
    return {
        "gap": vars(spectrum_gap(powers["real"], powers["painted"])),
        "real_gap": vars(spectrum_gap(powers["first"], powers["second"])),
        "frequency": frequency,
        "curves": {name: radial_profile(powers[name])[1] for name in ("real", "painted")},
    }


def texture(
    real: ImageSet, fake: ImageSet, scaling: ImageScaling, names: list[str]
) -> dict[str, Any]:
    """Compares repetition inside broad regions of one class.

    Args:
        real: Real images.
        fake: Painted images.
        scaling: From stored values to [-1, 1].
        names: The classes.

    Returns:
        For "real" and "painted" a list of repetitions; "side" of the squares in pixels; "classes":
        mean repetition of both, and how many squares there were, by class.
    """
    side = max(_SMALLEST_REGION, real.pixels.shape[1] // 3)
    found = {
        name: [
            entry
            for part in images.parts()
            for entry in repetitions(part.scaled(scaling), part.labels, side)
        ]
        for name, images in (("real", real), ("painted", fake))
    }
    classes = {}
    for kind, name in enumerate(names):
        of_class = {k: [value for c, value in v if c == kind] for k, v in found.items()}
        if all(of_class.values()):
            means = {key: float(np.mean(values)) for key, values in of_class.items()}
            classes[name] = means | {"squares": len(of_class["painted"])}
    lists = {key: [value for _, value in values] for key, values in found.items()}
    return {**lists, "side": side, "classes": classes}
