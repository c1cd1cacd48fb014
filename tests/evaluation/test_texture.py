import numpy as np
import pytest

from geoseg_gan.evaluation.artefacts import broad_windows, repetition, repetitions


def tiled(period, side, seed=0):
    cell = np.random.default_rng(seed).normal(size=(period, period))
    return np.tile(cell, (side, side))[:side, :side]


def natural(side, seed):
    cycles = np.fft.fftfreq(128)
    distance = np.hypot(cycles[:, None], cycles)
    distance[0, 0] = 1
    white = np.random.default_rng(seed).normal(size=(128, 128))
    image = np.fft.ifft2(np.fft.fft2(white) / distance).real[:side, :side]
    return image / image.std()


@pytest.mark.parametrize(("period", "side"), [(4, 32), (9, 32), (16, 32), (20, 42), (30, 64)])
def test_a_texture_that_repeats_exactly_is_one(period, side):
    assert repetition(tiled(period, side)) == pytest.approx(1, abs=1e-3)


def test_stripes_repeat():
    stripes = np.sin(2 * np.pi * np.arange(64) / 11) + np.zeros((64, 1))
    assert repetition(stripes) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("side", [32, 64])
def test_noise_does_not_repeat(side):
    rng = np.random.default_rng(0)
    white = [repetition(rng.normal(size=(side, side))) for _ in range(20)]
    pink = [repetition(natural(side, seed)) for seed in range(20)]
    assert np.mean(white) < 0.2 and max(white) < 0.25
    assert np.mean(pink) < 0.3


def test_noise_as_strong_as_the_texture_halves_its_repetition():
    noise = np.random.default_rng(1).normal(size=(64, 64))
    texture = tiled(9, 64)
    assert repetition(texture / texture.std() + noise) == pytest.approx(0.5, abs=0.1)


def test_repetition_grows_with_the_share_of_the_repeated_part():
    texture, rest = tiled(9, 64), natural(64, 2)
    found = [repetition(share * texture + (1 - share) * rest) for share in (0.2, 0.5, 0.8, 1)]
    assert found == sorted(found) and found[0] < 0.5 < found[2]


def test_brightness_its_slope_and_contrast_do_not_matter():
    texture = tiled(9, 42)
    slope = np.add.outer(np.arange(42.0), 2 * np.arange(42.0))
    assert repetition(5 * texture + slope - 7) == pytest.approx(repetition(texture), abs=0.01)


@pytest.mark.parametrize("patch", [np.ones((32, 32)), np.add.outer(np.arange(32.0), np.ones(32))])
def test_a_patch_without_texture_does_not_repeat(patch):
    assert repetition(patch) == 0


def test_windows_lie_in_one_class_and_not_in_each_other():
    label = np.zeros((48, 96), np.uint8)
    label[:, 50:] = 2
    label[5, 20] = 255
    windows = broad_windows(label, 20, 3)
    assert {kind for kind, _, _ in windows} == {0, 2}
    taken = np.zeros(label.shape, int)
    for kind, top, left in windows:
        assert (label[top : top + 20, left : left + 20] == kind).all()
        taken[top : top + 20, left : left + 20] += 1
    assert taken.max() == 1


def test_no_more_windows_than_asked_for():
    label = np.zeros((96, 96), np.uint8)
    assert len(broad_windows(label, 16, 2)) == 2


def test_a_region_as_broad_as_the_window_is_found_and_a_narrower_one_not():
    label = np.zeros((40, 40), np.uint8)
    label[3:23, 10:30] = 1
    assert (1, 3, 10) in broad_windows(label, 20, 1)
    label[3, 10] = 0
    assert 1 not in [kind for kind, _, _ in broad_windows(label, 20, 1)]


def test_ignored_pixels_are_no_region():
    assert broad_windows(np.full((40, 40), 255, np.uint8), 20, 2) == []


def test_every_class_of_an_image_gets_its_own_figure():
    label = np.zeros((64, 64), np.uint8)
    label[:, 32:] = 1
    image = natural(64, 3)
    image[:, 32:] = tiled(8, 64)[:, 32:]
    found = dict(repetitions(image[None, None], label[None], 32))
    assert found[1] == pytest.approx(1, abs=1e-3) and found[0] < 0.6


def test_without_broad_regions_there_are_no_figures():
    labels = (np.indices((2, 64, 64)).sum(0) // 8 % 2).astype(np.uint8)
    assert repetitions(np.zeros((2, 3, 64, 64)), labels, 32) == []


def test_a_window_larger_than_the_image_finds_nothing():
    assert broad_windows(np.zeros((16, 16), np.uint8), 32, 2) == []
