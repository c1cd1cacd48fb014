"""The report of an evaluation: `evaluation.json`, `evaluation.md` and the table on the console."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from geoseg_gan.evaluation.images import SPLITS
from geoseg_gan.files import atomic_path, write_json
from geoseg_gan.metrics.fidelity import FID_MINIMUM

RESULT, REPORT = "evaluation.json", "evaluation.md"

_NO_DIFFERENCE = 1e-6

Row = tuple[str, str, str, str]


def write_evaluation(folder: Path, figures: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes the table and all figures; the JSON file comes last.

    Args:
        folder: Where to.
        figures: What `evaluate` measured.
        facts: Settings and checkpoints.
    """
    with atomic_path(folder / REPORT) as scratch:
        scratch.write_text(_markdown(figures, facts))
    write_json(folder / RESULT, _plain({**facts, "figures": figures}))


def print_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    """The main figures as a table, each beside what real images reach."""
    table = Table("figure", "painted", "real", box=None, padding=(0, 3, 0, 0))
    for name, painted, real, _ in _rows(figures):
        table.add_row(name, painted, real)
    Console().print(table)
    for text in _warnings(figures):
        print(f"warning: {text}")
    print(f"Wrote {folder / REPORT}, with pictures and all figures beside it.")


def _rows(figures: Mapping[str, Any]) -> list[Row]:
    """What is measured, the painted images' figure, the real ones', and how to read them."""
    fidelity, coverage = figures["fidelity"], figures["coverage"]
    painted, floor = fidelity["painted"], fidelity["real halves"]
    ground = fidelity["training ground"]
    rows = [
        (
            "KID x 1000, with standard error",
            f"{1000 * painted['kid']:.1f} ± {1000 * painted['kid_error']:.1f}",
            f"{1000 * floor['kid']:.1f} halves, {1000 * ground['kid']:.1f} training ground",
            "0 is as real; the rows under Fidelity show what more means",
        ),
        (
            "FID",
            f"{painted['fid']:.1f}",
            f"{floor['fid']:.1f} halves, {ground['fid']:.1f} training ground",
            "less is better; falls with the number of images",
        ),
    ]
    for key, text in (
        ("precision", "share of painted images that look like real ones"),
        ("recall", "share of real images whose like is painted"),
    ):
        values = coverage["painted"][key], coverage["training ground"][key]
        rows.append((key, f"{values[0]:.2f}", f"{values[1]:.2f} training ground", text))
    if agreement := figures["agreement"]:
        for key, name in (("miou", "agreement, mIoU %"), ("pixel_accuracy", "agreement, pixels %")):
            values = agreement["painted"][key], agreement["real"][key]
            text = "below real: images do not show what their masks say"
            rows.append((name, f"{100 * values[0]:.1f}", f"{100 * values[1]:.1f}", text))
    if diversity := figures["diversity"]:
        note = " (deterministic generator)" if diversity["painted"]["deterministic"] else ""
        for key, name in (("features", "diversity, features"), ("layers", "diversity, layers")):
            values = diversity["painted"][key], diversity["real"][key]
            shown = f"{values[0]:.3f}{note}", f"{values[1]:.3f} tiles of like classes"
            rows.append((name, *shown, "0: one mask always gives the same image"))
    gap, real_gap = figures["spectrum"]["gap"], figures["spectrum"]["real_gap"]
    for key, name, text in (
        ("low", "spectrum below 0.125 cycles a pixel, log10", "0 is as real"),
        ("middle", "spectrum from 0.125 to 0.25, log10", "0 is as real"),
        ("high", "spectrum above 0.25, log10", "0 is as real; below is blur, above is noise"),
        ("checkerboard", "checkerboard, log10", "0 is as real; 1 is a grid of ten times the power"),
    ):
        rows.append((name, f"{gap[key]:+.2f}", f"{real_gap[key]:+.2f} halves", text))
    texture, near = figures["texture"], figures["memorisation"]
    shown = _mean(texture["painted"]), _mean(texture["real"])
    rows.append(("texture repetition", *shown, "above real: texture repeats itself"))
    shown = _mean(near["painted"]), f"{_mean(near['held_out'])} held out"
    rows.append(("nearest training image", *shown, "far below real: copied from training"))
    return rows


def _markdown(figures: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    counts, settings = figures["images"], facts["settings"]
    kind = SPLITS[settings["split"]]
    lines = [
        "# Evaluation",
        "",
        f"{counts['painted']} painted images of {facts['image_size']} px "
        f"({settings['gen_ckpt'] or settings['folder']}) against {counts[kind]} real "
        f"{kind} windows; features of {settings['features']}. docs/evaluation.md explains "
        "every figure.",
        "",
    ]
    for text in _warnings(figures):
        lines += [f"Warning: {text}", ""]
    lines += ["| figure | painted | real | how to read it |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(figures)]
    lines += ["", "Masks, real images if the masks are theirs, painted images:", ""]
    lines += ["![samples](samples.png)", "", "## Fidelity", ""]
    lines += [
        "The first row is what is evaluated. Below it, what real images reach: half of the "
        f"{kind} windows against the other half, and training windows."
        + (f" Then what known damage to the {kind} windows costs." if settings["controls"] else ""),
        "",
        f"| against real {kind} images | KID x 1000 | standard error | FID | images for FID |",
        "|---|---|---|---|---|",
    ]
    for name, row in figures["fidelity"].items():
        kid, error = 1000 * row["kid"], 1000 * row["kid_error"]
        lines.append(
            f"| {name} | {kid:.1f} | {error:.1f} | {row['fid']:.1f} | {row['images']:.0f} |"
        )
    lines += ["", "![KID](kid.png)", "", "## Agreement", ""]
    lines += _agreement(figures["agreement"])
    lines += ["## Diversity", "", *_diversity(figures["diversity"]), ""]
    lines += ["## Artefacts", "", "![power spectrum](spectrum.png)", ""]
    lines += _texture(figures["texture"])
    lines += ["![texture repetition](repetition.png)", "", "## Memorisation", ""]
    lines += [
        f"Painted images that are nearest to any of {counts['training']} training windows "
        "(unturned and unmirrored), with their distance; below each, that training window:",
        "",
        "![closest](closest.png)",
        "",
        "![distances to the nearest training image](memorisation.png)",
    ]
    return "\n".join(lines) + "\n"


def _agreement(agreement: Mapping[str, Any] | None) -> list[str]:
    if agreement is None:
        return ["Not measured: no segmenter was given (segmenter_ckpt).", ""]
    lines = ["| class | IoU % on painted | IoU % on real |", "|---|---|---|"]
    for name, value in agreement["painted"]["classes"].items():
        real = agreement["real"]["classes"][name]
        lines.append(f"| {name} | {_percent(value)} | {_percent(real)} |")
    return [*lines, ""]


def _diversity(diversity: Mapping[str, Any] | None) -> list[str]:
    if diversity is None:
        return ["Not measured: it needs a generator (gen_ckpt), not a folder."]
    painted, real = diversity["painted"], diversity["real"]
    if painted["deterministic"]:
        return ["0: the generator takes no noise, so that one mask always gives the same image."]
    if painted["layers"] < _NO_DIFFERENCE:
        return ["0: the generator takes noise, but paints the same image whatever it is."]
    text = (
        f"Images painted from one mask differ by {painted['layers']:.3f} (layers) and "
        f"{painted['features']:.3f} (features), over {painted['masks']} masks."
    )
    if not real["pairs"]:
        return [text]
    return [
        f"{text} Of {real['pairs']} pairs of real tiles of like composition the two differ by "
        f"{real['layers']:.3f} and {real['features']:.3f}; {painted['layers'] / real['layers']:.0%}"
        " of that (layers) is reached."
    ]


def _texture(texture: Mapping[str, Any]) -> list[str]:
    if not texture["classes"]:
        return ["No region is broad enough to look for repetition in both.", ""]
    side = texture["side"]
    lines = [
        f"| repetition in squares of {side} px | painted | real | squares |",
        "|---|---|---|---|",
    ]
    for name, row in texture["classes"].items():
        lines.append(f"| {name} | {row['painted']:.2f} | {row['real']:.2f} | {row['squares']} |")
    return [*lines, ""]


def _warnings(figures: Mapping[str, Any]) -> list[str]:
    counts, warnings = figures["images"], list(figures["warnings"])
    fewest = min(count for kind, count in counts.items() if kind != "training")
    if fewest < FID_MINIMUM:
        warnings.append(
            f"FID is biased upwards with so few images ({fewest}; {FID_MINIMUM} are needed). "
            "Compare it with its neighbours here only, and trust KID."
        )
    return warnings


def _plain(value: Any) -> Any:
    """The same content in types that JSON knows, with None for NaN."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" if len(values) else "-"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
