import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from geoseg_gan.utils.pictures import beside, captioned, evenly_spaced, with_legend, write_picture


def plain(value, height=4, width=6):
    return np.full((height, width, 3), value, np.uint8)


def test_positions_are_spread_evenly_from_end_to_end():
    assert evenly_spaced(10, 4) == [0, 3, 6, 9]
    assert evenly_spaced(3, 10) == [0, 1, 2]
    assert evenly_spaced(5, 1) == [0] and evenly_spaced(0, 3) == []


def test_pictures_stand_in_one_row_with_white_lines_between():
    sheet = beside([plain(10), plain(20), plain(30)])
    assert sheet.shape == (4, 6 * 3 + 2 * 2, 3) and sheet.dtype == np.uint8
    expected = [10] * 6 + [255] * 2 + [20] * 6 + [255] * 2 + [30] * 6
    np.testing.assert_array_equal(sheet, np.tile(np.array(expected)[None, :, None], (4, 1, 3)))


def test_a_row_that_is_not_full_ends_in_white():
    sheet = beside([plain(10), plain(20), plain(30)], columns=2)
    assert sheet.shape == (4 * 2 + 2, 6 * 2 + 2, 3)
    assert (sheet[:4, :6] == 10).all() and (sheet[:4, 8:] == 20).all()
    assert (sheet[6:, :6] == 30).all() and (sheet[6:, 6:] == 255).all()
    assert (sheet[4:6] == 255).all() and (sheet[:, 6:8] == 255).all()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_lossless_pictures_read_back_exactly(tmp_path, suffix):
    picture = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    path = tmp_path / "new" / f"a{suffix}"
    write_picture(path, picture)
    with Image.open(path) as stored:
        np.testing.assert_array_equal(np.asarray(stored), picture)


def test_jpegs_keep_their_colours_at_full_resolution(tmp_path):
    write_picture(tmp_path / "a.jpg", plain(90, 32, 32))
    with Image.open(tmp_path / "a.jpg") as stored:
        assert JpegImagePlugin.get_sampling(stored) == 0
        assert stored.size == (32, 32)


def test_titles_are_written_onto_the_first_pictures():
    pictures = [plain(10, 32, 64) for _ in range(4)]
    sheet = beside(pictures, 2, ("mask", "real"))
    assert all(tile.max() > 100 for tile in (sheet[:32, :64], sheet[:32, 66:]))
    assert (sheet[34:, :64] == 10).all() and (sheet[34:, 66:] == 10).all()
    assert all((picture == 10).all() for picture in pictures)


def test_a_long_title_goes_on_in_the_next_line():
    short, long = (
        captioned(plain(90, 96, 96), text) for text in ("real", "pseudo_labels_generated")
    )
    for picture, lines in ((short, 1), (long, 2)):
        white = picture.min(-1) > 150
        assert white[:14].any() and white[16:28].any() == (lines == 2)
        assert not white[:, -3:].any()  # nothing is cut off


def test_a_legend_names_every_class_below_in_as_many_rows_as_it_takes():
    colors = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
    names, sheet = ["Land", "Water", "Something else"], plain(9, 20, 200)
    wide = with_legend(plain(9, 20, 500), names, colors)
    shown = with_legend(sheet, names, colors)
    assert wide.shape[1] == 500 and shown.shape[1] == 200 and shown.shape[0] > wide.shape[0] > 20
    np.testing.assert_array_equal(shown[:20], sheet)
    for picture in (wide, shown):
        for color in colors:
            assert (picture[20:] == color).all(-1).sum() > 100
    narrow = with_legend(plain(9, 20, 10), names, colors)
    assert narrow.shape[1] > 100 and (narrow[:20, 10:] == 255).all()
