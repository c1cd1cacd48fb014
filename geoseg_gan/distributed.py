"""Shares a command's work out over processes, for commands that need no Trainer.

Processes are started here where there are none (`devices` above 1), or are those that torchrun or
SLURM's srun have started. All of them run the same function, each on a share of the work; they tell
each other what they found through `Team`. The first one, rank 0, alone speaks to the user.

On the CPU the bytes of what networks give depend on how many threads add up. Processes that are
started here use as many threads as the one that starts them, so that their results are those of one
process with that number; torchrun and SLURM are to be given it as OMP_NUM_THREADS. With
OMP_NUM_THREADS=1 everywhere the bytes are the same however many processes there are.
"""

import functools
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection, get_context
from typing import Any, Protocol, TypeVar

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from geoseg_gan.team import GRACE, PATIENCE, LostError, Team
from geoseg_gan.utils.device import TrainerSettings
from geoseg_gan.utils.errors import ToldElsewhereError, UserError

T = TypeVar("T")


class Shareable(Protocol):
    """A command's configuration, as far as sharing its work is concerned."""

    devices: int
    trainer: TrainerSettings


ConfigT = TypeVar("ConfigT", bound=Shareable)


def run_together(work: Callable[[ConfigT, Team], T], config: ConfigT) -> T:
    """Runs a function in all processes that are to share its work.

    Under torchrun or srun these are the ones that they have started, whatever `config.devices`
    says; else as many as that, of which this one is rank 0 and the others are started when it first
    shares something. Functions that share nothing until they have checked their configuration thus
    tell mistakes at once.

    Args:
        work: A function of a module, which is given the configuration and the team.
        config: The configuration; it must pickle where processes are started.

    Returns:
        What `work` returned in rank 0.

    Raises:
        UserError: If a user's mistake was found in any process; in others than rank 0 of torchrun
            and SLURM it is one that the commands do not print once more.
    """
    place = _place()
    if place is not None:
        return _take_part(work, config, Team(*place, _meet_elsewhere))
    if config.devices == 1:
        return work(config, Team())
    followers = _Followers(work, config)
    team = Team(0, config.devices, 0, followers.start, founds=True)
    try:
        result = _take_part(work, config, team)
    except BaseException as error:
        # After a mistake they have been told and end by themselves; of Ctrl-C only this one knows.
        followers.end(at_once=not isinstance(error, Exception))
        team.leave()
        if isinstance(error, LostError) and (codes := followers.exit_codes()):
            raise UserError(f"{error} (Exit codes: {codes}; -9 can be a lack of memory.)") from None
        raise
    followers.end()
    return result


def _take_part(work: Callable[[ConfigT, Team], T], config: ConfigT, team: Team) -> T:
    try:
        # Shared at the end too, so that nobody leaves before the last one could fail.
        result = team.share(work(config, team))[0]
    except UserError as error:
        team.fail(str(error), mistake=True)
        team.leave()
        if team.leads:
            raise
        raise ToldElsewhereError(str(error)) from None
    except Exception:
        team.fail(traceback.format_exc(), mistake=False)
        team.leave()
        raise
    team.leave()
    return result


class _Followers:
    """The processes that rank 0 starts on its own machine."""

    def __init__(self, work: Callable[[ConfigT, Team], Any], config: ConfigT) -> None:
        self._work = work
        self._config = config
        self._processes: list[Any] = []

    def start(self) -> Store:
        """Starts them, and waits until all are there."""
        size = self._config.devices
        store = TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
        # Threads of GPU processes only feed them; on the CPU their number is part of the result.
        threads = torch.get_num_threads()
        if self._config.trainer.on_gpu():
            threads = max(1, threads // size)
        # A fork would inherit CUDA's state and the locks of other threads.
        context = get_context("spawn")
        doors = []
        with _ignoring_interrupts():
            for rank in range(1, size):
                door, their_door = context.Pipe(duplex=False)
                task = (self._work, self._config, rank, size, store.port, threads, their_door)
                process = context.Process(target=_follow, args=task)
                process.start()
                their_door.close()
                self._processes.append(process)
                doors.append(door)
        for door, process in zip(doors, self._processes, strict=True):
            connection.wait([door, process.sentinel])
            if not door.poll():
                self.end(at_once=True)
                raise UserError(
                    f"devices={size}: a process could not be started. Scripts that call this must "
                    'do so under `if __name__ == "__main__":`, since each process reads them.'
                )
        return store

    def end(self, at_once: bool = False) -> None:
        """Waits for them to end, or makes them."""
        for process in self._processes:
            if not at_once:
                process.join(GRACE)
            process.terminate()
        for process in self._processes:
            process.join(GRACE)
            process.kill()
            process.join()

    def exit_codes(self) -> str:
        """The exit codes of those that did not end by themselves."""
        codes = (process.exitcode for process in self._processes)
        return ", ".join(str(code) for code in codes if code not in (0, 1))


def _follow(
    work: Callable[[ConfigT, Team], Any],
    config: ConfigT,
    rank: int,
    size: int,
    port: int,
    threads: int,
    door: connection.Connection,
) -> None:
    """What a started process does; rank 0 tells the user of all that goes wrong."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what it has begun is ended
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    door.send(None)

    def meet() -> Store:
        return TCPStore("127.0.0.1", port, size, is_master=False)

    try:
        _take_part(work, config, Team(rank, size, rank, meet))
    except Exception:
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Has processes that are started here ignore Ctrl-C, which reaches all, for rank 0 to act."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _place() -> tuple[int, int, int] | None:
    """Rank, size and local rank that torchrun or srun has given; None where this one is alone."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(name in os.environ for name in names):
        # Only srun sets these: in a batch script without it there is but one process.
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    try:
        rank, size, local_rank = (int(os.environ[name]) for name in names)
    except KeyError:
        return None
    return (rank, size, local_rank) if size > 1 else None


@functools.cache
def _elsewhere() -> Store:
    """The store of the processes that torchrun or srun has started."""
    address = "env://"
    if "RANK" not in os.environ:
        host = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"])
        # A port that all processes know, and steps at the same time do not share.
        number = int(os.environ["SLURM_JOB_ID"]) + 997 * int(os.environ["SLURM_STEP_ID"])
        rank, size, _ = _place() or (0, 1, 0)
        address = f"tcp://{host}:{10_000 + number % 20_000}?rank={rank}&world_size={size}"
    store: Store = next(rendezvous(address, timeout=PATIENCE))[0]
    return store


_meetings = 0


def _meet_elsewhere() -> Store:
    """A store of its own for every call, as the jobs of a sweep follow each other."""
    global _meetings
    _meetings += 1
    return PrefixStore(f"geoseg_gan/{_meetings}", _elsewhere())
