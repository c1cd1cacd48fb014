"""Planted mistakes, and the findings that name them."""

import csv
import shutil

import numpy as np
import pytest
from made import SIDE, finding, kinds, regions, save, save_tiff, texture
from PIL import Image

from geoseg_gan.data.datamodule import GanDataModule
from geoseg_gan.utils.errors import UserError

COLORS = np.array([[60, 16, 152], [132, 41, 246], [110, 193, 228], [254, 221, 58]], np.uint8)
QUIET = {"few_pairs": "note", "absent_classes": "warning"}
"""What any folder here is told of: it is small, and has no water."""


@pytest.fixture
def root(folder):
    return folder(lambda label: COLORS[label])


@pytest.fixture
def audit(check):
    return lambda root, *more: check(root, "data=dubai", *more)


def images(root, split="train"):
    return sorted((root / split / "images").iterdir())


def mask_of(path):
    return path.parents[1] / "masks" / path.name


def test_a_sound_folder_has_no_error(root, audit):
    assert kinds(audit(root)) == QUIET


def test_missing_partners_are_one_finding_with_their_number(root, audit):
    for path in images(root)[:3]:
        mask_of(path).unlink()
    images(root, "val")[0].unlink()
    found = audit(root)
    assert finding(found, "image_without_mask").count == 3
    assert finding(found, "mask_without_image").count == 1
    assert "1 mask in val without an image" in finding(found, "mask_without_image").text
    assert found.count("error") == 2 and len(found.folder.pairs()) == 8


def test_names_that_look_alike_are_told(root, audit):
    path = images(root)[0]
    path.rename(path.with_name("f\u00fcr.png"))
    mask_of(path).rename(mask_of(path).with_name("fu\u0308r.png"))
    assert kinds(audit(root)) == QUIET  # the same letters
    path.with_name("f\u00fcr.png").rename(path.with_name("F\u00fcr.png"))
    assert kinds(audit(root))["alike_names"] == "error"
    shutil.copy(images(root)[1], images(root)[1].with_suffix(".bmp"))
    assert kinds(audit(root))["same_stem"] == "error"


def test_broken_and_unequal_files_are_told_all_at_once(root, audit):
    first, second, third, fourth = images(root)[:4]
    first.write_bytes(b"no picture")
    mask_of(second).write_bytes(mask_of(second).read_bytes()[:90])
    save(third, texture(3, 48))
    save(fourth, texture(4)[..., 0])
    found = audit(root)
    expected = ("unreadable_images", "unreadable_masks", "size_mismatch", "mixed_types")
    assert {kinds(found)[kind] for kind in (*expected, "small_images")} == {"error"}
    assert "48x48" in finding(found, "size_mismatch").examples[0]
    assert "1 band of uint8" in finding(found, "mixed_types").text


def test_copies_across_splits_are_errors_and_within_notes(root, audit):
    shutil.copy(images(root)[0], images(root, "val")[0])
    changed = np.array(Image.open(images(root)[1])).astype(float) * 0.9 + 10
    save(images(root, "val")[1], np.rot90(changed).astype(np.uint8))
    shutil.copy(images(root)[2], images(root)[3])
    found = audit(root)
    assert kinds(found)["copies_across"] == kinds(found)["near_duplicates_across"] == "error"
    assert kinds(found)["copies_within"] == "note"
    assert finding(found, "copies_across").examples == [
        f"train/{images(root)[0].name} and val/{images(root, 'val')[0].name} (the same pixels)"
    ]
    assert "turned by" in finding(found, "near_duplicates_across").examples[0]


def test_a_mask_of_another_image_is_told(root, audit):
    shutil.copy(mask_of(images(root)[0]), mask_of(images(root)[1]))
    assert finding(audit(root), "shared_masks").count == 1


def write_tiles(root, rows):
    with (root / "tiles.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("stem", "split", "source", "group", "row", "col", "window"))
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("shift", "kind", "severity"),
    [(0, "neighbours_across", "error"), (-32, "overlaps_across", "error"), (64, None, None)],
)
def test_neighbours_by_tiles_csv(shift, kind, severity, root, audit):
    rows = [
        (p.stem, "train", "a.tif", "g1", 0, n, f"{64 * n} 0 64 64")
        for n, p in enumerate(images(root))
    ]
    rows += [
        (p.stem, "val", "a.tif", "g2", 1, n, f"{64 * n} {64 + shift} 64 64")
        for n, p in enumerate(images(root, "val"))
    ]
    write_tiles(root, rows)
    expected = {kind: severity} if kind else {}
    if shift < 0:  # which touch the tiles beside those that they overlap
        expected["neighbours_across"] = "error"
    assert kinds(audit(root)) == QUIET | expected
    write_tiles(root, [(*row[:3], "same", *row[4:]) for row in rows])
    assert kinds(audit(root))["shared_groups"] == "error"


def test_neighbours_by_names_are_warned_of(tmp_path, audit):
    picture, label = np.roll(texture(7, 4 * SIDE), 2, (0, 1)), regions(7, 4, 4 * SIDE)
    for row in range(4):
        for col in range(4):
            split = "train" if (row + col) % 2 else "val"
            at = np.s_[row * SIDE : (row + 1) * SIDE, col * SIDE : (col + 1) * SIDE]
            name = f"s_{row}_{col}.png"
            save(tmp_path / split / "images" / name, picture[at])
            save(tmp_path / split / "masks" / name, COLORS[label[at]])
    near = finding(audit(tmp_path), "neighbours_across")
    assert near.severity == "warning" and near.count == 8 and "by their names" in near.text


def georeferenced(root, kind="uint8", **options):
    for split, count in (("train", 6), ("val", 2)):
        for n in range(count):
            image = texture(n + 50 * (split == "val")).astype(kind)
            left = SIDE * 0.5 * n + 10_000 * (split == "val")
            place = {"left": left} | options
            save_tiff(root / split / "images" / f"{split}{n}x.tif", image, **place)
            label = COLORS[regions(n + 50 * (split == "val"), 4)]
            save_tiff(root / split / "masks" / f"{split}{n}x.tif", label, **place)
    return root


def test_crs_and_resolutions_that_differ_are_named(tmp_path, audit):
    root = georeferenced(tmp_path)
    found = audit(root)
    assert "0.5 m" in finding(found, "gsd").text and kinds(found)["gsd"] == "note"
    assert kinds(audit(root, "data.gsd=0.2"))["gsd"] == "warning"
    save_tiff(root / "train" / "images" / "train0x.tif", texture(0), crs="EPSG:32632", pixel=0.5)
    save_tiff(root / "train" / "images" / "train1x.tif", texture(1), pixel=2, left=9_000)
    found = audit(root)
    assert "EPSG:32633 (7), EPSG:32632 (1)" in finding(found, "mixed_crs").text
    assert finding(found, "mixed_resolution").examples == ["train/train1x.tif: 2 m"]
    assert finding(found, "elsewhere").count == 2  # their masks stayed


def test_neighbours_by_georeference(tmp_path, audit):
    root = georeferenced(tmp_path)
    for part, pixels in (("images", texture(99)), ("masks", COLORS[regions(99, 4)])):
        save_tiff(root / "val" / part / "val0x.tif", pixels, left=SIDE * 0.5 * 5.5, top=0)
    near = finding(audit(root), "overlaps_across")
    assert (
        near.severity == "error" and near.count == 1 and "50% the same ground" in near.examples[0]
    )


def test_nodata_nan_and_untagged_fillers(tmp_path, audit):
    root = georeferenced(tmp_path, "float32")
    paths = [root / "train" / "images" / f"train{n}x.tif" for n in range(3)]
    changed = [texture(n).astype(np.float32) for n in range(3)]
    changed[0][:8] = np.nan
    changed[1][:16] = -9999
    changed[2][:4] = -9999
    for n, path in enumerate(paths):
        nodata = {"nodata": -9999} if n == 1 else {}
        save_tiff(path, changed[n], left=SIDE * 0.5 * n, **nodata)
    found = audit(root)
    note = finding(found, "no_data")
    assert note.count == 2 and "nodata -9999; NaN or infinity" in note.text
    assert note.examples == ["train/train1x.tif: 25.0%", "train/train0x.tif: 12.5%"]
    filler = finding(found, "fillers")
    assert filler.severity == "error" and filler.examples == ["train/train2x.tif: 6.2% of pixels"]
    assert "Set data.nodata=-9999, or tag" in filler.advice
    found = audit(root, "data.nodata=-9999")
    assert "fillers" not in kinds(found) and finding(found, "no_data").count == 3


def test_exposure_and_lost_bands(root, audit):
    dark, bright, flat, lost, empty = images(root)[:5]
    save(dark, (texture(0) * 0.1).astype(np.uint8))
    save(
        bright,
        np.full((SIDE, SIDE, 3), 255, np.uint8)
        - (np.indices((64, 64)).sum(0) % 2)[..., None].astype(np.uint8),
    )
    save(flat, (texture(2) * 0.02 + 120).astype(np.uint8))
    pixels = texture(3)
    pixels[..., 2] = 77
    save(lost, pixels)
    save(empty, np.zeros((SIDE, SIDE, 3), np.uint8))
    found = audit(root)
    text = " ".join(finding(found, "exposure").examples)
    assert all(f"train/{path.name}: " in text for path in (dark, bright, flat))
    assert "darker than" in text and "brighter than" in text and "flat" in text
    assert f"train/{lost.name}: band 3" in finding(found, "lost_bands").examples
    assert finding(found, "empty_images").examples == [f"train/{empty.name}"]


def test_a_band_that_is_constant_everywhere_is_told(tmp_path, check):
    for n in range(4):
        image = np.concatenate([texture(n), np.full((SIDE, SIDE, 1), 7, np.uint8)], -1)
        save_tiff(tmp_path / "train" / "images" / f"{n}.tif", image, alpha="NO")
        save(tmp_path / "train" / "masks" / f"{n}.png", COLORS[regions(n, 4)])
    text = finding(check(tmp_path, "data=dubai"), "constant_bands").text
    assert "4 (value 7)" in text


def test_shares_rare_absent_and_ignored(root, audit):
    for split in ("train", "val"):
        for n, path in enumerate(images(root, split)):
            mask = np.array(Image.open(mask_of(path)))
            if split == "val" or n:
                mask[(mask == COLORS[3]).all(-1)] = COLORS[0]
            if split == "train" and n < 3:
                mask[8:] = 155
            save(mask_of(path), mask)
    found = audit(root)
    assert "Vegetation 0." in finding(found, "rare_classes").text
    assert "Vegetation" in finding(found, "absent_in_val").text
    assert finding(found, "absent_classes").examples == ["Water"]
    void = finding(found, "mostly_ignored")
    assert void.count == 3 and void.severity == "warning" and void.examples[0].endswith("88%")


def test_palette_mode_masks_and_an_undocumented_colour_in_nine_masks_are_told(folder, check):
    """As the masks of Dubai are: some are indices with a table of their own, nine hold black."""
    root = folder(lambda label: COLORS[label])
    masks = sorted(root.glob("*/masks/*"))
    for path in masks[:9]:
        mask = np.array(Image.open(path))
        mask[:8, :8] = 0
        save(path, mask)
    for path in masks[-3:]:
        Image.open(path).quantize(16).save(path)
    found = check(root, "data=dubai")
    unknown = finding(found, "unknown_colors")
    assert unknown.severity == "warning" and unknown.count == 9 and found.count("error") == 0
    assert f"{9 * 64} pixels (1.17%) in 9 of 12 masks" in unknown.text
    assert unknown.examples[0].startswith("(0, 0, 0): 576 pixels in 9 masks")
    assert unknown.examples[1].endswith(".png: 64 pixels") and "read as ignore" not in unknown.text
    assert finding(found, "palette_masks").text.startswith("3 of 12 masks are palette-mode")
    assert (
        finding(check(root, "data=dubai", "data.unknown=error"), "unknown_colors").severity
        == "error"
    )


@pytest.mark.filterwarnings("ignore:.*never occurs in the masks")
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda root: shutil.rmtree(root / "train"), "no_training_split"),
        (lambda root: shutil.rmtree(root / "val"), None),
        (lambda root: images(root)[0].unlink(), "mask_without_image"),
        (lambda root: save(images(root)[0], texture(0)[..., 0]), "mixed_types"),
        (lambda root: save(mask_of(images(root)[0]), COLORS[regions(0, 4, 32)]), "size_mismatch"),
        (lambda root: save(images(root)[0], texture(0, 60)), "small_images"),
        (lambda root: save(mask_of(images(root)[0]), texture(0)), "unknown_colors"),
        (lambda root: mask_of(images(root)[0]).write_bytes(b"no"), "unreadable_masks"),
    ],
)
def test_what_training_refuses_is_an_error_and_only_that(change, kind, root, check):
    change(root)
    settings = ("data=dubai", "data.unknown=error")
    found = check(root, *settings, "propose=never")
    expected = {kind} if kind else set()
    assert expected <= {f.kind for f in found.findings if f.severity == "error"}
    assert bool(found.count("error")) == bool(kind)
    options = {"image_size": 64, "batch_size": 1, "jitter": None, "seed": 0}
    module = GanDataModule(root, found.config.data, **options)
    with pytest.raises(UserError) if kind else pytest.warns(match="val is missing"):
        module.setup()


def test_unlabelled_images_and_folders_of_other_names(tmp_path, check):
    for n in range(4):
        save(tmp_path / "plain" / "images" / f"{n}.png", texture(n))
        save(tmp_path / "other" / "train" / "sat" / f"{n}.png", texture(n))
        save(tmp_path / "other" / "train" / "gt" / f"{n}.png", COLORS[regions(n, 4)])
        save(tmp_path / "other" / "valid" / "sat" / f"{n}.png", texture(n + 10))
        save(tmp_path / "other" / "valid" / "gt" / f"{n}.png", COLORS[regions(n + 10, 4)])
        save(tmp_path / "mixed" / f"{n}_sat.jpg", texture(n))
        save(tmp_path / "mixed" / f"{n}_mask.png", COLORS[regions(n, 4)])
    assert finding(check(tmp_path / "plain"), "no_masks").count == 4
    other = check(tmp_path / "other", "data=dubai")
    assert other.folder.splits == ["train", "val"] and len(other.folder.pairs()) == 8
    assert "train/sat/" in finding(other, "guessed_folders").text
    assert kinds(other)["not_split"] == "warning" and other.count("error") == 0
    mixed = check(tmp_path / "mixed", "data=dubai")
    assert [e.stem for e in mixed.folder.pairs()] == ["0", "1", "2", "3"]


def test_unlabelled_images_are_read_and_compared_with_the_pairs(root, audit):
    for number, seed in enumerate((0, 77, 78)):
        save(root / f"unlabelled/new{number}.png", texture(seed))
    shutil.copy(images(root, "val")[0], root / "unlabelled/copy.png")
    save(root / "unlabelled/small.png", texture(79)[:40])
    save(root / "unlabelled/grey.png", texture(80)[..., 0])
    (root / "unlabelled/broken.png").write_bytes(b"none")
    found = audit(root)
    assert kinds(found) == QUIET | {
        "unlabelled": "note",
        "unlabelled_kind": "warning",
        "unlabelled_small": "warning",
        "unlabelled_unreadable": "warning",
        "unlabelled_validation": "warning",
    }
    assert finding(found, "unlabelled").text == "6 unlabelled images found"
    assert finding(found, "unlabelled_validation").examples == [
        f"unlabelled/copy.png and val/{images(root, 'val')[0].name}"
    ]
    for kind, name in (("kind", "grey"), ("small", "small"), ("unreadable", "broken")):
        (example,) = finding(found, f"unlabelled_{kind}").examples
        assert f"unlabelled/{name}.png" in example
    assert found.count("error") == 0 and len(found.folder.pairs()) == 12
