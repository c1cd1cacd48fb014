import numpy as np
import pytest

from geoseg_gan.utils.confusion import TileConfusions


def counts(*diagonals):
    return np.stack([np.diag(d) for d in diagonals]).astype(np.int64)


def test_windows_of_a_tile_are_added_up():
    windows = counts([1, 2], [3, 4], [5, 6])
    tiles = TileConfusions.of_windows(["b", "a", "b"], ["gb", "ga", "gb"], windows)
    assert (tiles.stems, tiles.groups) == (["a", "b"], ["ga", "gb"])
    assert np.array_equal(tiles.counts, counts([3, 4], [6, 8]))


def test_a_file_gives_back_what_was_written(tmp_path):
    tiles = TileConfusions(["a", "ü"], ["g", "g"], counts([1, 2], [3, 4]))
    np.savez(tmp_path / "tiles.npz", **tiles.to_arrays("val"))
    with np.load(tmp_path / "tiles.npz", allow_pickle=False) as arrays:
        read = TileConfusions.from_arrays(arrays, "val")
        with pytest.raises(KeyError):
            TileConfusions.from_arrays(arrays, "inner")
    assert (read.stems, read.groups) == (tiles.stems, tiles.groups)
    assert np.array_equal(read.counts, tiles.counts)
