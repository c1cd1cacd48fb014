import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from defaults import defaults
from PIL import Image
from rasterio import Affine

from geoseg_gan.data import tile as module
from geoseg_gan.data.georeference import georeference_problem
from geoseg_gan.data.images import read_image, write_image
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.pairs import SPLITS, find_pairs
from geoseg_gan.data.palette import PaletteClass
from geoseg_gan.data.scan import scan
from geoseg_gan.data.settings import DataSettings, TileSettings
from geoseg_gan.data.tile import tile
from geoseg_gan.data.tile_splits import choose_groups, grid_starts
from geoseg_gan.utils.errors import UserError

COLORS = {"water": [0, 0, 200], "road": [90, 90, 90], "wood": [0, 120, 0]}
DATA = defaults(
    DataSettings,
    palette=[PaletteClass(name, color) for name, color in COLORS.items()],
    ignore=[[0, 0, 0], [255, 255, 255]],
)
READER = mask_reader(DATA)
STEMS = [f"{scene}_{part}" for scene in ("north", "south", "west") for part in (1, 2)]


def add_picture(source, stem, height=40, width=56, image=None, label=None, suffix=".png"):
    rng = np.random.default_rng(len(stem) + sum(map(ord, stem)))
    if image is None:
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
    if label is None:
        label = rng.integers(0, 3, (height, width)).astype(np.uint8)
    write_image(source / "images" / f"{stem}{suffix}", image)
    READER.write(source / "masks" / f"{stem}.png", label)
    return image, label


@pytest.fixture
def source(tmp_path):
    for stem in STEMS:
        add_picture(tmp_path / "source", stem)
    return tmp_path / "source"


@pytest.fixture
def settings(source, tmp_path):
    places = {"source": str(source), "data_root": str(tmp_path / "out" / "tiles")}
    return defaults(TileSettings, **places, tile_size=16, data=DATA)


def root_of(settings):
    return Path(settings.data_root)


def read_table(settings):
    with (root_of(settings) / "tiles.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize(
    ("length", "overlap", "remainder", "starts"),
    [
        (48, 0, "drop", [0, 16, 32]), (48, 0, "shift", [0, 16, 32]), (56, 0, "drop", [0, 16, 32]),
        (56, 0, "shift", [0, 16, 32, 40]), (40, 4, "drop", [0, 12, 24]),
        (44, 4, "drop", [0, 12, 24]), (44, 4, "shift", [0, 12, 24, 28]), (16, 0, "drop", [0]),
        (16, 15, "shift", [0]),
    ],
)  # fmt: skip
def test_the_grid(length, overlap, remainder, starts):
    assert grid_starts(length, 16, overlap, remainder) == starts


@pytest.mark.parametrize(("overlap", "remainder"), [(0, "drop"), (4, "shift")])
def test_tiles_hold_the_pixels_and_labels_of_their_window(source, settings, overlap, remainder):
    settings = replace(settings, overlap=overlap, remainder=remainder)
    tile(settings)
    rows = read_table(settings)
    assert list(rows[0]) == ["stem", "split", "source", "group", "row", "col", "window"]
    for row in rows:
        left, top, width, height = map(int, row["window"].split())
        assert (width, height) == (16, 16)
        window = np.s_[top : top + height, left : left + width]
        [image] = (root_of(settings) / row["split"] / "images").glob(f"{row['stem']}.*")
        image_there = read_image(source / "images" / row["source"])[window]
        np.testing.assert_array_equal(read_image(image), image_there)
        mask = root_of(settings) / row["split"] / "masks" / f"{row['stem']}.png"
        mask_there = READER.read(source / "masks" / row["source"])[0][window]
        np.testing.assert_array_equal(READER.read(mask)[0], mask_there)


def test_the_table_names_exactly_the_files(settings):
    root_of(settings).mkdir(parents=True)  # an empty folder may be used
    reports = tile(settings)
    rows = read_table(settings)
    assert len(rows) == len(STEMS) * 2 * 3
    for split in ("train", "val"):
        pairs = find_pairs(root_of(settings), split)
        assert [p.stem for p in pairs] == sorted(r["stem"] for r in rows if r["split"] == split)
        assert {p.group for p in pairs} == reports[split].groups
        assert len(reports[split].tiles) == len(pairs)
    [row] = [r for r in rows if r["stem"] == "north_1_r01_c02"]
    assert (row["source"], row["group"]) == ("north_1.png", "north_1")
    assert (row["row"], row["col"], row["window"]) == ("1", "2", "32 16 16 16")


@pytest.mark.parametrize(
    ("changes", "count", "val"),
    [
        ({"val_regex": "^s"}, 1, {"south"}),
        ({"val_groups": ["north", "west"]}, 2, {"north", "west"}),
        ({"val_share": 0.2}, 1, None),
        ({"val_share": 0.9, "seed": 3}, 2, None),
    ],
)
def test_no_group_is_in_both_splits(settings, changes, count, val):
    settings = replace(settings, group_regex="^([a-z]+)_", overlap=8, **changes)
    tile(settings)
    groups = {"train": set(), "val": set()}
    for row in read_table(settings):
        groups[row["split"]].add(row["group"])
        assert row["source"].startswith(row["group"])
    assert not groups["train"] & groups["val"]
    assert groups["train"] | groups["val"] == {"north", "south", "west"}
    assert len(groups["val"]) == count
    assert groups["val"] == (val or groups["val"])


def test_val_share_draws_by_seed():
    groups = {f"g{i:02d}": f"g{i:02d}" for i in range(20)}
    draws = [
        choose_groups(groups, defaults(TileSettings, val_share=0.3, seed=s)) for s in (0, 0, 1)
    ]
    assert [len(draw) for draw in draws] == [6, 6, 6] and draws[0] == draws[1] != draws[2]


def test_tiles_with_too_much_ignore_are_dropped_and_counted(source, settings):
    label = np.zeros((16, 64), np.uint8)
    label[:, 16:24] = 255  # half of the second tile
    label[:, 32:41] = 255  # more than half of the third
    label[:, 48:] = 255
    add_picture(source, "edge", 16, 64, label=label)
    settings = replace(settings, val_regex="north", max_ignore=0.5)
    reports = tile(settings)
    kept = [r["stem"] for r in read_table(settings) if r["group"] == "edge"]
    assert kept == ["edge_r00_c00", "edge_r00_c01"]
    assert (reports["train"].dropped, reports["val"].dropped) == (2, 0)


def test_class_pixels_are_those_of_the_tiles_written(source, settings):
    label = np.full((16, 40), 2, np.uint8)
    label[:, :4] = 255
    label[:, 16:20] = 1
    for stem in STEMS:
        add_picture(source, stem, 16, 40, label=label)
    settings = replace(settings, val_groups=["west_1"])
    reports = tile(settings)
    assert reports["val"].pixels.tolist() == [0, 16 * 4, 16 * (12 + 12)]
    assert reports["train"].pixels.tolist() == [0, 5 * 16 * 4, 5 * 16 * 24]
    for stem in STEMS:
        add_picture(source, stem, 16, 40, label=np.full((16, 40), 255, np.uint8))
    with pytest.raises(UserError, match=r"left for train: .* 0 are .* 10 tiles have more ignore"):
        tile(replace(settings, data_root=f"{settings.data_root}2"))


@pytest.mark.parametrize(
    ("dtype", "bands", "suffix"),
    [(np.uint8, 3, ".png"), (np.uint8, 4, ".tif"), (np.float32, 2, ".tif")],
)
def test_formats(source, settings, dtype, bands, suffix):
    image = (np.random.default_rng(0).random((16, 16, bands)) * 200).astype(dtype)
    add_picture(source, "other", image=image, label=np.eye(16, dtype=np.uint8), suffix=".tif")
    settings = replace(settings, val_groups=["other"])
    with pytest.warns(UserWarning, match="val has no pixel of what train has: wood"):
        tile(settings)
    [file] = (root_of(settings) / "val" / "images").iterdir()
    assert file.suffix == suffix
    written = read_image(file)
    assert written.shape == image.shape and written.dtype == dtype
    np.testing.assert_array_equal(written, image)


def test_index_masks_stay_index_masks(tmp_path, settings):
    data = replace(DATA, mask_format="index")
    rng = np.random.default_rng(0)
    labels = {stem: rng.choice(np.array([0, 1, 2, 255], np.uint8), (16, 16)) for stem in "ab"}
    for stem, label in labels.items():
        write_image(tmp_path / "ids" / "images" / f"{stem}.jpg", np.zeros((16, 16, 3), np.uint8))
        write_image(tmp_path / "ids" / "masks" / f"{stem}.tif", label[..., None])
    settings = replace(settings, source=str(tmp_path / "ids"), data=data, val_groups=["b"])
    tile(settings)
    for split, stem in (("train", "a"), ("val", "b")):
        mask = root_of(settings) / split / "masks" / f"{stem}_r00_c00.png"
        np.testing.assert_array_equal(mask_reader(data).read(mask)[0], labels[stem])


def test_masks_of_0_and_255_need_an_index_map_and_keep_their_values(tmp_path, settings):
    source = tmp_path / "binary"
    for stem in STEMS[:4]:
        add_picture(source, stem)
        with Image.open(source / "masks" / f"{stem}.png") as picture:
            stored = np.where(np.asarray(picture)[..., 0] > 0, 255, 0).astype(np.uint8)
        Image.fromarray(stored).save(source / "masks" / f"{stem}.png")
    data = replace(DATA, mask_format="index")
    changes = {"source": str(source), "data": data, "group_regex": "north|south"}
    with pytest.raises(UserError, match=r'masks: masks hold 0 and 255.*"data\.index_map=\{0: wat'):
        tile(replace(settings, **changes))
    assert not root_of(settings).exists()
    index_map = {0: "water", 255: "road", 7: "wood"}
    changes["data"] = replace(data, index_map=index_map)
    tile(replace(settings, **changes))
    for row in read_table(settings):
        left, top, width, height = map(int, row["window"].split())
        with (
            Image.open(source / "masks" / row["source"]) as whole,
            Image.open(root_of(settings) / row["split"] / "masks" / f"{row['stem']}.png") as part,
        ):
            expected = np.asarray(whole)[top : top + height, left : left + width]
            np.testing.assert_array_equal(np.asarray(part), expected)


def test_pixels_without_data_are_ignored_in_the_tiles(source, settings):
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 4), np.uint8)
    image[..., 3] = 255
    image[:16, :8, 3] = 0
    image[:16, 16:32, 3] = 0
    Image.fromarray(image).save(source / "images" / "north_1.png")
    tile(replace(settings, max_ignore=0.5, val_groups=["south_1"]))
    stems = {row["stem"] for row in read_table(settings) if row["source"] == "north_1.png"}
    assert stems == {f"north_1_r0{r}_c0{c}" for r in (0, 1) for c in (0, 1, 2)} - {
        "north_1_r00_c01"
    }
    part = root_of(settings) / "train"
    label, _ = READER.read(part / "masks" / "north_1_r00_c00.png")
    before, _ = READER.read(source / "masks" / "north_1.png")
    assert (label[:, :8] == 255).all()
    np.testing.assert_array_equal(label[:, 8:], before[:16, 8:16])
    np.testing.assert_array_equal(
        read_image(part / "images" / "north_1_r01_c00.png"), image[16:32, :16, :3]
    )


def test_ignore_colours_become_one_and_unknown_ones_are_counted_in_a_warning(source, settings):
    mask = np.zeros((16, 32, 3), np.uint8)
    mask[:, 8:] = 255
    mask[:, 16:] = COLORS["water"]
    mask[0, 16:21] = 1, 2, 199
    add_picture(source, "edge", 16, 32)
    Image.fromarray(mask).save(source / "masks" / "edge.png")
    data = replace(DATA, unknown="nearest")
    settings = replace(settings, val_regex="north", max_ignore=1.0, data=data)
    with pytest.warns(UserWarning, match="5 pixels in 1 mask had .* written as nearest"):
        tile(settings)
    written = [read_image(root_of(settings) / f"train/masks/edge_r00_c0{n}.png") for n in (0, 1)]
    assert not written[0].any() and (written[1] == COLORS["water"]).all()


def test_small_pictures_are_left_out_with_a_warning(source, settings):
    add_picture(source, "north_1", 15, 30)
    with pytest.warns(UserWarning, match=r"left out 1 picture .*=16: north_1.png \(30x15\)"):
        reports = tile(replace(settings, val_groups=["south_1"]))
    assert reports["train"].skipped == 1 and reports["train"].images == 4
    assert not [r for r in read_table(settings) if r["group"] == "north_1"]


@pytest.mark.parametrize("changes", [{}, {"split": "spatial", "block_size": 16, "gap": 1}])
def test_pictures_beyond_pillows_limit_are_cut(settings, monkeypatch, changes):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    tile(replace(settings, **changes))
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile_size": 0}, "tile_size=0: use 1 or more"),
        ({"overlap": 16}, "overlap=16: use 0 to 15"),
        ({"overlap": -1}, "overlap=-1: use 0 to 15"),
        ({"val_share": 1.0}, "val_share=1.0: use more than 0, less than 1"),
        ({"max_ignore": 1.5}, "max_ignore=1.5: use 0 to 1"),
        ({"seed": -1}, "seed=-1: use 0 or more"),
        ({"data_root": "s3://a/b"}, "data_root=s3://a/b: tiles go to a folder, not to an address"),
        ({"remainder": "shfit"}, "remainder=shfit is not one of.*Did you mean 'shift'"),
        ({"val_regex": "a", "val_groups": ["b"]}, "Give one of them"),
        ({"val_regex": "east"}, "val_regex='east' leaves nothing to validate on. The 6 groups: no"),
        ({"val_regex": "_"}, r"val_regex='_' leaves nothing to train on.*north_1, .*west_1 \.\.\."),
        ({"val_regex": "("}, r"val_regex='\(' is not a regular expression"),
        ({"val_groups": []}, "leaves nothing to validate on"),
        ({"val_groups": ["west_1", "west_3"]}, "'west_3' is not a group. The 6 groups: north_1"),
        ({"group_regex": "north|south"}, "group_regex='north|south' does not match 'west_1'"),
        ({"group_regex": "_"}, "all pictures belong to the group '_'"),
        ({"tile_size": 64}, "no tile is left for train: of its 5 pictures 5 are smaller than"),
        ({"data": replace(DATA, palette=DATA.palette[:2])}, r"north_1.png: colour \(0, 120, 0\)"),
        ({"source": "nowhere"}, "nowhere/images is missing: source=nowhere must hold images/"),
    ],
)
def test_a_refusal_says_what_to_do_and_leaves_nothing(settings, changes, message):
    with pytest.raises(UserError, match=message):
        tile(replace(settings, **changes))
    parent = root_of(settings).parent
    assert not parent.exists() or not list(parent.iterdir())


def test_a_mask_of_another_size_is_refused(source, settings):
    READER.write(source / "masks" / "west_2.png", np.zeros((40, 55), np.uint8))
    with pytest.raises(UserError, match=r"west_2.png is 56x40 but .*west_2.png is 55x40"):
        tile(settings)


def test_a_folder_that_holds_something_is_refused(settings):
    root = root_of(settings)
    root.mkdir(parents=True)
    (root / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"data_root=.*tiles exists already. Choose a new folder"):
        tile(settings)
    assert [p.name for p in root.iterdir()] == ["mine.txt"]


def test_the_same_command_again_says_that_all_is_there(settings, capsys):
    tile(settings)
    before = {p: p.stat().st_mtime_ns for p in root_of(settings).rglob("*")}
    assert tile(settings) == {}
    assert "is there already" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already"):
        tile(replace(settings, seed=settings.seed + 1))
    assert {p: p.stat().st_mtime_ns for p in root_of(settings).rglob("*")} == before


def test_the_folder_appears_whole_or_not_at_all(settings, monkeypatch):
    root = root_of(settings)
    seen = []

    def write(path, pixels):
        seen.append(root.exists())
        if len(seen) == 20:
            raise OSError("disk full")
        write_image(path, pixels)

    monkeypatch.setattr(module, "write_image", write)
    with pytest.raises(OSError, match="disk full"):
        tile(settings)
    assert not root.parent.exists() and not any(seen)


CRS = "EPSG:32640"


def add_raster(source, stem, left, top, size=(64, 64), pixel=0.5, crs=CRS, mask=None, seed=0):
    """A pair of GeoTIFFs; the mask may lie elsewhere: (left, top, pixel, crs)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, *size), np.uint8)
    label = rng.integers(0, 3, size).astype(np.uint8)
    colors = np.moveaxis(READER.palette.decode(label), -1, 0)
    places = ((left, top, pixel, crs), mask or (left, top, pixel, crs))
    for part, bands, (x, y, step, system) in zip(
        ("images", "masks"), (image, colors), places, strict=True
    ):
        path = source / part / f"{stem}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = {"height": bands.shape[1], "width": bands.shape[2], "count": 3, "dtype": "uint8"}
        where = {"crs": system, "transform": Affine(step, 0, x, 0, -step, y)}
        with rasterio.open(path, "w", driver="GTiff", **shape, **where) as target:
            target.write(bands)
    return image, label


def test_tiles_of_a_georeferenced_picture_lie_where_they_lay(tmp_path, settings):
    source = tmp_path / "raw"
    images = {
        stem: add_raster(source, stem, 500_000 + 100 * n, 2_780_000, seed=n)
        for n, stem in enumerate(("a", "b"))
    }
    tile(replace(settings, source=str(source), val_groups=["b"], tile_size=32))
    for row in read_table(settings):
        left, top, side, _ = map(int, row["window"].split())
        stem = row["group"]
        for part, bands in (("images", images[stem][0]), ("masks", None)):
            path = root_of(settings) / row["split"] / part / f"{row['stem']}.tif"
            original = source / part / f"{stem}.tif"
            with rasterio.open(path) as tile_file, rasterio.open(original) as whole:
                assert tile_file.crs == whole.crs
                x, y = 500_000 + 100 * "ab".index(stem) + left / 2, 2_780_000 - top / 2
                assert tile_file.transform == Affine(0.5, 0, x, 0, -0.5, y)
                assert tile_file.res == whole.res
                window = rasterio.windows.Window(left, top, side, side)
                np.testing.assert_array_equal(tile_file.read(), whole.read(window=window))
            if bands is None:
                expected = images[stem][1][top : top + side, left : left + side]
                np.testing.assert_array_equal(READER.read(path)[0], expected)
    for split in SPLITS:
        assert scan(find_pairs(root_of(settings), split), READER).bands == 3


ELSEWHERE = {
    "ten metres aside": ((500_010, 2_780_000, 0.5, CRS), "corners are 20.0 pixels apart"),
    "another place": ((600_000, 2_780_000, 0.5, CRS), "corners are 200,000.0 pixels apart"),
    "another pixel size": ((500_000, 2_780_000, 0.6, CRS), "corners are 18.1 pixels apart"),
    "another system": ((500_000, 2_780_000, 0.5, "EPSG:32639"), "in EPSG:32640, but .*EPSG:32639"),
}


@pytest.mark.parametrize(("place", "message"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_mask_that_lies_elsewhere_is_refused(tmp_path, settings, place, message):
    for split, stem in (("train", "a"), ("val", "b")):
        add_raster(tmp_path / "data" / split, stem, 500_000, 2_780_000, mask=place)
    with pytest.raises(UserError, match=message):
        scan(find_pairs(tmp_path / "data", "train"), READER)
    source = tmp_path / "data" / "train"
    add_raster(source, "b", 700_000, 2_780_000)
    with pytest.raises(UserError, match=f"{message}.*align=true"):
        tile(replace(settings, source=str(source)))


def test_half_a_pixel_aside_is_rounding(tmp_path):
    add_raster(tmp_path, "a", 500_000, 2_780_000, mask=(500_000.2, 2_780_000, 0.5, CRS))
    paths = (tmp_path / "images" / "a.tif", tmp_path / "masks" / "a.tif")
    assert georeference_problem(*paths) is None
    assert georeference_problem(paths[0], tmp_path / "a.png") is None


def test_align_warps_a_mask_onto_the_grid_of_its_image(tmp_path, settings):
    source = tmp_path / "raw"
    place = (500_008, 2_780_000, 0.5, CRS)
    _, label = add_raster(source, "a", 500_000, 2_780_000, mask=place)
    add_raster(source, "b", 700_000, 2_780_000)
    settings = replace(settings, source=str(source), val_groups=["b"], align=True, max_ignore=1.0)
    tile(settings)
    expected = np.full((64, 64), 255, np.uint8)
    expected[:, 16:] = label[:, :-16]
    for row in read_table(settings):
        if row["group"] == "a":
            left, top, *_ = map(int, row["window"].split())
            found = READER.read(root_of(settings) / f"train/masks/{row['stem']}.tif")[0]
            np.testing.assert_array_equal(found, expected[top : top + 16, left : left + 16])


def test_pictures_of_the_same_ground_are_one_group(tmp_path, settings, capsys):
    source = tmp_path / "raw"
    for stem, left in (("2019", 0), ("2021", 10), ("far", 200), ("touches", 32)):
        size = (64, 40) if stem == "2021" else (64, 64)
        add_raster(source, stem, 500_000 + left, 2_780_000, size=size)
    settings = replace(settings, source=str(source), val_groups=["2021"])
    tile(settings)
    rows = read_table(settings)
    groups = {row["source"]: (row["group"], row["split"]) for row in rows}
    assert groups["2019.tif"] == groups["2021.tif"] == ("2019", "val")
    assert groups["far.tif"] == ("far", "train") and groups["touches.tif"] == ("touches", "train")
    assert "'2021' joins the group '2019', and 3 groups of 4 are left" in capsys.readouterr().out
    apart = replace(settings, join_overlaps=False, data_root=f"{settings.data_root}2")
    tile(apart)
    assert {row["group"] for row in read_table(apart) if row["split"] == "val"} == {"2021"}


def test_a_picture_is_split_into_blocks_with_gaps_between_them(source, settings):
    for path in [*source.glob("*/*")]:
        path.unlink()
    image, _ = add_picture(source, "whole", 200, 150)
    with pytest.raises(UserError, match=r"all pictures belong .* split=spatial"):
        tile(settings)
    settings = replace(
        settings, split="spatial", block_size=40, gap=10, overlap=4, val_share=0.25, seed=1
    )
    reports = tile(settings)
    # Blocks of 40 px begin at 0, 50, 100 and 150; at each two tiles of 16 px fit, 12 px apart.
    starts = [0, 12, 24, 50, 62, 74, 100, 112, 124, 150, 162, 174]
    rows = read_table(settings)
    boxes = {}
    for row in rows:
        left, top, *_ = map(int, row["window"].split())
        assert row["group"] == f"whole_b{top // 50}_{left // 50}"
        boxes.setdefault(row["split"], []).append((left, top))
        path = root_of(settings) / row["split"] / "images" / f"{row['stem']}.png"
        np.testing.assert_array_equal(read_image(path), image[top : top + 16, left : left + 16])
    found = sorted([*boxes["train"], *boxes["val"]])
    assert found == sorted((x, y) for y in starts for x in starts[:9])
    assert len(reports["val"].groups) == 3 and len(reports["train"].groups) == 9
    for x, y in boxes["val"]:
        for other_x, other_y in boxes["train"]:
            assert max(abs(x - other_x), abs(y - other_y)) >= 16 + 10
    assert {pair.group for pair in find_pairs(root_of(settings), "val")} == reports["val"].groups


def test_pictures_of_one_ground_share_its_blocks(tmp_path, settings):
    source = tmp_path / "raw"
    add_raster(source, "2019", 500_000, 2_780_000, size=(120, 120))
    add_raster(source, "2021", 500_010, 2_780_005, size=(120, 120), seed=1)
    settings = replace(settings, source=str(source), split="spatial", block_size=32, gap=4)
    tile(settings)
    found = {}
    for row in read_table(settings):
        left, top, *_ = map(int, row["window"].split())
        x, y = (left, top) if row["source"] == "2019.tif" else (left + 20, top - 10)
        assert row["group"] == f"2019_b{y // 36}_{x // 36}"
        assert (y + 15) // 36 == y // 36 and y % 36 <= 16
        found.setdefault(row["group"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in found.values())
    add_raster(source, "2022", 500_010, 2_780_005, size=(60, 60), pixel=1.0)
    with pytest.raises(UserError, match=r"differ in CRS or pixel size. Reproject"):
        tile(replace(settings, data_root=f"{settings.data_root}2"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "block"}, "split=block is not one of groups, spatial"),
        ({"gap": -1}, "gap=-1: use 0"),
        ({"block_size": 8}, "block_size=8: use 16 or more"),
    ],
)
def test_wrong_settings_of_blocks_are_one_line(settings, changes, message):
    with pytest.raises(UserError, match=message):
        tile(replace(settings, **changes))


REPO = Path(__file__).parents[2]
WATER, WOOD = [33, 150, 243], [168, 232, 84]  # of configs/data/landcover.yaml


@pytest.mark.slow
def test_the_command_cuts_a_folder_and_says_what_it_did(tmp_path):
    rng = np.random.default_rng(0)
    for stem in ("a_1", "a_2", "b_1"):
        image = rng.integers(0, 256, (32, 48, 3), np.uint8)
        mask = np.where(rng.random((32, 48, 1)) < 0.5, WATER, WOOD).astype(np.uint8)
        write_image(tmp_path / "source" / "images" / f"{stem}.jpg", image)
        write_image(tmp_path / "source" / "masks" / f"{stem}.png", mask)
    knobs = ("data_root=my tiles", "tile_size=16", "data.group_regex='^[a-z]'", "val_regex='[bc]'")
    done = subprocess.run(
        [sys.executable, str(REPO / "scripts" / "tile.py"), "source=source", *knobs],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPO), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    words = " ".join(done.stdout.split())
    for row in ("pictures 2 1", "groups 1 1", "tiles of 16x16 12 6", "Cropland 0.0% 0.0%"):
        assert row in words
    regex = """'data.group_regex='"'"'^[a-z]'"'"''"""
    assert f"Next: python scripts/train.py {regex} 'data_root=my tiles' image_size=16" in words
    with (tmp_path / "my tiles" / "tiles.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {(r["group"], r["split"]) for r in rows} == {("a", "train"), ("b", "val")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my tiles", "source"]


def test_images_without_masks_are_cut_beside(source, settings, capsys):
    image = np.random.default_rng(5).integers(1, 256, (40, 56, 3), np.uint8)
    write_image(source / "unlabelled/new.png", image)
    transform = Affine(0.5, 0, 1000, 0, -0.5, 2000)
    profile = {"driver": "GTiff", "height": 32, "width": 32, "count": 3, "dtype": "uint8"}
    with rasterio.open(
        source / "unlabelled/far.tif",
        "w",
        crs="EPSG:32640",
        transform=transform,
        nodata=0,
        **profile,
    ) as target:
        half = image[:32, :32].copy()
        half[:, :16] = 0
        target.write(np.moveaxis(half, -1, 0))
    tile(settings)
    found = sorted((root_of(settings) / "unlabelled").iterdir())
    near = [f"new_r{row:02d}_c{col:02d}.png" for row in (0, 1) for col in (0, 1, 2)]
    assert [path.name for path in found] == ["far_r00_c01.tif", "far_r01_c01.tif", *near]
    np.testing.assert_array_equal(read_image(found[-1]), image[16:32, 32:48])
    with rasterio.open(found[1]) as tif:
        assert tif.transform == transform @ Affine.translation(16, 16)
    shown = capsys.readouterr().out
    root = settings.data_root
    assert "Unlabelled: 8 tiles in" in shown and f" unlabelled={root}/unlabelled\n" in shown
    assert f"\nOr, with unlabelled/: python scripts/train_segmenter.py data_root={root} " in shown
    assert {row["split"] for row in read_table(settings)} == {"train", "val"}
    with pytest.raises(UserError, match=r"no tile is left of the images in .*unlabelled"):
        (source / "unlabelled/new.png").unlink()
        tile(replace(settings, max_ignore=0, data_root=f"{settings.data_root}2", tile_size=32))
