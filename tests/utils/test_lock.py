import errno
import fcntl
import os
import socket
import subprocess
import sys

import pytest

from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import LOCK, atomic_folder, held


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    folder = tmp_path / "trial"
    with held(folder):
        holder = rf"process {os.getpid()} on {socket.gethostname()} since \d{{4}}-.*:\d\d\. Wait"
        with pytest.raises(UserError, match=rf"save_dir=.*trial is in use by {holder}"):
            held(folder, "save_dir").__enter__()
        with held(tmp_path / "other"):
            pass
        (folder / LOCK).write_text("[/red] process of a stranger")
        with pytest.raises(UserError, match="is in use by another call"):
            held(folder).__enter__()
    with held(folder):
        pass
    assert not folder.exists(), "a folder that nothing was written into goes again"


def test_parents_that_were_made_for_nothing_go_again(tmp_path):
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "runs/new/trial", tmp_path / "mine/trial"):
        for made in (held(folder), atomic_folder(folder, "out_dir")):
            with pytest.raises(UserError), made:
                assert folder.parent.is_dir()
                raise UserError
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    with held(tmp_path / "runs/trial"):
        (tmp_path / "runs/other").touch()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_children_of_a_killed_holder_are_waited_for(tmp_path):
    """As data workers, which were forked and so share its lock until they too have ended."""
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from geoseg_gan.utils.files import held\n"
        "held(Path(sys.argv[1])).__enter__()\n"
        "if os.fork() == 0:\n"
        "    time.sleep(0.5)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert "process" in (tmp_path / LOCK).read_text()
    with held(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / LOCK).read_text()


def test_the_file_behind_a_hard_link_in_the_place_of_the_lock_stays(tmp_path):
    other = tmp_path / "precious.txt"
    other.write_text("keep me")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).hardlink_to(other)
    with held(tmp_path / "run"):
        assert other.read_text() == "keep me"


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    other = tmp_path / "precious.txt"
    other.write_text("keep me")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / LOCK).symlink_to(other)
    with pytest.raises(UserError, match="lock is a link"):
        held(folder).__enter__()
    assert other.read_text() == "keep me"


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="has no locks"), held(tmp_path):
        pass
