"""A command that a signal can reach at a rename: `python killed.py train bs=2`.

The environment variable KILL_AT tells where, as in "before 3 9": before its third rename a process
sends itself signal 9. With "log PATH" it adds a byte to a file at each rename instead. Started
processes import this file again, and count for themselves.
"""

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import tomllib
from pathlib import Path

REPO = Path(__file__).parents[2]


def main_of(name):
    """The function of a command, by the name of its script."""
    points = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = points[f"geoseg-{name.replace('_', '-')}"].partition(":")
    return getattr(importlib.import_module(module), function)


def arm():
    """Has the renames of this process counted, where KILL_AT is set."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells' background jobs ignore
    where, at, *number = (os.environ.get("KILL_AT") or "never 0").split()
    if where == "never":
        return
    count = 0

    def kill(moment):
        if where == moment and count == int(at):
            os.kill(os.getpid(), int(number[0]))

    def counted(rename):
        def renamed(*args, **options):
            nonlocal count
            count += 1
            kill("before")
            done = rename(*args, **options)
            kill("after")
            if where == "log":
                with open(at, "ab") as log:  # noqa: PTH123
                    log.write(b".")
            return done

        return renamed

    for name in ("replace", "rename", "link"):
        setattr(os, name, counted(getattr(os, name)))


def run(name, arguments, cwd, log, environment):
    """What a forked process does: the command in `cwd`, which prints into `log`.out and `log`.err.

    The environment's LIMIT bounds one of the system's resources for it: "number value".
    """
    os.setsid()
    # As in a process of its own: the system's method to start others, and no parent in Python.
    multiprocessing.set_start_method(None, force=True)
    multiprocessing.process._parent_process = None
    for number, ending in ((1, "out"), (2, "err")):
        target = os.open(f"{log}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(target, number)
    os.chdir(cwd)
    os.environ |= environment
    sys.argv = [f"{name}.py", *arguments]
    arm()
    main = main_of(name)
    Path(environment["BEGUN"]).touch()
    if "LIMIT" in environment:
        kind, value = map(int, environment["LIMIT"].split())
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))
    main()


if __name__ in ("__main__", "__mp_main__"):
    arm()
if __name__ == "__main__":
    os.setsid()
    sys.argv = sys.argv[1:]
    Path(os.environ["BEGUN"]).touch()
    main_of(sys.argv[0])()
