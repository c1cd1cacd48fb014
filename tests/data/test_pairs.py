import os
import pickle
import re

import numpy as np
import pytest

from geoseg_gan.data.pairs import (
    DataError,
    PackedStrings,
    Pair,
    find_pairs,
    group_of,
    groups_of,
    some_pairs,
    stems_of,
)
from geoseg_gan.utils.errors import UserError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_pairs_are_found_by_stem_across_endings_in_order(tmp_path):
    touch(
        tmp_path / "train",
        *("images/b.jpg", "images/a.PNG", "images/c.tif", "images/d.e.jpeg", "images/f.webp"),
        *("masks/a.tiff", "masks/b.png", "masks/c.bmp", "masks/d.e.png", "masks/f.jpg"),
    )
    pairs = find_pairs(tmp_path, "train")
    assert [pair.stem for pair in pairs] == ["a", "b", "c", "d.e", "f"]
    folder = tmp_path / "train"
    assert pairs[0] == Pair("a", folder / "images" / "a.PNG", folder / "masks" / "a.tiff", "a")
    assert [pair.mask.name for pair in pairs] == ["a.tiff", "b.png", "c.bmp", "d.e.png", "f.jpg"]


def test_what_is_no_picture_is_passed_over(tmp_path):
    touch(tmp_path / "train", "images/a.jpg", "masks/a.png", "images/readme.txt", "masks/a.csv")
    touch(tmp_path / "train", "images/.tmp123.jpg", "masks/._a.png", "images/a.jpg.aux.xml")
    assert [pair.stem for pair in find_pairs(tmp_path, "train")] == ["a"]


NO_MASK = "{train}/images/b.jpg has no mask: expected {train}/masks/b with one of .png"
NO_IMAGE = "{train}/masks/c.png has no image: expected {train}/images/c with one of .jpg"


@pytest.mark.parametrize(
    ("names", "message", "advice"),
    [
        ("", "{train}/images is missing: data_root={root} must hold train/images", "data=demo."),
        ("images/a.jpg", "{train}/masks is missing: data_root={root} must hold", "scripts/tile.py"),
        ("masks/a.png", "{train}/images is missing", "Point data_root at such a folder"),
        ("images/x.txt masks/x.txt", "{train}/images holds no images (.jpg,", "Put image-mask"),
        ("images/a.jpg images/b.jpg masks/a.png", NO_MASK, "Add the mask or remove the image."),
        ("images/a.jpg masks/a.png masks/c.png", NO_IMAGE, "Add the image or remove the mask."),
        ("images/a.jpg images/b.jpg images/c.jpg masks/z.png", "{train}/images/a.jpg has no mask",
         "(and 2 more images without one)"),
        ("images/a.jpg images/a.png masks/a.png", "{train}/images/a.png and a.jpg share the stem",
         "Rename or remove one."),
        ("images/a.jpg masks/a.png masks/a.tif", "{train}/masks/a.tif and a.png share the stem 'a'",
         "Rename or remove one."),
    ],
)  # fmt: skip
def test_a_folder_that_is_wrong_is_refused_by_name_with_what_to_do(
    tmp_path, names, message, advice
):
    touch(tmp_path / "train", *names.split())
    message = message.format(root=tmp_path, train=tmp_path / "train")
    with pytest.raises(DataError, match=f"{re.escape(message)}.*{re.escape(advice)}"):
        find_pairs(tmp_path, "train")


def make_groups(root):
    touch(root / "train", *(f"images/s{n}_t{m}.jpg" for n in (1, 2) for m in (1, 2)))
    touch(root / "train", *(f"masks/s{n}_t{m}.png" for n in (1, 2) for m in (1, 2)))


def groups(root, regex=None):
    return {pair.stem: pair.group for pair in find_pairs(root, "train", regex)}


def test_each_pair_is_its_own_group_or_that_of_a_regex_by_its_match_or_first_group(tmp_path):
    make_groups(tmp_path)
    assert groups(tmp_path) == {name: name for name in ("s1_t1", "s1_t2", "s2_t1", "s2_t2")}
    expected = {"s1_t1": "s1", "s1_t2": "s1", "s2_t1": "s2", "s2_t2": "s2"}
    assert groups(tmp_path, "^s[0-9]+") == groups(tmp_path, "(s[0-9]+)_t([0-9]+)") == expected
    # An optional first group that stays empty falls back to the match.
    assert group_of("tile_7", "(scene)?tile", "data.group_regex") == "tile"


def test_tiles_csv_names_groups_and_the_regex_those_it_leaves_out(tmp_path):
    make_groups(tmp_path)
    table = "stem,split,group\ns1_t1,train,north\ns1_t2,train,north\ns2_t1,train,south\n"
    (tmp_path / "tiles.csv").write_text(table)
    expected = {"s1_t1": "north", "s1_t2": "north", "s2_t1": "south", "s2_t2": "s2"}
    assert groups(tmp_path, "^s[0-9]+") == expected


SAVED = {
    "UTF-8 with a mark": "stem,group\nköln,nord\ns1,süd\n".encode("utf-8-sig"),
    "semicolons, Windows": "stem;group\r\nköln;nord\r\ns1;süd\r\n".encode("cp1252"),
    "tabs, UTF-16": "stem\tgroup\r\nköln\tnord\r\ns1\tsüd\r\n".encode("utf-16"),
    "with endings": "group,stem ,more\nnord,köln.TIF,1\nsüd,s1.png,2\n".encode(),
    "decomposed": "stem,group\nko\u0308ln,nord\ns1,süd\n".encode(),
}


@pytest.mark.parametrize("text", SAVED.values(), ids=SAVED)
def test_a_tiles_csv_as_a_spreadsheet_saves_it_names_the_groups(tmp_path, text):
    touch(
        tmp_path / "train", *(f"{p}/{n}.png" for p in ("images", "masks") for n in ("köln", "s1"))
    )
    (tmp_path / "tiles.csv").write_bytes(text)
    assert groups(tmp_path) == {"köln": "nord", "s1": "süd"}


def test_a_stem_that_looks_like_a_name_with_an_ending_is_that_stem(tmp_path):
    touch(
        tmp_path / "train", *(f"{p}/{n}.png" for p in ("images", "masks") for n in ("a", "a.tif"))
    )
    (tmp_path / "tiles.csv").write_text("stem,group\na.tif,two\na.png,one\n")
    assert groups(tmp_path) == {"a": "one", "a.tif": "two"}


def test_a_tiles_csv_of_other_pairs_is_refused_but_one_of_a_single_split_is_not(tmp_path):
    make_groups(tmp_path)
    touch(tmp_path / "val", "images/v.png", "masks/v.png")
    (tmp_path / "tiles.csv").write_text("stem,group\ns7,north\n")
    with pytest.raises(DataError, match=r"tiles\.csv names 's7' and others, but none .*'s1_t1'"):
        find_pairs(tmp_path, "train")
    (tmp_path / "tiles.csv").write_text("stem,group\ns1_t1,north\n")
    assert [pair.group for pair in find_pairs(tmp_path, "val")] == ["v"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stem,group\na,b\n".encode("utf-16-le"), "cannot be read .it is no text; save it as CSV"),
        (b"\xff\xfes", "cannot be read"),
        (b"PK\x03\x04\x00\x00xlsx", "cannot be read"),
        ("stem,group\ns1_t1.png,a\ns1_t1,b\n", "says two things of the stem 's1_t1'"),
    ],
)
def test_a_tiles_csv_that_cannot_be_read_is_one_line(tmp_path, text, message):
    make_groups(tmp_path)
    (tmp_path / "tiles.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        find_pairs(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_names_of_both_normal_forms_of_unicode_are_paired_and_told_apart(tmp_path):
    touch(tmp_path / "train", "images/ko\u0308ln [1], a=b.jpg", "masks/k\u00f6ln [1], a=b.png")
    [pair] = find_pairs(tmp_path, "train")
    assert pair.stem == "k\u00f6ln [1], a=b"
    assert pair.image.is_file() and pair.mask.is_file()
    touch(tmp_path / "train", "images/k\u00f6ln [1], a=b.jpg")
    with pytest.raises(DataError, match=r"/k\\xf6ln .*' and 'ko\\u0308ln .*' share the stem"):
        find_pairs(tmp_path, "train")


@pytest.mark.parametrize("text", ["", "name,scene\na,b\n"])
def test_a_tiles_csv_without_its_columns_is_refused(tmp_path, text):
    make_groups(tmp_path)
    (tmp_path / "tiles.csv").write_text(text)
    with pytest.raises(UserError, match=r"tiles\.csv lacks the column 'stem'"):
        find_pairs(tmp_path, "train")


def test_a_regex_that_does_not_fit_is_refused_by_its_knob():
    with pytest.raises(DataError, match=r"data\.group_regex='x\+' does not match 's1_t1'"):
        group_of("s1_t1", "x+", "data.group_regex")
    with pytest.raises(DataError, match=r"knob='\(' is not a regular expression"):
        group_of("s1_t1", "(", "knob")
    for wrong in ("(" * 3000, "x{99999999999}"):
        with pytest.raises(DataError, match="is not a regular expression"):
            group_of("s1_t1", wrong, "knob")


def test_a_list_of_pairs_is_a_sequence_of_them(tmp_path):
    make_groups(tmp_path)
    pairs = find_pairs(tmp_path, "train", "^s[0-9]+")
    plain = list(pairs)
    assert len(pairs) == 4 and pairs == plain and pairs != plain[:3]
    assert pairs[-1] == plain[-1] and pairs[1:3] == plain[1:3]
    for some in (some_pairs(pairs, [3, 0]), some_pairs(plain, [3, 0])):
        assert some == [plain[3], plain[0]]
        assert list(stems_of(some)) == ["s2_t2", "s1_t1"] and list(groups_of(some)) == ["s2", "s1"]


WORDS = ["a", "", "straße", os.fsdecode(b"\xff.png"), "last"]


def test_names_are_a_sequence_of_the_strings_they_were_made_of():
    names = PackedStrings(WORDS)
    assert (len(names), list(names), names[2], names[-1]) == (5, WORDS, "straße", "last")
    assert list(names[1:4]) == WORDS[1:4] and list(names[::-2]) == WORDS[::-2]
    assert list(names.rows(np.array([3, 0, 3]))) == [WORDS[3], "a", WORDS[3]]
    assert list(names.rows([])) == [] == list(PackedStrings())
    with pytest.raises(IndexError):
        names[5]


def test_names_are_equal_by_their_strings_and_survive_arrays_and_pickling():
    names = PackedStrings(WORDS)
    assert names == PackedStrings(WORDS) != PackedStrings(["as", "traße", *WORDS[3:]])
    assert names != WORDS
    assert PackedStrings.from_arrays(*names.arrays()) == names == pickle.loads(pickle.dumps(names))
