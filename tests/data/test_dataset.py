import errno
import re

import numpy as np
import pytest
import torch
from defaults import defaults
from geometry import ALL_STEPS, OFF, TURNS
from torch.utils.data import DataLoader

from geoseg_gan.data import dataset as module
from geoseg_gan.data.dataset import PairDataset, PairSource, WindowDataset
from geoseg_gan.data.image_files import UnreadableError
from geoseg_gan.data.images import read_image, resize_image, resize_label, write_image
from geoseg_gan.data.jitter import draw_warp, draw_window, sample_image, sample_label
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.sampler import SampleIndex
from geoseg_gan.data.scan import scan
from geoseg_gan.data.settings import TransplantStep
from geoseg_gan.data.transplant import Transplanter, visible_box
from geoseg_gan.data.windows import window_starts
from geoseg_gan.utils.errors import UserError


@pytest.fixture
def source_of(reader):
    return lambda root, split="train": PairSource(find_pairs(root, split), reader)


@pytest.fixture
def source(make_folder, tmp_path, source_of):
    return source_of(make_folder(tmp_path / "data", size=(48, 64)))


def assert_same(first, second):
    assert first["stem"] == second["stem"] and first["group"] == second["group"]
    for key in ("image", "label"):
        assert first[key].dtype == second[key].dtype
        assert torch.equal(first[key], second[key])


@pytest.mark.parametrize("fit", ["crop", "resize"])
@pytest.mark.parametrize(
    ("bands", "dtype"), [(1, "uint8"), (3, "uint8"), (6, "uint16"), (2, "int16"), (4, "float32")]
)
def test_items_keep_the_stored_dtype_and_bands(make_folder, tmp_path, source_of, fit, bands, dtype):
    root = make_folder(tmp_path / "data", train=2, size=(40, 50), bands=bands, dtype=dtype)
    dataset = PairDataset(source_of(root), 32, fit, ALL_STEPS, seed=0)
    item = dataset[SampleIndex(1, 5)]
    assert item["image"].shape == (bands, 32, 32) and item["label"].shape == (32, 32)
    assert item["image"].dtype == getattr(torch, dtype) and item["label"].dtype == torch.uint8
    assert item["stem"] == item["group"] == "train_001"
    assert len(dataset) == 2


def test_crops_are_windows_at_full_resolution_with_image_and_mask_alike(source):
    dataset = PairDataset(source, 32, "crop", TURNS, seed=3)
    image, label = source.read(0)
    sides = set()
    for serial in range(12):
        item = dataset[SampleIndex(0, serial)]
        seen = [
            (turn, flip, top, left)
            for turn in range(4)
            for flip in (False, True)
            for top in range(17)
            for left in range(33)
            if matches(item, image, label, turn, flip, top, left)
        ]
        assert len(seen) == 1
        sides.update(seen)
    assert len(sides) == 12 and len({(turn, flip) for turn, flip, _, _ in sides}) > 3


def matches(item, image, label, turn, flip, top, left):
    def back(part):
        part = part[:, ::-1] if flip else part
        return np.rot90(part, -turn)

    inside = np.s_[top : top + 32, left : left + 32]
    return np.array_equal(back(item["label"].numpy()), label[inside]) and np.array_equal(
        back(item["image"].numpy().transpose(1, 2, 0)), image[inside]
    )


def test_whole_pictures_are_resized_in_training_and_validation(source):
    windows = WindowDataset(source, np.array([[48, 64]] * 6), 32, "resize")
    assert len(windows) == 6
    image, label = source.read(2)
    for item in (PairDataset(source, 32, "resize", OFF, seed=0)[SampleIndex(2, 9)], windows[2]):
        shown = item["image"].numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(shown, resize_image(image, 32))
        np.testing.assert_array_equal(item["label"].numpy(), resize_label(label, 32))


def test_an_item_is_fixed_by_seed_row_and_serial(source):
    def item(seed, row, serial):
        return PairDataset(source, 32, "crop", ALL_STEPS, seed)[SampleIndex(row, serial)]

    assert_same(item(1, 2, 3), item(1, 2, 3))
    for other in (item(2, 2, 3), item(1, 2, 4), item(1, 3, 3)):
        assert not torch.equal(item(1, 2, 3)["image"], other["image"])
    plain = PairDataset(source, 32, "crop", ALL_STEPS, 1)[2]
    assert_same(plain, item(1, 2, 2))


def transplanter(source, reader, p=1.0):
    index = scan(list(source.pairs), reader)
    step = defaults(TransplantStep, p, classes=[1, 2], min_pixels=8)
    stems = [pair.stem for pair in source.pairs]
    return Transplanter(step, index.pixels, reader.palette, source.read, stems)


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_a_transplanter_that_never_acts_changes_no_item(source, reader, fit):
    plain = PairDataset(source, 32, fit, ALL_STEPS, 1)
    same = PairDataset(source, 32, fit, ALL_STEPS, 1, transplanter(source, reader, 0.0))
    for serial in range(6):
        assert_same(plain[SampleIndex(serial, serial)], same[SampleIndex(serial, serial)])


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_regions_are_pasted_into_image_and_mask_alike_before_the_warp(source, reader, fit):
    made = transplanter(source, reader)
    plain = PairDataset(source, 32, fit, TURNS, 1)
    pasted = PairDataset(source, 32, fit, TURNS, 1, made)
    changed = 0
    for serial in range(20):
        draw = SampleIndex(serial % 6, serial)
        image, label = source.read(draw.row)
        size = (32, 32) if fit == "resize" else label.shape
        rng = np.random.default_rng((1, serial))
        warp = draw_warp(TURNS, rng)
        window = draw_window(*warp.shape(*size), 32, rng)
        maps = warp.source_map(*size, window)
        transplant = made.draw(rng, label, None if fit == "resize" else visible_box(maps, label))
        item = pasted[draw]
        if transplant is None:
            assert_same(item, plain[draw])
            continue
        image, label = transplant.apply_pair(image, label)
        if fit == "resize":
            image, label = resize_image(image, 32), resize_label(label, 32)
        seen = item["image"].numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(seen, sample_image(image, maps))
        np.testing.assert_array_equal(item["label"].numpy(), sample_label(label, maps))
        changed += not torch.equal(item["label"], plain[draw]["label"])
    assert changed > 8
    assert_same(pasted[SampleIndex(2, 9)], pasted[SampleIndex(2, 9)])


@pytest.mark.parametrize(
    ("length", "side", "overlap", "starts"),
    [
        (32, 32, 0, [0]), (33, 32, 0, [0, 1]), (64, 32, 0, [0, 32]), (70, 32, 0, [0, 32, 38]),
        (70, 32, 16, [0, 16, 32, 38]),
    ],
)  # fmt: skip
def test_windows_cover_a_length_and_end_at_its_end(length, side, overlap, starts):
    assert window_starts(length, side, overlap) == starts


def test_validation_windows_show_every_pixel_and_can_count_it_once(
    make_folder, tmp_path, source_of
):
    source = source_of(make_folder(tmp_path / "data", train=2, size=(70, 100)))
    sizes = np.array([[70, 100]] * 2)
    plain = WindowDataset(source, sizes, 32, "crop")
    once = WindowDataset(source, sizes, 32, "crop", once=True)
    assert len(plain) == len(once) == 2 * 3 * 4
    covered, counts = np.zeros((2, 70, 100), bool), np.zeros((2, 70, 100), int)
    for position, (row, (top, left, side)) in enumerate(plain.windows):
        item, counting = plain[position], once[position]
        image, label = source.read(row)
        inside = np.s_[top : top + side, left : left + side]
        assert item["stem"] == source.pairs[row].stem
        np.testing.assert_array_equal(item["image"].numpy().transpose(1, 2, 0), image[inside])
        np.testing.assert_array_equal(item["label"].numpy(), label[inside])
        assert torch.equal(item["image"], counting["image"])
        counted = counting["label"] != IGNORE
        assert torch.equal(item["label"][counted], counting["label"][counted])
        covered[row][inside] = True
        counts[row][inside] += counted.numpy()
    assert covered.all()
    np.testing.assert_array_equal(counts, [source.read(row)[1] != IGNORE for row in range(2)])


def test_a_picture_is_decoded_once_for_all_its_windows(source, monkeypatch):
    read = []
    monkeypatch.setattr(
        PairSource,
        "read",
        lambda self, row, real=PairSource.read: read.append(row) or real(self, row),
    )
    dataset = WindowDataset(source, np.array([[48, 64]] * 6), 32, "crop")
    for position in range(len(dataset)):
        dataset[position]["label"].fill_(9)  # what is kept is not what is handed out
    assert read == [0, 1, 2, 3, 4, 5]
    assert dataset[0]["label"].max() != 9 and read[-1] == 0


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_items_are_copies_that_may_be_written_to(make_folder, tmp_path, source_of, reader, bands):
    root = make_folder(tmp_path / "data", train=2, size=32, bands=bands)
    source = source_of(root).in_memory(scan(find_pairs(root, "train"), reader))
    expected = [array.copy() for array in source.read(1)]
    item = WindowDataset(source, np.array([[32, 32]] * 2), 32, "crop")[1]
    for key, array, before in zip(("image", "label"), source.read(1), expected, strict=True):
        item[key].fill_(9)
        np.testing.assert_array_equal(array, before)


def test_the_ram_cache_gives_the_same_items_without_the_files(source, reader):
    cached = source.in_memory(scan(list(source.pairs), reader))
    plain = PairDataset(source, 32, "crop", ALL_STEPS, seed=1)
    expected = [plain[SampleIndex(row, 10 + row)] for row in range(6)]
    for pair in source.pairs:
        pair.image.unlink()
        pair.mask.unlink()
    dataset = PairDataset(cached, 32, "crop", ALL_STEPS, seed=1)
    for row, item in enumerate(expected):
        assert_same(dataset[SampleIndex(row, 10 + row)], item)
    assert source.decoded is None


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_source_of_some_rows_reads_those_pairs(source, reader, in_memory):
    index = scan(list(source.pairs), reader)
    whole = source.in_memory(index) if in_memory else source
    some = whole.rows([4, 1])
    assert [pair.stem for pair in some.pairs] == ["train_004", "train_001"]
    assert (some.decoded is not None) == in_memory
    for row, expected in ((0, 4), (1, 1)):
        for mine, theirs in zip(some.read(row), whole.read(expected), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_ram_cache_that_does_not_fit_is_refused_with_figures(source, reader, monkeypatch):
    index = scan(list(source.pairs), reader)
    needed = 6 * 48 * 64 * 4
    monkeypatch.setattr(module, "free_memory", lambda: int(needed / 0.8) + 1)
    assert len(source.in_memory(index).decoded) == 6
    monkeypatch.setattr(module, "free_memory", lambda: int(needed / 0.8) - 1)
    with pytest.raises(UserError, match=r"data\.cache=ram needs .* for 6 pairs.*data\.cache=none"):
        source.in_memory(index)


@pytest.mark.parametrize("times", [2, 99])
def test_files_of_a_disk_that_drops_out_are_read_again(source, monkeypatch, times):
    waits, failures = [], iter(range(times))
    read = MaskReader.read_pair

    def read_or_fail(self, image, mask):
        if next(failures, None) is not None:
            error = UnreadableError(f"{image} cannot be read: Input/output error.")
            error.errno = errno.EIO
            raise error
        return read(self, image, mask)

    monkeypatch.setattr(MaskReader, "read_pair", read_or_fail)
    monkeypatch.setattr(module.time, "sleep", waits.append)
    if times < 3:
        assert source.read(0)[0].shape == (48, 64, 3)
    else:
        with pytest.raises(UnreadableError, match=r"_000\.png .* 4 times in 15 s.*last\.ckpt"):
            source.read(0)
    assert waits == list(module.RETRY_SECONDS[:times])
    source.pairs[0].image.write_bytes(b"")
    monkeypatch.setattr(MaskReader, "read_pair", read)
    with pytest.raises(UnreadableError, match="does not decode"):
        source.read(0)
    assert len(waits) == len(module.RETRY_SECONDS[:times])


@pytest.mark.parametrize("in_memory", [False, True])
def test_pixels_without_data_are_ignored_in_training_and_validation(
    make_folder, tmp_path, source_of, reader, in_memory
):
    source = source_of(make_folder(tmp_path / "data", train=2, size=32, dtype="float32"))
    pair, (_, before) = source.pairs[1], source.read(1)
    pixels = read_image(pair.image)
    pixels[5:9, 2:20, 1] = np.nan
    write_image(pair.image, pixels)
    if in_memory:
        source = source.in_memory(scan(list(source.pairs), reader))
    expected = before.copy()
    expected[5:9, 2:20] = IGNORE
    for dataset in (
        PairDataset(source, 32, "crop", OFF, seed=0),
        WindowDataset(source, np.array([[32, 32]] * 2), 32, "crop"),
    ):
        item = dataset[1]
        np.testing.assert_array_equal(item["label"].numpy(), expected)
        assert torch.isfinite(item["image"]).all()
    warped = PairDataset(source, 32, "crop", ALL_STEPS, seed=0)
    assert all(torch.isfinite(warped[SampleIndex(1, n)]["image"]).all() for n in range(4))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_error_in_a_loaders_process_is_the_same_line_outside(source):
    source.pairs[0].image.write_bytes(b"")
    path = source.pairs[0].image
    with pytest.raises(UnreadableError, match=f"^{re.escape(str(path))}: does not decode [^\n]*$"):
        list(DataLoader(PairDataset(source, 32, "crop", OFF, seed=0), num_workers=1))
