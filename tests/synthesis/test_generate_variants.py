"""Several images of each mask."""

from itertools import groupby

import numpy as np
import pytest
import torch
from PIL import Image
from synthesis_helpers import files, printed, refused
from torch.nn import functional as F

from geoseg_gan.data.synthetic import read_manifest
from geoseg_gan.synthesis import inputs, report
from geoseg_gan.synthesis.recognizer import Recognizer


@pytest.fixture
def run(run_generate, root, generator):
    """Calls generate, four images a mask, on a small generator and returns the folder."""
    gen_ckpt = generator(root)
    return lambda name, **settings: run_generate(gen_ckpt, name, **({"variants": 4} | settings))


@pytest.fixture
def seen(monkeypatch, plain_histogram):
    """Has generate score by a segmenter that sees class 1 where it is bright, else class 0."""

    def predict(pixels):
        gray = torch.as_tensor(pixels, dtype=torch.float32).mean(1)
        bright = (gray > gray.mean()).long()
        return 5 * F.one_hot(bright, 3).permute(0, 3, 1, 2).float()

    recognizer = Recognizer("abc", [0.2], predict, range(3))
    monkeypatch.setattr(inputs, "load_recognizer", lambda *_: recognizer)
    return {"segmenter_ckpt": "hand.pt"}


def mask_of(line):
    return line["mask_index"]


def pair(folder, index):
    parts = (f"pair_{index:05d}_mask.png", f"pair_{index:05d}_img.jpg")
    return tuple((folder / part).read_bytes() for part in parts)


def test_variants_share_a_mask_and_no_image(run, capsys):
    folder, plain = run("out", num_samples=10), run("plain", num_samples=10, variants=1)
    lines = read_manifest(folder)
    assert [line["index"] for line in lines] == list(range(10))
    assert [line["mask_index"] for line in lines] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert [line["variant"] for line in lines] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    alone = read_manifest(plain)
    assert [(line["mask_index"], line["variant"]) for line in alone] == [(i, 0) for i in range(10)]
    images = set()
    for line in lines:
        mask, image = pair(folder, line["index"])
        assert mask == pair(plain, line["mask_index"])[0]
        assert line["source"] == alone[line["mask_index"]]["source"]
        images.add(image)
    assert len(images) == 10
    assert pair(folder, 0) == pair(plain, 0)  # the same mask and noise
    said = printed(capsys)
    assert "Generating 10 pairs (3 masks, up to 4 images each) of 32x32 px" in said
    assert "Generating 10 pairs of 32x32 px" in said


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_same_pairs_for_any_batch_and_workers(run):
    first = files(run("first", num_samples=10, bs=8))
    assert files(run("second", num_samples=10, bs=3, num_workers=2)) == first


def test_a_run_interrupted_within_a_mask_goes_on_there(run, tmp_path, interrupt_before, capsys):
    whole = files(run("whole", num_samples=12, bs=4))
    assert "12 pairs (3 masks, 4 images each)" in printed(capsys)
    interrupt_before(6, lambda: run("parts", num_samples=12, bs=4))
    assert len(read_manifest(tmp_path / "parts")) == 6
    capsys.readouterr()
    assert files(run("parts", num_samples=12, bs=4)) == whole
    assert "Generating 6 pairs (2 masks, up to 4 images each)" in printed(capsys)


def test_variants_are_scored_each_by_itself(run, seen, capsys, monkeypatch):
    monkeypatch.setattr(report, "with_legend", lambda sheet, *_: sheet)
    everything = read_manifest(run("all", num_samples=24, tau=0, **seen))
    scores = [line["score"] for line in everything]
    assert all(len({line["score"] for line in g}) > 1 for _, g in groupby(everything, mask_of))
    tau = float(np.median(scores))
    folder = run("out", keep=7, tau=tau, **seen)
    lines = read_manifest(folder)
    assert [line["score"] for line in lines] == scores[: len(lines)]
    assert [line["kept"] for line in lines] == [score > tau for score in scores[: len(lines)]]
    assert sum(line["kept"] for line in lines) == 7 and lines[-1]["kept"]
    assert "pairs (4 images of each mask)" in printed(capsys)
    shown = min(4, len({line["mask_index"] for line in lines if line["kept"]}))
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.size == (5 * 34 - 2, shown * 34 - 2)
    auto = run("auto", num_samples=8, tau="auto", **seen)
    assert len(read_manifest(auto)) == 8


def test_a_generator_without_noise_makes_one_image_of_a_mask(
    run_generate, root, generator, tiny_config, tmp_path, monkeypatch
):
    settings = tiny_config["model"]["generator"]
    for key in ("style_channels", "region_channels", "texture_octaves"):
        if key in settings:
            monkeypatch.setitem(settings, key, 0)
    gen_ckpt = generator(root)
    with refused(r"variants=2: the generator takes no noise.*variants=1"):
        run_generate(gen_ckpt, "out", num_samples=2, variants=2)
    assert not (tmp_path / "out").exists()
    assert len(files(run_generate(gen_ckpt, "out", num_samples=2), "pair_*")) == 4
