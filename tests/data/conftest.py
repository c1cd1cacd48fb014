"""What tests of the segmenter's data share."""

import pytest
from defaults import defaults

from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.settings import DataSettings


@pytest.fixture
def settings(palette):
    return defaults(
        DataSettings,
        palette=list(palette.classes),
        ignore=[list(color) for color in palette.ignore],
        num_workers=0,
    )


@pytest.fixture
def reader(palette):
    return MaskReader(palette)


@pytest.fixture
def root(make_folder, tmp_path):
    return make_folder(tmp_path / "data", train=12, val=3, size=(48, 40))


@pytest.fixture
def made(make_generated, tmp_path):
    return make_generated(tmp_path / "made", range(5))


@pytest.fixture
def one_with_settlement(root, palette):
    """The data folder, of whose training masks only the first holds Settlement (2)."""
    reader = MaskReader(palette)
    for path in sorted((root / "train" / "masks").iterdir())[1:]:
        label, _ = reader.read(path)
        label[label == 2] = 0
        reader.write(path, label)
    return root
