import errno
import fcntl
import os

import pytest

from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import LOCK, held


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    folder = tmp_path / "trial"
    with held(folder):
        with pytest.raises(UserError, match=r"save_dir=.*trial is in use by another call"):
            held(folder, "save_dir").__enter__()
        with held(tmp_path / "other"):
            pass
    with held(folder):
        pass


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
