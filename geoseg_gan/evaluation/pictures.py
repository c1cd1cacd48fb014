"""The pictures of an evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.palette import Palette
from geoseg_gan.evaluation.images import ImageSet, spread
from geoseg_gan.pictures import RGB, beside, captioned, write_picture
from geoseg_gan.plots_evaluation import histograms_picture, spectrum_picture, values_picture

CLOSEST = 5
"""Painted images that are shown beside the training images nearest to them."""

_SAMPLES = 8


def write_pictures(
    folder: Path,
    figures: Mapping[str, Any],
    palette: Palette,
    scaling: ImageScaling,
    *,
    real: ImageSet,
    fake: ImageSet,
    kind: str,
) -> None:
    """Writes `kid.png`, `spectrum.png`, `repetition.png`, `memorisation.png` and `samples.png`.

    Args:
        folder: Where to.
        figures: What `evaluate` measured.
        palette: The classes.
        scaling: How images are shown.
        real: Real images to judge by.
        fake: Painted images.
        kind: What the real ones are called.
    """
    kids = {name: (row["kid"], row["kid_error"]) for name, row in figures["fidelity"].items()}
    write_picture(folder / "kid.png", values_picture(kids, f"KID against real {kind} images"))
    spectrum, texture, near = (figures[key] for key in ("spectrum", "texture", "memorisation"))
    write_picture(
        folder / "spectrum.png", spectrum_picture(spectrum["frequency"], spectrum["curves"])
    )
    write_picture(
        folder / "repetition.png",
        histograms_picture(
            {"real": texture["real"], "painted": texture["painted"]},
            "repetition of a broad region's texture",
            "Further right than real: texture repeats itself",
        ),
    )
    write_picture(
        folder / "memorisation.png",
        histograms_picture(
            {"real, held out": near["held_out"], "painted": near["painted"]},
            "distance to the nearest training image",
            "Further left than held-out real images: copied",
        ),
    )
    write_picture(folder / "samples.png", _samples(real, fake, palette, scaling))


def write_closest(
    folder: Path,
    closest: Sequence[Mapping[str, Any]],
    painted: ImageSet,
    originals: ImageSet,
    scaling: ImageScaling,
) -> None:
    """Writes `closest.png`: painted images above the training images nearest to them.

    Args:
        folder: Where to.
        closest: The "distance" of each.
        painted: The painted images.
        originals: The training images.
        scaling: How both are shown.
    """
    above = [
        captioned(scaling.shown(pixels), f"{entry['distance']:.2f}")
        for pixels, entry in zip(painted.pixels, closest, strict=True)
    ]
    below = [scaling.shown(pixels) for pixels in originals.pixels]
    write_picture(folder / "closest.png", beside([*above, *below], columns=len(closest)))


def _samples(real: ImageSet, fake: ImageSet, palette: Palette, scaling: ImageScaling) -> RGB:
    """Mask, real and painted image; mask and painted image where the masks are others."""
    paired = np.array_equal(fake.labels, real.labels)
    pictures = []
    for row in spread(len(fake), _SAMPLES):
        pictures.append(palette.color_table[fake.labels[row]])
        pictures += [scaling.shown(real.pixels[row])] * paired
        pictures.append(scaling.shown(fake.pixels[row]))
    return beside(pictures, columns=6 if paired else 4)
