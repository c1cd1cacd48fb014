"""Configs proposed for masks that no config fits, each checked by what it reads."""

import shlex

import numpy as np
import pytest
import yaml
from made import SIDE, finding, kinds, regions, save, save_tiff, texture
from PIL import Image

from geoseg_gan.data.pairs import find_pairs

COLORS = np.array([[10, 200, 30], [200, 20, 40], [30, 60, 220], [240, 230, 60]], np.uint8)
"""Of no config that there is."""


def content(check):
    """The proposed config as a program reads it."""
    return yaml.safe_load("\n".join(check.proposal.lines([])))


def truth(root, encode=lambda label: label, classes=4, cell=8):
    """Pixels of every class, by the labels that the folder was made of."""
    found = np.zeros(classes, int)
    for split, count in (("train", 8), ("val", 4)):
        for number in range(count):
            label = encode(regions(1000 * (split == "val") + number, classes, cell=cell))
            found += np.bincount(label.ravel(), minlength=256)[:classes]
    return found.tolist()


@pytest.mark.parametrize(
    ("encode", "numbers", "said"),
    [
        (lambda label: label * np.uint8(40), [0, 40, 80, 120], "steps of 40, from 0"),
        (lambda label: label + np.uint8(1), [1, 2, 3, 4], "begin at 1"),
        (lambda label: label * np.uint8(85), [0, 85, 170, 255], "steps of 85, from 0"),
        (lambda label: np.uint8([2, 5, 6, 9])[label], [2, 5, 6, 9], "Never found: 3, 4, 7, 8"),
        (lambda label: label.astype(np.uint16) * 1000, [0, 1000, 2000, 3000], "steps of 1000"),
    ],
)
def test_numbers_that_are_no_ids_get_an_index_map(encode, numbers, said, folder, check):
    root = folder(encode)
    found = check(root)
    config = content(found)
    assert config["mask_format"] == "index" and len(config["palette"]) == 4
    assert list(config["index_map"]) == numbers
    assert [config["index_map"][number] for number in numbers] == [0, 1, 2, 3]
    assert found.pixels.sum(0).tolist() == [*truth(root), 0]
    assert said in finding(found, "proposal").text


def test_masks_of_0_and_255_are_two_classes_even_where_index_masks_are_asked_for(folder, check):
    root = folder(lambda label: (label > 1) * np.uint8(255))
    found = check(root, "data.mask_format=index")
    assert kinds(found)["proposal"] == "error"
    assert list(content(found)["index_map"]) == [0, 255]
    low, high = np.array(truth(root)).reshape(2, 2).sum(1)
    assert found.pixels.sum(0).tolist() == [low, high, 0]


def test_one_bit_masks_are_two_classes(folder, check):
    found = check(folder(lambda label: label > 1))
    assert content(found)["mask_format"] == "index" and len(content(found)["palette"]) == 2
    assert found.pixels[:, -1].sum() == 0 and (found.pixels[:, :2].sum(0) > 0).all()


def test_ids_with_255_need_no_map(folder, check):
    root = folder(lambda label: np.where(label == 3, 255, label).astype(np.uint8))
    found = check(root)
    assert content(found)["mask_format"] == "index" and "index_map" not in content(found)
    assert found.pixels.sum(0).tolist() == truth(root)


def test_a_number_on_empty_pixels_is_ignored(tmp_path, check):
    for number in range(4):
        image, label = texture(number), regions(number, 3) + np.uint8(1)
        image[:20], label[:20] = 0, 0
        save(tmp_path / "train" / "images" / f"{number}.png", image)
        save(tmp_path / "train" / "masks" / f"{number}.png", label)
    found = check(tmp_path)
    assert content(found)["index_map"][0] == "ignore" and len(content(found)["palette"]) == 3
    assert found.pixels[:, -1].tolist() == [20 * SIDE] * 4


def test_the_nodata_value_of_geotiffs_is_ignored(tmp_path, check):
    for number in range(4):
        label = regions(number, 3) + np.uint8(1)
        label[:10] = 9
        save(tmp_path / "train" / "images" / f"{number}.png", texture(number))
        save_tiff(tmp_path / "train" / "masks" / f"{number}.tif", label, nodata=9)
    found = check(tmp_path)
    assert content(found)["index_map"][9] == "ignore"
    assert found.pixels[:, -1].tolist() == [10 * SIDE] * 4


def test_exact_colors_become_classes_by_frequency(folder, check):
    root = folder(lambda label: COLORS[label])
    found = check(root)
    config = content(found)
    assert config["mask_format"] == "rgb" and "unknown" not in config
    pixels = dict(zip(map(tuple, COLORS.tolist()), truth(root), strict=True))
    listed = [tuple(entry["color"]) for entry in config["palette"]]
    assert listed == sorted(pixels, key=lambda color: -pixels[color])
    assert found.pixels.sum(0).tolist() == [*sorted(pixels.values(), reverse=True), 0]


def test_black_in_few_masks_is_proposed_to_be_ignored(folder, check):
    root = folder(lambda label: COLORS[label])
    path = sorted((root / "train" / "masks").iterdir())[0]
    mask = np.array(Image.open(path))
    mask[:16, :16] = 0
    save(path, mask)
    found = check(root)
    assert content(found)["ignore"] == [[0, 0, 0]] and len(content(found)["palette"]) == 4
    note = finding(found, "ignored_color")
    assert note.count == 1 and "in 1 of 12 masks" in note.text and path.name in note.examples[0]


@pytest.mark.parametrize("kind", ["jpeg", "smoothed"])
def test_damaged_masks_are_repaired_by_the_nearest_color(kind, tmp_path, check):
    wrong = total = 0
    for number in range(8):
        label = regions(number, 4, 128, cell=32)
        mask = COLORS[label]
        suffix = ".jpg" if kind == "jpeg" else ".png"
        if kind == "smoothed":
            mask = np.asarray(Image.fromarray(mask).resize((192, 192), Image.Resampling.BILINEAR))
            mask = np.asarray(Image.fromarray(mask).resize((128, 128), Image.Resampling.BILINEAR))
        save(tmp_path / "train" / "images" / f"{number}.png", texture(number, 128))
        save(tmp_path / "train" / "masks" / f"{number}{suffix}", mask)
    found = check(tmp_path)
    config = content(found)
    assert config["unknown"] == "nearest" and len(config["palette"]) == 4
    for entry in config["palette"]:
        assert np.abs(COLORS.astype(int) - entry["color"]).max(1).min() <= 3
    order = [
        int(np.abs(COLORS.astype(int) - entry["color"]).max(1).argmin())
        for entry in config["palette"]
    ]
    for number in range(8):
        path = tmp_path / "train" / "masks" / f"{number}{suffix}"
        label, unknown = found.reader.read(path)
        total += unknown
        wrong += int(
            (np.array([*order, *[9] * 252])[label] != regions(number, 4, 128, cell=32)).sum()
        )
    assert wrong < 0.06 * 8 * 128**2
    assert found.proposal.peaks.repaired == total > 0
    assert f"{total:,} pixels" in finding(found, "proposal").text


def test_damage_under_a_known_palette_is_counted_and_told(folder, check):
    colors = np.array([[60, 16, 152], [132, 41, 246], [254, 221, 58], [226, 169, 41]], np.uint8)
    root = folder(lambda label: colors[label], suffix=".jpg", quality=90)
    found = check(root, "data=dubai", "data.unknown=error", "propose=never")
    assert kinds(found)["unknown_colors"] == "error" and found.proposal is None
    assert "with data.unknown=nearest" in finding(found, "unknown_colors").advice
    again = check(root, "data=dubai", "data.unknown=nearest")
    assert kinds(again)["unknown_colors"] == "note" and again.proposal is None


def test_a_known_config_that_fits_is_named(folder, check):
    colors = np.array([[60, 16, 152], [132, 41, 246], [110, 193, 228], [254, 221, 58]], np.uint8)
    root = folder(lambda label: colors[label])
    found = check(root)
    assert finding(found, "unknown_colors").advice == "Use data=dubai."
    assert [entry["name"] for entry in content(found)["palette"]][:2] == ["Building", "Land"]
    assert found.proposed_config(root, "mine") == ""
    assert 'name: "Building"' in check(root, "propose=always").proposed_config(root, "mine")


def test_an_undocumented_color_is_named_with_its_masks(folder, check):
    colors = np.array([[60, 16, 152], [132, 41, 246], [110, 193, 228], [1, 99, 1]], np.uint8)
    root = folder(lambda label: colors[label])
    found = check(root, "data=dubai", "data.unknown=error")
    error = finding(found, "unknown_colors")
    assert error.severity == "error" and error.count == 12
    assert error.examples[0].startswith("(1, 99, 1): ") and "in 12 masks" in error.examples[0]
    assert content(found)["palette"][-1]["name"] == "class_1"


def test_a_colour_of_one_mask_is_a_mistake_there(folder, check):
    colors = np.array([[60, 16, 152], [132, 41, 246], [110, 193, 228], [254, 221, 58]], np.uint8)
    root = folder(lambda label: colors[label])
    path = sorted((root / "train" / "masks").iterdir())[0]
    mask = np.array(Image.open(path))
    mask[:8, :8] = 1, 2, 3
    save(path, mask)
    found = check(root, "data=dubai", "data.unknown=error")
    error = finding(found, "unknown_colors")
    assert error.severity == "error" and "(1, 2, 3)" in error.examples[0]
    assert error.advice.startswith(f"Look at this mask first (train/{path.name})")
    assert found.proposal is None and not found.is_mended
    assert all("(1, 2, 3)" not in f.text for f in found.findings)  # is ignored


def test_palette_mode_masks_are_read_by_colour_and_told(folder, check):
    root = folder(lambda label: COLORS[label])
    for number, path in enumerate(sorted((root / "train" / "masks").iterdir())[:3]):
        label = np.array(Image.open(path))
        codes = [tuple(color) for color in COLORS.tolist()]
        index = np.array([codes.index(tuple(p)) for p in label.reshape(-1, 3).tolist()])
        picture = Image.fromarray(((index + number) % 4).reshape(SIDE, SIDE).astype(np.uint8))
        picture = picture.convert("P")
        picture.putpalette(np.roll(COLORS, number, 0).ravel().tolist())
        picture.save(path)
    found = check(root)
    note = finding(found, "palette_masks")
    assert note.count == 3 and "3 of 12 masks are palette-mode" in note.text
    assert "different colours in different files" in note.text
    assert content(found)["mask_format"] == "rgb"
    assert sorted(found.pixels.sum(0).tolist()) == sorted([*truth(root), 0])


def test_location_groups_are_proposed_by_names(tmp_path, check):
    for scene in ("north", "south"):
        for number in range(3):
            stem = f"{scene}_r{number:02d}_c00"
            save(tmp_path / "train" / "images" / f"{stem}.png", texture(number + len(scene)))
            save(tmp_path / "train" / "masks" / f"{stem}.png", COLORS[regions(number, 4)])
    config = content(check(tmp_path))
    pairs = find_pairs(tmp_path, "train", config["group_regex"])
    assert {pair.group for pair in pairs} == {"north", "south"}


def test_tiles_of_one_picture_by_their_names_are_noted_with_the_setting_for_them(tmp_path, check):
    colors = np.array([[60, 16, 152], [132, 41, 246], [110, 193, 228], [254, 221, 58]], np.uint8)
    for number in range(8):
        split = "train" if number < 6 else "val"
        stem = f"tile2_image_part_{number // 2:03d}_{number % 2}"
        save(tmp_path / split / "images" / f"{stem}.png", texture(number))
        save(tmp_path / split / "masks" / f"{stem}.png", colors[regions(number, 4)])
    for found in (check(tmp_path, "data=dubai"), check(tmp_path)):  # which proposes data=dubai
        note = finding(found, "groups_by_name")
        assert note.severity == "note" and "they are of 4 pictures" in note.text
    setting = shlex.split(note.advice.partition("set ")[2])[0]
    assert "groups_by_name" not in kinds(check(tmp_path, "data=dubai", setting))
    key, regex = setting.split("=", 1)
    assert key == "data.group_regex"
    groups = [pair.group for pair in find_pairs(tmp_path, "train", regex)]
    assert groups == [f"tile2_image_part_{number // 2:03d}" for number in range(6)]


def test_images_taken_for_masks_give_no_proposal(tmp_path, check):
    for number in range(3):
        for part in ("images", "masks"):
            noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            save(tmp_path / "train" / part / f"{number}.png", noise)
    found = check(tmp_path)
    assert kinds(found)["unknown_colors"] == "error" and found.proposal is None
    assert kinds(check(tmp_path, "data.unknown=nearest"))["unknown_colors"] == "error"


def test_masks_of_probabilities_are_an_error_without_a_proposal(tmp_path, check):
    for number in range(3):
        values = np.random.default_rng(number).random((SIDE, SIDE)).astype(np.float32)
        values[0, 0] = np.nan
        save(tmp_path / "train" / "images" / f"{number}.png", texture(number))
        save_tiff(tmp_path / "train" / "masks" / f"{number}.tif", values)
    for settings in ((), ("data.mask_format=index",)):
        found = check(tmp_path, *settings)
        assert kinds(found)["fractions"] == "error" and found.proposal is None
