"""Index masks: every form that IDs come in, `data.index_map`, and what files say of themselves."""

import pickle
import re

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasters import write_geotiff

from geoseg_gan.data.image_files import UnreadableError
from geoseg_gan.data.masks import MaskReader, stored_mask_reader
from geoseg_gan.data.palette import (
    IGNORE,
    Palette,
    PaletteClass,
    UnknownColorError,
    index_map_ids,
)
from geoseg_gan.data.settings import tile_command
from geoseg_gan.utils.errors import UserError

IDS = np.random.default_rng(0).integers(0, 3, (20, 31), np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (20, 31), np.uint8)
CLEAR = np.where(ALPHA > 128, 255, 0).astype(np.uint8)


@pytest.fixture
def mapped(palette):
    """A reader of an index map: `mapped({1: "Background", ...})`."""
    return lambda index_map, unknown="error": stored_mask_reader(
        palette, {"mask_format": "index", "unknown": unknown, "index_map": index_map}
    )


def check(reader, path, expected, unknown=0):
    for content in (None, path.read_bytes()):
        label, found = reader.read(path, content)
        np.testing.assert_array_equal(label, expected, strict=True)
        assert found == unknown


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("m.png", Image.fromarray(np.dstack([IDS] * 3))),
        ("m.png", Image.fromarray(np.dstack([IDS] * 3 + [ALPHA]))),
        ("m.png", Image.fromarray(np.dstack([IDS, ALPHA]), "LA")),
        ("m.tif", Image.fromarray(np.dstack([IDS] * 3))),
        ("m.tif", Image.fromarray(np.dstack([IDS, CLEAR]), "LA")),
        ("m.tif", Image.fromarray(np.dstack([IDS] * 3 + [CLEAR]))),
        ("m.bmp", Image.fromarray(IDS)),
    ],
)
def test_ids_in_equal_channels_and_with_alpha_are_ids(tmp_path, palette, name, picture):
    picture.save(tmp_path / name)
    has_alpha = name == "m.tif" and picture.mode in ("LA", "RGBA")  # which is as GIS write it
    expected = np.where(CLEAR, IDS, np.uint8(IGNORE)) if has_alpha else IDS
    check(MaskReader(palette, "index"), tmp_path / name, expected)


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", "int32", "uint32", "float32", "float64"]
)
def test_ids_in_geotiffs_of_every_type_are_read(tmp_path, palette, dtype):
    path = write_geotiff(tmp_path / "m.tif", IDS[..., None].astype(dtype))
    check(MaskReader(palette, "index"), path, IDS)


def test_colours_in_an_index_mask_are_refused_and_point_to_rgb(tmp_path, palette):
    Image.fromarray(palette.decode(IDS)).save(tmp_path / "m.png")
    with pytest.raises(UnreadableError, match=r"3 channels that differ.*mask_format=rgb"):
        MaskReader(palette, "index").read(tmp_path / "m.png")


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_ids_of_few_bits_are_not_stretched(tmp_path, palette, bits, name):
    ids = IDS % 2 if bits == 1 else IDS
    path = write_geotiff(tmp_path / "m.tif", ids[..., None], nbits=bits)
    if name == "m.png":
        rasterio.shutil.copy(path, tmp_path / name, driver="PNG", nbits=bits)
    check(MaskReader(palette, "index"), tmp_path / name, ids)


@pytest.mark.parametrize(
    ("index_map", "values"),
    [
        ({1: "Background", 2: "Forest land", 3: "Settlement"}, [1, 2, 3, 255]),
        ({0: "Background", 40: 1, 80: 2, 255: "ignore"}, [0, 40, 80, 255]),
        ({0: "ignore", 1: 0, 2: 1, 3: 2}, [1, 2, 3, 0]),
        ({0: "Settlement", 255: "Background", 7: "Forest land", 9: "ignore"}, [255, 7, 0, 9]),
        ({1000: 0, 20000: 1, 65535: 2, 300: "ignore"}, [1000, 20000, 65535, 300]),
        ({-9999: "ignore", -1: 0, 1: 0, 2: 1, 3: 2, 5: 2}, [1, 2, 3, 255]),
    ],
)
def test_an_index_map_reads_values_and_writes_what_it_reads(tmp_path, mapped, index_map, values):
    reader, choice = mapped(index_map), np.random.default_rng(0).integers(0, 4, (20, 31))
    label = np.array([0, 1, 2, IGNORE], np.uint8)[choice]
    for dtype in ("uint8", "uint16", "int32", "float64"):
        if dtype == "uint8" and max(values) > 255:
            continue
        stored = np.array(values)[choice].astype(dtype)
        check(reader, write_geotiff(tmp_path / "m.tif", stored[..., None]), label)
    for value, meaning in index_map.items():
        path = write_geotiff(tmp_path / "m.tif", np.full((2, 2, 1), value, np.int32))
        names = ["Background", "Forest land", "Settlement"]
        wanted = IGNORE if meaning == "ignore" else meaning
        wanted = names.index(wanted) if isinstance(wanted, str) else wanted
        check(reader, path, np.full((2, 2), wanted, np.uint8))
    reader.write(tmp_path / "w.png", label)
    check(reader, tmp_path / "w.png", label)
    with Image.open(tmp_path / "w.png") as written:
        np.testing.assert_array_equal(np.asarray(written), np.array(values)[choice])
        if max(values) < 256:
            shown = reader.palette.color_table[label]
            np.testing.assert_array_equal(np.asarray(written.convert("RGB")), shown)
    check(pickle.loads(pickle.dumps(reader)), tmp_path / "w.png", label)


def test_what_an_index_map_lacks_is_unknown(tmp_path, mapped):
    path = tmp_path / "m.png"
    Image.fromarray(np.uint8([[1, 2, 2, 3, 9, 9, 255]])).save(path)
    index_map = {1: "Background", 2: "Forest land", 3: "Settlement"}
    with pytest.raises(UnknownColorError, match=r"value 9 in 2 pixels is not in data\.index_map"):
        mapped(index_map).read(path)
    label, unknown = mapped(index_map, "ignore").read(path)
    assert label.tolist() == [[0, 1, 1, 2, 255, 255, 255]] and unknown == 2


def test_other_ids_are_refused_with_an_example_of_a_map(tmp_path, palette):
    Image.fromarray(np.uint8([[1, 2, 3]])).save(tmp_path / "m.png")
    example = '"data.index_map={0: ignore, 1: Background, 2: Forest land, 3: Settlement}"'
    with pytest.raises(UnknownColorError, match=re.escape(example)):
        MaskReader(palette, "index").read(tmp_path / "m.png")


def test_without_a_value_for_ignore_a_label_that_has_it_cannot_be_written(tmp_path, mapped):
    reader = mapped({0: "Background", 254: "Forest land", 255: "Settlement"})
    assert not reader.can_write_ignore
    reader.write(tmp_path / "m.png", IDS)
    check(reader, tmp_path / "m.png", IDS)
    label = IDS.copy()
    label[0, 0] = IGNORE
    with pytest.raises(UserError, match=r"to be ignored.*no value.*'253: ignore' in data\.index_"):
        reader.write(tmp_path / "n.png", label)
    no_colour = MaskReader(Palette(reader.palette.classes))
    with pytest.raises(UserError, match=r"to be ignored.*no colour.*data\.ignore=\[\[0,0,0\]\]"):
        no_colour.write(tmp_path / "n.png", label)
    assert not (tmp_path / "n.png").exists()


@pytest.mark.parametrize(
    ("index_map", "message"),
    [
        ({}, "={}: list values and what they mean, as in "),
        ([1, 2], "=[1, 2]: list values"),
        ({"1": "Background"}, "'1' is no value of a mask. Give whole numbers"),
        ({1.5: "Background"}, "1.5 is no value of a mask"),
        ({2**40: "Background"}, "is no value of a mask"),
        ({1: "Wood"}, "'Wood' is not a class. Give names or IDs of these or ignore: 0"),
        ({1: 3}, "3 is not a class"),
        ({1: None}, "None is not a class"),
        ({-1: "Background"}, "no value of 'Background' is from 0 to 65,535"),
    ],
)
def test_an_index_map_that_cannot_be_is_refused(palette, index_map, message):
    with pytest.raises(UserError, match=rf"data\.index_map.*{re.escape(message)}"):
        index_map_ids(index_map, palette)


@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_indices_whose_colours_are_of_other_classes_are_refused(tmp_path, palette, mapped, name):
    picture = Image.fromarray(IDS).convert("P")
    colors = [c.color for c in palette.classes]
    picture.putpalette([v for color in (colors[0], colors[2], colors[1]) for v in color])
    picture.save(tmp_path / name)
    with pytest.raises(UnreadableError) as refused:
        MaskReader(palette, "index").read(tmp_path / name)
    text = str(refused.value)
    assert "index 1 has the colour of 'Settlement' (255, 214, 33)" in text
    assert "reads 1 as 'Forest land'" in text and "data.mask_format=rgb" in text
    index_map = "{0: Background, 1: Settlement, 2: Forest land}"
    assert f'"data.index_map={index_map}"' in text
    swapped = np.array([0, 2, 1], np.uint8)[IDS]
    check(MaskReader(palette), tmp_path / name, swapped)
    check(mapped({0: "Background", 1: 2, 2: 1}), tmp_path / name, swapped)
    check(mapped({0: 0, 1: 1, 2: 2}), tmp_path / name, IDS)  # told so, whatever the colours
    picture.putpalette([v for color in ([0, 0, 0], [9, 9, 9], colors[2]) for v in color])
    picture.save(tmp_path / name)
    check(MaskReader(palette, "index"), tmp_path / name, IDS)


def test_a_geotiff_with_a_colour_table_is_read_by_index_or_by_colour(tmp_path, palette):
    path = write_geotiff(tmp_path / "m.tif", IDS[..., None])
    with rasterio.open(path, "r+") as target:
        target.write_colormap(1, {n: (*c.color, 255) for n, c in enumerate(palette.classes)})
    check(MaskReader(palette, "index"), path, IDS)
    check(MaskReader(palette), path, IDS)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 99), ("int16", -1), ("float32", np.nan)])
def test_nodata_of_an_index_mask_is_ignored(tmp_path, palette, dtype, nodata):
    values = np.where(CLEAR, IDS, nodata).astype(dtype)
    path = write_geotiff(tmp_path / "m.tif", values[..., None], nodata=nodata)
    check(MaskReader(palette, "index"), path, np.where(CLEAR, IDS, np.uint8(IGNORE)))


def test_nodata_that_is_a_class_must_be_decided_by_the_index_map(tmp_path, palette, mapped):
    path = write_geotiff(tmp_path / "m.tif", IDS[..., None], nodata=0)
    with pytest.raises(UnreadableError) as refused:
        MaskReader(palette, "index").read(path)
    assert "says of itself that 0 is nodata, but 0 is the class 'Background'" in str(refused.value)
    for first in ("ignore", "Background"):
        assert f'index_map={{0: {first}, 1: Forest land, 2: Settlement}}"' in str(refused.value)
    check(mapped({0: 0, 1: 1, 2: 2}), path, IDS)
    ignored = np.where(IDS == 0, np.uint8(IGNORE), IDS)
    check(mapped({0: "ignore", 1: 1, 2: 2, 7: 0}), path, ignored)
    check(mapped({1: 1, 2: 2, 7: 0}), path, ignored)


def test_what_a_masks_internal_mask_hides_is_ignored(tmp_path, palette):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write_geotiff(tmp_path / "m.tif", np.where(CLEAR, IDS, 77)[..., None])
        with rasterio.open(path, "r+") as target:
            target.write_mask(CLEAR)
    check(MaskReader(palette, "index"), path, np.where(CLEAR, IDS, np.uint8(IGNORE)))


def test_a_mask_is_turned_as_its_exif_orientation_says(tmp_path, palette):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(IDS).save(tmp_path / "m.png", exif=exif)
    check(MaskReader(palette, "index"), tmp_path / "m.png", np.rot90(IDS, -1).copy())


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_where_an_image_has_no_data_its_label_is_ignore(tmp_path, palette, suffix):
    rgba = np.dstack([palette.decode(IDS), CLEAR])
    Image.fromarray(rgba).save(tmp_path / f"i{suffix}")
    reader = MaskReader(palette)
    Image.fromarray(palette.decode(IDS)).save(tmp_path / "m.png")
    paths = tmp_path / f"i{suffix}", tmp_path / "m.png"
    for contents in (None, tuple(path.read_bytes() for path in paths)):
        image, label, unknown = reader.read_pair(*paths, contents)
        np.testing.assert_array_equal(label, np.where(CLEAR, IDS, np.uint8(IGNORE)), strict=True)
        np.testing.assert_array_equal(image[CLEAR > 0], rgba[CLEAR > 0][:, :3])
        assert unknown == 0 and image.shape == (20, 31, 3)


def test_without_a_free_value_of_8_bits_a_larger_one_is_proposed(tmp_path):
    many = Palette([PaletteClass(f"{i}", [i, 7, 7]) for i in range(254)])
    pairs = index_map_ids({value: value % 254 for value in range(1000)}, many)
    reader = MaskReader(many, "index", index_map=pairs)
    assert reader.to_dict()["index_map"][999] == [999, 999 % 254]
    assert not reader.can_write_ignore and MaskReader(many, "index").can_write_ignore
    with pytest.raises(UserError, match=r"e\.g\. '1000: ignore'"):
        reader.write(tmp_path / "m.png", np.uint8([[IGNORE]]))


@pytest.mark.parametrize("kind", ["command line", "file"])
def test_an_index_map_is_given_on_the_command_line_or_in_a_file(tmp_path, run_command, kind):
    classes = "[{name: Sand, color: [1, 1, 1]}, {name: Salt marsh, color: [2, 2, 2]}]"
    index_map = "{1: Sand, 2: Salt marsh, 0: ignore}"
    rng, folder = np.random.default_rng(0), tmp_path / "raw"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for stem in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(
            folder / "images" / f"{stem}.png"
        )
        Image.fromarray(rng.integers(0, 3, (32, 32), np.uint8)).save(
            folder / "masks" / f"{stem}.png"
        )
    words = [f"data.palette={classes}", "data.mask_format=index", f"data.index_map={index_map}"]
    if kind == "file":
        (tmp_path / "configs" / "data").mkdir(parents=True)
        (tmp_path / "configs" / "data" / "coast.yaml").write_text(
            "# @package _global_\ndefaults:\n  - landcover@data\n  - _self_\ndata:\n"
            f"  palette: {classes}\n  mask_format: index\n  index_map: {index_map}\n"
        )
        words = ["data=coast", "--config-dir", "configs"]
    done = run_command(tile_command, "source=raw", "data_root=out", "tile_size=16", *words)
    assert done == 0
    written = sorted((tmp_path / "out").rglob("masks/*.png"))
    assert written
    for path in written:
        row, column = int(path.stem[-6:-4]), int(path.stem[-2:])
        with (
            Image.open(folder / "masks" / f"{path.stem[0]}.png") as whole,
            Image.open(path) as part,
        ):
            inside = np.s_[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            np.testing.assert_array_equal(np.asarray(part), np.asarray(whole)[inside])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.index_map={1: Wood}"], "data.index_map: 'Wood' is not a class."),
        (["data.index_map=7"], "data.index_map=7: list values and what they mean"),
        (["data.index_map={x: 1}"], "data.index_map: 'x' is no value of a mask."),
        (["data.index_map={1: 0}", "data.mask_format=rgb"], "Set data.mask_format=index."),
    ],
)
def test_a_bad_index_map_is_one_line(run_command, capsys, words, message):
    assert run_command(tile_command, "data.mask_format=index", "source=raw", *words) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
