"""Files that appear whole or not at all, and folders that one process holds."""

import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import ELOOP, ENOLCK, EOPNOTSUPP
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from geoseg_gan.utils.errors import UserError

LOCK = ".lock"
"""The file by which a folder is held. It stays there: only whether it is held counts."""


@contextmanager
def held(folder: Path, key: str = "out_dir") -> Iterator[None]:
    """Holds a folder for a block, against other processes and machines that share its file system.

    The system gives it free when this process ends, however it ends. Where a file system has no
    locks, a warning says so.

    Args:
        folder: The folder, which is made as needed.
        key: What it is called in the configuration.

    Raises:
        UserError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{key}={folder} is in use by another call. Wait for it to end, or give this one "
            f"another {key}."
        ) from None
    except OSError as error:
        if error.errno == ELOOP:
            raise UserError(f"{folder / LOCK} is a link. Remove it, and call again.") from None
        if error.errno not in (ENOLCK, EOPNOTSUPP):
            raise
        warnings.warn(
            f"the file system of {folder} has no locks ({error.strerror}): see to it that no other "
            f"call uses this {key} at the same time.",
            stacklevel=3,
        )
    try:
        yield
    finally:
        lock.release()


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
