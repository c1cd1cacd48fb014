"""The report of a ladder: `ladder.md`, `ladder.png` and the sheets of samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from geoseg_gan.errors import plural
from geoseg_gan.files import atomic_path
from geoseg_gan.ladders.plots import Panel, ladder_picture
from geoseg_gan.ladders.results import Result
from geoseg_gan.ladders.targets import RULES, targets, values
from geoseg_gan.pictures import write_picture

REPORT, PICTURE, SAMPLES = "ladder.md", "ladder.png", "samples"

_QUALITY = 85  # of JPEG: sheets are to be looked at, and kept in a repository

Ladder = Mapping[str, Sequence[Result]]


def write_report(folder: Path, ladder: Ladder, base: str) -> None:
    """Writes table and picture, from the results alone.

    Args:
        folder: Where to; sheets of samples that lie there are shown.
        ladder: Results by row, at least one each.
        base: The row that others are compared with.
    """
    sheets = [row for row in ladder if (folder / SAMPLES / f"{row}.jpg").is_file()]
    write_picture(folder / PICTURE, ladder_picture(list(ladder), _panels(ladder)))
    with atomic_path(folder / REPORT) as scratch:
        scratch.write_text(_markdown(ladder, base, sheets))


def write_samples(folder: Path, row: str, sheet: Path) -> None:
    """Writes a row's sheet of samples as a JPEG of moderate size.

    Args:
        folder: The ladder's folder.
        row: The row.
        sheet: `samples.png` of an evaluation.
    """
    path = folder / SAMPLES / f"{row}.jpg"
    with atomic_path(path) as scratch, Image.open(sheet) as picture:
        picture.convert("RGB").save(scratch, quality=_QUALITY)


def _panels(ladder: Ladder) -> list[Panel]:
    def of(split: str, *keys: str, scale: float = 1.0) -> list[list[float]]:
        return [[scale * v for v in values(rows, split, *keys)] for rows in ladder.values()]

    def panel(title: str, painted: list[list[float]], floors: list[list[float]]) -> Panel:
        known = [value for own in floors for value in own]
        return Panel(title, painted, float(np.mean(known)) if known else None)

    def pair(title: str, *keys: str, last: Sequence[str] = (), scale: float = 1.0) -> Panel:
        painted, real = (of("val", *keys, k, *last, scale=scale) for k in ("painted", "real"))
        return panel(title, painted, real)

    return [
        *(
            panel(
                f"KID x 1000, {name} tiles (less is better)",
                of(split, "kid", scale=1000),
                of(split, "kid_floor", scale=1000),
            )
            for split, name in (("held_out", "held-out"), ("val", "validation"))
        ),
        pair("agreement, mIoU % (as real is best)", "agreement", last=("miou",), scale=100),
        pair("diversity, layers (more varies more)", "diversity"),
        pair("checkerboard, log10 (less is better)", "spectrum", last=("checkerboard",)),
        pair("texture repetition (as real is best)", "repetition"),
    ]


def _markdown(ladder: Ladder, base: str, sheets: Sequence[str]) -> str:
    results = [result for rows in ladder.values() for result in rows]
    any_of = results[0]
    lines = [
        "# Ladder",
        "",
        f"{plural(len(ladder), 'recipe')}, {plural(len(results), 'run')}. All have: "
        f"`{' '.join(any_of['common'])}`. Judged on {any_of['num_samples']} windows at most, "
        f"agreement by the segmenter {any_of['segmenter'][:12]}. docs/evaluation.md explains every "
        "figure.",
        "",
        "In brackets is what real images reach: for KID, fitted training tiles against the same "
        "tiles. From agreement on, all is on validation tiles. With several seeds, the mean and "
        "half the range.",
        "",
        "| row | what changed | seeds | images seen | images/s | KID x 1000 held-out | "
        "KID x 1000 validation | agreement mIoU % | diversity | spectrum high | checkerboard | "
        "repetition |",
        f"|{'---|' * 12}",
    ]
    lines += [f"| {' | '.join(_row(row, own))} |" for row, own in ladder.items()]
    lines += ["", "Bars are means, dots seeds, the red line is real images:", ""]
    lines += [f"![figures by row]({PICTURE})", "", "## Targets", ""]
    lines += [
        f"Judged by the mean over seeds; in brackets what is compared: KID's excess over that of "
        f"`{base}`, painted over real, and for the checkerboard painted less real.",
        "",
    ]
    lines += [f"- {name}: {rule}" for name, rule in RULES.items()]
    lines += ["", f"| row | {' | '.join(RULES)} | all |", f"|{'---|' * (len(RULES) + 2)}"]
    for row, own in ladder.items():
        found = targets(own, ladder.get(base, []))
        reached = [target.reached for target in found.values()]
        # One that is missed settles it; one that cannot be told leaves it open.
        whole = "no" if False in reached else "-" if None in reached else "yes"
        lines.append(f"| {row} | {' | '.join(map(str, found.values()))} | {whole} |")
    resumed = [r for r in results if r["training"].get("resumed")]
    if resumed:
        shown = ", ".join(f"{r['row']} seed {r['seed']}" for r in resumed)
        lines += [
            "",
            f"Interrupted, and continued for what was left of the time, with a learning rate that "
            f"began anew: {shown}.",
        ]
    if sheets:
        lines += ["", "## Samples", "", "Mask, real and painted image, of validation tiles."]
    for row in sheets:
        lines += ["", f"{row}:", "", f"![{row}]({SAMPLES}/{row}.jpg)"]
    return "\n".join(lines) + "\n"


def _row(row: str, results: Sequence[Result]) -> list[str]:
    def beside(digits: int, split: str, painted: list[str], real: list[str], scale: int) -> str:
        figures, floors = (
            [scale * value for value in values(results, split, *keys)] for keys in (painted, real)
        )
        floor = [float(np.mean(floors))] if floors else []
        return f"{_shown(figures, digits)} ({_shown(floor, digits)})"

    def pair(digits: int, *keys: str, scale: int = 1) -> str:
        painted, real = ([part.format(kind) for part in keys] for kind in ("painted", "real"))
        return beside(digits, "val", painted, real, scale)

    training = [result["training"] for result in results]
    changed = " ".join(results[0]["overrides"])
    return [
        row,
        f"`{changed}`" if changed else "",
        ", ".join(str(result["seed"]) for result in results),
        _shown([t["images"] for t in training], 0),
        _shown([t["images_per_second"] for t in training if t["images_per_second"]], 1),
        *(beside(0, split, ["kid"], ["kid_floor"], 1000) for split in ("held_out", "val")),
        pair(1, "agreement", "{}", "miou", scale=100),
        pair(3, "diversity", "{}"),
        _shown(values(results, "val", "spectrum", "painted", "high"), 2),
        pair(2, "spectrum", "{}", "checkerboard"),
        pair(3, "repetition", "{}"),
    ]


def _shown(numbers: Sequence[float], digits: int) -> str:
    """The mean, with half the range where there are several."""
    if not numbers:
        return "-"
    text = f"{np.mean(numbers):,.{digits}f}"
    return text if len(numbers) == 1 else f"{text} ± {np.ptp(numbers) / 2:,.{digits}f}"
