import numpy as np
from matplotlib.axes import Axes

from geoseg_gan.utils.plots import confusion_picture, score_histogram


def has(picture, color, tolerance=40):
    return bool((np.abs(picture.astype(int) - color).max(-1) < tolerance).any())


def test_a_confusion_matrix_is_darkest_where_a_class_is_always_found():
    sure = confusion_picture(np.array([[9, 0], [0, 4]]), ["land", "water"])
    unsure = confusion_picture(np.array([[5, 4], [2, 2]]), ["land", "water"])
    assert sure.dtype == np.uint8 and sure.ndim == 3
    dark_blue = (8, 48, 107)
    assert has(sure, dark_blue, 8) and not has(unsure, dark_blue, 8)


def test_a_confusion_matrix_without_pixels_is_drawn():
    assert confusion_picture(np.zeros((3, 3), np.int64), ["a", "b", "c"]).size


def test_a_histogram_shows_kept_dropped_and_the_threshold():
    blue, red = (31, 119, 180), (214, 39, 40)
    picture = score_histogram([0.7, 0.8], [0.2, 0.3], 0.5, [0.6, 0.9])
    assert has(picture, blue) and has(picture, red) and has(picture, (211, 211, 211), 5)
    assert not has(score_histogram([], [0.2], 0.5, [])[60:, 70:400], blue)


def test_no_bar_of_a_histogram_holds_both_kept_and_dropped_ones(monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "hist", lambda self, values, edges, **_: drawn.append(edges))
    for tau in (0.0, 0.013, 0.5, 0.987, 1.0):
        score_histogram([1.0], [0.0], tau, [])
        edges = np.array(drawn.pop())
        assert np.abs(edges - tau).min() < 1e-9
        assert edges[0] <= 0 and edges[-1] >= 1 and len(edges) <= 53
