import re
import shutil

import pytest

from geoseg_gan.data.images import read_image, write_image
from geoseg_gan.data.pairs import DataError, find_pairs
from geoseg_gan.data.split import (
    check_unlabelled,
    refuse_shared_images,
    split_pairs,
    split_rows,
    write_split,
)
from geoseg_gan.utils.errors import UserError


@pytest.fixture
def pairs(make_folder, tmp_path):
    return find_pairs(make_folder(tmp_path / "data", train=8), "train")


def test_every_pair_is_fitted_or_held_out(pairs):
    fitted, held_out = split_rows(pairs, None, 0.25, seed=0)
    assert len(held_out) == 2 and sorted(fitted + held_out) == list(range(8))
    assert split_rows(pairs, None, 0.0, seed=0) == (list(range(8)), [])


def test_a_written_split_is_read_as_it_was_and_rules_over_share_and_seed(pairs, tmp_path):
    path = tmp_path / "deep" / "split.csv"
    write_split(path, [pairs[6], pairs[1], pairs[3]], [pairs[0]])
    assert path.read_text().splitlines()[:2] == ["stem,part", "train_000,inner"]
    assert split_rows(pairs, str(path), 0.5, seed=3) == ([1, 3, 6], [0])


def test_a_run_splits_its_pairs_as_its_configuration_says(pairs, tmp_path):
    data = {"group_regex": None, "split_file": None}
    root = tmp_path / "data"
    fitted, held_out = split_pairs(root, {"data": data, "inner_share": 0.25, "seed": 5})
    rows = split_rows(pairs, None, 0.25, seed=5)
    assert (fitted, held_out) == tuple([pairs[row] for row in part] for part in rows)
    # A run of before there was a choice fitted all its pairs.
    assert split_pairs(root, {"data": {"group_regex": None}, "seed": 5}) == (pairs, [])


def test_a_split_that_a_spreadsheet_saved_with_endings_is_read(pairs, tmp_path):
    path = tmp_path / "split.csv"
    path.write_bytes("\ufeffstem;part\r\ntrain_001.png;fit\r\ntrain_000.PNG;inner\r\n".encode())
    assert split_rows(pairs, str(path), 0.0, seed=0) == ([1], [0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "data.split_file=.* does not exist.*stem and part"),
        ("stem\ntrain_000\n", "lacks the column 'part'"),
        ("stem,part\ntrain_000,fitt\n", "'train_000' has the part 'fitt'; use fit or inner"),
        ("stem,part\ntrain_000\n", "lacks a value in line 2"),
        ("stem,part\ntrain_000,fit\ntrain_000,inner\n", "says two things of the stem 'train_000'"),
        (b"stem,part\n\xff\xff,fit\n", "names 'ÿÿ', which is not among"),
        ("stem;part\ntrain_000;fit\ntrain_000.png;inner\n", "two things of the stem 'train_000'"),
        ('stem,part\n"train_000\nfit\n', "cannot be read .*end of data"),
        ("stem,part\n" + "x" * 200_000 + ",fit\n", "cannot be read .*field larger than"),
        ("stem,part\nother,fit\n", "names 'other', which is not among the training pairs"),
        ("stem,part\ntrain_000,inner\n", "names no pair to fit"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(pairs, tmp_path, text, message):
    path = tmp_path / "split.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        split_rows(pairs, str(path), 0.0, seed=0)
    assert re.search(message, str(caught.value)) and str(path) in str(caught.value)


@pytest.fixture
def root(make_folder, tmp_path):
    return make_folder(tmp_path / "data", train=4, val=3)


def check(root):
    refuse_shared_images(find_pairs(root, "train"), find_pairs(root, "val"))


def test_a_copy_in_another_format_is_found_and_all_are_counted(root):
    check(root)  # different images pass
    for number in (0, 1):
        pixels = read_image(root / f"train/images/train_00{number}.png")
        (root / f"val/images/val_00{number}.png").unlink()
        write_image(root / f"val/images/val_00{number}.tif", pixels)
    with pytest.raises(DataError, match=r"val_000\.tif .*train_000\.png \(and 1 more image\)"):
        check(root)


def test_unlabelled_images_are_neither_validated_on_nor_held_out(root):
    train, val = (find_pairs(root, split) for split in ("train", "val"))
    images = [pair.image for pair in train]
    check_unlabelled(images, root)
    check_unlabelled(images, root / "none")  # labelling new images needs no labelled ones
    held_out = r"train_000\.png has the same .*train_000\.png \(and 1 more image\), but is held out"
    with pytest.warns(UserWarning, match=held_out):
        check_unlabelled(images, root, train[:2])
    with pytest.raises(DataError, match=r"val_002\.png is a validation image"):
        check_unlabelled([*images, val[2].image], root)
    copy = root.parent / "copy.png"
    shutil.copy(val[2].image, copy)
    with pytest.raises(DataError, match=r"val_002\.png has the same pixels as .*copy\.png: "):
        check_unlabelled([*images, copy], root)
