import json
import runpy

import pytest
from run_folders import REPO


@pytest.mark.slow
def test_every_part_is_measured_printed_and_written(tmp_path, make_folder, tiny, capsys):
    benchmark = runpy.run_path(str(REPO / "scripts/dev/benchmark.py"))["benchmark"]
    root = make_folder(tmp_path / "data")
    options = ["--seconds", "0.05", "--rounds", "1", "--json", str(tmp_path / "figures.json")]
    figures = benchmark([*options, *tiny, f"data_root={root}"])
    assert all(value > 0 for value in figures.values())
    stored = json.loads((tmp_path / "figures.json").read_text())
    assert stored["figures"] == figures and f"data_root={root}" in stored["overrides"]
    table = capsys.readouterr().out
    for name in ("Lightning / plain loop", "bf16-mixed / off", "pairs saved / forward pass"):
        assert f"| {name} | {figures[name]:.3g} |" in table


@pytest.mark.slow
def test_versions_are_compared_step_by_step(tmp_path, make_folder, tiny):
    benchmark = runpy.run_path(str(REPO / "scripts/dev/benchmark.py"))["benchmark"]
    root = make_folder(tmp_path / "data")
    options = ["--against", str(REPO), "--rounds", "1"]
    figures = benchmark([*options, *tiny, "trainer=cpu", f"data_root={root}"])
    assert figures["speed-up of a step"] > 0
    for version in ("before", "now"):
        shares = [value for name, value in figures.items() if name.endswith(f"share {version}")]
        assert sum(shares) == pytest.approx(1)
