"""Processes that share a trial's runs, each on a device of its own."""

import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import active_children, connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch

from geoseg_gan.config import plain
from geoseg_gan.models.settings import ModelSettings
from geoseg_gan.trials.runs import TrialRuns
from geoseg_gan.trials.schedule import Task, work_off
from geoseg_gan.trials.settings import TrialConfig
from geoseg_gan.utils.errors import UserError

Lines = Generator[str | None, None, None]

"""For every task that is done the line that tells a result; None where it left something else."""


_GRACE = 20.0  # seconds in which processes that are told to end must have ended


class _Outcome(NamedTuple):
    """What a task came to: a line to show, warnings with their kinds, and what went wrong."""

    line: str | None
    warned: list[tuple[str, type[Warning]]]
    problem: str | None = None
    mistake: bool = False


def run_side_by_side(
    config: TrialConfig, needs: Mapping[Task, Sequence[Task]], show: Callable[[str], None]
) -> Lines:
    """Does tasks in `config.devices` processes, each once those that it needs are done.

    What runs print goes to their own logs, and what else processes print to `worker_#.txt` in the
    trial's folder. However this ends, all of them have ended.

    Args:
        config: The trial.
        needs: Every task with those that must be done before.
        show: Is told what is being done whenever that changes.

    Yields:
        What tasks have to tell, as they end.

    Raises:
        UserError: If a process made out a user's mistake, or was lost.
        RuntimeError: If a task failed otherwise, with its traceback.
    """
    config = portable(config)
    workers = [_Worker(config, number) for number in range(min(config.devices, len(needs)))]
    running: list[Task] = []

    def start(task: Task) -> "Future[_Outcome]":
        running.append(task)
        show(_listed(running))
        return next(worker for worker in workers if worker.free).start(task)

    try:
        for task, outcome in work_off(needs, start, len(workers)):
            running.remove(task)
            for text, kind in outcome.warned:
                warnings.warn(text, kind, stacklevel=2)
            if outcome.problem is not None:
                if outcome.mistake:
                    raise UserError(outcome.problem)
                raise RuntimeError(f"{task} failed:\n{outcome.problem}")
            yield outcome.line
    except BrokenProcessPool:
        lost = next(worker for worker in workers if worker.lost)
        lost.end()
        raise UserError(
            f"a process that shared the runs has ended unexpectedly (exit code {lost.exit_code}; "
            f"-9 can be a lack of memory): see {lost.log}. What was finished is saved. Call again "
            "to go on, with fewer devices or smaller batches if memory is short."
        ) from None
    finally:
        for worker in workers:
            worker.tell_to_end()
        for worker in workers:
            worker.end()


def portable(config: TrialConfig) -> TrialConfig:
    """A trial that other processes can be given, with settings of networks as plain dicts.

    They have classes that are made while composing, which no process can import.

    Args:
        config: The trial.
    """
    recipes = dict(config.recipes)
    for name, recipe in recipes.items():
        if recipe.refine is not None:
            discriminator = plain(recipe.refine)["discriminator"]
            recipes[name] = replace(
                recipe, refine=replace(recipe.refine, discriminator=discriminator)
            )
    return replace(config, model=ModelSettings(**plain(config.model)), recipes=recipes)


def worker_environment(number: int, config: TrialConfig) -> dict[str, str]:
    """What the environment of a worker says of its device and its threads.

    A number of threads that the user has given (OMP_NUM_THREADS) counts for every process; without
    one, they share the cores.

    Args:
        number: Number of the worker, from 0 on.
        config: The trial.
    """
    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, threads // config.devices)
    variables = {"OMP_NUM_THREADS": str(threads)}
    if config.trainer.on_gpu():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(n) for n in range(config.devices)]
        variables["CUDA_VISIBLE_DEVICES"] = names[number].strip()
    return variables


class _Worker:
    """A process that does one task after another; it is started with the first."""

    def __init__(self, config: TrialConfig, number: int) -> None:
        self.log = Path(config.out_dir) / f"worker_{number}.txt"
        self._environment = worker_environment(number, config)
        threads = int(self._environment["OMP_NUM_THREADS"])
        # A fork would inherit CUDA's state and the locks of other threads.
        context = get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _begin, (config, threads, self.log))
        self._process: BaseProcess | None = None
        self._future: Future[_Outcome] | None = None

    @property
    def free(self) -> bool:
        """Whether it does nothing now."""
        return self._future is None or self._future.done()

    @property
    def lost(self) -> bool:
        """Whether its process ended unasked."""
        future = self._future
        if future is None or not future.done() or future.cancelled():
            return False
        return isinstance(future.exception(), BrokenProcessPool)

    @property
    def exit_code(self) -> int | None:
        """With what its process ended; None where it has not."""
        return None if self._process is None else self._process.exitcode

    def start(self, task: Task) -> "Future[_Outcome]":
        """Has a task done."""
        others = active_children()
        try:
            with _setting(self._environment), _without_interrupts():
                self._future = self._pool.submit(_do, task)
        except BrokenProcessPool as error:  # its process ended between two tasks
            self._future = Future()
            self._future.set_exception(error)
        if self._process is None:
            self._process = next((p for p in active_children() if p not in others), None)
        return self._future

    def tell_to_end(self) -> None:
        """Begins to end its process, whatever that does."""
        # First, since a process that is torn from a task then asks for the next one.
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._process is not None and not self.free:
            self._process.terminate()

    def end(self) -> None:
        """Waits until its process has ended, but not for long."""
        if self._process is None:
            return
        ended: list[object] = []
        try:
            ended += connection.wait([self._process.sentinel], _GRACE)
        finally:  # impatient users interrupt once more
            if not ended:
                self._process.kill()
            self._process.join()
        # Where the pool's thread was first to collect it, the exit code is known a moment later.
        deadline = time.monotonic() + _GRACE
        while self.exit_code is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if self.exit_code == 0 and self.log.is_file() and not self.log.stat().st_size:
            self.log.unlink()


@contextmanager
def _setting(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of the environment, which processes that are started meanwhile inherit."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keeps Ctrl-C, which a terminal sends to all processes, from those that are started meanwhile.

    This one, which gets it afterwards, ends them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listed(running: Sequence[Task]) -> str:
    more = f" and {len(running) - 2} more" if len(running) > 2 else ""
    return "; ".join(str(task) for task in running[:2]) + more


_runs: TrialRuns

"""In a worker: what does its tasks."""


_busy = threading.Lock()

"""In a worker: held while a task is done."""


def _begin(config: TrialConfig, threads: int, log: Path) -> None:
    """What a worker does first."""
    global _runs
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_follow_parent, daemon=True).start()
    with log.open("a") as target:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(target.fileno(), stream.fileno())
    torch.set_num_threads(threads)
    _runs = TrialRuns(config)


def _do(task: Task) -> _Outcome:
    """Does a task in a worker."""
    line, problem, mistake = None, None, False
    with _busy, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for kind in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        # Exceptions as text, since not all of them can be sent.
        try:
            line = _runs.run(task)
        except UserError as error:
            problem, mistake = str(error), True
        except Exception:
            problem = traceback.format_exc()
    warned = [(str(entry.message), entry.category) for entry in caught]
    return _Outcome(line, warned, problem, mistake)


def _leave(*_: object) -> None:
    """Ends a worker as an exception does, so that scratch files are removed."""
    sys.exit(1)


def _follow_parent() -> None:
    """Ends a worker once the process that started it has ended, however that came about."""
    parent = parent_process()
    assert parent is not None, "workers are started by a trial"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    _busy.acquire(timeout=_GRACE)  # until the task is torn down, which removes scratch files
    os._exit(1)
