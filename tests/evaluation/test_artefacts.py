import cv2
import numpy as np
import pytest

from geoseg_gan.evaluation.artefacts import (
    broad_windows,
    mean_power,
    radial_profile,
    repetition,
    repetitions,
    spectrum_gap,
)

SIDE = 64


def natural(count, seed, side=SIDE):
    """Noise whose amplitude falls as 1 / frequency, as that of photographs does."""
    cycles = np.fft.fftfreq(side)
    distance = np.hypot(cycles[:, None], cycles)
    distance[0, 0] = 1
    white = np.random.default_rng(seed).normal(size=(count, 1, side, side))
    images = np.fft.ifft2(np.fft.fft2(white) / distance).real
    return images / images.std()


def natural_patch(side, seed):
    """Part of such an image, so that its opposite borders do not fit together."""
    patch = natural(1, seed, 128)[0, 0, :side, :side]
    return patch / patch.std()


def tiled(period, side, seed=0):
    cell = np.random.default_rng(seed).normal(size=(period, period))
    return np.tile(cell, (side, side))[:side, :side]


@pytest.fixture(scope="module")
def real():
    return mean_power(natural(128, 0))


def test_a_wave_stands_at_its_frequency():
    wave = np.cos(2 * np.pi * np.arange(SIDE) * 8 / SIDE)
    frequency, power = radial_profile(mean_power(np.tile(wave, (1, 1, SIDE, 1))))
    assert frequency[power.argmax()] == 8 / SIDE
    assert power[frequency > 0.2].max() < power.max() - 6


def test_frequencies_go_from_one_cycle_an_image_to_half_a_cycle_a_pixel():
    frequency, power = radial_profile(np.ones((16, 16)))
    assert frequency.tolist() == [count / 16 for count in range(1, 9)]
    assert power.tolist() == [0] * 8


def test_power_goes_with_the_square_of_contrast_and_not_with_brightness():
    images = natural(2, 1)
    assert np.allclose(mean_power(10 * images + 3), 100 * mean_power(images))


def test_bands_are_averaged_and_images_too():
    first, second = natural(2, 2)
    both = np.concatenate([first, second])[None]
    gray = both.mean(1, keepdims=True)
    assert np.allclose(mean_power(both), mean_power(gray))
    halves = (mean_power(first[None]) + mean_power(second[None])) / 2
    assert np.allclose(mean_power(np.stack([first, second])), halves)


def test_the_window_keeps_a_border_from_filling_high_frequencies():
    slope = np.tile(np.linspace(-1, 1, SIDE), (SIDE, 1))
    frequency, power = radial_profile(mean_power(slope[None, None]))
    bare = radial_profile(np.abs(np.fft.fft2(slope)) ** 2)[1]
    high = frequency > 0.25
    assert (power[high] - power[0]).max() < (bare[high] - bare[0]).min() - 2


def test_the_exponent_of_natural_noise_is_found(real):
    frequency, power = radial_profile(real)
    inner = (frequency > 0.05) & (frequency < 0.45)
    slope = np.polyfit(np.log10(frequency[inner]), power[inner], 1)[0]
    assert slope == pytest.approx(-2, abs=0.15)


def test_equal_spectra_and_other_real_images_have_no_gap(real):
    gap = spectrum_gap(real, real)
    assert (gap.low, gap.middle, gap.high, gap.checkerboard) == (0, 0, 0, 0)
    gap = spectrum_gap(real, mean_power(natural(128, 3)))
    assert max(abs(gap.low), abs(gap.middle), abs(gap.high)) < 0.06


def test_ten_times_the_power_is_one_in_every_band_and_no_grid(real):
    gap = spectrum_gap(real, 10 * real)
    assert [gap.low, gap.middle, gap.high] == pytest.approx([1, 1, 1])
    assert gap.checkerboard == pytest.approx(0, abs=1e-9)


def test_blur_lowers_the_high_band_and_hardly_the_low_one(real):
    images = natural(32, 4)
    blurred = np.stack([cv2.GaussianBlur(image[0], (0, 0), 1)[None] for image in images])
    gap = spectrum_gap(real, mean_power(blurred))
    assert gap.high < gap.middle < gap.low < 0
    assert gap.high < -1 and gap.low > -0.2


def test_noise_raises_the_high_band_by_what_it_adds(real):
    images = natural(128, 4)
    noise = np.random.default_rng(5).normal(0, 0.5, images.shape)
    # White noise has the power of its variance times the window's energy, (3 / 8 S)^2.
    frequency, power = radial_profile(real)
    expected = np.log10(1 + 0.25 * (3 / 8 * SIDE) ** 2 / 10**power)[frequency > 0.25].mean()
    gap = spectrum_gap(real, mean_power(images + noise))
    assert expected > 0.2 and gap.high == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("period", "kind"), [(2, "columns"), (4, "rows"), (8, "diagonal")])
def test_a_faint_grid_of_every_period_and_direction_is_found(real, period, kind):
    row, column = np.indices((SIDE, SIDE))
    along = {"columns": column, "rows": row, "diagonal": row + column}[kind]
    images = natural(128, 6) + 0.2 * np.cos(2 * np.pi * along / period)
    assert spectrum_gap(real, mean_power(images)).checkerboard > 0.8


def test_the_unevenness_of_a_transposed_convolution_is_found(real):
    # Stride 2 with a kernel of 3: pixels get 1, 2 or 4 terms (Odena et al. 2016).
    terms = 1 + np.arange(SIDE) % 2
    gain = np.outer(terms, terms) / 2.25
    images = natural(128, 7) + 1
    assert spectrum_gap(real, mean_power(images * gain)).checkerboard > 2


def test_a_wave_that_no_stride_makes_is_not_a_checkerboard(real):
    images = natural(128, 3)
    wave = images + 0.2 * np.cos(2 * np.pi * np.arange(SIDE) * 23 / SIDE)
    plain, waved = (spectrum_gap(real, mean_power(each)) for each in (images, wave))
    assert waved.checkerboard == pytest.approx(plain.checkerboard, abs=0.05)


def test_a_grid_that_real_images_have_as_well_does_not_count():
    # The grid of a compression by blocks of 8 pixels.
    grid = (np.arange(SIDE) % 8 == 0) * 1.0
    ours, theirs = (mean_power(natural(128, seed) + grid) for seed in (8, 9))
    assert abs(spectrum_gap(ours, theirs).checkerboard) < 0.4


def test_an_odd_side_has_no_periods_to_look_at():
    power = mean_power(np.random.default_rng(0).normal(size=(2, 3, 31, 31)))
    gap = spectrum_gap(power, power)
    assert np.isnan(gap.checkerboard) and (gap.low, gap.middle, gap.high) == (0, 0, 0)


def test_a_texture_that_repeats_exactly_is_one():
    for period, side in ((4, 32), (9, 32), (16, 32), (20, 42), (30, 64)):
        assert repetition(tiled(period, side)) == pytest.approx(1, abs=1e-3)
    stripes = np.sin(2 * np.pi * np.arange(64) / 11) + np.zeros((64, 1))
    assert repetition(stripes) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("side", [32, 64])
def test_noise_does_not_repeat(side):
    rng = np.random.default_rng(0)
    white = [repetition(rng.normal(size=(side, side))) for _ in range(20)]
    pink = [repetition(natural_patch(side, seed)) for seed in range(20)]
    assert np.mean(white) < 0.2 and max(white) < 0.25
    assert np.mean(pink) < 0.3


def test_noise_as_strong_as_the_texture_halves_its_repetition():
    noise = np.random.default_rng(1).normal(size=(64, 64))
    texture = tiled(9, 64)
    assert repetition(texture / texture.std() + noise) == pytest.approx(0.5, abs=0.1)


def test_repetition_grows_with_the_share_of_the_repeated_part():
    texture, rest = tiled(9, 64), natural_patch(64, 2)
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


def test_a_region_as_broad_as_the_window_is_found_and_a_narrower_one_not():
    assert len(broad_windows(np.zeros((96, 96), np.uint8), 16, 2)) == 2  # no more than asked for
    label = np.zeros((40, 40), np.uint8)
    label[3:23, 10:30] = 1
    assert (1, 3, 10) in broad_windows(label, 20, 1)
    label[3, 10] = 0
    assert 1 not in [kind for kind, _, _ in broad_windows(label, 20, 1)]


def test_ignored_pixels_are_no_region_and_a_window_larger_than_the_image_finds_none():
    assert broad_windows(np.full((40, 40), 255, np.uint8), 20, 2) == []
    assert broad_windows(np.zeros((16, 16), np.uint8), 32, 2) == []


def test_every_class_of_an_image_gets_its_own_figure():
    label = np.zeros((64, 64), np.uint8)
    label[:, 32:] = 1
    image = natural_patch(64, 3)
    image[:, 32:] = tiled(8, 64)[:, 32:]
    found = dict(repetitions(image[None, None], label[None], 32))
    assert found[1] == pytest.approx(1, abs=1e-3) and found[0] < 0.6


def test_without_broad_regions_there_are_no_figures():
    labels = (np.indices((2, 64, 64)).sum(0) // 8 % 2).astype(np.uint8)
    assert repetitions(np.zeros((2, 3, 64, 64)), labels, 32) == []
