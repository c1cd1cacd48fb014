"""What keeps the cost of a pair constant: no objects for pairs and windows that nobody asks for."""

import numpy as np
from geometry import OFF

from geoseg_gan.data import pairs as module
from geoseg_gan.data.datamodule import GanDataModule
from geoseg_gan.data.dataset import AllWindows
from geoseg_gan.data.windows import window_starts


def test_a_start_makes_no_object_of_a_pair(root, settings, monkeypatch):
    def start():
        knobs = {"image_size": 32, "batch_size": 4, "jitter": OFF, "seed": 0}
        data = GanDataModule(root, settings, inner_share=0.3, **knobs)
        data.setup()
        assert len(data.train_windows()) and len(list(data.train_dataloader().sampler)) == 8
        return data

    start()
    made = []
    whole = module.Pair
    monkeypatch.setattr(module, "Pair", lambda *parts: made.append(parts) or whole(*parts))
    data = start()
    # One a split, whose folder names the file in which the scan is kept.
    assert len(made) == 2
    assert data.train_index.pairs[0].stem in {f"train_{number:03d}" for number in range(12)}


def test_a_grid_of_windows_is_what_the_starts_of_each_picture_give():
    sizes = np.random.default_rng(0).integers(16, 60, (20, 2))
    expected = [
        (row, (top, left, 16))
        for row, (height, width) in enumerate(sizes.tolist())
        for top in window_starts(height, 16)
        for left in window_starts(width, 16)
    ]
    grid = AllWindows(sizes, 16)
    assert len(grid) == len(expected) and list(grid) == expected
    assert grid[-1] == expected[-1] and grid[3:9:2] == expected[3:9:2]
    assert len(AllWindows(sizes[:0], 16)) == 0
