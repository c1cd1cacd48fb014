import os
import re
from dataclasses import replace

import numpy as np
import pytest

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.images import read_image, write_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import DataError, Pair, find_pairs
from geoseg_gan.data.palette import IGNORE, Palette
from geoseg_gan.data.scan import (
    FolderIndex,
    check_sizes,
    default_cache_folder,
    refuse_binary_masks,
    scan,
)


@pytest.fixture
def root(make_folder, tmp_path):
    return make_folder(tmp_path / "data", train=5, val=2, size=(24, 40))


@pytest.fixture
def read_names(monkeypatch):
    """The names of the images that a scan reads."""
    names = []

    def spy(self, image, mask, read=MaskReader.read_pair):
        names.append(image.name)
        return read(self, image, mask)

    monkeypatch.setattr(MaskReader, "read_pair", spy)
    return names


def image(root, number, split="train"):
    return root / split / "images" / f"{split}_{number:03d}.png"


def mask(root, number, split="train"):
    return root / split / "masks" / f"{split}_{number:03d}.png"


def assert_same(first, second):
    assert first.pairs == second.pairs and first.dtype == second.dtype
    for name in ("sizes", "pixels", "unknown", "low", "high"):
        a, b = getattr(first, name), getattr(second, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def refuse_to_read(monkeypatch):
    def fail(*args):
        raise AssertionError("nothing should be read")

    monkeypatch.setattr(MaskReader, "read_pair", fail)


def test_what_a_killed_scan_was_writing_is_swept_by_the_next_one(root, reader):
    left = default_cache_folder() / ".geoseg-abcd1234.npz"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.touch()
    scan(find_pairs(root, "train"), reader)
    assert not left.exists() and list(left.parent.glob("scan-*.npz"))


def test_the_index_tells_sizes_classes_and_ranges(root, reader):
    pairs = find_pairs(root, "train")
    index = scan(pairs, reader)
    assert index.pairs == pairs and index.dtype == np.uint8 and index.bands == 3
    assert index.sizes.tolist() == [[24, 40]] * 5
    assert index.unknown.tolist() == [0] * 5
    assert (index.low == 0).all() and (index.high == 255).all() and index.low.shape == (5, 3)
    for row, pair in enumerate(pairs):
        label, _ = reader.read(pair.mask)
        expected = [int((label == value).sum()) for value in (0, 1, 2, 255)]
        assert index.pixels[row].tolist() == expected and min(expected) > 0
    totals = index.pixels[:, :3].sum(0)
    np.testing.assert_allclose(index.class_shares(), totals / totals.sum())


def test_other_types_are_measured_by_their_percentiles(make_folder, tmp_path, reader):
    root = make_folder(tmp_path / "data", train=2, bands=5, dtype="uint16")
    pairs = find_pairs(root, "train")
    index = scan(pairs, reader)
    assert index.bands == 5 and index.dtype == np.uint16
    for row, pair in enumerate(pairs):
        pixels = read_image(pair.image)[reader.read(pair.mask)[0] != IGNORE]
        np.testing.assert_allclose(index.low[row], np.percentile(pixels, 1, axis=0))
        np.testing.assert_allclose(index.high[row], np.percentile(pixels, 99, axis=0))
    assert_same(scan(pairs, reader), index)


def test_folders_beside_each_other_are_remembered_each_by_itself(root, reader, monkeypatch):
    flat = []
    for pair in find_pairs(root, "train")[:2]:  # image and mask side by side, as generate writes
        folder = root / pair.stem
        folder.mkdir()
        beside = {n: getattr(pair, n).rename(folder / f"{n}.png") for n in ("image", "mask")}
        flat.append([replace(pair, **beside)])
    first = [scan(pairs, reader) for pairs in flat]
    assert len(list(default_cache_folder().glob("*.npz"))) == 2
    refuse_to_read(monkeypatch)
    for pairs, expected in zip(flat, first, strict=True):
        assert_same(scan(pairs, reader), expected)


def test_a_second_scan_of_all_or_fewer_pairs_reads_nothing(root, reader, monkeypatch):
    pairs = find_pairs(root, "train")
    first = scan(pairs, reader)
    refuse_to_read(monkeypatch)
    assert_same(scan(pairs, reader), first)
    np.testing.assert_array_equal(scan(pairs[1:3], reader).pixels, first.pixels[1:3])


def test_only_what_is_new_or_changed_is_read_again(root, reader, read_names):
    pairs = find_pairs(root, "train")
    first = scan(pairs, reader)
    reader.write(mask(root, 2), np.ones((24, 40), np.uint8))
    second = scan(pairs, reader)
    assert read_names[5:] == ["train_002.png"]
    assert second.pixels[2].tolist() == [0, 24 * 40, 0, 0]
    np.testing.assert_array_equal(np.delete(second.pixels, 2, 0), np.delete(first.pixels, 2, 0))
    seen = image(root, 4).stat()  # a new time stamp alone means changed
    os.utime(image(root, 4), ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))
    scan(pairs, reader)
    assert read_names[6:] == ["train_004.png"]
    write_image(image(root, 9), np.zeros((24, 40, 3), np.uint8))
    reader.write(mask(root, 9), np.zeros((24, 40), np.uint8))
    assert len(scan(find_pairs(root, "train"), reader).pairs) == 6
    assert read_names[7:] == ["train_009.png"]


def test_splits_and_readings_are_remembered_apart(root, reader, palette, read_names):
    for split in ("train", "val"):
        scan(find_pairs(root, split), reader)
    scan(find_pairs(root, "train"), MaskReader(palette, unknown="nearest"))
    swapped = MaskReader(Palette(palette.classes[::-1], palette.ignore))
    pixels = scan(find_pairs(root, "train"), swapped).pixels
    assert len(read_names) == 5 + 2 + 5 + 5
    read_names.clear()
    original = scan(find_pairs(root, "train"), reader).pixels
    np.testing.assert_array_equal(pixels[:, [2, 1, 0, 3]], original)
    assert read_names == []


def test_the_cache_lies_in_the_users_cache_folder_or_where_it_is_asked_to(
    root, reader, tmp_path, cache_home, monkeypatch
):
    before, pairs = sorted(root.rglob("*")), find_pairs(root, "train")
    scan(pairs, reader, tmp_path / "mine")
    assert len(list((tmp_path / "mine").glob("*.npz"))) == 1 and not default_cache_folder().exists()
    scan(pairs, reader)
    assert sorted(root.rglob("*")) == before
    assert default_cache_folder() == cache_home / "geoseg_gan"
    assert [path.suffix for path in default_cache_folder().glob("*.npz")] == [".npz"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / ".cache" / "geoseg_gan"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda store, whole: store.write_bytes(b""),
        lambda store, whole: store.write_bytes(b"not a cache"),
        lambda store, whole: store.write_bytes(whole[: len(whole) // 2]),
        lambda store, whole: store.write_bytes(whole[:-3]),
        lambda store, whole: store.write_bytes(whole.replace(b"train_000", b"train_\x00\xff0")),
        lambda store, whole: np.savez(store),
        lambda store, whole: np.savez(store, bands=np.array([3])),
        lambda store, whole: np.savez(store, stamp=np.array("a\nb")),
    ],
)
def test_a_spoilt_cache_file_is_survived_and_mended(root, reader, read_names, spoil):
    pairs = find_pairs(root, "train")
    first = scan(pairs, reader)
    (store,) = default_cache_folder().glob("*.npz")
    spoil(store, store.read_bytes())
    assert_same(scan(pairs, reader), first)
    read_names.clear()
    assert_same(scan(pairs, reader), first)
    assert read_names == []


def test_a_cache_that_cannot_be_written_does_no_harm(root, reader, tmp_path):
    (tmp_path / "file").touch()
    assert len(scan(find_pairs(root, "train"), reader, tmp_path / "file").pairs) == 5


def test_what_was_good_is_remembered_though_another_pair_is_not(root, reader, read_names):
    pairs = find_pairs(root, "train")
    whole = image(root, 3).read_bytes()
    image(root, 3).write_bytes(whole[:100])
    with pytest.raises(DataError):
        scan(pairs, reader)
    read_names.clear()
    image(root, 3).write_bytes(whole)
    scan(pairs, reader)
    assert read_names == ["train_003.png"]


def test_long_lists_show_a_bar_and_keep_their_order(root, reader, capsys):
    pairs = find_pairs(root, "train")
    short = scan(pairs, reader)
    assert capsys.readouterr().out == ""
    long = scan(list(pairs) * 110, reader, root / "other")
    assert "Reading 550 pairs once" in capsys.readouterr().out
    np.testing.assert_array_equal(long.pixels, np.tile(short.pixels, (110, 1)))


def recolour(_, mask, reader):
    pixels = reader.palette.decode(reader.read(mask)[0])
    pixels[5, :4] = 250, 60, 120
    write_image(mask, pixels)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda image, mask, _: image.write_bytes(image.read_bytes()[:200]),
         r"{image}: does not decode .*Export it again or leave it out\."),
        (lambda image, mask, reader: reader.write(mask, np.zeros((24, 39), np.uint8)),
         r"{image} is 40x24 but {mask} is 39x24 .*Export both from the same window"),
        (recolour,
         r"{mask}: colour \(250, 60, 120\) in 4 pixels.*nearest is 'Background'.*=near"),
        (lambda image, mask, _: write_image(image, np.zeros((24, 40, 1), np.uint8)),
         r"{image} has 1 band of uint8, but train_000\.png has 3 bands of"),
    ],
)  # fmt: skip
def test_a_pair_that_cannot_be_used_is_named_with_what_to_do(root, reader, spoil, message):
    spoil(image(root, 2), mask(root, 2), reader)
    paths = {"image": re.escape(str(image(root, 2))), "mask": re.escape(str(mask(root, 2)))}
    with pytest.raises(DataError, match=message.format(**paths)):
        scan(find_pairs(root, "train"), reader)


def test_a_link_to_nothing_is_named(root, reader):
    (root / "train" / "images" / "stray.txt").symlink_to(root / "nowhere")
    assert len(scan(find_pairs(root, "train"), reader).pairs) == 5
    image(root, 1).unlink()
    image(root, 1).symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match=r"train_001\.png cannot be read: No such file"):
        scan(find_pairs(root, "train"), reader)


def test_another_type_is_named(make_folder, tmp_path, reader):
    root = make_folder(tmp_path / "data", train=2, size=16, dtype="float32")
    path = root / "train" / "images" / "train_001.tif"
    write_image(path, np.ones((16, 16, 3), np.uint16))
    with pytest.raises(DataError, match=r"has 3 bands of uint16, but \S+ has 3 bands of float32"):
        scan(find_pairs(root, "train"), reader)


@pytest.mark.parametrize("value", [np.nan, np.inf, -3.4e38])
def test_pixels_without_data_count_as_ignore_and_not_for_the_scaling(
    make_folder, tmp_path, reader, value
):
    root = make_folder(tmp_path / "data", train=2, size=16, dtype="float32")
    pairs = find_pairs(root, "train")
    before = scan(pairs, reader)
    pixels, label = read_image(pairs[1].image), reader.read(pairs[1].mask)[0]
    gaps = np.zeros((16, 16), bool)
    gaps[3:6] = True
    pixels[..., 1][gaps] = value
    write_image(pairs[1].image, pixels)
    index = scan(pairs, reader)
    expected = [int((label[~gaps] == value).sum()) for value in (0, 1, 2)]
    assert index.pixels[1].tolist() == [*expected, 256 - sum(expected)]
    seen = pixels[~gaps & (label != IGNORE)]
    np.testing.assert_allclose(index.low[1], np.percentile(seen, 1, axis=0))
    np.testing.assert_allclose(index.high[1], np.percentile(seen, 99, axis=0))
    np.testing.assert_array_equal(index.low[0], before.low[0])


CORNER = np.zeros((16, 16), bool)
CORNER[:3, :5] = True  # 15 of 256 pixels


def measured(dtype):
    """Values of a 12-bit sensor."""
    return np.random.default_rng(3).integers(300, 4000, (16, 16, 3)).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "value"), [("uint16", 65_535), ("int16", -9999), ("float32", -9999.0)]
)
def test_a_value_for_no_data_that_files_do_not_name_is_warned_of_and_can_be_named(
    make_folder, tmp_path, reader, dtype, value
):
    root = make_folder(tmp_path / "data", train=2, size=16, dtype=dtype)
    pairs = find_pairs(root, "train")
    pixels, label = measured(dtype), reader.read(pairs[1].mask)[0]
    write_image(pairs[0].image, measured(dtype))
    pixels[CORNER] = value
    write_image(pairs[1].image, pixels)
    message = rf"train_001\.tif has the value {value:.9g} in 5\.9% .* data\.nodata={value:.9g}\."
    for _ in range(2):  # of the second time, the cache knows
        with pytest.warns(UserWarning, match=message):
            scan(pairs, reader)
    index = scan(pairs, replace(reader, nodata=value))  # without a warning, which would be an error
    seen = pixels[~CORNER & (label != IGNORE)]
    np.testing.assert_allclose(index.low[1], np.percentile(seen, 1, axis=0))
    np.testing.assert_allclose(index.high[1], np.percentile(seen, 99, axis=0))
    assert index.pixels[1, -1] == (CORNER | (label == IGNORE)).sum()
    scaling = ImageScaling.fit(index)
    assert min(scaling.low) >= 300 and max(scaling.high) < 4000


@pytest.mark.parametrize("kind", ["ground at 0", "two values", "saturated", "8 bit"])
def test_extremes_that_measurements_have_are_not_warned_of(make_folder, tmp_path, reader, kind):
    dtype = {"8 bit": "uint8", "saturated": "uint16"}.get(kind, "float32")
    root = make_folder(tmp_path / "data", train=1, size=16, dtype=dtype)
    pairs = find_pairs(root, "train")
    match kind:
        case "ground at 0":  # heights of buildings, of 3 to 30 m
            pixels = measured("float32") * (27 / 3700) + 1
            pixels[CORNER] = 0
        case "two values":
            pixels = np.where(CORNER[..., None], np.float32([5000, 0, 1]), np.float32([1, 9, 0]))
        case "saturated":
            pixels = (measured("float32") * 17).clip(0, 65_535).astype(np.uint16)
            pixels[CORNER] = 65_535
        case "8 bit":
            pixels = (measured("float32") / 100).astype(np.uint8)
            pixels[CORNER] = 255
    write_image(pairs[0].image, pixels)
    scan(pairs, reader)


def test_a_pair_without_labels_has_no_say_in_the_scaling(make_folder, tmp_path, reader):
    root = make_folder(tmp_path / "data", train=3, size=16, dtype="uint16")
    pairs = find_pairs(root, "train")
    expected = ImageScaling.fit(scan(pairs[:2], reader))
    reader.write(pairs[2].mask, np.full((16, 16), IGNORE, np.uint8))
    assert ImageScaling.fit(scan(pairs, reader)) == expected


@pytest.mark.parametrize("ids", [(0, 255), (0, 1), (0,), (0, 1, 255)])
@pytest.mark.parametrize("index_map", [None, ((0, 0), (255, 255)), ((0, 0), (255, 1), (9, 2))])
def test_masks_of_0_and_255_alone_must_be_explained(tmp_path, palette, ids, index_map):
    reader = MaskReader(palette, "index", index_map=index_map)
    if index_map is not None and 1 in ids:
        return
    pairs = []
    for number, value in enumerate(ids):
        image, mask = tmp_path / f"{number}.png", tmp_path / f"m{number}.png"
        write_image(image, np.zeros((8, 8, 3), np.uint8))
        write_image(mask, np.full((8, 8, 1), value, np.uint8))
        pairs.append(Pair(str(number), image, mask, str(number)))
    pixels = scan(pairs, reader).pixels
    if ids != (0, 255) or index_map is not None:
        refuse_binary_masks(pixels, reader, tmp_path)
        return
    with pytest.raises(DataError) as refused:
        refuse_binary_masks(pixels, reader, tmp_path)
    for second in ("Forest land", "ignore"):
        assert f'"data.index_map={{0: Background, 255: {second}}}"' in str(refused.value)


def test_the_other_problems_are_counted(root, reader):
    for number in (1, 2, 4):
        image(root, number).write_text("not a picture")
    with pytest.raises(DataError, match=r"train_001.*\(2 more pairs with problems\)"):
        scan(find_pairs(root, "train"), reader)


def test_shares_of_no_labelled_pixels_are_zero():
    index = FolderIndex(
        [], *[np.zeros((1, 4), np.int64)] * 3, *[np.zeros((1, 3))] * 2, np.dtype("uint8")
    )
    assert index.class_shares().tolist() == [0, 0, 0]


def test_rows_of_an_index_are_what_a_scan_of_those_pairs_sees(root, reader):
    pairs = find_pairs(root, "train")
    assert_same(scan(pairs, reader).rows([3, 0]), scan([pairs[3], pairs[0]], reader))


def test_an_image_smaller_than_the_crop_is_named_with_what_fits(root, reader):
    write_image(image(root, 1), np.zeros((20, 40, 3), np.uint8))
    reader.write(mask(root, 1), np.zeros((20, 40), np.uint8))
    index = scan(find_pairs(root, "train"), reader)
    check_sizes(index, 20)
    fits = "image_size=24. Set image_size=20, or data.fit=resize."
    message = f"{re.escape(str(image(root, 1)))} is 40x20, smaller .*{re.escape(fits)}"
    with pytest.raises(DataError, match=message):
        check_sizes(index, 24)
    with pytest.raises(DataError, match="Set image_size=16, or"):
        check_sizes(index, 24, stride=8)
    with pytest.raises(DataError, match=r"need 32 px: train with image_size=32 data\.fit=resize"):
        check_sizes(index, 64, stride=32)
    with pytest.raises(DataError, match=r"40x20.*\(and 4 more images\)"):
        check_sizes(index, 32)
