import os
import pickle

import numpy as np
import pytest

from geoseg_gan.data.pairs import PackedStrings

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
