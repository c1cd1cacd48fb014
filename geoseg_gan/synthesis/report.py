"""Pictures and tables of a generated folder: sheets of pairs, a histogram, class shares."""

from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from geoseg_gan.data.images import read_image
from geoseg_gan.data.palette import IGNORE, Palette
from geoseg_gan.data.synthetic import Line
from geoseg_gan.models.loaded import LoadedGenerator
from geoseg_gan.synthesis.candidates import CandidateMasks
from geoseg_gan.synthesis.generate_images import generate_batches
from geoseg_gan.synthesis.recognizer import Recognizer
from geoseg_gan.synthesis.writer import PairFiles
from geoseg_gan.utils.errors import plural
from geoseg_gan.utils.pictures import beside, captioned, with_legend, write_picture
from geoseg_gan.utils.plots import score_histogram
from geoseg_gan.utils.tables import percent, print_table

SHEET = "contact_sheet.png"
HISTOGRAM = "scores.png"
EXTREMES = "best_and_worst.png"

_ROWS, _COLUMNS = 4, 8
_MOST_VARIANTS = 16
_EXTREMES = 10


def write_contact_sheet(files: PairFiles, kept: list[int], variants: int) -> None:
    """Shows the first masks of which pairs were kept, each followed by its images.

    A row holds as many masks as fit into eight columns, at least one; with one image of each mask
    these are four. Where a variant was dropped there is a blank. The mask is that of the first kept
    variant, since the pixel filter treats each by itself. The classes' colours stand below.

    Args:
        files: Where pairs are.
        kept: Numbers of the kept pairs, ascending.
        variants: How many candidates show the same mask; of more than 16 the first are shown.
    """
    shown = min(variants, _MOST_VARIANTS)
    masks_a_row = max(1, _COLUMNS // (1 + shown))
    pictures = []
    by_mask = groupby(kept, lambda index: index // variants)
    for mask_index, group in islice(by_mask, _ROWS * masks_a_row):
        indices = list(group)
        label, _ = files.reader.read(files.paths(indices[0])[1])
        mask = files.reader.palette.color_table[label]
        pictures.append(mask)
        for index in range(mask_index * variants, mask_index * variants + shown):
            image_path, _ = files.paths(index)
            pictures.append(
                files.scaling.to_rgb(read_image(image_path))
                if index in indices
                else np.full_like(mask, 255)
            )
    if pictures:
        palette = files.reader.palette
        labels = [*range(palette.num_classes), *([IGNORE] if palette.ignore else [])]
        names = [*palette.names, "ignore"][: len(labels)]
        sheet = beside(pictures, masks_a_row * (1 + shown))
        write_picture(files.folder / SHEET, with_legend(sheet, names, palette.color_table[labels]))


def write_histogram(
    files: PairFiles, manifest: list[Line], tau: float, held_out: list[float]
) -> None:
    """Shows the scores of all candidates, and where tau cuts.

    `held_out` are scores of real held-out windows to compare with; it may be empty.
    """
    kept, dropped = (
        [line["score"] for line in manifest if "score" in line and line["kept"] == is_kept]
        for is_kept in (True, False)
    )
    if kept or dropped:
        write_picture(files.folder / HISTOGRAM, score_histogram(kept, dropped, tau, held_out))


def write_extremes(
    files: PairFiles,
    manifest: list[Line],
    candidates: CandidateMasks,
    generator: LoadedGenerator,
    recognizer: Recognizer,
    device: torch.device,
) -> None:
    """Shows the ten best (left) and ten worst (right) candidates: mask, image and prediction.

    They are drawn and generated again, since those that were dropped are not on disk.
    """
    scored = sorted((line for line in manifest if "score" in line), key=lambda line: -line["score"])
    if not scored:
        return
    count = min(_EXTREMES, -(-len(scored) // 2))  # none is both, but the middle one of a few
    pairs = zip(scored[:count], scored[::-1][:count], strict=True)
    lines = [line for pair in pairs for line in pair]
    batches = generate_batches(
        generator, candidates, [[line["index"]] for line in lines], num_workers=0, device=device
    )
    colors = files.reader.palette.color_table
    pictures, sides = [], iter(("best, ", "worst, "))
    for line, [(candidate, image, _)] in zip(lines, batches, strict=True):
        assert image is not None, "what has a score has an image"
        label = candidate.label
        predicted = recognizer.logits(image).argmax(0).numpy().astype(np.uint8)
        pictures += [
            captioned(colors[label], f"{next(sides, '')}{percent(line['score'])} %"),
            files.scaling.to_rgb(image),
            colors[np.where(label == IGNORE, IGNORE, predicted)],
        ]
    titles = ("", "image", "prediction")  # the masks have their scores
    write_picture(files.folder / EXTREMES, beside(pictures, 6, 2 * titles))


def realised_shares(files: PairFiles, kept: list[int]) -> npt.NDArray[np.float64]:
    """Class shares of the labelled pixels of the kept masks, shape (C,); 0 where none are."""
    classes = files.reader.palette.num_classes

    def count(index: int) -> npt.NDArray[np.int64]:
        label, _ = files.reader.read(files.paths(index)[1])
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

    They are those of the training masks, of masks as they are drawn (before jitter and filter), and
    of the pairs that were kept.
    """
    print_table(
        (
            (name, *(f"{share:.1%}" for share in shares))
            for name, *shares in zip(palette.names, training, expected, realised, strict=True)
        ),
        ("class", "training", "expected", "realised"),
    )


def print_outcome(folder: Path, manifest: list[Line], tau: float | None) -> None:
    """Prints how many pairs were kept, and where to look; tau is None without a segmenter."""
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
        print("Nothing was kept, and no candidate has a score: manifest.jsonl says why.")
        return
    print(
        f"Nothing was kept: scores ran from {percent(min(scores))} to {percent(max(scores))} %, "
        f"median {percent(float(np.median(scores)))} %. Lower tau, train the generator longer, "
        f"or look at {folder / EXTREMES} for what the segmenter sees."
    )
