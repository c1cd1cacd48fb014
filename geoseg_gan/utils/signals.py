"""Signals that ask a command to end: raised as an exception, or noted until a safe moment."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, the end of a job on a cluster or of a container, and the end of a terminal."""

_SAME = 1.0  # seconds in which a signal may come twice
_GRACE = 60  # seconds that the processes of a loader go on after such a signal


class Stopped(SystemExit):
    """A signal asked this process to end; the exit code is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        """Keeps the signal's number."""
        super().__init__(128 + number)
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as it is made."""
        return Stopped, (self.number,)

    def __str__(self) -> str:
        """What happened, in words."""
        is_interrupt = self.number == signal.SIGINT
        return "interrupted." if is_interrupt else f"{signal.Signals(self.number).name} received."


@dataclass
class Noted:
    """The first signal that was noted; 0 for none."""

    number: int = 0

    def raise_if_any(self) -> None:
        """Raises `Stopped` once a signal has been noted."""
        if self.number:
            raise Stopped(self.number)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Within it a signal ends this process with one line, where nothing has begun yet."""

    def end(number: int, _: FrameType | None) -> None:
        os.write(2, f"error: {Stopped(number)}\n".encode())
        os._exit(128 + number)

    with _handled(SIGNALS, end):
        yield


@contextmanager
def raising_signals(more: Sequence[int] = ()) -> Iterator[None]:
    """Within it the signals, and `more` of them, raise `Stopped` in the main thread.

    Blocks then end as they should, and so does a library that makes another error of it. Signals
    that are ignored, as under nohup, stay so.
    """
    noted = Noted()

    def stop(number: int, _: FrameType | None) -> None:
        noted.number = number
        raise Stopped(number)

    with _handled((*SIGNALS, *more), stop):
        try:
            yield
        except Exception:
            noted.raise_if_any()
            raise


@contextmanager
def noting_signals(more: Sequence[int] = ()) -> Iterator[Noted]:
    """Within it the signals, and `more` of them, are noted; the first counts.

    A signal that is still noted when the block ends is raised then. A second Ctrl-C is raised at
    once; but a signal that comes twice within a second, as from a cluster and from the process that
    has started this one, is one.
    """
    noted, since = Noted(), 0.0

    def note(number: int, _: FrameType | None) -> None:
        nonlocal since
        if not noted.number:
            noted.number, since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - since > _SAME:
            raise Stopped(number)

    with _handled((*SIGNALS, *more), note):
        yield noted
    noted.raise_if_any()


def outlive_signals() -> None:
    """Has this process, which another one ends when it is done, go on for a minute after a signal.

    Signals often reach all processes of a job, of which the first still has to save its work.
    """
    for number in SIGNALS:
        signal.signal(number, lambda *_: signal.alarm(_GRACE))


@contextmanager
def ignoring(number: int) -> Iterator[None]:
    """Within it a signal is ignored, also by programs that are started."""
    with _handled([number], signal.SIG_IGN):
        yield


@contextmanager
def _handled(
    numbers: Sequence[int], handler: Callable[[int, FrameType | None], None] | signal.Handlers
) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in numbers}
    handled = [n for n in numbers if before[n] not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        handled = []  # only the main thread can, and gets, signals
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
