"""Which parts of a trial wait for which others, and which of them start first."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from enum import StrEnum
from graphlib import TopologicalSorter
from typing import NamedTuple, TypeVar

from geoseg_gan.trials.results import REAL, recipe_of

T = TypeVar("T")


class Kind(StrEnum):
    """What a task leaves: a generator, the segmenter of arm real, painted pairs, or a result."""

    GENERATOR = "generator"
    FILTER = "filter"
    PAIRS = "pairs"
    RESULT = "result"


class Task(NamedTuple):
    """A part of a trial that one process does alone, in folders that no other task writes.

    Attributes:
        kind: What it leaves.
        seed: Whose.
        arm: The arm, where a result is left; the folder of pairs, where those are; that of a
            refined generator.
    """

    kind: Kind
    seed: int
    arm: str = ""

    def __str__(self) -> str:
        """What is done, as a progress bar tells it."""
        return f"{self.arm or self.kind}, seed {self.seed}"


def plan(
    missing: Sequence[tuple[str, int]],
    gan_seeds: Mapping[int, int],
    folders: Callable[[str], str],
    refined: Callable[[str], str | None],
) -> dict[Task, list[Task]]:
    """The tasks that missing results take, each with those that must be done before.

    What is there already is a task as well, one that takes no time.

    Args:
        missing: Arms and seeds of the results.
        gan_seeds: For every seed the one whose generator and pairs it uses.
        folders: The folder in which a recipe's pairs lie; several may share one.
        refined: The folder of a recipe's refined generator; None where the seed's own paints.

    Returns:
        Tasks in the order in which one process would do them.
    """
    needs: dict[Task, list[Task]] = {}

    def real(seed: int) -> Task:
        """The task that leaves the segmenter of arm real, by which pairs are judged."""
        return Task(Kind.RESULT, seed, REAL) if (REAL, seed) in missing else Task(Kind.FILTER, seed)

    for arm, seed in missing:
        recipe = recipe_of(arm)
        if recipe is None:
            needs[Task(Kind.RESULT, seed, arm)] = []
            continue
        source = gan_seeds[seed]
        generator = Task(Kind.GENERATOR, source)
        pairs = Task(Kind.PAIRS, source, folders(recipe))
        for task in (real(source), real(seed)):
            if task.kind == Kind.FILTER:
                needs.setdefault(task, [] if task.seed == source else [pairs])
        needs[generator] = []
        if (folder := refined(recipe)) is not None:
            later = Task(Kind.GENERATOR, source, folder)
            needs[later] = [generator]
            generator = later
        needs[pairs] = [generator, real(source)]
        # Where no pair is kept, a segmenter of arm real stands in for that of the arm.
        needs[Task(Kind.RESULT, seed, arm)] = [pairs, real(seed)]
    return needs


class Schedule:
    """Hands out tasks whose turn it is: those that most others wait for, in a chain, come first.

    Args:
        needs: Every task with those that must be done before.
    """

    def __init__(self, needs: Mapping[Task, Sequence[Task]]) -> None:
        """Works out how long a chain hangs on every task."""
        followers: dict[Task, list[Task]] = defaultdict(list)
        for task, before in needs.items():
            for earlier in before:
                followers[earlier].append(task)
        chain: dict[Task, int] = {}
        for task in reversed(list(TopologicalSorter(needs).static_order())):
            chain[task] = 1 + max((chain[later] for later in followers[task]), default=0)
        kinds = list(Kind)
        order = sorted(needs, key=lambda t: (-chain[t], t.seed, kinds.index(t.kind)))
        self._turn = {task: number for number, task in enumerate(order)}
        self._sorter = TopologicalSorter(needs)
        self._sorter.prepare()
        self._ready: list[Task] = []

    def take(self) -> Task | None:
        """The task to start now; None where all that is left waits for one that runs."""
        self._ready += self._sorter.get_ready()
        if not self._ready:
            return None
        task = min(self._ready, key=self._turn.__getitem__)
        self._ready.remove(task)
        return task

    def finish(self, task: Task) -> None:
        """Says that a task is done, so that others can start."""
        self._sorter.done(task)


def work_off(
    needs: Mapping[Task, Sequence[Task]], start: Callable[[Task], "Future[T]"], places: int
) -> Iterator[tuple[Task, T]]:
    """Does tasks side by side, each once those that it needs are done.

    Args:
        needs: Every task with those that must be done before.
        start: Begins a task elsewhere.
        places: How many may run at once.

    Yields:
        Tasks as they end, with what they came to. Where one fails, its exception is raised; those
        that still run are the caller's to end.
    """
    schedule = Schedule(needs)
    running: dict[Future[T], Task] = {}
    while True:
        while len(running) < places and (task := schedule.take()) is not None:
            running[start(task)] = task
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            task = running.pop(future)
            outcome = future.result()
            schedule.finish(task)
            yield task, outcome
