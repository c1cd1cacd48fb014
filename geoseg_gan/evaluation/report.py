"""The report of an evaluation: `evaluation.json`, `evaluation.md`, its pictures, console table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.palette import Palette
from geoseg_gan.evaluation.fidelity import FID_MINIMUM
from geoseg_gan.evaluation.images import REAL_KINDS, ImageSet
from geoseg_gan.utils.files import atomic_path, write_json
from geoseg_gan.utils.pictures import RGB, beside, captioned, evenly_spaced, write_picture
from geoseg_gan.utils.plots import drawn, figure
from geoseg_gan.utils.tables import as_markdown, markdown_table, percent, print_table

FIGURES_FILE, REPORT_FILE = "evaluation.json", "evaluation.md"

CLOSEST = 5
"""Generated images that are shown above the training images nearest to them."""

_SAMPLES = 8
_NO_DIFFERENCE = 1e-6  # distance of images that are equal but for rounding

Row = tuple[str, str, str, str]
"""What is measured, its figure of generated images, that of real ones, and how to read them."""


def write_evaluation(folder: Path, figures: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes the table and, as JSON and last, all figures with settings and checkpoints."""
    with atomic_path(folder / REPORT_FILE) as scratch:
        scratch.write_text(_markdown(figures, facts))
    write_json(folder / FIGURES_FILE, {**facts, "figures": figures})


def print_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    """The main figures as a table, each beside what real images reach."""
    print_table((row[:3] for row in _rows(figures)), ("figure", "generated", "real"))
    for text in _warnings(figures):
        print(f"warning: {text}")
    print(f"Wrote {folder / REPORT_FILE}, with pictures and all figures beside it.")


def write_pictures(
    folder: Path,
    figures: Mapping[str, Any],
    palette: Palette,
    scaling: ImageScaling,
    *,
    real: ImageSet,
    fake: ImageSet,
    closest: ImageSet,
    originals: ImageSet,
) -> None:
    """Writes all pictures of the report.

    Args:
        folder: Where to.
        figures: What `evaluate` measured.
        palette: The classes.
        scaling: How images are shown.
        real: Real images to compare with.
        fake: Generated images.
        closest: Those of them that are nearest to the training images `originals`.
        originals: As many training images.
    """
    spectrum, texture, near = (figures[key] for key in ("spectrum", "texture", "memorisation"))
    above = [
        captioned(scaling.to_rgb(pixels), f"{entry['distance']:.2f}")
        for pixels, entry in zip(closest.pixels, near["closest"], strict=True)
    ]
    below = [scaling.to_rgb(pixels) for pixels in originals.pixels]
    pictures = {
        "spectrum": spectrum_picture(spectrum["frequency"], spectrum["curves"]),
        "repetition": histograms_picture(
            {"real": texture["real"], "generated": texture["generated"]},
            "repetition of a broad region's texture",
            "Further right than real: texture repeats itself",
        ),
        "memorisation": histograms_picture(
            {"real, held out": near["held_out"], "generated": near["generated"]},
            "distance to the nearest training image",
            "Further left than held-out real images: copied",
        ),
        "samples": _samples(real, fake, palette, scaling),
        "closest": beside([*above, *below], columns=len(above)),
    }
    for name, picture in pictures.items():
        write_picture(folder / f"{name}.png", picture)


def spectrum_picture(
    frequency: npt.NDArray[np.float64], curves: Mapping[str, npt.NDArray[np.float64]]
) -> RGB:
    """Draws log10 of power by name over the frequency in cycles a pixel, shape (F,) each."""
    sheet = figure(7, 4.5)
    axes = sheet.add_subplot()
    for name, power in curves.items():
        axes.plot(frequency, power, label=name)
    axes.set_xlabel("spatial frequency, cycles a pixel")
    axes.set_ylabel("power, log10")
    axes.set_title("Below real: blur. Above: noise. Spikes: a grid.")
    axes.legend()
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


def _rows(figures: Mapping[str, Any]) -> list[Row]:
    """The main figures."""
    fidelity, coverage = figures["fidelity"], figures["coverage"]
    generated, floor = fidelity["generated"], fidelity["real halves"]
    training = fidelity["training windows"]
    rows = [
        (
            "KID x 1000, with standard error",
            f"{1000 * generated['kid']:.1f} ± {1000 * generated['kid_error']:.1f}",
            f"{1000 * floor['kid']:.1f} halves, {1000 * training['kid']:.1f} training windows",
            "0 is as good as real; the table under Fidelity gives a scale",
        ),
        (
            "FID",
            f"{generated['fid']:.1f}",
            f"{floor['fid']:.1f} halves, {training['fid']:.1f} training windows",
            "lower is better; falls with the number of images",
        ),
    ]
    for key, text in (
        ("precision", "share of generated images among the real ones"),
        ("recall", "share of real images among the generated ones"),
    ):
        ours, theirs = (coverage[side][key] for side in ("generated", "training windows"))
        rows.append((key, f"{ours:.2f}", f"{theirs:.2f} training windows", text))
    if agreement := figures["agreement"]:
        for key, name in (("miou", "agreement, mIoU %"), ("pixel_accuracy", "agreement, pixels %")):
            ours, theirs = (percent(agreement[side][key]) for side in ("generated", "real"))
            rows.append((name, ours, theirs, "below real: images do not show their masks"))
    if diversity := figures["diversity"]:
        note = " (deterministic generator)" if diversity["generated"]["deterministic"] else ""
        for key in ("features", "layers"):
            ours, theirs = (diversity[side][key] for side in ("generated", "real"))
            shown = f"{ours:.3f}{note}", f"{theirs:.3f} tiles of similar classes"
            rows.append((f"diversity, {key}", *shown, "0: one mask always gives the same image"))
    gap, real_gap = figures["spectrum"]["gap"], figures["spectrum"]["real_gap"]
    for key, name, text in (
        ("low", "spectrum below 0.125 cycles a pixel, log10", "0 is as real"),
        ("middle", "spectrum from 0.125 to 0.25, log10", "0 is as real"),
        ("high", "spectrum above 0.25, log10", "0 is as real; below is blur, above is noise"),
        ("checkerboard", "checkerboard, log10", "0 is as real; 1 is a grid of ten times the power"),
    ):
        rows.append((name, f"{gap[key]:+.2f}", f"{real_gap[key]:+.2f} halves", text))
    texture, near = figures["texture"], figures["memorisation"]
    shown = _mean(texture["generated"]), _mean(texture["real"])
    rows.append(("texture repetition", *shown, "above real: texture repeats itself"))
    shown = _mean(near["generated"]), f"{_mean(near['held_out'])} held out"
    rows.append(("nearest training image", *shown, "far below real: copied from training"))
    return rows


def _markdown(figures: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    counts, settings = figures["images"], facts["settings"]
    kind = REAL_KINDS[settings["split"]]
    lines = [
        "# Evaluation",
        "",
        f"{counts['generated']} generated images of {facts['image_size']} px "
        f"({as_markdown(settings['gen_ckpt'] or settings['folder'])}) against {counts[kind]} real "
        f"{kind} windows; features of {settings['features']}. docs/evaluation.md explains "
        "every figure.",
        "",
    ]
    for text in _warnings(figures):
        lines += [f"Warning: {text}", ""]
    lines += markdown_table(["figure", "generated", "real", "how to read it"], _rows(figures))
    lines += ["", "Masks, real images where they have the same masks, generated images:", ""]
    lines += ["![samples](samples.png)", "", "## Fidelity", ""]
    lines += [
        "The first row is what is evaluated. Below it is what real images reach: half of the "
        f"{kind} windows against the other half, and training windows."
        + (f" Last come {kind} windows with known damage." if settings["controls"] else ""),
        "",
    ]
    head = [f"against real {kind} images", "KID x 1000", "standard error", "FID", "images for FID"]
    rows = []
    for name, row in figures["fidelity"].items():
        kid, error = (f"{1000 * row[key]:.1f}" for key in ("kid", "kid_error"))
        rows.append((name, kid, error, f"{row['fid']:.1f}", f"{row['images']:.0f}"))
    lines += markdown_table(head, rows)
    lines += ["", "## Agreement", "", *_agreement(figures["agreement"])]
    lines += ["## Diversity", "", *_diversity(figures["diversity"]), ""]
    lines += ["## Artefacts", "", "![power spectrum](spectrum.png)", ""]
    lines += _texture(figures["texture"])
    lines += ["![texture repetition](repetition.png)", "", "## Memorisation", ""]
    lines += [
        f"Generated images that are nearest to any of {counts['training']} training windows "
        "(neither rotated nor mirrored), with their distance; below each, that training window:",
        "",
        "![closest](closest.png)",
        "",
        "![distances to the nearest training image](memorisation.png)",
    ]
    return "\n".join(lines) + "\n"


def _agreement(agreement: Mapping[str, Any] | None) -> list[str]:
    if agreement is None:
        return ["Not measured: no segmenter was given (segmenter_ckpt).", ""]
    real = agreement["real"]["classes"]
    rows = [
        (as_markdown(name), percent(value), percent(real[name]))
        for name, value in agreement["generated"]["classes"].items()
    ]
    return [*markdown_table(["class", "IoU % on generated", "IoU % on real"], rows), ""]


def _diversity(diversity: Mapping[str, Any] | None) -> list[str]:
    if diversity is None:
        return ["Not measured: it needs a generator (gen_ckpt), not a folder."]
    generated, real = diversity["generated"], diversity["real"]
    if generated["deterministic"]:
        return ["0: the generator takes no noise, so that one mask always gives the same image."]
    if generated["layers"] < _NO_DIFFERENCE:
        return ["0: the generator takes noise, but makes the same image whatever it is."]
    text = (
        f"Images generated from one mask differ by {generated['layers']:.3f} (layers) and "
        f"{generated['features']:.3f} (features), over {generated['masks']} masks."
    )
    if not real["pairs"]:
        return [text]
    return [
        f"{text} Real tiles of similar composition ({real['pairs']} pairs) differ by "
        f"{real['layers']:.3f} and {real['features']:.3f}; the generator reaches "
        f"{generated['layers'] / real['layers']:.0%} of that (layers)."
    ]


def _texture(texture: Mapping[str, Any]) -> list[str]:
    if not texture["classes"]:
        return ["No class has a region broad enough to measure repetition in both.", ""]
    head = [f"repetition in squares of {texture['side']} px", "generated", "real", "squares"]
    rows = [
        (as_markdown(name), f"{row['generated']:.2f}", f"{row['real']:.2f}", row["squares"])
        for name, row in texture["classes"].items()
    ]
    return [*markdown_table(head, rows), ""]


def _warnings(figures: Mapping[str, Any]) -> list[str]:
    counts, warnings = figures["images"], list(figures["warnings"])
    fewest = min(count for kind, count in counts.items() if kind != "training")
    if fewest < FID_MINIMUM:
        warnings.append(
            f"FID is biased upwards with so few images ({fewest}; {FID_MINIMUM} are needed). "
            "Compare it only with the FIDs beside it, and rely on KID."
        )
    return warnings


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" if len(values) else "-"


def _samples(real: ImageSet, fake: ImageSet, palette: Palette, scaling: ImageScaling) -> RGB:
    """Mask, real and generated image; mask and generated image where the masks are others."""
    paired = np.array_equal(fake.labels, real.labels)
    pictures = []
    for row in evenly_spaced(len(fake), _SAMPLES):
        pictures.append(palette.color_table[fake.labels[row]])
        pictures += [scaling.to_rgb(real.pixels[row])] * paired
        pictures.append(scaling.to_rgb(fake.pixels[row]))
    titles = ("mask", "real", "generated") if paired else ("mask", "generated")
    return beside(pictures, 2 * len(titles), 2 * titles)
