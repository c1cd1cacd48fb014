"""Windows cover a raster, and blending them leaves no seams and no gaps."""

import numpy as np
import pytest

from geoseg_gan.data.windows import (
    WindowGrid,
    blend,
    check_windows,
    default_overlap,
    rows_of_windows,
)
from geoseg_gan.utils.errors import UserError

GRIDS = [
    WindowGrid(20, 31, 8, 2),
    WindowGrid(33, 17, 8, 4, align=4, border=4),
    WindowGrid(3, 5, 8, 6, align=2),
    WindowGrid(1, 1, 4, 0),
    WindowGrid(29, 16, 16, 12, align=4),
]


def raster(grid):
    return np.random.default_rng(0).normal(size=(grid.height, grid.width, 2)).astype(np.float32)


def crops(grid, pixels):
    """Results that are the raster itself."""

    def results(number):
        rows = grid.read(lambda first, last: pixels[first:last], number)
        for left in grid.lefts:
            at = left - grid.lefts[0]
            yield left, np.moveaxis(rows[:, at : at + grid.side], -1, 0)

    return results


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_blended_crops_are_the_raster(grid):
    pixels = raster(grid)
    blended = [(first, lines.copy()) for first, lines in blend(grid, 2, crops(grid, pixels))]
    assert [first for first, _ in blended] == np.cumsum(
        [0, *(lines.shape[1] for _, lines in blended[:-1])]
    ).tolist()
    whole = np.concatenate([lines for _, lines in blended], 1)
    np.testing.assert_allclose(np.moveaxis(whole, 0, -1), pixels, atol=1e-5)
    assert all(start % grid.align == 0 for start in (*grid.tops, *grid.lefts))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_going_on_gives_the_same_bytes(grid):
    def results(number):  # windows that disagree
        for left in grid.lefts:
            rng = np.random.default_rng((number, left + 99))
            yield left, rng.normal(size=(1, grid.side, grid.side)).astype(np.float32)

    def blended(done=0):
        return [(first, lines.copy()) for first, lines in blend(grid, 1, results, done)]

    whole = blended()
    for number, (first, _) in enumerate(whole):
        again = blended(first)
        assert [row for row, _ in again] == [row for row, _ in whole[number:]]
        for (_, lines), (_, old) in zip(again, whole[number:], strict=True):
            assert lines.tobytes() == old.tobytes()


def test_neighbours_fade_into_each_other_by_a_raised_cosine():
    grid = WindowGrid(1, 12, 8, 4)
    lines = np.concatenate(
        [
            lines.copy()
            for _, lines in blend(
                grid, 1, lambda _: ((left, np.full((1, 8, 8), left, np.float32)) for left in (0, 4))
            )
        ],
        1,
    )
    shares = np.sin((np.arange(4) + 0.5) * np.pi / 8) ** 2
    expected = [*[0] * 4, *(4 * shares), *[4] * 4]
    np.testing.assert_allclose(lines[0, 0], expected, atol=1e-6)


def test_what_lies_beyond_a_raster_is_mirrored():
    grid = WindowGrid(5, 6, 8, 4, align=4, border=4)
    pixels = np.arange(30).reshape(5, 6)
    assert grid.tops == [-4, 0, 4] and grid.lefts == [-4, 0, 4]
    padded = np.pad(pixels, ((4, 7), (4, 6)), mode="symmetric")
    for number in range(3):
        rows = grid.read(lambda first, last: pixels[first:last], number)
        np.testing.assert_array_equal(rows, padded[4 * number : 4 * number + 8])


@pytest.mark.parametrize("step", [1, 3, 8, 40])
@pytest.mark.parametrize("tops", [(0, 8, 16), (0, 3, 6, 22), (5, 20), ()])
def test_rows_are_read_once_and_in_order(step, tops):
    pixels, asked = np.arange(90).reshape(30, 3), []

    def read(first, last):
        asked.append((first, last))
        return pixels[first:last], -pixels[first:last]

    found = list(rows_of_windows(read, 30, step, tops, 8))
    assert [top for top, _ in found] == list(tops)
    for top, (rows, others) in found:
        np.testing.assert_array_equal(rows, pixels[top : top + 8])
        np.testing.assert_array_equal(others, -rows)
    assert asked == [(n, min(n + step, 30)) for n in range(0, 30, step)]


def test_the_usual_overlap_fits_the_network():
    assert default_overlap(256, 1, 0.25) == 64
    assert default_overlap(256, 64, 0.5) == 128
    assert default_overlap(128, 64, 0.25) == 64
    assert default_overlap(64, 64, 0.5) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((100, 32, 32), "image_size=100: .* multiples of 32 px"),
        ((128, 128, 32), "overlap=128: use less than the 128 px of a window, and a multiple of 32"),
        ((128, 40, 32), "overlap=40: .* a multiple of 32"),
        ((128, -1, 1), r"overlap=-1: use less than the 128 px of a window\.$"),
    ],
)
def test_windows_that_do_not_fit_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        check_windows(*values)
