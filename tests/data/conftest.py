"""What tests of data share."""

import numpy as np
import pytest
import rasterio
from defaults import defaults
from rasterio import Affine
from shapes import CRS, LEFT, PIXEL, TOP

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


@pytest.fixture
def source(tmp_path):
    """Two pictures side by side on the ground: a (where the shapes are) and b."""
    folder = tmp_path / "source" / "images"
    folder.mkdir(parents=True)
    for n, stem in enumerate("ab"):
        where = {"crs": CRS, "transform": Affine(PIXEL, 0, LEFT + n * 24, 0, -PIXEL, TOP)}
        pixels = np.random.default_rng(n).integers(1, 255, (3, 32, 48), np.uint8)
        shape = {"height": 32, "width": 48, "count": 3, "dtype": "uint8"}
        with rasterio.open(folder / f"{stem}.tif", "w", driver="GTiff", **shape, **where) as target:
            target.write(pixels)
    return folder.parent
