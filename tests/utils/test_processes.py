import subprocess
import sys
import time

import pytest

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
