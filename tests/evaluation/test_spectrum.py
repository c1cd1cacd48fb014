import cv2
import numpy as np
import pytest

from geoseg_gan.evaluation.artefacts import mean_power, radial_profile, spectrum_gap

SIDE = 64


def natural(count, seed):
    """Noise whose amplitude falls as 1 / frequency, as that of photographs does."""
    cycles = np.fft.fftfreq(SIDE)
    distance = np.hypot(cycles[:, None], cycles)
    distance[0, 0] = 1
    white = np.random.default_rng(seed).normal(size=(count, 1, SIDE, SIDE))
    images = np.fft.ifft2(np.fft.fft2(white) / distance).real
    return images / images.std()


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


def test_equal_spectra_have_no_gap(real):
    gap = spectrum_gap(real, real)
    assert (gap.low, gap.middle, gap.high, gap.checkerboard) == (0, 0, 0, 0)


def test_other_real_images_have_no_gap_in_any_band(real):
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


@pytest.mark.parametrize("period", [2, 4, 8])
@pytest.mark.parametrize("kind", ["columns", "rows", "diagonal"])
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
