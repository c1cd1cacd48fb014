import numpy as np

from geoseg_gan.evaluation.report import histograms_picture, spectrum_picture

BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


def pixels(picture, color):
    return int((np.abs(picture.astype(int) - color).max(-1) < 8).sum())


def test_every_spectrum_is_drawn():
    frequency = np.arange(1, 9) / 16
    picture = spectrum_picture(frequency, {"real": -frequency, "generated": -2 * frequency})
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert pixels(picture, BLUE) > 100 and pixels(picture, ORANGE) > 100
    assert not pixels(spectrum_picture(frequency, {"real": -frequency}), ORANGE)


def test_histograms_show_every_kind_that_has_figures():
    both = histograms_picture({"generated": [0.1, 0.2], "real": [0.7, 0.8]}, "distance", "title")
    one = histograms_picture({"generated": [0.1, 0.2], "real": []}, "distance", "title")
    assert pixels(both, BLUE) and pixels(both, ORANGE)
    assert pixels(one, BLUE) and not pixels(one, ORANGE)
    for values in ({}, {"generated": []}, {"generated": [0.0, 0.0]}):
        assert histograms_picture(values, "repetition", "title").size
