import errno
import os
import pickle
import re

import pytest
import torch
from hydra.plugins.config_source import ConfigLoadError
from torch._utils import ExceptionWrapper

from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path
from geoseg_gan.utils.messages import mistake


def system(number, path="runs/a.pt"):
    return OSError(number, os.strerror(number), path)


def from_a_worker(error):
    """The error that a loader raises for one of its workers."""
    try:
        raise error
    except Exception:
        sent = pickle.loads(pickle.dumps(ExceptionWrapper(where="in DataLoader worker process 0")))
    try:
        sent.reraise()
    except Exception as raised:
        return raised


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (system(errno.ENOSPC), "No space left on device: runs/a.pt. Free some space, or choose "),
        (system(errno.EDQUOT), "Disk quota exceeded: runs/a.pt. Your quota is used up"),
        (system(errno.EROFS), "Read-only file system: runs/a.pt. Choose a folder that can be"),
        (system(errno.EACCES), "Permission denied: runs/a.pt. Change its permissions"),
        (system(errno.EFBIG), "File too large: runs/a.pt. Raise the limit of file sizes"),
        (system(errno.EMFILE), "Too many open files: runs/a.pt. Raise the limit of open files"),
        (system(errno.EIO), "Input/output error: runs/a.pt. See whether disk or network"),
        (system(errno.ENAMETOOLONG), "File name too long: runs/a.pt. Choose a shorter name."),
        (system(errno.ENOTDIR), "Not a directory: runs/a.pt. A part of this path is a file."),
        (system(errno.ENOMEM), "out of memory: use a smaller bs"),
        (OSError(errno.ENOSPC, "No space left"), "No space left .* while reading or writing"),
        (from_a_worker(system(errno.ENOSPC)), "No space left on device: runs/a.pt. Free"),
        (from_a_worker(MemoryError()), "out of memory"),
        (from_a_worker(UserError("a.png is damaged.")), "a.png is damaged.$"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (
            RuntimeError("unable to write to file </torch_12_3>: No space left on device (28)"),
            "the shared memory of the machine is used up",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."),
            "the shared memory of the machine is used up",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "a process that reads data ended unexpectedly",
        ),
        (RuntimeError("Too many open files. Communication"), "Too many open files: "),
        (caused(ValueError("a"), system(errno.ENOSPC)), "No space left on device: runs/a.pt"),
        (OSError("encoder error -2 when writing image file"), "encoder error -2 when writing"),
    ],
)
def test_errors_of_the_system_are_a_line_with_place_and_remedy(error, line):
    found = mistake(error)
    assert found is not None and re.match(line, found) and "\n" not in found


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("ours"),
        RuntimeError("shapes do not match"),
        from_a_worker(KeyError("ours")),
        ConfigLoadError("Hydra explains it"),
        ValueError("No space left on device"),
    ],
)
def test_errors_of_the_program_are_none_of_the_system(error):
    assert mistake(error) is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error: {}. See"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "{}: the file could not"),
    ],
)
def test_errors_of_writing_name_the_file_that_was_to_be(error, line, tmp_path):
    path = tmp_path / "G_e001.pt"
    with pytest.raises(type(error)) as caught, atomic_path(path):
        raise error
    assert mistake(pickle.loads(pickle.dumps(caught.value))).startswith(line.format(path))
