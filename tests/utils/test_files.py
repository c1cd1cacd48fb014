import json
import math
import os
import stat
import threading

import numpy as np
import pytest

from geoseg_gan.utils.files import atomic_path, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_with_its_parents_and_nothing_beside_it(tmp_path):
    target = tmp_path / "a" / "b" / "out.txt"
    with atomic_path(target) as scratch:
        scratch.write_text("half")
        assert not target.exists()
        assert scratch.parent == target.parent and scratch.suffix == ".txt"
        assert scratch.name.startswith(".")
        scratch.write_text("whole")
    assert target.read_text() == "whole"
    assert names(target.parent) == ["out.txt"]


def test_a_failure_keeps_the_old_file_and_leaves_no_scratch(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="midway"), atomic_path(target) as scratch:
        scratch.write_text("half of the new")
        raise RuntimeError("midway")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out.txt"]


def test_files_are_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_path(tmp_path / "atomic") as scratch:
        scratch.touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")]
    assert modes[0] == modes[1]


def test_the_umask_is_left_alone_so_that_threads_may_write_at_once(tmp_path, monkeypatch):
    def refuse(mask):
        raise AssertionError("asking for the umask sets it for every thread")

    monkeypatch.setattr(os, "umask", refuse)
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").exists()


def test_writers_of_one_path_leave_one_whole_file(tmp_path):
    def write(number):
        write_json(tmp_path / "a.json", {"writer": [number] * 1000})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = json.loads((tmp_path / "a.json").read_text())["writer"]
    assert len(content) == 1000 and len(set(content)) == 1
    assert names(tmp_path) == ["a.json"]


def test_json_reads_back_and_ends_in_a_newline(tmp_path):
    content = {"palette": ["Wald", "Gewässer"], "tau": 0.65, "seed": None}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == content
    assert text.endswith("}\n") and "Gewässer" in text


def test_what_json_does_not_know_is_null_and_arrays_are_lists(tmp_path):
    content = {"a": np.array([1.5, np.nan]), "b": (math.inf, {"c": np.float32(2)}), "d": "x"}
    write_json(tmp_path / "a.json", content)
    stored = json.loads((tmp_path / "a.json").read_text())
    assert stored == {"a": [1.5, None], "b": [None, {"c": 2.0}], "d": "x"}
