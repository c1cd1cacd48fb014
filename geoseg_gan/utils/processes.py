"""Processes that work side by side on this machine, and end with the one that started them."""

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

from geoseg_gan.utils.errors import UserError, show_warnings_as_lines
from geoseg_gan.utils.signals import Stopped, ignoring, raising_signals

_Worker = tuple[BaseProcess, Connection]  # and where it sends what the function returns or raises
_GRACE = 60.0  # seconds that processes have to save and end, before they are killed
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def side_by_side(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    threads: int,
    signals: Sequence[int] = (),
) -> list[Any]:
    """Calls a function in new processes, one for each tuple of arguments.

    A signal that asks this process to end is passed on to them once, so that they can save. All of
    them have ended when this returns or raises.

    Args:
        function: A function of a module.
        arguments: What each process calls it with; all of it must pickle.
        threads: How many threads each process uses for computing (OMP_NUM_THREADS).
        signals: More signals that are passed on.

    Returns:
        What the function returned, in order.

    Raises:
        UserError: If a user's mistake is found in a process, or one ends unexpectedly.
        Stopped: If a signal asked this process or one of them to end.
    """
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("spawn", force=True)  # joblib's, which no other knows
    # A fork would inherit CUDA's state and the locks of threads.
    context = multiprocessing.get_context("spawn")
    with ignoring(signal.SIGHUP):  # which ends it with the terminal, before these processes
        resource_tracker.ensure_running()
    workers: list[_Worker] = []
    try:
        with raising_signals(signals):
            for number, given in enumerate(arguments):
                mine, theirs = context.Pipe(duplex=False)
                place = f"process {number} of {len(arguments)}"
                work = (pickle.dumps((function, given)), place, threads, theirs)
                process: BaseProcess = context.Process(target=_work, args=work)
                process.start()
                theirs.close()
                workers.append((process, mine))
            return _answers(workers)
    except BaseException as error:
        number = error.number if isinstance(error, Stopped) else signal.SIGTERM
        for process, _ in workers:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)
        raise
    finally:
        for process, _ in workers:
            process.join(_GRACE)
            process.kill()
            process.join()


def end_with_parent(*_: object) -> None:
    """Has the system end this process with the one that started it, however that ends.

    For what multiprocessing or joblib has started, from a thread that lasts as long: Linux takes
    the end of that thread for the end of its process. Does nothing in a process of other origin.
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent.pid,), daemon=True).start()
    if os.getppid() != parent.pid:  # it had ended before
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _answers(workers: list[_Worker]) -> list[Any]:
    """What the function returned in each process, in order; raises what it raised."""
    answers: dict[int, Any] = {}
    while len(answers) < len(workers):
        waiting = {number: w for number, w in enumerate(workers) if number not in answers}
        wait([answer for _, answer in waiting.values()], timeout=1.0)
        for number, (process, answer) in waiting.items():
            has_ended = process.exitcode is not None  # asked first: an answer may come before it
            try:
                if answer.poll():
                    answers[number] = answer.recv()
                elif has_ended:  # its own workers may hold the pipe open
                    raise EOFError
            except EOFError:
                process.join(_GRACE)
                if (process.exitcode or 0) > 128:  # a signal that only it was sent
                    raise Stopped(cast(int, process.exitcode) - 128) from None
                answers[number] = UserError(
                    f"devices={len(workers)}: a process ended unexpectedly (exit code "
                    f"{process.exitcode}; -9 can be a lack of memory). What was finished is saved: "
                    "call again to go on, with fewer devices or a smaller bs if memory is short. "
                    'A script of your own must call this under `if __name__ == "__main__":`.'
                )
        # Where one process fails, others fail for want of it: the user's mistake comes first.
        if errors := [answer for answer in answers.values() if isinstance(answer, Exception)]:
            raise min(errors, key=lambda error: not isinstance(error, UserError))
    return [answers[number] for number in range(len(workers))]


def _work(work: bytes, place: str, threads: int, answer: Connection) -> None:
    """What a started process does: it sends back what the function returns or raises."""
    os.setpgrp()  # Ctrl-C reaches the parent alone, which passes it on once
    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    show_warnings_as_lines()
    try:
        function, arguments = pickle.loads(work)
        with raising_signals():
            answer.send(function(*arguments))
    except Exception as error:
        trace = f"In {place}:\n{traceback.format_exc()}"
        if not isinstance(error, UserError):
            error.add_note(trace)
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(trace)
        answer.send(error)
