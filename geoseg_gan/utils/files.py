"""Files that appear whole or not at all, and folders that one process holds."""

import csv
import json
import math
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from errno import EEXIST, EINVAL, ELOOP, ENOLCK, ENXIO, EOPNOTSUPP
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.signals import Stopped

LOCK = ".lock"
"""The file by which a folder is held. It stays there: only whether it is held counts."""


_ENDING = 5.0  # seconds in which the children of a process that was killed end


@contextmanager
def held(folder: Path, key: str = "out_dir", wait: bool = False) -> Iterator[None]:
    """Holds a folder for a block, against other processes and machines that share its file system.

    What killed calls were writing there is removed first, see `sweep`. The system gives the folder
    free when this process ends, however it ends. Where a file system has no locks, a warning says
    so. Folders that are made for the block, and stay empty, are removed.

    Args:
        folder: The folder, which is made as needed.
        key: What it is called in the configuration.
        wait: Whether to wait until it is free.

    Raises:
        UserError: If another process holds it (the text names process, machine and since when), or
            a link in it leads to the outside.
    """
    with _made(folder) as is_new, _locked(folder / LOCK, key, folder, wait):
        try:
            refuse_links(folder, key)
            sweep(folder)
            yield
        finally:
            if is_new and [entry.name for entry in folder.glob("*")] == [LOCK]:
                with suppress(OSError):
                    (folder / LOCK).unlink()


@contextmanager
def _made(folder: Path) -> Iterator[bool]:
    """Makes a folder for a block; it and the parents that it lacked are removed if they stay empty.

    Yields:
        Whether it is new.
    """
    lacking = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield bool(lacking)
    finally:
        with suppress(OSError):  # of a folder that is not empty
            for place in lacking:
                place.rmdir()


@contextmanager
def _locked(path: Path, key: str, folder: Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock at `path` for a block, on behalf of a folder; may wait until it is free."""
    lock = FileLock(path)
    try:
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            if not _has_ended(_holder(path)):
                raise
            # Processes that were forked from it share its lock until they have ended too.
            lock.acquire(timeout=_ENDING)
        _sign(path)
    except Timeout:
        raise UserError(
            f"{key}={folder} is in use by {_holder(path) or 'another call'}. Wait for it to end, "
            f"or give this call another {key}."
        ) from None
    except OSError as error:
        if error.errno == ELOOP or (path.exists() and not path.is_file()):
            raise UserError(f"{path} is a link, or no file. Remove it, and call again.") from None
        if error.errno not in (ENOLCK, EOPNOTSUPP):
            raise
        warnings.warn(
            f"the file system of {folder} has no locks ({error.strerror}): see to it that no other "
            f"call uses this {key} at the same time.",
            stacklevel=5,
        )
    try:
        yield
    finally:
        lock.release()


def _sign(lock: Path) -> None:
    """Writes who holds a folder into its lock, for those who find it in use."""
    text = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}"
    handle = os.open(lock, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        if os.fstat(handle).st_nlink == 1:  # else it is a file of another name too, which stays
            os.ftruncate(handle, 0)
            os.write(handle, text.encode())
    finally:
        os.close(handle)


def _holder(lock: Path) -> str | None:
    """What the process that holds a lock has written into it; None if that is something else."""
    with suppress(OSError, UnicodeDecodeError), lock.open() as file:
        found = re.fullmatch(r"process \d+ on [\w.-]+ since [\d :-]+", file.read(200))
        return found and found[0]
    return None


def _has_ended(holder: str | None) -> bool:
    """Whether the process that a lock names ran on this machine, and no longer does."""
    number, host = (holder or "").split()[1:4:2] or ("0", "")
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return host == socket.gethostname()
    except (OSError, OverflowError):
        pass
    return False


# Read once, since asking sets it: two threads that ask at once would leave it at 0.
_UMASK = os.umask(0)


os.umask(_UMASK)


SCRATCH = ".geoseg-"
"""What the names of files and folders that are not yet whole begin with."""

_SCRATCH_FILE = re.compile(re.escape(SCRATCH) + r"[a-z0-9_]{8}(\.\w+)?")


WRITING = "While writing "
"""How a note on an error begins that names the file, which libraries leave out."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a scratch path beside `path`, and moves it there if the block ends well.

    It is on the disk by then, and takes the place of a link rather than of what that leads to. The
    ending is kept, since libraries choose a format by it. Parents are made as needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=SCRATCH, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        # mkstemp makes files private; a run folder is as readable as the umask says.
        scratch.chmod(0o666 & ~_UMASK)
        # A folder that is not yet whole is brought to the disk at once, in its end.
        is_part = any(part.startswith(SCRATCH) for part in path.absolute().parts)
        if not is_part:
            sync(scratch)
        scratch.replace(path)
        if not is_part:
            sync(path.parent)
    except (OSError, RuntimeError) as error:
        error.add_note(f"{WRITING}'{path}'")
        raise
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, key: str, wait: bool = False) -> Iterator[Path]:
    """Yields a scratch folder beside `path`, and moves it there if the block ends well.

    Parents are made as needed. What a call that was killed has left is removed.

    Args:
        path: The new folder.
        key: What it is called in the configuration.
        wait: Whether to wait for another process that makes the same folder.

    Raises:
        UserError: If another process makes the same folder, or it holds something by then.
    """
    path = path.resolve()
    scratch = _beside(path)
    with _made(path.parent):
        scratch.mkdir(0o700, exist_ok=True)
        status = scratch.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise UserError(f"{scratch} is a link, or of another user. Remove it, and call again.")
        with _locked(scratch / LOCK, key, path, wait):
            # One level down, since the scratch folder itself is private to the user.
            folder = scratch / path.name
            try:
                check_new_folder(key, path)  # again, since another call may have ended meanwhile
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                yield folder
                for entry in _entries(folder):
                    sync(Path(entry.path))
                folder.replace(path)
                sync(path.parent)
            except Stopped as stop:
                stop.add_note(f"Nothing of {path} was kept: the same command begins it again.")
                raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


def _beside(path: Path) -> Path:
    """Where a folder is made that will be moved to `path`."""
    return path.parent / f"{SCRATCH}{path.name[:100]}"


def sweep_beside(path: Path) -> None:
    """Removes what a killed call left of making a folder."""
    scratch = _beside(path.resolve())
    if scratch.is_dir() and not scratch.is_symlink():
        with suppress(Timeout, OSError), FileLock(scratch / LOCK, blocking=False):
            shutil.rmtree(scratch)


def sync(path: Path) -> None:
    """Waits until a file, or the list of a folder's files, is on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (EINVAL, EOPNOTSUPP):  # file systems that know no such thing
            raise
    finally:
        os.close(handle)


def open_append(path: Path) -> TextIO:
    """Opens a text file for appending line by line, but nothing that it links to.

    Raises:
        UserError: If it is a link, or no file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (ELOOP, ENXIO):
            raise
        raise UserError(f"{path} is a link or a pipe. Remove it, and call again.") from None
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:  # also known by a name of another
        os.close(handle)
        with atomic_path(path) as scratch:
            shutil.copyfile(path, scratch)
        handle = os.open(path, flags)
    return os.fdopen(handle, "a", buffering=1, encoding="utf-8")


def refuse_links(folder: Path, key: str = "out_dir") -> None:
    """Refuses, with a UserError, an output folder with links to the outside.

    The folder may be a link itself.
    """
    root = os.path.realpath(folder)
    for entry in _entries(folder):
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if os.path.commonpath((root, target)) != root:
                raise UserError(
                    f"{entry.path} is a link out of {key}, to {target}, where nothing is to be "
                    f"written. Remove it, or choose another {key}."
                )


def sweep(folder: Path) -> None:
    """Removes what killed calls were writing in a folder that this process holds.

    Folders in it that other processes hold are left alone.
    """
    for entry in list(os.scandir(folder)):
        place = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            lock = FileLock(place / LOCK, blocking=False)
            with suppress(Timeout), lock if (place / LOCK).exists() else nullcontext():
                sweep(place)
        elif _SCRATCH_FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            place.unlink(missing_ok=True)


def is_unused(folder: Path) -> bool:
    """Whether a folder does not exist, or holds but a lock and what killed calls were writing."""
    return not folder.exists() or all(
        path.name == LOCK or _SCRATCH_FILE.fullmatch(path.name) for path in folder.iterdir()
    )


def _entries(folder: str | Path) -> Iterator["os.DirEntry[str]"]:
    """All that lies in a folder, at any depth; links are not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(entry.path)
            yield entry


def check_new_folder(key: str, folder: Path) -> None:
    """Refuses, with a UserError, a folder that holds something."""
    sweep_beside(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{key}={folder} exists already. Choose a new folder, or remove this one.")


def check_apart(
    key: str, folder: Path, root: Path, parts: Iterable[str] = ("train", "val", "unlabelled")
) -> None:
    """Refuses, with a UserError, to write into data that is read, or within `parts` of it."""
    place, source = folder.resolve(), root.resolve()
    if place == source or any(place.is_relative_to(source / part) for part in parts):
        raise UserError(f"{key}={folder} lies inside of the data in {root}. Choose another folder.")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as indented JSON, whole or not at all.

    NumPy's arrays become lists; NaN and infinity, which JSON does not know, become null.
    """
    text = json.dumps(_for_json(content), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as scratch:
        scratch.write_text(text + "\n")


def link_file(source: Path, target: Path) -> None:
    """Lets `target` be the file `source` too, or a copy of it where the file system has no links.

    Raises:
        FileExistsError: If there is something at `target`.
    """
    if target.exists():
        raise FileExistsError(EEXIST, "exists already", str(target))
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table as CSV, whole or not at all."""
    with atomic_path(path) as scratch, scratch.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(head)
        writer.writerows(rows)


def _for_json(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _for_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
