"""What a generated folder is shown by: sheets of pairs, a histogram, class shares."""

from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from geoseg_gan.data.images import read_image
from geoseg_gan.data.palette import IGNORE, Palette
from geoseg_gan.models.checkpoints import LoadedGenerator
from geoseg_gan.synthesis.candidates import CandidateMasks
from geoseg_gan.synthesis.generate_images import paint_batches
from geoseg_gan.synthesis.recognizer import Recognizer
from geoseg_gan.synthesis.writer import PairWriter
from geoseg_gan.utils.errors import plural
from geoseg_gan.utils.pictures import beside, captioned, write_picture
from geoseg_gan.utils.plots import score_histogram

SHEET = "contact_sheet.png"


HISTOGRAM = "scores.png"


EXTREMES = "best_and_worst.png"


_ROWS, _COLUMNS = 4, 8


_MOST_VARIANTS = 16


_EXTREMES = 10


def write_contact_sheet(writer: PairWriter, kept: list[int], variants: int) -> None:
    """Shows the first masks of which pairs were kept, each followed by its images.

    A row holds as many masks as fit into eight columns, at least one; with one image of each mask
    these are four. Where a variant was dropped there is a blank. The mask is that of the first kept
    variant, since the pixel filter treats each by itself.

    Args:
        writer: Knows where pairs are.
        kept: Numbers of the kept pairs, ascending.
        variants: How many candidates show the same mask; of more than 16 the first are shown.
    """
    shown = min(variants, _MOST_VARIANTS)
    masks_a_row = max(1, _COLUMNS // (1 + shown))
    pictures = []
    by_mask = groupby(kept, lambda index: index // variants)
    for mask_index, group in islice(by_mask, _ROWS * masks_a_row):
        indices = list(group)
        label, _ = writer.reader.read(writer.paths(indices[0])[1])
        mask = writer.reader.palette.color_table[label]
        pictures.append(mask)
        for index in range(mask_index * variants, mask_index * variants + shown):
            image_path, _ = writer.paths(index)
            pictures.append(
                writer.scaling.to_rgb(read_image(image_path))
                if index in indices
                else np.full_like(mask, 255)
            )
    if pictures:
        write_picture(writer.folder / SHEET, beside(pictures, masks_a_row * (1 + shown)))


def write_histogram(
    writer: PairWriter, manifest: list[dict[str, Any]], tau: float, held_out: list[float]
) -> None:
    """Shows the scores of all candidates, and where tau cuts.

    Args:
        writer: Knows the folder.
        manifest: A line for every candidate.
        tau: The threshold.
        held_out: Scores of real held-out windows to compare with; may be empty.
    """
    judged = [line for line in manifest if "score" in line]
    kept = [line["score"] for line in judged if line["kept"]]
    dropped = [line["score"] for line in judged if not line["kept"]]
    if judged:
        write_picture(writer.folder / HISTOGRAM, score_histogram(kept, dropped, tau, held_out))


def write_extremes(
    writer: PairWriter,
    manifest: list[dict[str, Any]],
    candidates: CandidateMasks,
    generator: LoadedGenerator,
    recognizer: Recognizer,
    device: torch.device,
) -> None:
    """Shows the ten best (left) and ten worst (right) candidates: mask, image and prediction.

    They are painted once more, since those that were dropped are not on disk.

    Args:
        writer: Knows the folder.
        manifest: A line for every candidate.
        candidates: Draws their masks again.
        generator: Paints them again.
        recognizer: Whose predictions are shown.
        device: Where the generator is.
    """
    judged = sorted((line for line in manifest if "score" in line), key=lambda line: -line["score"])
    if not judged:
        return
    count = min(_EXTREMES, -(-len(judged) // 2))  # none is both, but the middle one of a few
    best = judged[:count]
    worst = judged[::-1][:count]
    lines = [line for pair in zip(best, worst, strict=True) for line in pair]
    shots = paint_batches(
        generator, candidates, [[line["index"]] for line in lines], num_workers=0, device=device
    )
    colors = writer.reader.palette.color_table
    pictures = []
    for line, [(candidate, image, _)] in zip(lines, shots, strict=True):
        assert image is not None, "what has a score was painted"
        label = candidate.label
        predicted = recognizer.logits(image).argmax(0).numpy().astype(np.uint8)
        pictures += [
            captioned(colors[label], f"{line['score']:.2f}"),
            writer.scaling.to_rgb(image),
            colors[np.where(label == IGNORE, IGNORE, predicted)],
        ]
    write_picture(writer.folder / EXTREMES, beside(pictures, columns=6))


def realised_shares(writer: PairWriter, kept: list[int]) -> npt.NDArray[np.float64]:
    """Class shares of the labelled pixels of the masks on disk, shape (C,); 0 where none are.

    Args:
        writer: Knows where pairs are.
        kept: Numbers of the kept pairs.
    """
    classes = writer.reader.palette.num_classes

    def count(index: int) -> npt.NDArray[np.int64]:
        label, _ = writer.reader.read(writer.paths(index)[1])
        return np.bincount(label.ravel(), minlength=IGNORE + 1)[:classes]

    with ThreadPoolExecutor() as pool:
        totals = sum(pool.map(count, kept), np.zeros(classes))
    return totals / max(1.0, float(totals.sum()))


def print_shares(
    palette: Palette,
    training: npt.NDArray[np.float64],
    expected: npt.NDArray[np.float64],
    realised: npt.NDArray[np.float64],
) -> None:
    """Prints class shares, each of shape (C,), as a table.

    Args:
        palette: The classes.
        training: Of the training masks.
        expected: Of masks as they are drawn, before jitter and filter.
        realised: Of the pairs that were kept.
    """
    table = Table("class", "training", "expected", "realised", box=None, padding=(0, 3, 0, 0))
    for name, *shares in zip(palette.names, training, expected, realised, strict=True):
        table.add_row(name, *(f"{share:.1%}" for share in shares))
    Console().print(table)


def print_outcome(folder: Path, manifest: list[dict[str, Any]], tau: float | None) -> None:
    """Prints how many pairs were kept, and where to look.

    Args:
        folder: Where they are.
        manifest: A line for every candidate.
        tau: The threshold; None where nothing was judged.
    """
    total, kept = len(manifest), sum(line["kept"] for line in manifest)
    if tau is None and kept == total:
        print(f"Generated {plural(total, 'pair')} in {folder}; see {folder / SHEET}")
        return
    print(f"Generated {total} pairs, kept {kept}" + ("" if tau is None else f" with tau={tau:.4g}"))
    if kept:
        print(f"See {folder / SHEET}" + ("" if tau is None else f" and {folder / HISTOGRAM}"))
        return
    scores = [line["score"] for line in manifest if "score" in line]
    if not scores:
        print("Nothing was kept, and no candidate could be judged: manifest.jsonl says why.")
        return
    print(
        f"Nothing was kept: scores ran from {min(scores):.3f} to {max(scores):.3f}, median "
        f"{np.median(scores):.3f}. Lower tau, train the generator longer, or look at "
        f"{folder / EXTREMES} for what the segmenter sees."
    )
