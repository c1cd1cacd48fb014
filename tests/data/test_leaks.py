import re
import shutil

import pytest

from geoseg_gan.data.images import read_image, write_image
from geoseg_gan.data.pairs import DataError, find_pairs
from geoseg_gan.data.split import refuse_shared_images


@pytest.fixture
def root(make_folder, tmp_path):
    return make_folder(tmp_path / "data", train=4, val=3)


def check(root):
    refuse_shared_images(find_pairs(root, "train"), find_pairs(root, "val"))


def test_different_images_pass(root):
    check(root)


def test_a_copy_under_another_name_is_found(root):
    shutil.copy(root / "train/images/train_002.png", root / "val/images/val_001.png")
    with pytest.raises(DataError) as caught:
        check(root)
    assert re.search(r"val_001\.png has the same pixels as .*train_002\.png: ", str(caught.value))


def test_a_copy_in_another_format_is_found_and_all_are_counted(root):
    for number in (0, 1):
        pixels = read_image(root / f"train/images/train_00{number}.png")
        (root / f"val/images/val_00{number}.png").unlink()
        write_image(root / f"val/images/val_00{number}.tif", pixels)
    with pytest.raises(DataError, match=r"val_000\.tif .*train_000\.png \(and 1 more image\)"):
        check(root)
