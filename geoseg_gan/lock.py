"""A folder that one command at a time may write."""

import fcntl
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EAGAIN
from pathlib import Path

from geoseg_gan.errors import UserError

LOCK = ".lock"
"""The file by which a folder is held. It stays there: only whether it is held counts."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder for a block, against other processes and machines that share its file system.

    The system gives it free when this process ends, however it ends. Where a file system has no
    locks, a warning says so.

    Args:
        folder: The folder, which is made as needed.

    Raises:
        UserError: If another process holds it, naming which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (EACCES, EAGAIN):
                lock.seek(0)
                raise UserError(
                    f"out_dir={folder} is in use by another call ({lock.read().strip()}). Wait for "
                    "it to end, or give this one another out_dir."
                ) from None
            warnings.warn(
                f"the file system of {folder} has no locks ({error.strerror}): see to it that no "
                "other call uses this out_dir at the same time.",
                stacklevel=3,
            )
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        yield
