import json

import numpy as np
import pytest
from PIL import Image

from geoseg_gan.data.synthetic import read_synthetic
from geoseg_gan.studio.folder import FILTERS, ORDERS, PairFolder
from geoseg_gan.utils.errors import UserError


def numbers(folder, *view):
    return [entry.index for entry in folder.entries(*view)]


def test_pairs_come_in_order_of_their_scores_and_those_without_last(pairs):
    folder = PairFolder(pairs)
    worst, best, by_number = ORDERS
    assert numbers(folder, worst) == [2, 0, 4, 1, 3, 5]
    assert numbers(folder, best) == [3, 1, 4, 0, 2, 5]
    assert numbers(folder, by_number) == numbers(folder) == list(range(6))


def test_a_dropped_pair_leaves_training_and_can_be_taken_back(pairs):
    folder = PairFolder(pairs)
    _, kept, dropped = FILTERS
    for index in (1, 4):
        folder.set_dropped(index, True)
    assert folder.counts == (4, 2) and len(folder.entries()) == 6
    assert numbers(folder, ORDERS[0], kept) == [2, 0, 3, 5]
    assert numbers(folder, ORDERS[0], dropped) == [4, 1]
    used = [pair.stem for pair in read_synthetic(pairs).pairs]
    assert used == [f"pair_{index:05d}" for index in (0, 2, 3, 5)]
    folder.set_dropped(4, False)
    assert numbers(folder, ORDERS[0], dropped) == [1]
    assert numbers(PairFolder(pairs), ORDERS[0], dropped) == [1]


def test_what_is_not_listed_is_not_shown(pairs):
    lines = (pairs / "manifest.jsonl").read_text().splitlines(keepends=True)
    (pairs / "manifest.jsonl").write_text("".join(lines[:3]))
    assert numbers(PairFolder(pairs)) == [0, 1, 2]


def test_a_picture_is_the_mask_beside_the_image(pairs, palette):
    folder = PairFolder(pairs)
    entry = folder.entries()[3]
    picture = folder.picture(entry, 128)
    assert picture.shape == (32, 66, 3)
    assert np.array_equal(picture[:, :32], np.asarray(Image.open(entry.pair.mask).convert("RGB")))
    assert np.array_equal(picture[:, 34:], np.asarray(Image.open(entry.pair.image)))
    assert folder.picture(entry, 16).shape == (16, 34, 3)


def test_pairs_of_many_bands_are_shown_in_the_first_three(tmp_path, make_generated):
    made = make_generated(tmp_path / "many", [0], bands=5, dtype="uint16", layout="folders")
    (made / "manifest.jsonl").write_text(json.dumps({"index": 0, "kept": True}) + "\n")
    folder = PairFolder(made)
    shown = folder.picture(folder.entries()[0], 128)[:, 34:]
    assert shown.shape == (32, 32, 3) and (shown.min(), shown.max()) == (0, 255)


def test_other_folders_are_refused(tmp_path, pairs):
    with pytest.raises(UserError, match=r"save_dir=.* is not a folder of pairs"):
        PairFolder(tmp_path)
    (pairs / "manifest.jsonl").write_text("no JSON\n")
    with pytest.raises(UserError, match=r"manifest\.jsonl, line 1, cannot be read"):
        PairFolder(pairs)
