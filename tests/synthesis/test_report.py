import re

import numpy as np
import pytest
import torch
from PIL import Image
from synthesis_helpers import BYTES, candidate_masks
from torch.nn import functional as F

from geoseg_gan.data.images import write_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.models.loaded import load_generator
from geoseg_gan.synthesis import report
from geoseg_gan.synthesis.generate_images import generate_images
from geoseg_gan.synthesis.recognizer import Recognizer
from geoseg_gan.synthesis.writer import PairFiles
from geoseg_gan.utils import pictures


@pytest.fixture
def files(tmp_path, palette):
    (tmp_path / "out").mkdir()
    return PairFiles(tmp_path / "out", "pairs", MaskReader(palette), BYTES)


def lines(*scores, tau=0.5):
    """Manifest lines by score; None for what has none."""
    rows = [{"index": index, "kept": (score or 0) > tau} for index, score in enumerate(scores)]
    return [row if s is None else row | {"score": s} for row, s in zip(rows, scores, strict=True)]


def test_the_histogram_gets_scores_by_decision(files, monkeypatch):
    given = []
    picture = np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(report, "score_histogram", lambda *a: given.append(a) or picture)
    report.write_histogram(files, lines(0.4, None, 0.9, 0.2, 0.6), 0.5, [0.7])
    assert given == [([0.9, 0.6], [0.4, 0.2], 0.5, [0.7])]
    assert (files.folder / report.HISTOGRAM).is_file()


def test_without_scores_there_are_no_pictures_of_them(files):
    report.write_histogram(files, lines(None, None), 0.5, [])
    report.write_extremes(files, lines(None), None, None, None, None)
    report.write_contact_sheet(files, [], 1)
    assert not list(files.folder.iterdir())


def test_the_contact_sheet_names_the_classes(files, palette, monkeypatch):
    given = []
    monkeypatch.setattr(report, "with_legend", lambda sheet, *a: given.append(a) or sheet)
    write_image(files.paths(0)[0], np.zeros((8, 8, 3), np.uint8))
    files.reader.write(files.paths(0)[1], np.zeros((8, 8), np.uint8))
    report.write_contact_sheet(files, [0], 1)
    ((names, colors),) = given
    assert names == [*palette.names, "ignore"]
    np.testing.assert_array_equal(colors, palette.color_table[[*range(len(names) - 1), 255]])


@pytest.fixture
def sheet(files, monkeypatch):
    """Writes kept pairs of 8 px and their contact sheet; returns it in tiles, row by row."""

    monkeypatch.setattr(report, "with_legend", lambda sheet, *_: sheet)

    def show(kept, variants):
        for index in kept:
            image_path, mask_path = files.paths(index)
            write_image(image_path, np.full((8, 8, 3), 5 * index, np.uint8))
            files.reader.write(mask_path, np.full((8, 8), index // variants % 3, np.uint8))
        report.write_contact_sheet(files, kept, variants)
        picture = np.asarray(Image.open(files.folder / report.SHEET)).astype(int)
        rows, columns = (picture.shape[0] + 2) // 10, (picture.shape[1] + 2) // 10
        assert picture.shape == (10 * rows - 2, 10 * columns - 2, 3)
        tiles = np.pad(picture, ((0, 2), (0, 2), (0, 0))).reshape(rows, 10, columns, 10, 3)
        return tiles.swapaxes(1, 2)[:, :, :8, :8]

    return show


def assert_tile(tile, color):
    np.testing.assert_allclose(tile, np.broadcast_to(color, (8, 8, 3)), atol=3)


def test_the_sheet_shows_four_pairs_a_row(sheet, palette):
    rows = sheet([*range(0, 40, 2)], 1)  # of twenty, the first sixteen
    assert rows.shape[:2] == (4, 8)
    for number, index in enumerate(range(0, 32, 2)):
        row, column = divmod(number, 4)
        assert_tile(rows[row][2 * column], palette.color_table[index % 3])
        assert_tile(rows[row][2 * column + 1], 5 * index)


def test_the_sheet_shows_a_mask_once_before_its_variants_with_blanks_for_dropped_ones(
    sheet, palette
):
    kept = [1, 3, 8, 9, 10, 11, 12, 22, 25, 30]  # none of the mask 1, whose numbers are 4 to 7
    rows = sheet(kept, 4)
    assert rows.shape[:2] == (4, 5)
    for row, mask in zip(rows, (0, 2, 3, 5), strict=True):
        assert_tile(row[0], palette.color_table[mask % 3])
        for variant, tile in enumerate(row[1:]):
            index = 4 * mask + variant
            assert_tile(tile, 5 * index if index in kept else 255)


def test_the_sheet_fills_its_rows_with_several_masks_and_stays_narrow(sheet, palette):
    rows = sheet([0, 1, 3, 4, 5], 2)
    assert rows.shape[:2] == (2, 6)
    colors = palette.color_table
    shown = ((0, 3, colors[1]), (0, 4, 255), (0, 5, 15), (1, 0, colors[2]))
    for row, column, color in (*shown, (1, 3, 255)):  # no mask is left
        assert_tile(rows[row][column], color)
    assert sheet([0, 40], 50).shape[:2] == (1, 17)


def test_the_best_stand_left_and_the_worst_right(
    files, generator, make_folder, tmp_path, palette, monkeypatch
):
    root = make_folder(tmp_path / "data", train=3, val=0)
    loaded, cpu = load_generator(generator(root)), torch.device("cpu")
    candidates = candidate_masks(find_pairs(root, "train"), files.reader)
    seen = F.one_hot(torch.full((32, 32), 2), 3).permute(2, 0, 1)[None].float()
    recognizer = Recognizer("abc", None, lambda pixels: seen, range(3))
    monkeypatch.setattr(report, "captioned", lambda picture, text: captions.append(text) or picture)
    monkeypatch.setattr(pictures, "captioned", lambda picture, _: picture)
    captions = []
    manifest = lines(0.1, 0.8, None, 0.3, 0.7, *[0.5] * 20)
    report.write_extremes(files, manifest, candidates, loaded, recognizer, cpu)
    assert captions[:4] == ["best, 80.0 %", "worst, 10.0 %", "70.0 %", "30.0 %"]
    assert len(captions) == 20
    sheet = np.asarray(Image.open(files.folder / report.EXTREMES))
    assert sheet.shape == (10 * 34 - 2, 6 * 34 - 2, 3)
    for column, index in ((0, 1), (3, 0)):
        label = candidates[index].label
        (image,) = generate_images(loaded, [label], seed=3, indices=[index], device=cpu)
        tiles = [sheet[:32, 34 * (column + k) : 34 * (column + k) + 32] for k in range(3)]
        assert np.array_equal(tiles[0], palette.decode(label))
        assert np.array_equal(tiles[1], image)
        predicted = np.where(label == 255, np.uint8(255), np.uint8(2))
        assert np.array_equal(tiles[2], palette.decode(predicted))
    captions.clear()
    report.write_extremes(files, manifest[:6], candidates, loaded, recognizer, cpu)
    # Of five, the middle one alone stands on both sides.
    assert captions == [*("best, 80.0 %", "worst, 10.0 %", "70.0 %", "30.0 %", "50.0 %", "50.0 %")]


@pytest.mark.parametrize(
    ("scores", "tau", "message"),
    [
        ([0.9, 0.8], None, r"^Generated 2 pairs in "),
        ([0.9, 0.3, 0.8, None], 0.5, r"^Generated 4 pairs, kept 2 with tau=0.5\nSee .*scores.png"),
        ([0.9, None], None, r"^Generated 2 pairs, kept 1\nSee "),
        (
            [0.1, 0.4, 0.2],
            0.5,
            r"kept 0 with tau=0.5\nNothing .* from 10.0 to 40.0 %, med.* 20.0 %",
        ),
        ([None], 0.5, "no candidate has a score"),
    ],
)
def test_the_outcome_in_a_line(tmp_path, capsys, scores, tau, message):
    report.print_outcome(tmp_path, lines(*scores), tau)
    assert re.search(message, capsys.readouterr().out)
