"""Masks for unlabelled images, against the segmenter's probabilities worked out here."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image
from synthesis_helpers import facts, files, printed, refused

from geoseg_gan.config import plain
from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.images import picture_head, write_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.split import split_pairs
from geoseg_gan.data.synthetic import read_manifest, read_synthetic
from geoseg_gan.models.checkpoints import RunFacts, SegmenterEvaluation, save_network
from geoseg_gan.models.loaded import load_segmenter
from geoseg_gan.models.segmenters import build_segmenter
from geoseg_gan.synthesis import pseudo_labels
from geoseg_gan.synthesis.generate import generate
from geoseg_gan.synthesis.pseudo_labels import choose_threshold, pseudo_label

SIDE = 32


@pytest.fixture
def root(make_folder, tmp_path):
    """Labelled tiles, and three unlabelled images of four windows each."""
    root = make_folder(tmp_path / "data", train=6, val=1)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (2 * SIDE, 2 * SIDE, 3), np.uint8)
        write_image(root / f"unlabelled/new {number}.png", pixels)
    return root


@pytest.fixture
def segmenter(root, tiny_segmenter, composed, palette, tmp_path):
    """A tiny segmenter with random weights, trained (on paper) with a third held out."""
    config = plain(composed("train_segmenter", *tiny_segmenter, f"data_root={root}"))
    torch.manual_seed(0)
    network = build_segmenter(config["segmenter"], palette.num_classes, 3)
    with torch.no_grad():  # so that it is sure of something
        network.segmentation_head[0].weight *= 30
    run = RunFacts(config, palette, ImageScaling([0] * 3, [255] * 3))
    path = tmp_path / "segmenter.pt"
    save_network(path, "segmenter", network, run, 1, SegmenterEvaluation([0.5], {"val/miou": 0.5}))
    return path


@pytest.fixture
def label(composed, segmenter, tmp_path):
    """Labels the images: `label(name, setting=value)` returns the folder."""
    own = ("source=unlabelled", f"segmenter_ckpt={segmenter}", "num_workers=0", "trainer=cpu")
    config = composed("generate", *own, f"image_size={SIDE}")

    def call(name="pairs", **settings):
        generate(replace(config, save_dir=str(tmp_path / name), **settings))
        return tmp_path / name

    return call


def test_windows_have_surroundings_where_images_are_large_enough(label, root):
    assert {line["window"][2] for line in read_manifest(label("whole", image_size=None))} == {64}
    write_image(root / "unlabelled/low.png", np.zeros((SIDE, 80, 3), np.uint8))
    assert {line["window"][2] for line in read_manifest(label("low", image_size=None))} == {SIDE}


def shares(segmenter, pixels, views=((0, False), (0, True), (2, False), (2, True))):
    """The mean probabilities (C, H, W) of turned and mirrored images."""
    loaded, total = load_segmenter(segmenter), 0
    for turns, flip in views:
        turned = np.rot90(pixels, turns)
        turned = np.ascontiguousarray(turned[:, ::-1] if flip else turned)
        found = loaded.probabilities(turned)
        found = found[:, :, ::-1] if flip else found
        total = total + np.rot90(found, -turns, (1, 2))
    return total / len(views)


def test_what_is_sure_enough_becomes_the_mask(root, segmenter, label, palette):
    with Image.open(root / "unlabelled" / "new 0.png") as image:
        limit = float(np.median(shares(segmenter, np.asarray(image)).max(0)))
    folder = label(confidence=limit)
    assert sorted(facts(folder)["thresholds"]) == ["confidence"]
    manifest = read_manifest(folder)
    assert [line["source"] for line in manifest] == [
        f"new {i}.png" for i in range(3) for _ in "1234"
    ]
    kept = 0
    for line in manifest:
        top, left, side = line["window"]
        with Image.open(root / "unlabelled" / line["source"]) as image:
            pixels = np.asarray(image)[top : top + side, left : left + side]
        found = shares(segmenter, pixels)
        expected = np.where(found.max(0) >= limit, found.argmax(0), 255)
        sure = (expected != 255).mean()
        assert line["score"] == pytest.approx(sure, abs=0.01)
        assert line["kept"] == (line["score"] >= 0.1)
        if line["kept"]:
            kept += 1
            mask = folder / f"pair_{line['index']:05d}_mask.png"
            label_map, unknown = MaskReader(palette).read(mask)
            assert unknown == 0 and (label_map == expected).mean() > 0.99  # ties of rounding
            assert {255} < set(label_map.flat)
    assert 0 < kept == len(read_synthetic(folder).pairs)
    assert (folder / "contact_sheet.png").is_file()


def test_thresholds_are_those_of_held_out_tiles(root, segmenter, label, palette, capsys):
    folder = label()
    reader = MaskReader(palette)
    _, held_out = split_pairs(root, load_segmenter(segmenter).facts.config)
    found = [[], [], []]  # confidence and whether it is right, by predicted class
    for pair in held_out:
        pixels, truth, _ = reader.read_pair(pair.image, pair.mask)
        for top, left in ((0, 0), (0, 32), (32, 0), (32, 32)):
            inside = np.s_[top : top + 32, left : left + 32]
            probable = shares(segmenter, pixels[inside])
            known = truth[inside] != 255
            for kind, sure, right in zip(
                probable.argmax(0)[known],
                np.floor(probable.max(0)[known] * 1000) / 1000,
                (probable.argmax(0) == truth[inside])[known],
                strict=True,
            ):
                found[kind].append((sure, right))
    stored = facts(folder)["thresholds"]
    for kind, pairs in enumerate(found):
        sure, right = np.array([*pairs, (0.0, False)]).T  # one more, where there is none
        candidates = [t for t in np.unique(sure) if (sure >= t).mean() >= 0.5]
        good = [t for t in candidates if right[sure >= t].mean() >= 0.9]
        limit = max(0.5, good[0] if good else candidates[-1])
        if not (sure >= limit).any():
            assert stored["held_out_accuracy"][kind] is None
            continue
        assert right[sure >= stored["confidence"][kind]].mean() == pytest.approx(
            stored["held_out_accuracy"][kind], abs=0.01
        )
        assert (sure >= stored["confidence"][kind]).mean() == pytest.approx(
            (sure >= limit).mean(), abs=0.02
        )
    assert "held-out accuracy" in printed(capsys)


def test_labels_of_one_class_are_warned_of(label, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "_ONE_CLASS", 0.1)
    with pytest.warns(UserWarning, match=r"has \d+\.\d% of all labelled pixels of .*pairs"):
        label(confidence=0.5)


def test_classes_much_rarer_than_on_held_out_tiles_are_named(label, monkeypatch, capsys):
    label()
    monkeypatch.setattr(pseudo_labels, "_RARE", 0.0)
    shown = printed(capsys)
    label()
    assert "Much rarer" not in printed(capsys)
    line = r"Much rarer here than on held-out tiles: .*\(\d+\.\d% for \d+\.\d%\)"
    assert re.search(line, shown)


def test_a_threshold_by_hand():
    counts = np.zeros((2, 11), int)
    counts[0, [3, 5]] = 10, 2  # wrong ones
    counts[1, [3, 5, 8]] = 10, 18, 8
    # From 0.5 on 26 of 28 are right; half of the 48 pixels stay.
    assert choose_threshold(counts) == (0.5, pytest.approx(26 / 28))
    counts[0, 8] = 30  # never nine tenths: half of the 78 pixels stay
    assert choose_threshold(counts) == (0.5, pytest.approx(26 / 58))
    counts[1, 9] = 50  # nine tenths from 0.9 on, but that is less than half
    assert choose_threshold(counts) == (0.8, pytest.approx(58 / 88))
    counts[1, 3] = 1000  # right often, but never below 0.5
    assert choose_threshold(counts) == (0.5, pytest.approx(76 / 108))
    assert choose_threshold(np.zeros((2, 11), int)) == (0.5, None)


def test_a_label_by_hand():
    found = np.array([[[0.6, 0.5, 0.2]], [[0.4, 0.5, 0.8]]], np.float32)
    assert pseudo_label(found, np.array([0.55, 0.8], np.float32)).tolist() == [[0, 255, 1]]


def test_true_masks_take_the_place_of_labels(root, label, palette):
    for number in range(3):
        truth = np.full((2 * SIDE, 2 * SIDE), number, np.uint8)
        truth[0, 0] = 255
        MaskReader(palette).write(root / f"true/new {number}.png", truth)
    folder = label(true_masks=str(root / "true"))
    for line in read_manifest(folder):
        mask, _ = MaskReader(palette).read(folder / f"pair_{line['index']:05d}_mask.png")
        has_corner = line["window"][:2] == [0, 0]
        assert mask[0, 0] == (255 if has_corner else int(line["source"][4]))
        assert (mask.ravel()[1:] == int(line["source"][4])).all()
    (root / "true" / "new 1.png").unlink()
    with refused("true holds no mask of .*new 1.png"):
        label("other", true_masks=str(root / "true"))


def test_pixels_without_data_are_ignored(root, label, palette):
    pixels = np.full((3, SIDE, SIDE), 90, np.uint8)
    pixels[:, :8] = 0
    profile = {"driver": "GTiff", "width": SIDE, "height": SIDE, "count": 3, "dtype": "uint8"}
    profile |= {"nodata": 0, "transform": Affine(2, 0, 9, 0, -2, 9)}
    shutil.rmtree(root / "unlabelled")
    (root / "unlabelled").mkdir()
    with rasterio.open(root / "unlabelled" / "a.tif", "w", **profile) as target:
        target.write(pixels)
    mask, _ = MaskReader(palette).read(label(confidence=0.0) / "pair_00000_mask.png")
    assert (mask[:8] == 255).all() and (mask[8:] != 255).all()


def test_a_number_of_windows_is_drawn_by_the_seed_and_what_was_interrupted_goes_on(label, capsys):
    whole = label("whole", num_samples=5, seed=1, confidence=0.0)
    assert len(read_manifest(whole)) == 5
    other = label("other", num_samples=5, seed=2, confidence=0.0)
    assert [line["window"] for line in read_manifest(whole)] != [
        line["window"] for line in read_manifest(other)
    ]
    cut = whole.parent / "cut"
    shutil.copytree(whole, cut)
    lines = (cut / "manifest.jsonl").read_text().splitlines(keepends=True)
    (cut / "manifest.jsonl").write_text("".join(lines[:2]) + lines[2][:10])
    (cut / "pair_00003_img.jpg").unlink()
    label("cut", num_samples=5, seed=1, confidence=0.0)
    assert files(cut) == files(whole)
    capsys.readouterr()
    label("cut", num_samples=5, seed=1, confidence=0.0)
    assert "Nothing to label" in printed(capsys)


def test_segmenters_train_on_them(root, label, composed, tiny_segmenter, tmp_path):
    from geoseg_gan.training.train_segmenter import train_segmenter

    folder = label(confidence=0.0)
    places = (f"data_root={root}", f"out_dir={tmp_path / 'mixed'}", f"synthetic={folder}")
    train_segmenter(composed("train_segmenter", *tiny_segmenter, *places, "epochs=1"))
    assert json.loads((tmp_path / "mixed" / "scores.json").read_text())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segmenter_ckpt": None}, "segmenter_ckpt=None: unlabelled images are labelled by"),
        ({"segmenter_ckpt": "s.onnx"}, "segmenter_ckpt=s.onnx: unlabelled images"),
        ({"gen_ckpt": "G.pt"}, "gen_ckpt=G.pt is of generated images"),
        ({"keep": 3}, "keep=3 is of generated images"),
        ({"confidence": "often"}, "confidence=often: use a number from 0 to 1, or auto"),
        ({"confidence": 2.0}, "confidence=2.0"),
        ({"tta": "all"}, "tta=all: use none, flips or d4|tta=all is not one of"),
        ({"unlabelled": "nowhere"}, "unlabelled=nowhere is not a folder"),
        ({"image_size": 64 + 32}, "smaller than image_size=96 .and 2 more images."),
    ],
)
def test_mistakes(label, settings, message):
    with refused(message):
        label(**settings)


def test_pictures_that_lie_on_their_side_are_upright(root, label):
    plain = label("plain", confidence=0.3)
    for number in range(3):
        path = root / f"unlabelled/new {number}.png"
        with Image.open(path) as image:
            aside = image.crop((0, 0, 2 * SIDE, SIDE)).transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[274] = 6  # to be turned back
        path.unlink()
        aside.save(root / f"unlabelled/new {number}.png", exif=exif)
    turned = label("turned", confidence=0.3)
    found, upper = {}, {}
    for folder, windows in ((plain, upper), (turned, found)):
        for line in read_manifest(folder):
            if line["kept"] and line["window"][0] == 0:
                name = f"pair_{line['index']:05d}_mask.png"
                windows[line["source"], line["window"][1]] = (folder / name).read_bytes()
    assert found == upper


def test_other_images_are_not_gone_on_with(root, label):
    path, sizes = root / "unlabelled" / "new 1.png", []
    for grey in (100, 150):
        Image.new("RGB", (64, 64), (grey,) * 3).save(path, compress_level=0)
        sizes.append(path.stat().st_size)
        if grey == 100:
            label(confidence=0.3)
    assert sizes[0] == sizes[1]
    with refused("holds pairs of another generation: images was"):
        label(confidence=0.3)


def test_a_scene_is_labelled_as_its_parts_are(root, label):
    parts = label("parts", confidence=0.3)
    rows = [Image.open(root / f"unlabelled/new {number}.png") for number in range(3)]
    scene = np.concatenate([np.asarray(row) for row in rows])
    for row in rows:
        row.close()
    shutil.rmtree(root / "unlabelled")
    profile = {"driver": "GTiff", "width": 2 * SIDE, "height": 6 * SIDE, "count": 3}
    profile |= {"dtype": "uint8", "blockysize": 7, "transform": Affine(2, 0, 9, 0, -2, 9)}
    (root / "unlabelled").mkdir()
    with rasterio.open(root / "unlabelled" / "scene.tif", "w", **profile) as target:
        target.write(np.moveaxis(scene, -1, 0))
    whole = label("whole", confidence=0.3)
    assert files(whole, "pair_*") == files(parts, "pair_*")


def test_the_head_of_each_image_is_read_once(label, monkeypatch):
    read = []
    monkeypatch.setattr(
        pseudo_labels, "picture_head", lambda path: read.append(path.name) or picture_head(path)
    )
    label(confidence=0.5)
    assert read == [f"new {number}.png" for number in range(3)]


def test_images_that_are_held_out_or_validated_on_are_told_of(root, segmenter, label, tmp_path):
    _, held_out = split_pairs(root, load_segmenter(segmenter).facts.config)
    shutil.copy(held_out[0].image, root / "unlabelled/known.png")
    with pytest.warns(UserWarning, match=r"unlabelled/known\.png, but is held out of training"):
        label("held_out", confidence=0.5)
    shutil.copy(root / "val/images/val_000.png", root / "unlabelled")
    with refused(r"val_000\.png has the same pixels as .*unlabelled/val_000\.png"):
        label("validated", confidence=0.5)
    assert not (tmp_path / "validated").exists()


def test_images_of_another_kind_are_refused(root, label):
    write_image(root / "unlabelled/z.tif", np.zeros((SIDE, SIDE, 4), np.uint16))
    with refused("z.tif is 4-band uint16, but the segmenter was trained on 3-band uint8. Convert"):
        label(confidence=0.5)
