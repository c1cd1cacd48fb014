import pytest

from geoseg_gan.data.audit.relations import (
    Footprint,
    footprint_neighbours,
    group_pattern,
    name_neighbours,
)


def place(left, top, side=10.0, frame="a", pixel=1.0):
    return Footprint(frame, left, top, left + side, top + side, pixel)


@pytest.mark.parametrize(
    ("other", "overlap"),
    [
        (place(10, 0), 0.0), (place(0, 10), 0.0), (place(10.4, 0), 0.0), (place(5, 0), 0.5),
        (place(5, 5), 0.25), (place(0, 0, side=5), 1.0), (place(10, 10), None),
        (place(12, 0), None), (place(10, 0, frame="b"), None), (None, None),
    ],
)  # fmt: skip
def test_footprints_that_touch_or_overlap(other, overlap):
    found = footprint_neighbours([place(0, 0)], [None, other])
    expected = [] if overlap is None else [(0, 1, overlap)]
    assert found == expected


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (["s_r01_c02"], ["s_r01_c03", "s_r02_c02", "s_r02_c03", "t_r01_c03"], [(0, 0), (0, 1)]),
        (["a_0_256", "a_0_0"], ["a_256_256", "b_0_0"], [(0, 0)]),
        (["img_7", "7"], ["img_8", "8"], []),
    ],
)
def test_names_that_stand_beside_each_other(first, second, found):
    assert name_neighbours(first, second) == found


@pytest.mark.parametrize(
    ("stems", "groups"),
    [
        ([f"{s}_r{r:02d}_c{c:02d}" for s in ("x", "y") for r in (0, 1) for c in (0, 1)], 2),
        ([f"{s}_image_part_{n:03d}" for s in ("tile1", "tile2", "tile3") for n in range(9)], 3),
        ([f"img_{n}" for n in range(9)], None),
        (["north", "south", "x_1"], None),
    ],
)
def test_the_pattern_of_location_groups(stems, groups):
    found = group_pattern(stems)
    assert (found and found[1]) == groups
