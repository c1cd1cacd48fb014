import json

import pytest

from geoseg_gan.studio.workbench import Workbench


@pytest.fixture
def bench(trained, segmenter, composed):
    """Opens a workbench on a trained run: `bench("image_size=16")`."""
    data, run = trained

    def make(*settings):
        places = [f"gen_ckpt={run / 'G_e002.pt'}", f"data_root={data}"]
        return Workbench(composed("studio", *places, "trainer=cpu", *settings))

    return make


@pytest.fixture
def pairs(tmp_path, make_generated):
    """A folder of six generated pairs, of which the last has no score."""
    folder = make_generated(tmp_path / "pairs", range(6))
    scores = [0.5, 0.75, 0.25, 1.0, 0.625, None]
    lines = [
        {"index": index, "kept": True} | ({} if score is None else {"score": score})
        for index, score in enumerate(scores)
    ]
    text = "".join(json.dumps(line | {"source": "train_000"}) + "\n" for line in lines)
    (folder / "manifest.jsonl").write_text(text)
    return folder
