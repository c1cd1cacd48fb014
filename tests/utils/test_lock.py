import errno
import fcntl
import os

import pytest

from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import held


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    folder = tmp_path / "trial"
    with held(folder):
        with pytest.raises(UserError, match=rf"trial is in use .*process {os.getpid()} on"):
            held(folder).__enter__()
        with held(tmp_path / "other"):
            pass
    with held(folder):
        pass


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="has no locks"), held(tmp_path):
        pass
