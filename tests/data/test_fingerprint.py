import shutil

import numpy as np
import pytest

from geoseg_gan.data.fingerprint import FINGERPRINTS, fingerprint, refuse_change
from geoseg_gan.data.images import read_image, write_image
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.scan import scan
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.reading import check_content


@pytest.fixture
def root(make_folder, tmp_path):
    return make_folder(tmp_path / "data", train=4, val=0, size=16, bands=2, dtype="uint16")


@pytest.fixture
def of(reader):
    return lambda root: {"train": fingerprint(scan(find_pairs(root, "train"), reader))}


def test_a_copied_folder_is_the_same_data_in_any_order(root, of, reader, tmp_path):
    before = of(root)
    check_content("", before, FINGERPRINTS, "")
    copy = shutil.copytree(root, tmp_path / "copy")
    assert of(copy) == before
    index = scan(find_pairs(root, "train"), reader)
    assert fingerprint(index.rows([2, 0, 3, 1])) == before["train"]
    refuse_change(before, before, "", "")
    refuse_change(None, before, "", "")  # of an earlier version


def lose_a_pair(root, reader):
    for part, suffix in (("images", "tif"), ("masks", "png")):
        (root / f"train/{part}/train_003.{suffix}").unlink()


def rename(root, reader):
    for part, suffix in (("images", "tif"), ("masks", "png")):
        path = root / f"train/{part}/train_003.{suffix}"
        path.rename(path.with_stem("train_0030"))


def regroup(root, reader):
    (root / "tiles.csv").write_text("stem,group\ntrain_000,a\n")


def correct_a_mask(root, reader):
    path = root / "train/masks/train_001.png"
    label = reader.read(path)[0]
    label[0, 0] = 255
    reader.write(path, label)


def brighten(root, reader):
    path = root / "train/images/train_002.tif"
    write_image(path, (read_image(path) * 0.9).astype(np.uint16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose_a_pair, "train had 4 pairs, now 3"),
        (rename, "in train, the names or location groups of its pairs are others"),
        (regroup, "in train, the names or location groups"),
        (correct_a_mask, "in train, its masks hold other classes"),
        (brighten, "in train, its images have other"),
    ],
)
def test_what_has_changed_is_named(root, of, reader, change, message):
    before = of(root)
    change(root, reader)
    with pytest.raises(UserError, match=f"a.txt is of other data: {message}.*Do this"):
        refuse_change(before, of(root), "a.txt is of", "Do this.")


def test_a_split_that_came_or_went_is_named(root, of):
    found = of(root)
    with pytest.raises(UserError, match="val is new"):
        refuse_change(found, found | {"val": found["train"]}, "a", "b")
    with pytest.raises(UserError, match="train is gone"):
        refuse_change(found, {}, "a", "b")
