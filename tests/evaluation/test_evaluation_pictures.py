import math

import numpy as np

from geoseg_gan.evaluation.report import histograms_picture, spectrum_picture, values_picture

BLUE, ORANGE, RED, GRAY = (31, 119, 180), (255, 127, 14), (214, 39, 40), (127, 127, 127)


def pixels(picture, color):
    return int((np.abs(picture.astype(int) - color).max(-1) < 8).sum())


def test_every_spectrum_is_drawn():
    frequency = np.arange(1, 9) / 16
    picture = spectrum_picture(frequency, {"real": -frequency, "generated": -2 * frequency})
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert pixels(picture, BLUE) > 100 and pixels(picture, ORANGE) > 100
    assert not pixels(spectrum_picture(frequency, {"real": -frequency}), ORANGE)


def test_the_first_value_stands_out_and_grows_with_its_figure():
    high = values_picture({"generated": (0.5, 0.1), "blurred": (0.5, 0.1)}, "KID")
    low = values_picture({"generated": (0.05, 0.01), "blurred": (0.5, 0.1)}, "KID")
    assert pixels(high, RED) > pixels(low, RED) > 0
    assert pixels(high, GRAY) > 0
    for value in ((0.0, 0.0), (-1e-4, 1e-3), (12.0, math.nan)):
        assert values_picture({"generated": value}, "KID").size


def test_histograms_show_every_kind_that_has_figures():
    both = histograms_picture({"generated": [0.1, 0.2], "real": [0.7, 0.8]}, "distance", "title")
    one = histograms_picture({"generated": [0.1, 0.2], "real": []}, "distance", "title")
    assert pixels(both, BLUE) and pixels(both, ORANGE)
    assert pixels(one, BLUE) and not pixels(one, ORANGE)
    for values in ({}, {"generated": []}, {"generated": [0.0, 0.0]}):
        assert histograms_picture(values, "repetition", "title").size
