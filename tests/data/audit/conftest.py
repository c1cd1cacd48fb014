"""What tests of the check share."""

from pathlib import Path

import pytest
from made import regions, save, texture

from geoseg_gan.data.audit.examine import examine


@pytest.fixture
def folder(tmp_path):
    """Writes pairs: `folder(lambda label: mask, train=8, val=4)`; returns the root."""

    def make(
        encode, train=8, val=4, classes=4, suffix=".png", image_suffix=".png", root=None, **options
    ) -> Path:
        root = root or tmp_path / "data"
        for split, count in (("train", train), ("val", val)):
            for number in range(count):
                stem = f"{split}{chr(97 + number % 26)}{number}x"
                seed = 1000 * (split == "val") + number
                save(root / split / "images" / f"{stem}{image_suffix}", texture(seed))
                label = regions(seed, classes)
                save(root / split / "masks" / f"{stem}{suffix}", encode(label), **options)
        return root

    return make


@pytest.fixture
def check(composed):
    """Examines a folder: `check(root, "data=dubai")`."""

    def run(root, *overrides):
        return examine(composed("check_data", f"data_root={root}", "image_size=64", *overrides))

    return run
