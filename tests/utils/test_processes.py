import subprocess
import sys
import time
from pathlib import Path

import pytest

from geoseg_gan.utils.processes import side_by_side

COMMAND = """
import multiprocessing, os, sys, time
from geoseg_gan.utils.processes import end_with_parent

def work():
    {first}
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("fork").Process(target=work).start()
    time.sleep({seconds})
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(
    ("first", "seconds"),
    [
        ("pass", 0.5),
        ("parent = os.getppid(); print(os.getpid(), flush=True); time.sleep(0.5)", 0.2),
        ("sys.platform = 'other'", 0.5),
    ],
)
def test_a_process_ends_with_the_one_that_started_it_however_that_ends(first, seconds):
    code = COMMAND.format(first=first, seconds=seconds)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        assert command.stdout.readline()
        assert command.wait(30) == -9
        end = time.monotonic() + 10
        while command.stdout.read(1):  # its end is the end of the last process that has it open
            assert time.monotonic() < end
        assert time.monotonic() < end


def sockets(number):
    """What a process has open besides files and pipes, in the notation of /proc."""
    opened = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return number, [str(path) for path in opened if str(path).startswith("socket:")]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_processes_side_by_side_talk_through_pipes_alone():
    before = sockets(0)[1]
    (first, found), (second, more) = side_by_side(sockets, [(0,), (1,)], 1)
    assert (first, second) == (0, 1) and set(found + more) <= set(before)
