import json

import pytest

from geoseg_gan.benchmark import benchmark
from geoseg_gan.errors import UserError


def test_every_part_is_measured_and_written(tmp_path, make_folder, composed, tiny):
    root, out_dir = make_folder(tmp_path / "data"), tmp_path / "out"
    paths = (f"data_root={root}", f"out_dir={out_dir}", "data=landcover", "segmenter=unet_resnet34")
    options = ("segmenter.encoder=mobilenet_v2", "+segmenter.options.encoder_depth=3")
    options += ("+segmenter.options.decoder_channels=[8,8,8]", "precision=bf16-mixed")
    asked = ("seconds=0.05", "rounds=1", "tiles=[5]")
    figures = benchmark(composed("benchmark", *tiny, *paths, *options, *asked))
    assert all(value > 0 for name, value in figures.items() if "MB" not in name)
    assert figures["remapping/over a loop"] > 1
    for name in ("model/Lightning / bare loop", "model/saved / forward", "5 tiles/later starts, s"):
        assert name in figures
    shares = [value for name, value in figures.items() if name.startswith("`aten::")]
    assert 0 < sum(shares) <= 1
    written = json.loads((out_dir / "benchmark.json").read_text())
    assert written["figures"] == figures
    table = (out_dir / "benchmark.md").read_text()
    assert table.count("###") == 8 and "| model |" in table
    assert (out_dir / "trace_model.json").stat().st_size > 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("rounds=0", "rounds=0"),
        ("parts=[cooking]", "parts=cooking"),
        ("tiles=[0]", "tiles="),
        ("models=[vgg]", "model=vgg"),
    ],
)
def test_values_out_of_range_are_refused(asked, message, composed, tmp_path, make_folder):
    root = make_folder(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        benchmark(composed("benchmark", "data=landcover", f"data_root={root}", asked))
