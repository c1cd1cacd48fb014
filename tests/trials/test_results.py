import numpy as np
import pytest

from geoseg_gan.trials.arms import ONLY, Mix, mix_of, recipe_of
from geoseg_gan.trials.results import (
    RunResult,
    read_result,
    read_results,
    result_path,
    write_result,
)
from geoseg_gan.utils.confusion import TileConfusions
from geoseg_gan.utils.errors import UserError


@pytest.fixture
def result():
    tiles = TileConfusions(["a"], ["g"], np.arange(4).reshape(1, 2, 2))
    examples = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    support = {"pixels": [9, 8], "tiles": [1, 1], "groups": [1, 1], "total_tiles": 1}
    facts = {"kept": None, "generated": None, "tau": None, "seconds": 1.5, "support": support}
    return RunResult("copy_paste", 7, tiles, tiles, examples, facts)


def test_a_result_comes_back_as_it_was(tmp_path, result):
    write_result(tmp_path, result)
    read = read_result(result_path(tmp_path, "copy_paste", 7))
    assert (read.arm, read.seed, read.facts) == ("copy_paste", 7, result.facts)
    assert np.array_equal(read.val.counts, result.val.counts)
    assert np.array_equal(read.inner.counts, result.inner.counts)
    assert np.array_equal(read.examples, result.examples)
    assert [r.seed for r in read_results(tmp_path)] == [7]


def test_a_file_of_another_kind_is_refused_by_name(tmp_path):
    path = result_path(tmp_path, "real", 0)
    path.parent.mkdir(parents=True)
    np.savez(path, facts=np.array('{"format": 0}'))
    for content, message in (
        (path.read_bytes(), "lacks 'val_stems'"),
        (b"no archive", "cannot be read"),
        (b"", "cannot be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"seed_000\.npz {message}.*run trial again"):
            read_result(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"val_counts": np.zeros((2, 2, 2), int)},
            r"of shape \[2, 2, 2\], not \[1,",
        ),
        ({"val_counts": np.full((1, 2, 2), -1)}, "'val_counts', which holds -1, not 0 to"),
        ({"val_stems": np.array([1])}, "'val_stems', which is int64"),
        ({"facts": np.array("{")}, "'facts' that cannot be read"),
        ({"facts": np.array('{"format": 1}')}, "lacks 'arm'"),
        ({"examples": np.zeros((2, 2, 3), np.uint8)}, "'examples', which is uint8 of shape"),
    ],
)
def test_arrays_and_facts_that_do_not_fit_are_named(tmp_path, result, changes, message):
    write_result(tmp_path, result)
    path = result_path(tmp_path, "copy_paste", 7)
    with np.load(path) as arrays:
        content = dict(arrays)
    np.savez(path, **content | changes)
    with pytest.raises(UserError, match=message):
        read_result(path)


@pytest.mark.parametrize(("arm", "seed"), [("copy_paste", 8), ("real", 7)])
def test_a_result_that_lies_in_another_s_place_is_refused(tmp_path, result, arm, seed):
    write_result(tmp_path, result)
    place = result_path(tmp_path, arm, seed)
    place.parent.mkdir(exist_ok=True)
    result_path(tmp_path, "copy_paste", 7).rename(place)
    with pytest.raises(UserError, match=r"npz holds the result of copy_paste, seed 7\. Remove it"):
        read_results(tmp_path)


def test_arms_are_named_by_their_ratio():
    for mix in (Mix("synthetic", 0.1), Mix("real_texture", 0.25)):
        assert mix_of(mix.arm) == mix and recipe_of(mix.arm) == mix.recipe
    assert Mix("synthetic", 0.1).arm == "synthetic_0.1"
    assert [mix_of(arm) for arm in ("real", "oversample", "copy_paste", ONLY)] == [None] * 4
    assert [recipe_of(arm) for arm in ("real", "copy_paste", ONLY)] == [None, None, "synthetic"]
