import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from synthesis_helpers import facts, files, refused

from geoseg_gan.data.images import read_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.split import split_rows
from geoseg_gan.data.synthetic import read_manifest, read_synthetic
from geoseg_gan.synthesis.generate import generate


@pytest.fixture
def run(root, generator, composed):
    """Calls generate on a small generator and returns the folder."""
    gen_ckpt = generator(root)

    def call(name, *overrides):
        folder = root.parent / name
        common = (f"gen_ckpt={gen_ckpt}", f"save_dir={folder}", "num_workers=0")
        generate(composed("generate", *common, *overrides))
        return folder

    return call


def test_pairs_need_the_checkpoint_alone(run, capsys):
    folder = run("synthetic", "num_samples=5")
    names = {path.name for path in folder.iterdir()}
    pairs = {f"pair_{i:05d}_{part}" for i in range(5) for part in ("img.jpg", "mask.png")}
    assert names == pairs | {"manifest.jsonl", "generation.json", "contact_sheet.png", ".lock"}
    assert "Generated 5 pairs in " in capsys.readouterr().out
    assert facts(folder)["palette"]["classes"][2]["name"] == "Settlement"
    assert len(facts(folder)["checkpoint"]["sha256"]) == 64
    with Image.open(folder / "pair_00000_img.jpg") as picture:
        assert picture.size == (32, 32)
        assert picture.layer[1][1:3] == (1, 1)  # chroma at full resolution: 4:4:4


def test_pairs_may_be_larger_than_what_the_generator_was_trained_on(run, capsys):
    folder = run("whole", "num_samples=2", "image_size=64", "jitter=none")
    assert "2 pairs of 64x64 px" in capsys.readouterr().out
    for part in ("img.jpg", "mask.png"):
        with Image.open(folder / f"pair_00001_{part}") as picture:
            assert picture.size == (64, 64)
    assert facts(folder)["image_size"] == 64
    with refused(r"image_size=33: this generator makes images of multiples"):
        run("odd", "num_samples=1", "image_size=33")


def test_what_is_missing_for_a_source_is_said(composed, tmp_path):
    own = f"save_dir={tmp_path / 'new'}"
    with refused("gen_ckpt is not set: give the generator, as in gen_ckpt="):
        generate(composed("generate", own))
    with refused("unlabelled=a is labelled by source=unlabelled: set it"):
        generate(composed("generate", own, "gen_ckpt=G.pt", "unlabelled=a"))
    assert not (tmp_path / "new").exists()


def test_a_placebo_needs_no_generator(run, root, monkeypatch):
    monkeypatch.setattr("geoseg_gan.synthesis.generate_images.noise_maps", None)
    folder = run(
        "placebo", "num_samples=2", "image_size=64", "jitter=none", "compose.generate=none"
    )
    for line in read_manifest(folder):
        real = read_image(root / "train" / "images" / f"{line['source']}.png")
        difference = np.abs(read_image(folder / f"pair_{line['index']:05d}_img.jpg") - real * 1.0)
        assert difference.mean() < 6  # of JPEG alone: the images are noise


def test_masks_that_the_generator_was_not_to_see_are_not_used(
    root, generator, tiny_config, run_generate, monkeypatch
):
    monkeypatch.setitem(tiny_config, "inner_share", 0.5)
    monkeypatch.setitem(tiny_config, "seed", 3)
    folder = run_generate(generator(root), "synthetic", num_samples=40)
    drawn = {line["source"] for line in read_manifest(folder)}
    fitted, held_out = split_rows(find_pairs(root, "train"), None, 0.5, 3)
    assert drawn == {f"train_{row:03d}" for row in fitted} and len(held_out) == 3
    assert facts(folder)["masks"] == 3


def test_the_manifest_tells_how_each_pair_came_about(run, root):
    folder = run("synthetic", "num_samples=6", "jitter=strong")
    lines = read_manifest(folder)
    stems = {pair.stem for pair in find_pairs(root, "train")}
    assert [line["index"] for line in lines] == list(range(6))
    assert all(line["source"] in stems and line["kept"] for line in lines)
    assert any("affine" in line["jitter"] and "elastic" in line["jitter"] for line in lines)


def test_the_same_seed_gives_the_same_bytes_whatever_batch_and_workers(run):
    first = files(run("first", "num_samples=7", "bs=8"), "pair_*")
    second = files(run("second", "num_samples=7", "bs=3", "num_workers=2"), "pair_*")
    assert first == second
    other = files(run("other", "num_samples=7", "seed=1"), "pair_*")
    assert all(other[name] != first[name] for name in first if name.endswith("img.jpg"))


def test_without_jitter_masks_are_crops_of_training_masks(run, root, palette):
    folder = run("synthetic", "num_samples=4", "jitter=none")
    reader = MaskReader(palette)
    masks = {pair.stem: reader.read(pair.mask)[0] for pair in find_pairs(root, "train")}
    for line in read_manifest(folder):
        top, left, side = line["window"]
        label, unknown = reader.read(folder / f"pair_{line['index']:05d}_mask.png")
        expected = masks[line["source"]][top : top + side, left : left + side]
        assert np.array_equal(label, expected) and label.shape == (32, 32) and unknown == 0
        assert line["jitter"] == {}


def test_a_manifest_line_cut_off_by_a_crash_is_done_again(run):
    folder = run("synthetic", "num_samples=3")
    before = files(folder, "pair_*")
    text = (folder / "manifest.jsonl").read_text()
    (folder / "manifest.jsonl").write_text(text[:-10])
    (folder / "pair_00002_img.jpg").unlink()
    run("synthetic", "num_samples=3")
    assert files(folder, "pair_*") == before
    assert (folder / "manifest.jsonl").read_text() == text


def test_pairs_of_the_same_generation_are_added_and_no_others(run, capsys):
    folder = run("synthetic", "num_samples=2")
    first = files(folder, "pair_*")
    run("synthetic", "num_samples=4")
    before = files(folder)
    assert len(files(folder, "pair_*")) == 8 and before.items() >= first.items()
    capsys.readouterr()
    run("synthetic", "num_samples=3")
    assert files(folder) == before
    said = capsys.readouterr().out
    assert "manifest.jsonl lists 4 pairs, and num_samples=3 asks for no more." in said
    assert "Generating" not in said
    with refused(r"config.seed was 0, now 1"):
        run("synthetic", "num_samples=6", "seed=1")
    assert files(folder) == before


def test_data_that_changed_since_the_training_are_warned_of(trained, run_generate):
    root, trained_run = trained
    checkpoint = trained_run / "G_e002.pt"
    root.rename(moved := root.with_name("moved"))
    run_generate(checkpoint, "elsewhere", data_root=str(moved), num_samples=2)  # copied, or others
    moved.rename(root)
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"config": content["config"] | {"data_root": str(root)}}, checkpoint)
    run_generate(checkpoint, "same", num_samples=2)
    for part in ("images", "masks"):
        sorted((root / "train" / part).iterdir())[0].unlink()
    with pytest.warns(UserWarning, match="data has changed .* train had 6 pairs, now 5"):
        run_generate(checkpoint, "changed", num_samples=2)


def test_a_folder_does_not_go_on_with_other_masks(run, root, palette):
    folder = run("made", "num_samples=2")
    path = sorted((root / "train" / "masks").iterdir())[0]
    reader = MaskReader(palette)
    label = reader.read(path)[0]
    label[:] = 1
    reader.write(path, label)
    with refused(r"holds pairs of other data: in train, its masks hold"):
        run("made", "num_samples=4")
    facts = json.loads((folder / "generation.json").read_text())
    assert facts.pop("data")["train"]["pairs"] == facts["masks"]
    (folder / "generation.json").write_text(json.dumps(facts))  # as earlier versions wrote it
    run("made", "num_samples=4")
    assert len(list(folder.glob("*_img.*"))) == 4


def test_a_folder_with_other_files_is_refused(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with refused("holds other files"):
        run("mine", "num_samples=2")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_folders_layout_pairs_by_stem(run):
    folder = run("synthetic", "num_samples=3", "layout=folders")
    images = sorted(path.stem for path in (folder / "images").iterdir())
    assert images == sorted(path.stem for path in (folder / "masks").iterdir())
    assert images == ["pair_00000", "pair_00001", "pair_00002"]


def test_images_that_jpeg_cannot_hold_become_geotiffs(
    tmp_path, make_folder, generator, run_generate
):
    root = make_folder(tmp_path / "wide", train=2, val=0, bands=5)
    folder = run_generate(generator(root, bands=5), "synthetic", num_samples=2)
    image = read_image(folder / "pair_00001_img.tif")
    assert (image.shape, image.dtype) == ((32, 32, 5), np.uint8)


def test_an_index_map_is_that_of_the_generated_masks_and_of_who_reads_them(
    tmp_path, make_folder, generator, run_generate
):
    root = make_folder(tmp_path / "steps", train=3, val=0, mask_format="index")
    values = np.zeros(256, np.uint8)
    values[:3] = 40, 80, 120
    for path in root.rglob("masks/*.png"):
        with Image.open(path) as picture:
            stored = values[np.asarray(picture)]
        Image.fromarray(stored).save(path)
    index_map = {40: "Background", 80: 1, 120: "Settlement", 0: "ignore"}
    checkpoint = generator(root, mask_format="index", index_map=index_map)
    folder = run_generate(checkpoint, "synthetic", num_samples=3)
    assert facts(folder)["index_map"] == [[40, 0], [80, 1], [120, 2], [0, 255]]
    made = read_synthetic(folder)
    labels = [made.reader().read(pair.mask)[0] for pair in made.pairs]
    assert {value for label in labels for value in np.unique(label)} >= {0, 1, 2}
    for pair, label in zip(made.pairs, labels, strict=True):
        with Image.open(pair.mask) as picture:
            np.testing.assert_array_equal(np.asarray(picture), values[label])
    assert run_generate(checkpoint, "synthetic", num_samples=4) == folder
    assert len(read_synthetic(folder).pairs) == 4
    with refused(r"data\.index_map: 'Wood' is not a class"):
        run_generate(generator(root, mask_format="index", index_map={1: "Wood"}), "other")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.pt", "does not exist"),
        ("notes.pt", "is not a checkpoint of this project"),
        ("segmenter.pt", "holds a segmenter"),
    ],
)
def test_other_files_than_a_generator_are_refused(segmenter, run_generate, tmp_path, name, message):
    segmenter()
    (tmp_path / "notes.pt").write_text("not a checkpoint")
    with refused(message):
        run_generate(tmp_path / name, "out")
    assert not (tmp_path / "out").exists()


def test_a_data_folder_that_is_gone_is_named(run, root):
    shutil.rmtree(root)
    with refused("is missing"):
        run("synthetic", "num_samples=1")
