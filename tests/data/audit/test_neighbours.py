import pytest

from geoseg_gan.data.audit.folders import Entry
from geoseg_gan.data.audit.relations import (
    Footprint,
    footprint_neighbours,
    group_pattern,
    named_places,
)


def place(left, top, side=10.0, frame="a", pixel=1.0):
    return Footprint(frame, left, top, left + side, top + side, pixel)


@pytest.mark.parametrize(
    ("other", "overlap"),
    [
        (place(10, 0), 0.0), (place(0, 10), 0.0), (place(10.4, 0), 0.0), (place(5, 0), 0.5),
        (place(5, 5), 0.25), (place(0, 0, side=5), 1.0), (place(10, 10), None),
        (place(12, 0), None), (place(10, 0, frame="b"), None),
    ],
)  # fmt: skip
def test_footprints_that_touch_or_overlap(other, overlap):
    one, two, far = (
        Entry(*name, None, None) for name in (("train", "a"), ("val", "a"), ("val", "b"))
    )
    found = footprint_neighbours({one: place(0, 0)}, {far: place(99, 0), two: other})
    assert found == ([] if overlap is None else [(one, two, overlap)])


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (["s_r01_c02"], ["s_r01_c03", "s_r02_c02", "s_r02_c03", "t_r01_c03"], [(0, 0), (0, 1)]),
        (["a_0_256", "a_0_0"], ["a_256_256", "b_0_0"], [(0, 0)]),
        (["img_7", "7"], ["img_8", "8"], []),
    ],
)
def test_names_that_stand_beside_each_other(first, second, found):
    parts = [
        [Entry(s, stem, None, None) for stem in stems]
        for s, stems in (("train", first), ("val", second))
    ]
    places = named_places([*parts[0], *parts[1]])
    near = footprint_neighbours(*({e: places[e] for e in part if e in places} for part in parts))
    assert sorted((parts[0].index(a), parts[1].index(b), share) for a, b, share in near) == [
        (*two, 0) for two in found
    ]


@pytest.mark.parametrize(
    ("stems", "val", "groups"),
    [
        ([f"{s}_r{r:02d}_c{c:02d}" for s in "xy" for r in (0, 1) for c in (0, 1)], "-", 2),
        ([f"{s}_r{r:02d}_c{c:02d}" for s in "xy" for r in (0, 1) for c in (0, 1)], "y", None),
        ([f"{s}_image_part_{n:03d}" for s in ("t1", "t2", "t3") for n in range(9)], "t3", 3),
        ([f"t2_image_part_{n:03d}_{part}" for n in range(6) for part in (0, 1)], "-", 6),
        ([f"t2_image_part_{n:03d}_{m}" for n in range(6) for m in (0, 1)], "t2_image_part_005", 6),
        ([f"img_{n}" for n in range(9)], "-", None),
        ([f"{split}_{n}" for split in ("train", "val") for n in range(9)], "val", None),
        (["north", "south", "x_1"], "-", None),
    ],
)
def test_the_pattern_of_location_groups(stems, val, groups):
    splits = ["val" if stem.startswith(val) else "train" for stem in stems]
    entries = [Entry(s, stem, None, None) for s, stem in zip(splits, stems, strict=True)]
    found = group_pattern(entries)
    assert (found and found[1]) == groups
