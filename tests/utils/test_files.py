import json
import math
import os
import signal
import stat
import threading
from pathlib import Path

import numpy as np
import pytest

from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import (
    LOCK,
    SCRATCH,
    atomic_folder,
    atomic_path,
    check_apart,
    check_new_folder,
    held,
    is_unused,
    open_append,
    refuse_links,
    sweep,
    write_json,
)
from geoseg_gan.utils.signals import Stopped


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


def test_links_are_replaced_or_refused_but_never_followed(tmp_path):
    theirs = tmp_path / "theirs.txt"
    theirs.write_text("theirs")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a.json", "log.txt", "inside.txt"):
        (out / name).symlink_to(theirs if name != "inside.txt" else "a.json")
    with pytest.raises(UserError, match=r"is a link out of out_dir, to .*theirs"):
        refuse_links(out)
    write_json(out / "a.json", {})
    with pytest.raises(UserError, match=r"log\.txt is a link or a pipe"):
        open_append(out / "log.txt")
    assert theirs.read_text() == "theirs" and not (out / "a.json").is_symlink()
    (out / "log.txt").unlink()
    (tmp_path / "link").symlink_to(out)
    refuse_links(tmp_path / "link")
    (out / "images").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"images is a link out of save_dir"):
        refuse_links(out, "save_dir")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("elsewhere")])
def test_a_lock_that_is_no_file_is_refused(tmp_path, make):
    make(tmp_path / LOCK)
    with (
        pytest.raises(UserError, match=r"\.lock is a link, or no file\. Remove it"),
        held(tmp_path),
    ):
        pass


def test_lines_are_appended_to_a_file_but_not_to_what_shares_its_content(tmp_path):
    ours, copy = tmp_path / "log.txt", tmp_path / "copy.txt"
    for line in ("one\n", "two\n"):
        with open_append(ours) as log:
            log.write(line)
            assert ours.read_text().endswith(line)
        if line == "one\n":
            os.link(ours, copy)
    assert (ours.read_text(), copy.read_text()) == ("one\ntwo\n", "one\n")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is a link or a pipe"):
        open_append(tmp_path / "pipe")


def test_files_and_folders_are_on_the_disk_before_and_after_they_get_their_name(
    tmp_path, monkeypatch
):
    synced, sync = [], os.fsync

    def note(handle):
        place = Path(f"/proc/self/fd/{handle}").readlink()
        synced.append((place.name.startswith(SCRATCH), target.exists()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", note)
    target = tmp_path / "a.json"
    write_json(target, {})
    assert synced == [(True, False), (False, True)]
    synced.clear()
    target = tmp_path / "whole"
    with atomic_folder(target, "out_dir") as folder:
        write_json(folder / "sub" / "a.json", {})
        assert not synced
    assert [was_there for _, was_there in synced] == [False, False, True]


def test_what_killed_calls_leave_is_swept_and_nothing_else(tmp_path):
    kept = [".geoseg-mine", ".geoseg-abcd1234.txt.bak", ".hidden.json", "a.json"]
    for name in (*kept, ".geoseg-abcd1234", ".geoseg-ab_d1234.jpg"):
        (tmp_path / "masks").mkdir(exist_ok=True)
        (tmp_path / "masks" / name).touch()
    sweep(tmp_path)
    assert names(tmp_path / "masks") == sorted(kept)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".geoseg-abcd1234").touch()
    with held(tmp_path / "run"):
        assert names(tmp_path / "run") == [LOCK]
        (tmp_path / "run" / ".geoseg-abcd1234").touch()
        sweep(tmp_path)  # leaves what another call holds alone
        assert names(tmp_path / "run") == [".geoseg-abcd1234", LOCK]
        assert is_unused(tmp_path / "run") and not is_unused(tmp_path)


def test_a_folder_is_made_by_one_call_at_a_time_which_sweeps_what_a_killed_one_left(tmp_path):
    target, scratch = tmp_path / "x", tmp_path / ".geoseg-x"
    (scratch / "x").mkdir(parents=True)
    (scratch / "x" / "half").touch()
    with atomic_folder(target, "data_root") as folder:
        (folder / "a").touch()
        with pytest.raises(UserError, match=r"data_root=.*x is in use by process"):
            atomic_folder(target, "data_root").__enter__()
    assert names(target) == ["a"] and names(tmp_path) == ["x"]
    scratch.mkdir()
    with pytest.raises(UserError, match="exists already"):
        check_new_folder("data_root", target)
    assert names(tmp_path) == ["x"]
    scratch.symlink_to(target)
    with pytest.raises(UserError, match="is a link"):
        atomic_folder(target, "data_root").__enter__()
    assert names(target) == ["a"]


def test_a_signal_that_ends_the_making_of_a_folder_says_that_nothing_is_left(tmp_path):
    with pytest.raises(Stopped) as stop, atomic_folder(tmp_path / "x", "data_root") as folder:
        (folder / "a").touch()
        raise Stopped(signal.SIGINT)
    line = f"Nothing of {tmp_path / 'x'} was kept: the same command begins it again."
    assert stop.value.__notes__ == [line] and names(tmp_path) == []


def test_nothing_is_written_into_the_data_that_is_read(tmp_path):
    root = tmp_path / "data"
    (root / "train").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root / "train")
    for place in (
        root,
        root / "train" / "out",
        root / "val",
        tmp_path / "link" / "x",
        root / "a/..",
    ):
        with pytest.raises(UserError, match=r"save_dir=.* lies inside of the data in"):
            check_apart("save_dir", place, root)
    for place in (root / "stream", tmp_path, root / "training"):
        check_apart("save_dir", place, root)
    with pytest.raises(UserError, match=r"data_root=.* lies inside"):
        check_apart("data_root", root / "stream", root, [""])
