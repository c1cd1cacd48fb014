import numpy as np
import pytest

from geoseg_gan.data.jitter import Warp, sample_label
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.transplant import (
    MARGIN,
    crop_with_margin,
    draw_place,
    draw_region,
    region_map,
    rotate_flip,
)


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


# Numbers


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]]),
        # Corners connect, here those of both classes.
        ([[0, 1], [1, 0]], [[0, 1], [1, 0]]),
        # In order of class, then of place; ignore comes last.
        ([[2, 2, 0, 1], [IGNORE, 0, 0, 1], [1, 1, 0, IGNORE]],
         [[3, 3, 0, 1], [4, 0, 0, 1], [2, 2, 0, 5]]),
        ([[1, 0, 1, 0, 1]], [[2, 0, 3, 1, 4]]),
    ],
)  # fmt: skip
def test_regions_are_numbered_by_class_and_place(label, expected):
    regions = region_map(np.array(label, np.uint8))
    assert regions.dtype == np.int32
    assert regions.tolist() == expected


def test_an_enclosed_region_is_one_of_its_own():
    label = field(a=(10, 10, 20, 20))
    label[15:20, 15:20] = 0
    regions = region_map(label)
    assert [regions[place] for place in ((0, 0), (16, 16), (11, 11))] == [0, 1, 2]


# Regions


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


def test_what_lies_a_pixel_from_the_border_is_a_region():
    assert region_of(field(a=(1, 1, 38, 5))).box == (1, 1, 38, 5)


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


# Places


def test_a_place_has_the_right_surroundings():
    label = np.zeros((40, 60), np.uint8)
    label[:, 30:] = 2
    lefts = {place_of(label, block(5, 5), surroundings=2, seed=seed)[1] for seed in range(50)}
    assert min(lefts) >= 29 and max(lefts) <= 60 - MARGIN - 5 and len(lefts) > 15


def test_there_is_no_place_with_other_surroundings():
    assert place_of(np.zeros((40, 40), np.uint8), block(5, 5), surroundings=1) is None
    checks = np.indices((40, 40)).sum(0) % 2  # half of any surroundings
    assert place_of(checks.astype(np.uint8), block(5, 5), surroundings=1) is None
    assert (
        place_of(np.uint8(np.indices((40, 40))[0] % 8 > 0), block(5, 5), surroundings=1) is not None
    )


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


# Cutting and turning


def test_beyond_the_border_its_pixels_repeat():
    pixels = np.arange(30).reshape(5, 6)
    expected = np.pad(pixels, MARGIN, mode="edge")
    np.testing.assert_array_equal(crop_with_margin(pixels, (0, 0, 5, 6)), expected)
    np.testing.assert_array_equal(
        crop_with_margin(pixels[..., None], (1, 2, 2, 2))[..., 0], expected[1:9, 2:10]
    )


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_regions_are_turned_and_mirrored_as_warps_do_it(turns, flip):
    label = np.random.default_rng(0).integers(0, 9, (12, 12), np.uint8)
    warped = sample_label(label, Warp(flip, turns).source_map(12, 12, (0, 0, 12)))
    np.testing.assert_array_equal(rotate_flip(label, turns, flip), warped)
