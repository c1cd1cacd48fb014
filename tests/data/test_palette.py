import json
import pickle

import numpy as np
import pytest

from geoseg_gan.data.palette import IGNORE, Palette, PaletteClass, UnknownColorError, class_ids
from geoseg_gan.utils.errors import UserError

RED, GREEN = [200, 0, 0], [0, 200, 0]
LISTED = "0 'Background', 1 'Forest land', 2 'Settlement'"


def random_label(palette, shape=(33, 47)):
    values = np.array([*range(palette.num_classes), IGNORE], np.uint8)
    return np.random.default_rng(0).choice(values, shape)


def many_classes(count):
    return [PaletteClass(f"class {i}", [i, 255 - i, i // 2]) for i in range(count)]


def test_a_class_id_is_its_position(palette):
    mask = np.array([[[168, 232, 84], [255, 214, 33], [250, 62, 119], [0, 0, 0]]], np.uint8)
    label, unknown = palette.encode(mask)
    assert label.dtype == np.uint8 and label.tolist() == [[1, 2, 0, 255]] and unknown == 0
    assert palette.names == ["Background", "Forest land", "Settlement"]
    assert palette.num_classes == 3


def test_the_round_trip_is_exact_both_ways(palette):
    many = Palette(many_classes(254), [[1, 2, 3]])
    for known, label in ((palette, random_label(palette)), (many, random_label(many))):
        mask = known.decode(label)
        assert mask.shape == (33, 47, 3) and mask.dtype == np.uint8
        again, unknown = known.encode(mask)
        np.testing.assert_array_equal(again, label)
        np.testing.assert_array_equal(known.decode(again), mask)
        assert unknown == 0


def test_all_three_channels_tell_colours_apart(palette):
    neighbours = [
        [base[k] + step * (k == channel) for k in range(3)]
        for base in [c.color for c in palette.classes]
        for channel in range(3)
        for step in (-1, 1)
        if 0 <= base[channel] + step <= 255
    ]
    label, unknown = palette.encode(np.array([neighbours], np.uint8), "ignore")
    assert unknown == len(neighbours) == 17
    assert (label == IGNORE).all()
    swapped = np.array([[c.color[::-1] for c in palette.classes]], np.uint8)
    assert palette.encode(swapped, "ignore")[1] == 3


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[:, ::-1],
        lambda a: a.transpose(1, 0, 2),
        lambda a: a[3:20:2, 5:40],
        lambda a: np.asfortranarray(a),
        lambda a: np.concatenate([a, a], -1)[..., 3:],
    ],
)
def test_any_memory_layout_is_read(palette, view):
    label = random_label(palette)
    flat = np.repeat(label[..., None], 3, axis=-1)
    np.testing.assert_array_equal(
        palette.encode(view(palette.decode(label)))[0], view(flat)[..., 0]
    )


def test_every_ignore_colour_is_read_as_255_which_is_written_as_the_first():
    classes = [PaletteClass("a", RED), PaletteClass("b", GREEN)]
    palette = Palette(classes, [[9, 9, 9], [0, 0, 0]])
    label, unknown = palette.encode(np.array([[[9, 9, 9], [0, 0, 0], RED]], np.uint8))
    assert label.tolist() == [[255, 255, 0]] and unknown == 0
    assert palette.decode(label).tolist() == [[[9, 9, 9], [9, 9, 9], RED]]
    with pytest.raises(UnknownColorError, match=r"\(0, 0, 0\) in 4 pixels"):
        Palette(classes).encode(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\[255\] have no colour"):
        Palette(classes).decode(label)


def test_an_unknown_colour_is_an_error_by_default_that_says_all(palette):
    mask = palette.decode(random_label(palette))
    mask[0, :5] = 170, 230, 80
    mask[1, :2] = 1, 2, 3
    with pytest.raises(UnknownColorError) as caught:
        palette.encode(mask)
    assert str(caught.value) == (
        "colour (170, 230, 80) in 5 pixels is not in the palette (and 1 more unknown colours); "
        "nearest is 'Forest land' (168, 232, 84). Add it to data.palette or data.ignore, or set "
        "data.unknown=nearest or data.unknown=ignore."
    )
    with pytest.raises(UnknownColorError, match=r"class IDs, set data\.mask_format=index"):
        palette.encode(np.ones((2, 2, 3), np.uint8))


def test_a_mask_that_mostly_lacks_the_palettes_colours_is_said_not_to_fit(palette):
    mask = palette.decode(random_label(palette))
    mask[: len(mask) // 2 + 1] = 170, 30, 250
    with pytest.raises(UnknownColorError, match=r"not fit.*data=.*scripts/check_data") as caught:
        palette.encode(mask)
    assert "data.unknown" not in str(caught.value)
    near = (palette.decode(random_label(palette)).astype(int) - 20).clip(0).astype(np.uint8)
    with pytest.raises(UnknownColorError, match=r"data\.unknown=nearest"):  # damaged by JPEG
        palette.encode(near)


def test_unknown_colours_can_become_the_nearest_class_or_ignore(palette):
    mask = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    mask[0, 0] = 168, 232, 84
    encoded, unknown = palette.encode(mask, "nearest")
    colors = np.array([c.color for c in palette.classes] + [[0, 0, 0]], np.int64)
    distance = ((mask[..., None, :].astype(np.int64) - colors) ** 2).sum(-1)
    expected = np.array([0, 1, 2, IGNORE])[distance.argmin(-1)]
    untied = np.diff(np.sort(distance, -1)[..., :2])[..., 0] > 0
    assert untied.mean() > 0.99 and set(np.unique(encoded)) == {0, 1, 2, IGNORE}
    np.testing.assert_array_equal(encoded[untied], expected[untied])
    assert unknown == np.count_nonzero(distance.min(-1))


@pytest.mark.parametrize("stray", [3, 100, 254])
def test_an_id_without_a_class_cannot_be_written(palette, stray):
    with pytest.raises(ValueError, match=rf"\[{stray}\] have no colour"):
        palette.decode(np.array([[0, stray]], np.uint8))


@pytest.mark.parametrize(
    ("classes", "ignore", "message"),
    [
        ([], [], "0 classes; it needs 2 to 254"),
        ([("a", RED)], [], "1 classes; it needs 2 to 254"),
        ([(f"{i}", [i, 0, 0]) for i in range(255)], [], "255 classes"),
        ([("a", [1, 2]), ("b", RED)], [], r"\(1, 2\) of 'a' is not three integers"),
        ([("a", RED), ("b", [0, 0, 256])], [], r"\(0, 0, 256\) of 'b' is not three"),
        ([("a", RED), ("b", [0, -1, 0])], [], r"\(0, -1, 0\) of 'b'"),
        ([("a", RED), ("b", GREEN)], [[0]], r"\(0,\) of 'ignore'"),
        ([("a", RED), ("b", RED)], [], r"\(200, 0, 0\) stands for both 'a' and 'b'"),
        ([("a", RED), ("b", GREEN)], [GREEN], "both 'b' and 'ignore'"),
        ([("a", RED), ("a", GREEN)], [], r"a class name stands twice in \['a', 'a'\]"),
    ],
)
def test_a_palette_that_cannot_be_read_both_ways_is_refused(classes, ignore, message):
    with pytest.raises(UserError, match=message):
        Palette([PaletteClass(*entry) for entry in classes], ignore)


def test_a_palette_survives_json_and_pickles_small_though_it_was_used(palette):
    label = random_label(palette)
    mask = palette.decode(label)
    palette.encode(mask)
    pickled = pickle.dumps(palette)
    assert len(pickled) < 2000
    for again in (
        Palette.from_dict(json.loads(json.dumps(palette.to_dict()))),
        pickle.loads(pickled),
    ):
        assert again == palette
        np.testing.assert_array_equal(again.encode(mask)[0], label)


def test_classes_are_listed_by_name_or_id(palette):
    assert class_ids(["Settlement", 1], palette, "require_classes") == [2, 1]
    assert class_ids([2, "Settlement", 0], palette, "require_classes") == [2, 0]
    assert class_ids([], palette, "require_classes") == []


@pytest.mark.parametrize(
    ("value", "listed"),
    [
        ("forest", "1 'Forest land', 2 'Settlement', 0 'Background'"),  # the nearest first
        *[
            (v, "0 'Background', 1 'Forest land', 2 'Settlement'")
            for v in (3, -1, 255, True, 1.0, None)
        ],
    ],
)
def test_what_is_no_class_is_refused_with_all_classes_shown(palette, value, listed):
    with pytest.raises(UserError) as error:
        class_ids([0, value], palette, "require_classes")
    message = f"{value!r} is not a class. Give names or IDs of these: {listed}."
    assert str(error.value) == f"require_classes: {message}"
