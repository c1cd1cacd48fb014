import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from geoseg_gan.data.images import write_image

REPO = Path(__file__).parents[2]
WATER, WOOD = [33, 150, 243], [168, 232, 84]  # of configs/data/landcover.yaml


def tile(*overrides, cwd):
    return subprocess.run(
        [sys.executable, str(REPO / "scripts" / "tile.py"), *overrides],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPO), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    rng = np.random.default_rng(0)
    for stem in ("a_1", "a_2", "b_1"):
        image = rng.integers(0, 256, (32, 48, 3), np.uint8)
        mask = np.where(rng.random((32, 48, 1)) < 0.5, WATER, WOOD).astype(np.uint8)
        write_image(folder / "images" / f"{stem}.jpg", image)
        write_image(folder / "masks" / f"{stem}.png", mask)
    return folder


def test_the_command_cuts_a_folder_and_says_what_it_did(source, tmp_path):
    done = tile(
        "source=source",
        "data_root=my tiles",
        "tile_size=16",
        "data.group_regex='^[a-z]'",
        "val_regex='[bc]'",
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    words = " ".join(done.stdout.split())
    assert "pictures 2 1" in words
    assert "groups 1 1" in words
    assert "tiles of 16x16 12 6" in words
    assert "Cropland 0.0% 0.0%" in words
    assert (
        """Next: python scripts/train.py 'data.group_regex='"'"'^[a-z]'"'"'' """
        "'data_root=my tiles' image_size=16" in words
    )
    with (tmp_path / "my tiles" / "tiles.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {(r["group"], r["split"]) for r in rows} == {("a", "train"), ("b", "val")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my tiles", "source"]


def test_a_mistake_is_one_line_and_exit_code_1(source, tmp_path):
    done = tile("source=source", "data_root=out", "val_regex=c", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: val_regex='c' leaves nothing to validate on. The 3 groups: a_1, a_2, b_1\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
