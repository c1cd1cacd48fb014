import json
import pickle

import numpy as np
import pytest
from defaults import defaults

from geoseg_gan.data.jitter import Warp, draw_warp, draw_window, sample_label
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.scan import scan
from geoseg_gan.data.settings import AffineStep, JitterSettings, QuarterTurnStep, TransplantStep
from geoseg_gan.data.transplant import (
    MARGIN,
    Transplant,
    Transplanter,
    crop_with_margin,
    draw_place,
    draw_region,
    rare_classes,
    region_map,
    rotate_flip,
    slices,
    visible_box,
)
from geoseg_gan.utils.errors import UserError

ALWAYS = defaults(TransplantStep, p=1.0, min_pixels=8)


def label_of(number, size=48):
    """Ground 0 with a block of class 1 in a frame of class 2, and a corner of ignore."""
    rng = np.random.default_rng(number)
    label = np.zeros((size, size), np.uint8)
    top, left = rng.integers(6, size - 18, 2)
    label[top : top + 8, left : left + 10] = 2
    label[top + 2 : top + 5, left + 2 : left + 6] = 1
    label[:4, :4] = IGNORE
    return label


def read(row):
    """Pictures whose bands tell row and class."""
    label = label_of(row)
    image = np.stack([np.full_like(label, 40 + row), label * 20, 255 - label], -1)
    return image, label


def counts(labels):
    bins = [np.bincount(label.ravel(), minlength=256) for label in labels]
    return np.array([[*line[:3], line[IGNORE]] for line in bins], np.int64)


@pytest.fixture
def transplanter(palette):
    def make(step=ALWAYS, rows=6, **changes):
        pixels = counts([label_of(row) for row in range(rows)])
        stems = [f"tile_{row}" for row in range(rows)]
        return Transplanter(step, pixels, palette, read, stems, **changes)

    return make


def draw(transplanter, seed, label=None, view=None):
    label = label_of(99) if label is None else label
    return transplanter.draw(np.random.default_rng(seed), label, view)


def test_a_transplant_is_a_region_of_the_donor_turned_and_put_elsewhere(transplanter):
    made, inner = transplanter(), np.s_[MARGIN:-MARGIN, MARGIN:-MARGIN]
    drawn = [draw(made, seed) for seed in range(60)]
    for t in drawn:
        image, donor = (
            rotate_flip(part[slices(t.source)], t.quarter_turns, t.flip)
            for part in read(int(t.donor[5:]))
        )
        np.testing.assert_array_equal(t.image[inner], image)
        np.testing.assert_array_equal(t.label[inner], donor)
        assert (t.label == IGNORE).sum() == t.label.size - donor.size
        assert t.box[2:] == donor.shape
        assert t.pixels == (donor == {"Forest land": 1, "Settlement": 2}[t.class_name]).sum()
    assert len({t.donor for t in drawn}) == 6 and len({t.box for t in drawn}) > 50
    assert {t.quarter_turns for t in drawn} == {0, 1, 2, 3}
    assert {t.flip for t in drawn} == {False, True}
    assert {t.class_name for t in drawn} == {"Forest land", "Settlement"}


def test_a_transplant_goes_where_its_surroundings_match(transplanter):
    made = transplanter(defaults(TransplantStep, 1.0, classes=["Forest land"], min_pixels=8))
    label = np.zeros((48, 48), np.uint8)
    assert draw(made, 0, label) is None  # class 1 lies in class 2, of which there is none
    label[:, 20:] = 2
    lefts = {draw(made, seed, label).box[1] for seed in range(40)}
    assert min(lefts) >= 19 and len(lefts) > 15


def test_transplants_come_with_their_probability(transplanter):
    assert not any(draw(transplanter(defaults(TransplantStep, 0.0)), seed) for seed in range(50))
    made = transplanter(defaults(TransplantStep, 0.3, min_pixels=8))
    drawn = [draw(made, seed) is not None for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.06)


def test_a_region_takes_its_share_of_what_is_seen_and_lies_in_it(transplanter):
    label = np.zeros((48, 48), np.uint8)
    view = (4, 10, 24, 30)
    named = {"classes": [2], "min_pixels": 8}
    # The frame holds 80 pixels with the block: a ninth of the 720 in view.
    large = transplanter(defaults(TransplantStep, 1.0, max_share=0.112, **named))
    for seed in range(30):
        top, left, height, width = draw(large, seed, label, view).box
        assert top >= 4 + MARGIN and top + height <= 28 - MARGIN
        assert left >= 10 + MARGIN and left + width <= 40 - MARGIN
    small = transplanter(defaults(TransplantStep, 1.0, max_share=0.110, **named))
    assert draw(small, 0, label, view) is None
    assert draw(small, 0, label) is not None  # of the whole label it is a 29th


def test_transplants_of_masks_alone_need_no_images(make_folder, tmp_path, palette):
    reader = MaskReader(palette)
    index = scan(find_pairs(make_folder(tmp_path / "data"), "train"), reader)
    for pair in index.pairs:
        pair.image.unlink()
    made = Transplanter.of_masks(ALWAYS, index, reader)
    again = pickle.loads(pickle.dumps(made))  # as loader processes get it
    label = reader.read(index.pairs[0].mask)[0]
    transplants = [draw(made, seed, label) for seed in range(20)]
    found = [transplant for transplant in transplants if transplant is not None]
    assert found and all(transplant.image is None for transplant in found)
    assert {transplant.donor for transplant in found} <= {pair.stem for pair in index.pairs}
    for seed, transplant in enumerate(transplants):
        other = draw(again, seed, label)
        assert (transplant and transplant.to_dict()) == (other and other.to_dict())


def test_only_the_region_changes_and_ignored_pixels_stay(transplanter):
    made = transplanter()
    for seed in range(60):
        label = label_of(seed + 200)
        before = label.copy()
        transplant = draw(made, seed, label)
        pasted = transplant.apply(label)
        np.testing.assert_array_equal(label, before)
        np.testing.assert_array_equal(pasted == IGNORE, label == IGNORE)
        outside = np.ones_like(label, bool)
        outside[slices(transplant.box)] = False
        np.testing.assert_array_equal(pasted[outside], label[outside])
        inside = transplant.label[MARGIN:-MARGIN, MARGIN:-MARGIN]
        np.testing.assert_array_equal(pasted[slices(transplant.box)], inside)


@pytest.mark.parametrize(
    ("dtype", "bands"), [("uint8", 3), ("uint16", 6), ("int16", 1), ("float32", 3)]
)
def test_images_pass_into_the_donor_s_within_two_pixels_of_the_edge(dtype, bands):
    patch = np.full((16, 16), IGNORE, np.uint8)
    patch[3:13, 3:13] = 1
    donor = np.full((16, 16, bands), 200, dtype)
    transplant = Transplant(
        "a", "Forest land", 100, (3, 3, 10, 10), 0, False, (8, 9, 10, 10), patch, donor
    )
    image = np.full((30, 30, bands), 100, dtype)
    mixed, label = transplant.apply_pair(image, np.zeros((30, 30), np.uint8))
    assert mixed.dtype == dtype and mixed.shape == image.shape and (image == 100).all()
    assert label.sum() == label[8:18, 9:19].sum() == 100
    np.testing.assert_allclose(mixed[10:16, 11:17], 200, atol=1e-3)
    far = np.ones((30, 30), bool)
    far[6:20, 7:21] = False
    np.testing.assert_array_equal(mixed[far], 100)
    edge = mixed[13, 7:12, 0].astype(float)  # two pixels before the region and three in it
    assert (np.diff(edge) > 0).all()
    assert edge[1] + edge[2] == pytest.approx(300, abs=1) and 115 < edge[1] < 135


def test_pixels_outside_the_region_keep_their_label():
    patch = np.full((9, 9), IGNORE, np.uint8)
    patch[3:6, 3:6] = 2
    patch[4, 4] = IGNORE  # an ignored pixel that the region encloses
    transplant = Transplant("a", "Settlement", 8, (3, 3, 3, 3), 0, False, (5, 5, 3, 3), patch)
    label = transplant.apply(np.ones((12, 12), np.uint8))
    assert label[6, 6] == 1 and (label == 2).sum() == 8


def test_a_transplant_is_stored_as_plain_values(transplanter):
    t = draw(transplanter(), 3)
    stored = json.loads(json.dumps(t.to_dict()))
    where = {"from": list(t.source), "to": list(t.box)}
    turn = {"quarter_turn": t.quarter_turns, "flip": t.flip}
    assert stored == {"donor": t.donor, "class": t.class_name, "pixels": t.pixels} | where | turn


@pytest.mark.parametrize(
    ("totals", "classes"),
    [
        ([600, 300, 100], [2]),  # an even share is 333 pixels
        ([700, 150, 150], [1, 2]),
        ([500, 300, 200], [1, 2]),  # none under 167, so those under 333
        ([900, 0, 100], [2]),
        ([333, 333, 333], [0, 1, 2]),
        ([0, 0, 50], [2]),
        ([0, 0, 0], []),
    ],
)
def test_rare_classes_are_those_under_half_of_an_even_share(totals, classes):
    pixels = np.array([[*totals, 10_000], [0, 0, 0, 5]], np.int64)
    assert rare_classes(pixels) == classes


def test_classes_are_given_by_name_or_id_and_rows_without_them_are_no_donors(palette):
    pixels = np.array([[9, 40, 0, 0], [9, 0, 31, 0], [9, 32, 32, 0]], np.int64)

    def donors(classes):
        step = defaults(TransplantStep, 1.0, classes=classes)
        made = Transplanter(step, pixels, palette, read, ["a", "b", "c"])
        return {c: rows.tolist() for c, rows in made.donors.items()}

    assert donors(["Settlement", 1]) == {2: [2], 1: [0, 2]}
    assert donors([0, 2]) == {2: [2]}  # none has 32 pixels of class 0


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"classes": ["Lake"]}, r"^augment\.copy_paste\.classes: 'Lake' is not a class"),
        ({"classes": ["Forest land", 2], "min_pixels": 5000},
         r"no training mask holds min_pixels=5000 of Forest land, Settlement\. Lower it"),
    ],
)  # fmt: skip
def test_classes_that_are_not_there_are_refused(step, message, transplanter):
    with pytest.raises(UserError, match=message):
        transplanter(defaults(TransplantStep, 1.0, **step), key="augment.copy_paste")


def test_the_view_is_what_a_warp_shows():
    label = np.zeros((40, 60), np.uint8)
    assert visible_box(Warp().source_map(40, 60, (5, 8, 20)), label) == (5, 8, 20, 20)
    turned = Warp(quarter_turns=1).source_map(40, 60, (0, 0, 40))
    assert visible_box(turned, label) == (0, 20, 40, 40)
    zoomed = Warp(affine=(0.5, 0, 0, 0.5, 0, 0)).source_map(40, 60, (0, 0, 40))
    # Rows 9.75 to 29.25, columns 14.75 to 34.25.
    assert visible_box(zoomed, label) == (9, 14, 21, 21)
    beyond = Warp(affine=(3, 0, 0, 3, 0, 0)).source_map(40, 60, (0, 10, 40))
    assert visible_box(beyond, label) == (0, 0, 40, 60)


@pytest.mark.parametrize("turns", [0.0, 1.0])
def test_transplants_lie_in_the_window_that_is_cropped(transplanter, turns):
    settings = defaults(
        JitterSettings,
        affine=defaults(AffineStep, 1.0, degrees=0, scale=[1.5, 2.0]),
        quarter_turn=defaults(QuarterTurnStep, turns),
    )
    made = transplanter(defaults(TransplantStep, 1.0, classes=[2], min_pixels=8))
    label = np.zeros((96, 96), np.uint8)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        maps = draw_warp(settings, rng).source_map(96, 96, draw_window(96, 96, 48, rng))
        transplant = made.draw(rng, label, visible_box(maps, label))
        if transplant is not None:
            seen = (sample_label(transplant.apply(label), maps) == 2).sum()
            assert seen >= 1.5**2 * transplant.pixels * 0.9


def field(size=40, **blocks):
    """Class 0 with blocks of class 1, each given as top, left, height, width."""
    label = np.zeros((size, size), np.uint8)
    for top, left, height, width in blocks.values():
        label[top : top + height, left : left + width] = 1
    return label


def region_of(label, smallest=1, largest=1000.0, seed=0):
    return draw_region(label, 1, smallest, largest, np.random.default_rng(seed))


def place_of(label, filled, surroundings=0, view=None, tries=64, seed=0):
    view = view or (0, 0, *label.shape)
    return draw_place(label, view, filled, surroundings, tries, np.random.default_rng(seed))


def block(height, width):
    return np.pad(np.ones((height, width), bool), MARGIN)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]]),
        # Corners connect, here those of both classes.
        ([[0, 1], [1, 0]], [[0, 1], [1, 0]]),
        # In order of class, then of place; ignore comes last. What is enclosed has its own number.
        ([[2, 2, 0, 1], [IGNORE, 0, 0, 1], [1, 1, 0, IGNORE]],
         [[3, 3, 0, 1], [4, 0, 0, 1], [2, 2, 0, 5]]),
        ([[1, 0, 1, 0, 1]], [[2, 0, 3, 1, 4]]),
        ([[1, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 0]],
         [[2, 2, 2], [2, 0, 2], [2, 2, 2], [1, 1, 1]]),
    ],
)  # fmt: skip
def test_regions_are_numbered_by_class_and_place(label, expected):
    regions = region_map(np.array(label, np.uint8))
    assert regions.dtype == np.int32
    assert regions.tolist() == expected


def test_a_region_has_its_box_its_pixels_and_its_surroundings():
    label = field(a=(6, 7, 4, 5))
    label[label == 0] = 2
    region = region_of(label)
    assert region.box == (6, 7, 4, 5) and region.pixels == 20 and region.surroundings == 2
    np.testing.assert_array_equal(region.filled, block(4, 5))


def test_a_region_comes_with_what_it_encloses():
    label = field(a=(10, 10, 5, 5))
    label[11:14, 11:14] = 2
    region = region_of(label)
    assert region.pixels == 16
    np.testing.assert_array_equal(region.filled, block(5, 5))
    assert region_of(label, largest=25) is not None
    assert region_of(label, largest=24) is None  # though the class alone has 16 pixels


def test_parts_that_touch_at_a_corner_are_one_region():
    region = region_of(field(a=(10, 10, 3, 3), b=(13, 13, 3, 3)))
    assert region.box == (10, 10, 6, 6) and region.pixels == 18


@pytest.mark.parametrize("edge", [(0, 10, 5, 5), (35, 10, 5, 5), (10, 0, 5, 5), (10, 35, 5, 5)])
def test_what_touches_the_border_is_no_region(edge):
    assert region_of(field(a=edge)) is None
    assert region_of(field(a=(1, 1, 38, 5))).box == (1, 1, 38, 5)  # a pixel away from it


@pytest.mark.parametrize(("row", "fits"), [(12, False), (10, False), (9, True)])
def test_what_may_go_on_under_ignored_pixels_is_no_region(row, fits):
    label = field(a=(13, 13, 6, 6))
    label[row, 15] = IGNORE
    assert (region_of(label) is not None) == fits


def test_regions_keep_to_the_sizes_that_are_asked_for():
    label = field(a=(5, 5, 4, 5))
    assert region_of(label, smallest=20) and not region_of(label, smallest=21)
    assert region_of(label, largest=20) and not region_of(label, largest=19.9)


def test_a_village_is_cut_from_the_roads_that_lead_out_of_it():
    label = field(60, village=(20, 20, 20, 20), road=(28, 0, 4, 60))
    region = region_of(label)
    assert region.surroundings == 0 and region.box == (20, 20, 20, 20)
    assert 360 <= region.pixels < 400  # its corners are rounded a little


def test_what_hangs_together_by_more_than_necks_is_not_cut():
    wide = field(60, village=(20, 20, 20, 20), road=(22, 0, 16, 60))
    assert region_of(wide) is None
    crossing = field(60, village=(22, 22, 15, 15), road=(25, 0, 9, 60), other=(0, 25, 60, 9))
    assert region_of(crossing) is None  # 36 of some 80 pixels around it would be cuts


def test_every_pixel_of_the_class_has_the_same_chance_to_be_in_the_region():
    label = field(a=(5, 5, 5, 6), b=(20, 20, 9, 10))
    rng = np.random.default_rng(0)
    drawn = [draw_region(label, 1, 1, 1000.0, rng).pixels for _ in range(1000)]
    assert set(drawn) == {30, 90}
    assert np.mean(np.array(drawn) == 90) == pytest.approx(0.75, abs=0.05)


def test_a_place_has_the_right_surroundings():
    label = np.zeros((40, 60), np.uint8)
    label[:, 30:] = 2
    lefts = {place_of(label, block(5, 5), surroundings=2, seed=seed)[1] for seed in range(50)}
    assert min(lefts) >= 29 and max(lefts) <= 60 - MARGIN - 5 and len(lefts) > 15


def test_there_is_no_place_with_other_surroundings():
    rows, columns = np.indices((40, 40))
    for label, fits in ((rows * 0, False), ((rows + columns) % 2, False), (rows % 8 > 0, True)):
        place = place_of(np.uint8(label), block(5, 5), surroundings=1)
        assert (place is not None) == fits


def test_a_place_lies_within_the_view_with_its_margin():
    label = np.zeros((40, 40), np.uint8)
    view = (10, 20, 14, 12)
    places = {place_of(label, block(6, 5), view=view, tries=1, seed=s) for s in range(200)}
    rows, columns = (set(axis) for axis in zip(*places, strict=True))
    assert rows == set(range(13, 16)) and columns == set(range(23, 25))
    assert place_of(label, block(9, 5), view=view) is None  # 15 rows with its margin
    assert place_of(label, block(5, 7), view=view) is None


def test_ignored_pixels_are_never_covered_though_they_may_be_beside():
    label = np.zeros((40, 40), np.uint8)
    label[20, :] = IGNORE
    tops = {place_of(label, block(6, 6), seed=seed)[0] for seed in range(80)}
    assert all(top + 6 <= 20 or top > 20 for top in tops)
    label[::6] = IGNORE
    assert place_of(label, block(6, 6)) is None


def test_beyond_the_border_its_pixels_repeat():
    pixels = np.arange(30).reshape(5, 6)
    expected = np.pad(pixels, MARGIN, mode="edge")
    np.testing.assert_array_equal(crop_with_margin(pixels, (0, 0, 5, 6)), expected)
    part = crop_with_margin(pixels[..., None], (1, 2, 2, 2))[..., 0]
    np.testing.assert_array_equal(part, expected[1:9, 2:10])


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_regions_are_turned_and_mirrored_as_warps_do_it(turns, flip):
    label = np.random.default_rng(0).integers(0, 9, (12, 12), np.uint8)
    warped = sample_label(label, Warp(flip, turns).source_map(12, 12, (0, 0, 12)))
    np.testing.assert_array_equal(rotate_flip(label, turns, flip), warped)
