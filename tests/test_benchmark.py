import json

import pytest

from geoseg_gan.benchmark import _MEANINGS, benchmark
from geoseg_gan.errors import UserError


def test_every_figure_is_measured_and_written(tmp_path, make_folder, composed, tiny):
    root, out_dir = make_folder(tmp_path / "data"), tmp_path / "out"
    paths = (f"data_root={root}", f"out_dir={out_dir}", "data=landcover")
    figures = benchmark(composed("benchmark", *tiny, *paths, "seconds=0.05", "rounds=1"))
    assert set(figures) == set(_MEANINGS)
    assert all(value > 0 for value in figures.values())
    assert figures["remap_over_loop"] > 1
    written = json.loads((out_dir / "benchmark.json").read_text())
    assert written["figures"] == figures
    table = (out_dir / "benchmark.md").read_text()
    assert all(meaning in table for meaning in _MEANINGS.values())


def test_values_out_of_range_are_refused(composed):
    with pytest.raises(UserError, match="rounds=0"):
        benchmark(composed("benchmark", "rounds=0"))
