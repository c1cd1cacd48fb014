"""Processes that share a command's work, as one of them sees them."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed
from torch.distributed import Store  # type: ignore[attr-defined]

from geoseg_gan.utils.device import TrainerSettings
from geoseg_gan.utils.errors import UserError

T = TypeVar("T")


PATIENCE = timedelta(days=1)

"""How long one process waits for the others, as while one of them reads new data."""


GRACE = 30.0

"""Seconds in which processes that are done, or are told to, must end."""


class _Told(NamedTuple):
    """What went wrong in a process: a user's mistake in one line, or a traceback."""

    text: str
    mistake: bool


class LostError(UserError):
    """Another process ended without a word."""


_Calls = queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]


class Team:
    """The processes that share a command's work, as one of them sees them.

    All processes must call the same methods in the same order. Where one fails, the next call of
    every other one raises what went wrong there.

    Args:
        rank: Number of this process, from 0 on.
        size: How many there are.
        local_rank: Number of this process on its machine.
        meet: Gives the store through which they find each other, on first use.
        founds: Whether the others are not there before that.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        meet: Callable[[], Store] | None = None,
        founds: bool = False,
    ) -> None:
        """Keeps the numbers; nothing is connected before something is shared."""
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self._meet = meet
        self._founds = founds
        self._failure: Exception | None = None
        self._calls: _Calls = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which speaks to the user and writes what there is one of."""
        return self.rank == 0

    def device(self, settings: TrainerSettings) -> torch.device:
        """The device of this process."""
        if self.size == 1 or not settings.on_gpu():
            return settings.device()
        # SLURM may show each process no other GPU than its own.
        device = torch.device("cuda", self.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device

    @property
    def neighbours(self) -> int:
        """How many processes share this one's machine, itself included, where each has a GPU."""
        return max(1, min(self.size, torch.cuda.device_count()))

    def where(self, settings: TrainerSettings) -> str:
        """Where the work is done, in words."""
        kind = "GPU" if settings.on_gpu() else "CPU"
        if self.size == 1:
            return f"the {kind}"
        return f"{self.size} GPUs" if kind == "GPU" else f"the CPU in {self.size} processes"

    def part(self, count: int, step: int) -> range:
        """This process's part of `count` things in order, in whole batches of `step`."""
        batches = -(-count // step)
        first, last = (
            batches * number // self.size * step for number in (self.rank, self.rank + 1)
        )
        return range(min(first, count), min(last, count))

    def share(self, value: T) -> list[T]:
        """The values of all processes, in order of rank.

        Raises:
            UserError: If a user's mistake was found in another process, or one was lost.
            RuntimeError: If another process failed, with its traceback.
        """
        return self.start_sharing(value).result()

    def start_sharing(self, value: T) -> "Future[list[T]]":
        """Like `share`, in a thread, so that no process waits for a slower one."""
        return self._start(lambda: self._exchange(value), [value])

    def gather(self, values: list[T]) -> list[T]:
        """The values of all processes' lists, in order of rank: in rank 0, elsewhere nothing."""
        return self._start(lambda: self._gather(values), values).result()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Lets rank 0 go through a block alone, then all others: what it caches, they find."""
        if not self.leads:
            self.share(None)
        yield
        if self.leads:
            self.share(None)

    def fail(self, text: str, mistake: bool) -> None:
        """Tells all others what went wrong here, once they share something."""
        unheard = self._founds and self._thread is None
        if self.size > 1 and self._failure is None and not unheard:
            told = _Told(text, mistake)
            self._start(lambda: self._exchange([], told), [[]]).exception()

    def leave(self) -> None:
        """Ends the connection, which nothing may be under way in."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join(GRACE)
            self._thread = None
            distributed.destroy_process_group()

    def _start(self, call: Callable[[], T], alone: T) -> "Future[T]":
        future: Future[T] = Future()
        if self.size == 1:
            future.set_result(alone)
            return future
        if self._thread is None and self._failure is None:
            self._connect()
        self._calls.put((call, future))
        return future

    def _connect(self) -> None:
        assert self._meet is not None, "processes of a team are told how they meet"
        try:
            store = self._meet()
            distributed.init_process_group(
                "gloo", store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE
            )
        except Exception as error:
            self._failure = error
            raise
        # One thread keeps the order of calls; a daemon does not hold up the end of a process.
        self._thread = threading.Thread(target=_work_off, args=(self._calls,), daemon=True)
        self._thread.start()

    def _gather(self, values: list[T]) -> list[T]:
        self._exchange(values[:0])  # a failure must be told before anyone sends or waits
        parts: list[Any] | None = [None] * self.size if self.leads else None
        distributed.gather_object(values, parts)
        return [value for part in parts or [] for value in part]

    def _exchange(self, value: T, told: _Told | None = None) -> list[T]:
        if self._failure is not None:
            raise self._failure
        answers: list[Any] = [None] * self.size
        try:
            distributed.all_gather_object(answers, (told, value))
        except RuntimeError as error:
            self._failure = LostError(
                "a process that shared the work has ended unexpectedly; what was finished is "
                "saved. Call again to go on, with fewer processes or a smaller bs if memory is "
                "short."
            )
            raise self._failure from error
        for rank, (problem, _) in enumerate(answers):
            if problem is not None:
                self._failure = (
                    UserError(problem.text)
                    if problem.mistake
                    else RuntimeError(f"process {rank} of {self.size} failed:\n{problem.text}")
                )
                raise self._failure
        return [answer for _, answer in answers]


def _work_off(calls: _Calls) -> None:
    while (entry := calls.get()) is not None:
        call, future = entry
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)
