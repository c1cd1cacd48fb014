"""Files that appear whole or not at all."""

import fcntl
import json
import math
import os
import platform
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EACCES, EAGAIN
from pathlib import Path
from typing import Any

from geoseg_gan.utils.errors import UserError

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


# Read once, since asking sets it: two threads that ask at once would leave it at 0.
_UMASK = os.umask(0)


os.umask(_UMASK)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a scratch path beside `path`, and moves it there if the block ends well.

    The ending is kept, since libraries choose a format by it. Parents are made as needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        # mkstemp makes files private; a run folder is as readable as the umask says.
        scratch.chmod(0o666 & ~_UMASK)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a scratch folder beside `path`, and moves it there if the block ends well.

    Parents are made as needed.

    Raises:
        OSError: If `path` holds something by then.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        # One level down, since the scratch folder itself is private to the user.
        folder = Path(scratch) / path.name
        folder.mkdir()
        yield folder
        folder.replace(path)


def check_new_folder(key: str, folder: Path) -> None:
    """Refuses a folder that holds something.

    Raises:
        UserError: Naming the key and what to do.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{key}={folder} exists already. Choose a new folder, or remove this one.")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as indented JSON, whole or not at all.

    NumPy's arrays become lists; NaN and infinity, which JSON does not know, become null.
    """
    text = json.dumps(_for_json(content), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as scratch:
        scratch.write_text(text + "\n")


def _for_json(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _for_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
