"""Filtered generation, mostly on masks and predictions made by hand.

The recognizer sees class 0 in the left half of every image and class 1 in the right half, so that
the score of each mask is known; jitter=none and masks of the image's size keep them as they are.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from defaults import defaults
from PIL import Image
from synthesis_helpers import GEOMETRY, facts, files, printed, refused
from torch.nn import functional as F

from geoseg_gan.data.images import write_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.palette import Palette
from geoseg_gan.data.settings import JitterSettings, TransplantStep
from geoseg_gan.data.synthetic import read_manifest
from geoseg_gan.synthesis import generate as command_module
from geoseg_gan.synthesis import inputs
from geoseg_gan.synthesis.recognizer import Recognizer

SIDE = 32


def stripes(*ends):
    """A mask whose columns up to each end are of a class: `stripes((16, 0), (32, 1))`."""
    row = np.concatenate([np.full(width, kind) for width, kind in ends]).astype(np.uint8)
    return np.broadcast_to(row, (SIDE, SIDE)).copy()


MASKS = {
    "same": stripes((16, 0), (16, 1)),
    "ignored": stripes((16, 0), (16, 255)),  # class 1 is predicted where nothing counts
    "shifted": stripes((8, 0), (24, 1)),  # IoU 8/16 and 16/24
    "third": stripes((16, 0), (16, 2)),  # IoU 1 and 0; class 1 is only predicted
    "plain": stripes((32, 0)),  # IoU 16/32
    "void": stripes((32, 255)),
}
SCORES = {"same": 1, "ignored": 1, "shifted": 7 / 12, "third": 0.5, "plain": 0.5, "void": None}
LOGITS = 2 * F.one_hot(torch.tensor(MASKS["same"]).long(), 3).permute(2, 0, 1)[None].float()
"""Cross-entropy 0.24 (ln(e^2 + 2) - 2) where right, 2.24 where wrong."""


@pytest.fixture
def recognizer():
    return Recognizer("abc", [1.0], lambda pixels: LOGITS.clone(), range(3))


@pytest.fixture
def root(tmp_path, palette):
    """A data folder of the hand-made masks."""
    for stem, label in MASKS.items():
        write_image(tmp_path / f"data/train/images/{stem}.png", np.zeros((SIDE, SIDE, 3), np.uint8))
        MaskReader(palette).write(tmp_path / f"data/train/masks/{stem}.png", label)
    return tmp_path / "data"


@pytest.fixture
def run(run_generate, root, generator, recognizer, monkeypatch, plain_histogram):
    """Calls generate on the hand-made masks with the hand-made recognizer."""
    saved = generator(root)

    def call(name, recognizer=recognizer, palette=None, **settings):
        monkeypatch.setattr(inputs, "load_recognizer", lambda *_: recognizer)
        gen_ckpt = generator(root, palette=palette) if palette else saved
        return run_generate(gen_ckpt, name, segmenter_ckpt="hand.pt", **settings)

    return call


def pairs(folder):
    return files(folder, "pair_*")


def sources(folder, kept=(True, False)):
    return [line["source"] for line in read_manifest(folder) if line["kept"] in kept]


def test_pairs_above_tau_are_kept_and_all_scores_listed(run, capsys):
    folder = run("out", num_samples=20, seed=5, tau=0.65)
    assert "Generated 20 pairs, kept 7 with tau=0.65" in capsys.readouterr().out.splitlines()
    lines = read_manifest(folder)
    assert [line["index"] for line in lines] == list(range(20))
    assert {line["source"] for line in lines} == set(MASKS)
    for line in lines:
        score = SCORES[line["source"]]
        assert line.get("score") == (None if score is None else pytest.approx(score, abs=1e-12))
        assert line["kept"] == (line["source"] in ("same", "ignored"))
        why = {None: "all of it is ignored"}.get(score, "score is not above tau=0.65")
        assert line.get("why") == (None if line["kept"] else why)
    kept = [line["index"] for line in lines if line["kept"]]
    assert len(kept) == 7 and kept != list(range(7))
    parts = {f"pair_{i:05d}_{part}" for i in kept for part in ("img.jpg", "mask.png")}
    pictures = {"contact_sheet.png", "scores.png", "best_and_worst.png"}
    assert set(files(folder)) == parts | pictures | {"manifest.jsonl", "generation.json"}


def test_a_score_equal_to_tau_is_dropped(run):
    at, below = run("at", num_samples=20, tau=0.5), run("below", num_samples=20, tau=0.499)
    assert set(sources(at, [True])) == {"same", "ignored", "shifted"}
    assert set(sources(below, [True])) == set(MASKS) - {"void"}


def test_a_tau_of_0_keeps_all_but_where_tau_auto_comes_to_it(run, recognizer, capsys):
    wrong = replace(recognizer, predict=lambda pixels: LOGITS.flip(-1), held_out=[0.1])
    folder = run("all", num_samples=20, tau=0, recognizer=wrong)
    assert set(sources(folder, [True])) == set(MASKS) - {"void"}
    assert 0.0 in [line.get("score") for line in read_manifest(folder)]
    folder = run("auto", num_samples=20, tau="auto", recognizer=wrong)
    assert "tau=auto: 0 (0.0 %); those" in capsys.readouterr().out
    assert set(sources(folder, [True])) == {"shifted", "plain"}


def test_where_nothing_is_kept_it_shows_the_scores_it_saw(run, recognizer, capsys):
    wrong = replace(recognizer, predict=lambda pixels: LOGITS.flip(-1))
    folder = run("out", num_samples=12, tau=0.5, recognizer=wrong)
    out = printed(capsys)
    assert "Generated 12 pairs, kept 0 with tau=0.5 Nothing was kept: scores ran from 0.0 " in out
    assert "to 50.0 %, median" in out
    pictures = {"scores.png", "best_and_worst.png"}
    assert set(files(folder)) == pictures | {"manifest.jsonl", "generation.json"}


def test_keep_stops_at_the_number_whatever_batch_and_workers(run, capsys):
    first = run("first", keep=4, bs=8)
    out = capsys.readouterr().out
    lines = read_manifest(first)
    assert f"Generated {len(lines)} pairs, kept 4 with tau=0.65" in out.splitlines()
    assert "Gave up" not in out
    assert sum(line["kept"] for line in lines) == 4 and lines[-1]["kept"]
    assert len(pairs(first)) == 8
    second = run("second", keep=4, bs=3, num_workers=2)
    assert files(second) == files(first)
    # Another call finds it done; a higher number goes on, as one call would have.
    assert files(run("second", keep=4)) == files(first)
    assert files(run("second", keep=6)) == files(run("third", keep=6))


def test_keep_gives_up_after_many_candidates(run, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(command_module, "_TRIES", 1)
        folder = run("out", keep=5)
    out = capsys.readouterr().out
    kept = sum(line["kept"] for line in read_manifest(folder))
    assert len(read_manifest(folder)) == 5
    assert f"Gave up at 5 candidates: kept {kept} of the 5 asked for." in out
    assert len(pairs(folder)) == 2 * kept < 10
    run("out", keep=5)
    assert "Gave up" not in capsys.readouterr().out
    assert len(pairs(folder)) == 10


@pytest.mark.parametrize("asked", [{"num_samples": 16}, {"keep": 5}, {"keep": 5, "tau": "auto"}])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    run, tmp_path, monkeypatch, interrupt_before, asked
):
    whole = files(run("whole", **asked, bs=4))
    interrupt_before(6, lambda: run("parts", **asked, bs=4))
    assert len(read_manifest(tmp_path / "parts")) == 6
    # The threshold is the folder's: nothing is scored to choose another.
    monkeypatch.setattr(command_module, "choose_tau", None)
    assert files(run("parts", **asked, bs=4)) == whole


def test_gaps_that_several_processes_left_are_filled(run):
    whole = files(run("whole", keep=5))
    folder = run("parts", keep=5)
    path = folder / "manifest.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[-1:]))
    (folder / "manifest.part1.jsonl").write_text("".join(lines[4:6]) + lines[6][:9])
    (
        folder / ".geoseg-abcd1234.jpg"
    ).touch()  # as a process leaves it that is killed while it writes
    assert files(run("parts", keep=5, bs=3)) == whole


def test_auto_parts_what_scores_like_real_pairs_from_the_rest(run, recognizer, capsys):
    # Only the pairs that score 1 reach 1 on average; the next ones score 7/12.
    folder = run("out", num_samples=20, tau="auto")
    assert facts(folder)["tau"] == pytest.approx(19 / 24)
    assert facts(folder)["config"]["tau"] == "auto"
    assert set(sources(folder, [True])) == {"same", "ignored"}
    out = printed(capsys)
    assert (
        "tau=auto: 0.7917 (79.2 %); those of 20 candidates that score above it reach the mean"
        in out
    )
    assert "with tau=0.7917" in out
    low = run("low", num_samples=20, tau="auto", recognizer=replace(recognizer, held_out=[0.1]))
    assert facts(low)["tau"] == 0
    dark = replace(recognizer, predict=lambda pixels: LOGITS.flip(-1))
    run("dark", num_samples=20, tau="auto", recognizer=dark)
    assert "which keeps the best tenth of 20 candidates" in printed(capsys)


def test_auto_warns_of_windows_of_another_size(run, recognizer):
    message = r"pairs of 32 px with real windows of 64 px.*image_size=32"
    with pytest.warns(UserWarning, match=message):
        run("out", replace(recognizer, window=64), tau="auto", num_samples=4)


def test_pixels_that_are_unlike_their_class_get_the_first_ignore_colour(run, palette, monkeypatch):
    monkeypatch.setattr(command_module, "measure_class_losses", lambda *_: [1.0, 1.0, None])
    two = Palette(palette.classes, [[9, 8, 7], [0, 0, 0]])
    folder = run("out", palette=two, tau=0.2, alpha=1.25, num_samples=20)
    # Wrong pixels cost 2.24, more than 1.25 times 1; class 2 has no mean and stays.
    losses = {
        stem: label != MASKS["same"] if stem in ("shifted", "plain") else label == 255
        for stem, label in MASKS.items()
    }
    for line in read_manifest(folder):
        if not line["kept"]:
            assert line["source"] == "void"
            continue
        label, dropped = MASKS[line["source"]], losses[line["source"]]
        rgb = np.asarray(Image.open(folder / f"pair_{line['index']:05d}_mask.png"))
        colors = palette.decode(np.where(dropped, 0, label))
        expected = np.where(dropped[..., None], (9, 8, 7), colors)
        assert np.array_equal(rgb, expected)
        assert line["ignored_pixels"] == (dropped & (label != 255)).sum()
    assert facts(folder)["config"]["alpha"] == 1.25


def test_a_palette_without_colour_for_ignore_has_no_pixel_filter(run, palette, root):
    bare = Palette(palette.classes)
    for stem in ("ignored", "void"):
        for part in ("images", "masks"):
            (root / "train" / part / f"{stem}.png").unlink()
    with refused(r"alpha=1\.25 writes ignored pixels, but the palette"):
        run("out", palette=bare, alpha=1.25)
    assert not (root.parent / "out").exists()
    assert pairs(run("out", palette=bare, tau=0.2, num_samples=2))


def printed_shares(out):
    """The class shares of the table on the console, in percent: by class, then by column."""
    name = "Background|Forest land|Settlement"
    rows = re.findall(rf"^(?:{name}) +([\d.]+)% +([\d.]+)% +([\d.]+)%", out, re.M)
    return np.array(rows, float)


def test_balanced_masks_are_drawn_for_their_rare_classes(run, palette, capsys):
    folder = run("out", num_samples=60, sampling="balanced", tau=0.3)
    shares = printed_shares(capsys.readouterr().out)
    # In columns of 32 pixels.
    counts = np.array([np.bincount(label[0], minlength=256)[:3] for label in MASKS.values()])
    assert counts.sum(0).tolist() == [88, 40, 16]
    weights = (counts / [88, 40, 16]).mean(1)
    assert shares[:, 0] == pytest.approx(100 * np.array([88, 40, 16]) / 144, abs=0.051)
    mean = weights @ counts
    assert shares[:, 1] == pytest.approx(100 * mean / mean.sum(), abs=0.051)
    reader = MaskReader(palette)
    labels = [reader.read(path)[0] for path in folder.glob("pair_*_mask.png")]
    realised = np.bincount(np.ravel(labels), minlength=256)[:3]
    assert shares[:, 2] == pytest.approx(100 * realised / realised.sum(), abs=0.051)
    drawn = sources(folder)
    assert "void" not in drawn
    assert drawn.count("third") / 60 == pytest.approx(weights[3], abs=0.15)  # 0.39, else 0.17


def test_required_classes_are_named_or_numbered(run):
    assert set(sources(run("both", num_samples=8, require_classes=[2, "Background"]))) == {"third"}
    only = sources(run("one", num_samples=8, require_classes=["Forest land"]))
    assert set(only) == {"same", "shifted"}


def test_transplanted_regions_stand_in_the_manifest(run_generate, generator, make_folder, tmp_path):
    root = make_folder(tmp_path / "blobs", train=4, val=1)
    transplant = defaults(TransplantStep, p=1, max_share=0.8)
    jitter = defaults(JitterSettings, **GEOMETRY, transplant=transplant)
    lines = read_manifest(run_generate(generator(root), "out", jitter=jitter, num_samples=8))
    jitters = [line["jitter"] for line in lines if "transplant" in line["jitter"]]
    steps = [jitter["transplant"] for jitter in jitters]
    assert steps and all(next(iter(jitter)) == "transplant" for jitter in jitters)
    assert any(len(jitter) > 1 for jitter in jitters)
    stems = {pair.stem for pair in find_pairs(root, "train")}
    for step in steps:
        assert step["donor"] in stems and step["class"] in ("Forest land", "Settlement")
        assert step["pixels"] >= 32 and len(step["from"]) == len(step["to"]) == 4
