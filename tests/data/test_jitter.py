import json
import math
from dataclasses import replace

import numpy as np
import pytest
from defaults import defaults
from geometry import OFF, STRONG
from rasters import noise

from geoseg_gan.data.jitter import Warp, draw_warp, draw_window, sample_image, sample_label
from geoseg_gan.data.settings import (
    AffineStep,
    ElasticStep,
    FlipStep,
    JitterSettings,
    QuarterTurnStep,
    TransplantStep,
)
from geoseg_gan.utils.errors import UserError


def turned(array, flip, turns):
    array = np.rot90(array, turns)
    return array[:, ::-1] if flip else array


def blobs(size, values=(0, 1, 2)):
    rows, columns = np.mgrid[:size, :size] / size * 6
    waves = np.sin(rows + 0.3) + np.cos(1.3 * columns)
    return np.array(values, np.uint8)[np.digitize(waves, [-0.5, 0.5])]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(24, 40), (41, 23)])
def test_flips_and_quarter_turns_are_exact(flip, turns, height, width):
    warp = Warp(flip, turns)
    image, label = (
        noise(3, height=height, width=width),
        noise(1, height=height, width=width)[..., 0],
    )
    side = min(height, width)
    expected, expected_label = turned(image, flip, turns), turned(label, flip, turns)
    assert warp.shape(height, width) == expected_label.shape
    free = (expected_label.shape[0] - side, expected_label.shape[1] - side)
    for top, left in {(0, 0), free, (free[0] // 2, free[1] // 2)}:
        maps = warp.source_map(height, width, (top, left, side))
        inside = np.s_[top : top + side, left : left + side]
        np.testing.assert_array_equal(sample_image(image, maps), expected[inside])
        np.testing.assert_array_equal(sample_label(label, maps), expected_label[inside])


@pytest.mark.parametrize(
    ("bands", "dtype"), [(1, "float32"), (2, "int16"), (4, "uint8"), (5, "uint16"), (13, "uint8")]
)
def test_any_number_of_bands_of_any_type_is_sampled_alike_and_exactly(bands, dtype):
    image = noise(bands, dtype, 16, 16)
    sampled = sample_image(image, Warp(True, 1).source_map(16, 16, (0, 0, 16)))
    np.testing.assert_array_equal(sampled, turned(image, True, 1), strict=True)
    same = image[..., :1].repeat(bands, axis=2)
    warp = draw_warp(STRONG, np.random.default_rng(3))
    warped = sample_image(same, warp.source_map(16, 16, (0, 0, 16)))
    assert not np.array_equal(warped, same)
    np.testing.assert_array_equal(warped, warped[..., :1].repeat(bands, axis=2))


def test_no_new_class_and_no_void_appears_under_strong_settings():
    label = blobs(48, (3, 90, 201))
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        warp = draw_warp(STRONG, rng)
        sampled = sample_label(label, warp.source_map(48, 48, (0, 0, 48)))
        assert sampled.dtype == np.uint8 and not np.array_equal(sampled, label)
        seen |= set(np.unique(sampled).tolist())
    assert seen == {3, 90, 201}


def test_borders_are_reflected_and_not_filled():
    shift = Warp(affine=(1, 0, 0, 1, 0.5, 0))
    image = noise(3, height=8, width=8)
    maps = shift.source_map(8, 8, (0, 0, 8))
    expected = image[:, [4, 5, 6, 7, 6, 5, 4, 3]]
    np.testing.assert_array_equal(sample_image(image, maps), expected)
    np.testing.assert_array_equal(sample_label(image[..., 0], maps), expected[..., 0])


def test_image_and_label_stay_aligned():
    size = 96
    label = blobs(size)
    image = (label * 100)[..., None].repeat(3, axis=2)
    rng = np.random.default_rng(1)
    compared = 0
    for _ in range(30):
        maps = draw_warp(STRONG, rng).source_map(size, size, (8, 16, 64))
        warped, warped_image = sample_label(label, maps), sample_image(image, maps)
        # Cubic interpolation looks at four by four source pixels, which near an outline differ.
        x, y = (np.round(axis).astype(int) for axis in maps)
        reach = [
            label[mirrored(y + dy, size), mirrored(x + dx, size)]
            for dy in range(-2, 3)
            for dx in range(-2, 3)
        ]
        flat = np.ptp(reach, axis=0) == 0
        np.testing.assert_array_equal(
            warped_image[flat], (warped * 100)[flat][:, None].repeat(3, 1)
        )
        compared += flat.sum()
    assert compared > 0.5 * 30 * 64 * 64


def mirrored(index, size):
    folded = np.abs(index) % (2 * size - 2)
    return np.minimum(folded, 2 * size - 2 - folded)


@pytest.mark.parametrize("seed", range(4))
def test_windows_agree_with_cropping_the_whole_warped_frame(seed):
    size = 72
    label, image = blobs(size), noise(3, height=size, width=size)
    warp = draw_warp(STRONG, np.random.default_rng(seed))
    whole = warp.source_map(size, size, (0, 0, size))
    for top, left, side in ((0, 0, 32), (40, 40, 32), (7, 33, 32), (71, 0, 1)):
        part = warp.source_map(size, size, (top, left, side))
        inside = np.s_[top : top + side, left : left + side]
        np.testing.assert_array_equal(part, [axis[inside] for axis in whole])
        np.testing.assert_array_equal(sample_label(label, part), sample_label(label, whole)[inside])
        np.testing.assert_array_equal(sample_image(image, part), sample_image(image, whole)[inside])


def test_switching_one_step_leaves_the_draws_of_the_others():
    transplanting = replace(STRONG, transplant=defaults(TransplantStep, 1.0))
    for seed in range(20):
        whole = draw_warp(STRONG, np.random.default_rng(seed))
        assert draw_warp(transplanting, np.random.default_rng(seed)) == whole
        for name in ("flip", "quarter_turn", "affine", "elastic"):
            without = replace(STRONG, **{name: getattr(OFF, name)})
            less = draw_warp(without, np.random.default_rng(seed))
            field = "quarter_turns" if name == "quarter_turn" else name
            assert not getattr(less, field)
            assert replace(whole, **{field: getattr(less, field)}) == less


def test_no_step_acts_by_default_and_the_identity_is_exact():
    rng = np.random.default_rng(0)
    assert {draw_warp(OFF, rng) for _ in range(50)} == {Warp()}
    image = noise(5, "uint16", 20, 30)
    maps = Warp().source_map(20, 30, (0, 6, 20))
    np.testing.assert_array_equal(sample_image(image, maps), image[:, 6:26])


def test_steps_act_as_often_as_they_should():
    p = {"elastic": 0.2, "affine": 0.6, "quarter_turn": 0.75, "flip": 0.5}
    settings = replace(STRONG, **{name: replace(getattr(OFF, name), p=p[name]) for name in p})
    rng = np.random.default_rng(0)
    warps = [draw_warp(settings, rng) for _ in range(2000)]
    acts = [
        (w.elastic is not None, w.affine is not None, w.quarter_turns > 0, w.flip) for w in warps
    ]
    np.testing.assert_allclose(np.mean(acts, axis=0), list(p.values()), atol=0.05)
    turns = np.bincount([warp.quarter_turns for warp in warps], minlength=4) / len(warps)
    np.testing.assert_allclose(turns, 0.25, atol=0.05)


def test_affine_draws_stay_within_their_settings():
    settings = defaults(JitterSettings, affine=defaults(AffineStep, 1.0, 30.0, [0.5, 2.0], 0.2))
    rng = np.random.default_rng(0)
    drawn = np.array([draw_warp(settings, rng).affine for _ in range(500)])
    a, b, c, d, dx, dy = drawn.T
    zoom = 1 / np.sqrt(a * d - b * c)  # shear keeps areas
    assert 0.5 <= zoom.min() < 0.55 and 1.8 < zoom.max() <= 2.0
    assert np.median(zoom) == pytest.approx(1, abs=0.1)  # as often larger as smaller
    angle = np.degrees(np.arctan2(c, a))
    assert 27 < angle.max() <= 30 + 1e-9 and -30 - 1e-9 <= angle.min() < -27
    for shift in (dx, dy):
        assert 0.18 < shift.max() <= 0.2 and -0.2 <= shift.min() < -0.18
    label = noise(1, height=64, width=64)[..., 0]
    twice = replace(OFF, affine=defaults(AffineStep, 1.0, 0.0, [2.0, 2.0], 0.0))
    larger = sample_label(label, draw_warp(twice, rng).source_map(64, 64, (0, 0, 64)))
    np.testing.assert_array_equal(larger, label[16:48, 16:48].repeat(2, 0).repeat(2, 1))


def test_elastic_displacement_is_smooth_and_as_large_as_its_amplitude():
    rows, columns = np.mgrid[:256, :256]
    x, y = Warp(elastic=(3, 5.0, 32.0)).source_map(256, 256, (0, 0, 256))
    shift = np.stack([x - columns, y - rows])
    assert 2.5 < shift.std() < 5.5
    assert np.abs(np.diff(shift, axis=1)).max() < 1.5
    doubled, _ = Warp(elastic=(3, 10.0, 32.0)).source_map(256, 256, (0, 0, 256))
    np.testing.assert_allclose(doubled - columns, 2 * shift[0], atol=1e-3)


def test_draws_of_windows_reach_every_place_that_holds_the_pixel_and_stay_inside():
    rng = np.random.default_rng(0)
    assert draw_window(7, 7, 7, rng) == draw_window(7, 7, 7, rng, (6, 0)) == (0, 0, 7)
    places = [(top, left, 4) for top in range(7) for left in range(5)]
    assert {draw_window(10, 8, 4, rng) for _ in range(600)} == set(places)
    for row, column in ((0, 0), (3, 4), (9, 7)):
        windows = {draw_window(10, 8, 4, rng, (row, column)) for _ in range(600)}
        assert windows == {p for p in places if 0 <= row - p[0] < 4 and 0 <= column - p[1] < 4}


def source_of(warp, height, width, columns, rows):
    """Where points between the pixels of the warped frame come from, interpolated."""
    found = []
    for column, row in zip(columns, rows, strict=True):
        left, top = math.floor(column), math.floor(row)
        right, down = column - left, row - top
        weights = np.outer([1 - down, down], [1 - right, right])
        maps = warp.source_map(height, width, (top, left, 2))
        found.append([float((weights * axis).sum()) for axis in maps])
    return np.array(found).T


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("steps", "error"),
    [
        ({}, 1e-4),
        ({"affine": defaults(AffineStep, 1.0, 60.0, [0.4, 2.5], 0.5)}, 1e-3),
        (
            {"affine": defaults(AffineStep, 1.0), "elastic": defaults(ElasticStep, 1.0, 3.0, 48.0)},
            0.05,
        ),
    ],
)
def test_points_of_the_frame_are_the_inverse_of_the_source_map(flip, turns, steps, error):
    rng = np.random.default_rng(turns)
    height, width = 90, 130
    for _ in range(5):
        warp = replace(
            draw_warp(defaults(JitterSettings, **steps), rng), flip=flip, quarter_turns=turns
        )
        x, y = rng.uniform(0, width - 1, 12), rng.uniform(0, height - 1, 12)
        points = warp.frame_points(height, width, x, y)
        assert all(axis.dtype == np.float32 and axis.shape == (12,) for axis in points)
        back = source_of(warp, height, width, *points)
        np.testing.assert_allclose(back, [x, y], atol=error)


def test_a_warp_is_stored_as_plain_numbers():
    assert Warp().to_dict() == {}
    settings = replace(
        STRONG, flip=defaults(FlipStep, 1), quarter_turn=defaults(QuarterTurnStep, 1)
    )
    whole = draw_warp(settings, np.random.default_rng(0))
    stored = json.loads(json.dumps(whole.to_dict()))
    assert list(stored) == ["elastic", "affine", "quarter_turn", "flip"]  # the order they act in
    seed, amplitude, wavelength = whole.elastic
    assert stored["elastic"] == {"seed": seed, "amplitude": amplitude, "wavelength": wavelength}
    assert tuple(stored["affine"]) == whole.affine
    assert stored["quarter_turn"] == whole.quarter_turns and stored["flip"] is True


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("flip", {"p": 1.5}, r"jitter\.flip\.p=1\.5: use 0 to 1"),
        ("affine", {"p": float("nan")}, r"jitter\.affine\.p=nan"),
        ("affine", {"scale": [2.0, 1.0]}, r"jitter\.affine\.scale=\[2\.0, 1"),
        ("affine", {"scale": [0.0, 1.0]}, r"jitter\.affine\.scale"),
        ("affine", {"scale": [1.0]}, r"jitter\.affine\.scale=\[1\.0\]"),
        ("affine", {"degrees": 181}, "degrees=181: use 0 to 180"),
        ("affine", {"translate": 1.1}, r"translate=1\.1: use 0 to 1"),
        ("elastic", {"amplitude": -1}, "amplitude=-1: use 0 or more"),
        ("elastic", {"wavelength": 1}, "wavelength=1: use 2 or more"),
        ("transplant", {"p": 1.5}, r"jitter\.transplant\.p=1\.5: use 0 to 1"),
        ("transplant", {"classes": []}, r"jitter\.transplant\.classes=\[\] names no class"),
        ("transplant", {"max_share": 0.0}, r"jitter\.transplant\.max_share=0\.0: use more than 0"),
        ("transplant", {"max_share": 1.01}, r"max_share=1\.01: use more than 0, up to 1"),
        ("transplant", {"min_pixels": 0}, r"min_pixels=0: use 1 or more"),
        ("transplant", {"tries": 0}, r"tries=0: use 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused_by_their_key(key, values, message):
    with pytest.raises(UserError, match=message):
        replace(OFF, **{key: replace(getattr(OFF, key), **values)})


def test_settings_at_the_ends_of_their_ranges_are_taken():
    defaults(
        JitterSettings,
        defaults(ElasticStep, 1, 0, 2),
        defaults(AffineStep, 1, 180, [0.1, 10], 1),
        transplant=defaults(TransplantStep, 1, ["Settlement", 1], 1, 1, 1),
    )
