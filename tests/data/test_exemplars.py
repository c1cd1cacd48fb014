from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from geoseg_gan.data.exemplars import Exemplars, best_place, continued, differences, shape_of
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.transplant import region_map, rotate_flip

CLASSES = 4


def tiles(*labels, group="all"):
    """A source of tiles whose bands are row, class and place."""

    def read(row):
        label = labels[row]
        place = np.arange(label.size).reshape(label.shape) % 251
        bands = [np.full_like(label, row + 1), label * 10, place.astype(np.uint8)]
        return np.stack(bands, -1), label

    pairs = [SimpleNamespace(stem=f"tile_{row}", group=group) for row in range(len(labels))]
    return SimpleNamespace(pairs=pairs, read=read)


def drawn(seed, size=48, classes=3):
    """A label map of blobs."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (size // 8, size // 8)).astype(np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def inside(label):
    """Where no edge of a region is so near that images blend there."""
    same = cv2.dilate(label, np.ones((7, 7))) == cv2.erode(label, np.ones((7, 7)))
    assert same.mean() > 0.1
    return same


def rng(seed=0):
    return np.random.default_rng(seed)


def exemplars(*labels, fit="crop"):
    return Exemplars(tiles(*labels), CLASSES, fit, 24)


def test_a_mask_whose_regions_are_those_of_a_tile_shows_this_tile():
    label = np.zeros((40, 40), np.uint8)
    label[5:17, 8:30], label[25:38, 3:9] = 1, 2
    source = tiles(label)
    image = Exemplars(source, CLASSES, "crop", 40).compose(rng(), label, "another")
    np.testing.assert_array_equal(image[inside(label)], source.read(0)[0][inside(label)])


@pytest.mark.parametrize("seed", range(6))
def test_every_pixel_shows_its_class_but_at_the_edges_of_regions(seed):
    found = exemplars(*(drawn(100 + number) for number in range(8)))
    label = drawn(seed, size=64)
    image = found.compose(rng(seed), label, "tile_0")
    np.testing.assert_array_equal(image[inside(label), 1], 10 * label[inside(label)])


def test_nothing_is_taken_of_the_tile_of_the_mask_while_others_have_the_class():
    labels = [drawn(number) for number in range(4)]
    labels[2][:8, :8] = 3  # which no other has
    found = exemplars(*labels)
    for seed in range(5):
        image = found.compose(rng(seed), labels[2], "tile_2")
        own = (image[..., 0] == 3) & inside(labels[2])
        np.testing.assert_array_equal(own, (labels[2] == 3) & inside(labels[2]))


def test_a_class_that_no_tile_has_stays_black():
    label = np.zeros((32, 32), np.uint8)
    label[:, 16:] = 3
    image = exemplars(np.zeros((32, 32), np.uint8)).compose(rng(), label, "tile_0")
    assert (image[:, :14, 0] == 1).all()
    assert not image[:, 18:].any()


def test_classes_that_no_tile_has_are_ignored():
    label = np.array([[0, 3, 1, IGNORE]], np.uint8)
    known = exemplars(np.zeros((32, 32), np.uint8), drawn(0)).known(label)
    assert known.tolist() == [[0, IGNORE, 1, IGNORE]]


def test_what_is_ignored_shows_what_is_ignored_in_tiles():
    label = np.zeros((32, 32), np.uint8)
    label[:, 16:] = IGNORE
    source = tiles(label)
    image = Exemplars(source, CLASSES, "crop", 32).compose(rng(), label, "another")
    np.testing.assert_array_equal(image[inside(label)], source.read(0)[0][inside(label)])


def test_an_image_is_fixed_by_its_random_numbers_alone():
    found = exemplars(*(drawn(number) for number in range(8)))
    label = drawn(50)
    first = found.compose(rng(3), label, "")
    for seed in range(4, 8):
        found.compose(rng(seed), drawn(seed), "")
    np.testing.assert_array_equal(found.compose(rng(3), label, ""), first)
    assert (found.compose(rng(9), label, "") != first).any()


def test_tiles_that_are_shown_resized_are_taken_resized():
    label = np.zeros((48, 48), np.uint8)
    label[:, 24:] = 1
    image = exemplars(label, fit="resize").compose(rng(), label[::2, ::2], "")
    assert image.shape == (24, 24, 3)
    assert (image[:, :10, 1] == 0).all() and (image[:, 14:, 1] == 10).all()


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_a_region_fits_in_the_orientation_in_which_it_is_the_wanted_one(turns, flip):
    label = np.zeros((40, 40), np.uint8)
    label[4:30, 4:10] = label[24:30, 4:20] = 1  # an L

    def shape(label):
        regions = region_map(label)
        number = int(regions[label == 1][0])
        rows, columns = np.nonzero(regions == number)
        top, left = int(rows.min()), int(columns.min())
        box = (top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left)
        return shape_of(label, regions, number, box, CLASSES)

    offered = shape(label)
    wanted = shape(rotate_flip(label, turns, flip))
    costs = differences(wanted, type(offered)(*(part[None] for part in offered)))[:, 0]
    assert costs.argmin() == turns + 4 * flip
    assert costs.min() == pytest.approx(0, abs=1e-5)


def test_a_region_is_reflected_at_its_edge_and_its_box():
    taken = np.array([[False, True, True, True, False]])
    _, columns = continued(taken, np.arange(1), np.arange(-1, 7))
    assert columns[0].tolist() == [2, 2, 1, 2, 3, 2, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_only_pixels_of_the_region_are_shown_wherever_it_is_laid(seed):
    draw = rng(seed)
    taken = draw.random(draw.integers(1, 12, 2)) < 0.4
    taken[tuple(draw.integers(0, taken.shape))] = True
    rows, columns = (np.arange(draw.integers(1, 20)) + draw.integers(-25, 25) for _ in range(2))
    shown = continued(taken, rows, columns)
    assert shown[0].shape == (len(rows), len(columns))
    assert taken[shown].all()
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if 0 <= row < taken.shape[0] and 0 <= column < taken.shape[1] and taken[row, column]:
                assert (shown[0][i, j], shown[1][i, j]) == (row, column)


def test_a_place_is_where_most_of_the_wanted_region_is_covered():
    taken = np.zeros((9, 40), bool)
    taken[:, :20] = taken[:, 30:] = True
    covered = np.ones((9, 6), bool)
    for seed in range(10):
        (top, left), count = best_place(covered, taken, rng(seed))
        assert count == covered.sum()
        assert taken[top : top + 9, left : left + 6].all()
