"""What a scan hands on: the index of a folder."""

import re

import numpy as np
import pytest

from geoseg_gan.data.images import MaskReader, write_image
from geoseg_gan.data.pairs import DataError, find_pairs
from geoseg_gan.data.scan import FolderIndex, check_sizes, scan


@pytest.fixture
def root(make_folder, tmp_path):
    return make_folder(tmp_path / "data", train=5, val=2, size=(24, 40))


@pytest.fixture
def reader(palette):
    return MaskReader(palette)


def test_shares_of_no_labelled_pixels_are_zero():
    index = FolderIndex(
        [], *[np.zeros((1, 4), np.int64)] * 3, *[np.zeros((1, 3))] * 2, np.dtype("uint8")
    )
    assert index.class_shares().tolist() == [0, 0, 0]


def test_rows_of_an_index_are_what_a_scan_of_those_pairs_sees(root, reader):
    pairs = find_pairs(root, "train")
    some, expected = scan(pairs, reader).rows([3, 0]), scan([pairs[3], pairs[0]], reader)
    assert some.pairs == expected.pairs and some.dtype == expected.dtype
    for name in ("sizes", "pixels", "unknown", "low", "high"):
        np.testing.assert_array_equal(getattr(some, name), getattr(expected, name), strict=True)


def test_an_image_smaller_than_the_crop_is_named_with_what_fits(root, reader):
    path = root / "train/images/train_001.png"
    write_image(path, np.zeros((20, 40, 3), np.uint8))
    reader.write(root / "train/masks/train_001.png", np.zeros((20, 40), np.uint8))
    index = scan(find_pairs(root, "train"), reader)
    check_sizes(index, 20)
    with pytest.raises(
        DataError, match=re.escape(f"{root / 'train/images/train_001.png'} is 40x20, smaller")
    ) as caught:
        check_sizes(index, 24)
    assert "image_size=24. Set image_size=20 or less, or data.fit=resize." in str(caught.value)
    with pytest.raises(DataError, match=r"40x20.*\(and 4 more images\)"):
        check_sizes(index, 32)
