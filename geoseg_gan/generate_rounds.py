"""How the processes of a team paint together: in rounds, each a part of every round's candidates.

A round's candidates are consecutive, and so is each process's part. When a part is judged, all
processes are told which of it would be kept, and hence where enough are kept; only pairs up to
there are written. Rank 0 lists what all have written, in order of index, so that the manifest says
at any time what is done, and a run may go on with another number of processes.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any

from geoseg_gan.synthesis.filter import Judged
from geoseg_gan.synthesis.writer import Manifest, PairWriter
from geoseg_gan.team import Team

Line = dict[str, Any]

"""A line of the manifest."""


_BATCHES = 4  # that a process paints in a round, so that it seldom waits for a slower one


_Told = tuple[list[bool], list[Line]]


def plan_rounds(
    start: int, stop: int, batch: int, team: Team, wanted: int | None
) -> list[list[list[int]]]:
    """This process's batches of candidates in every round.

    Args:
        start: The first candidate.
        stop: The one after the last.
        batch: Candidates painted at once.
        team: Who shares them.
        wanted: How many are to be kept; None where all are to be painted.
    """
    goal = stop - start if wanted is None else wanted
    # Few candidates are shared out evenly; one process tells itself at once what it found.
    part = min(_BATCHES * batch, max(1 if wanted is None else batch, -(-goal // team.size)))
    part = batch if team.size == 1 else part
    rounds = []
    for first in range(start, stop, team.size * part):
        mine = range(first + team.rank * part, min(stop, first + (team.rank + 1) * part))
        rounds.append([list(mine[at : at + batch]) for at in range(0, len(mine), batch)])
    return rounds


class Rounds:
    """Hands judged candidates on to be written and listed, until enough are kept.

    Args:
        team: The processes.
        writer: Writes this process's pairs.
        written: Lines of pairs that it has written and rank 0 does not know of yet.
        manifest: Where rank 0 lists what all have written; None in the others.
        wanted: How many candidates are to be kept; None where all are to be painted.
        progress: Is told in every round how many candidates are done, and how many of them kept.
    """

    def __init__(
        self,
        team: Team,
        writer: PairWriter,
        written: list[Line],
        manifest: Manifest | None,
        wanted: int | None,
        progress: Callable[[int, int], None],
    ) -> None:
        """Keeps the parts."""
        self._team = team
        self._writer = writer
        self._written = written
        self._manifest = manifest
        self._wanted = wanted
        self._progress = progress
        self._open: deque[tuple[list[Judged], Future[list[_Told]]]] = deque()

    def run(self, judged: Iterator[Judged], rounds: Sequence[list[list[int]]]) -> None:
        """Goes through all rounds, or until enough candidates are kept.

        Args:
            judged: This process's candidates, in order of index.
            rounds: Its batches of each round.

        Raises:
            OSError: If a pair could not be written.
            UserError: If a user's mistake was found in any process.
        """
        # Several processes hear of a round while they paint the next one.
        open_rounds = 0 if self._team.size == 1 else 1
        for batches in rounds:
            if self._wanted == 0:
                break
            mine = list(islice(judged, sum(map(len, batches))))
            lines, self._written[:] = list(self._written), []
            told = ([one.verdict.kept for one in mine], lines)
            self._open.append((mine, self._team.start_sharing(told)))
            self._close(open_rounds)
        self._close(0)

    def finish(self) -> None:
        """Lists what was written last, once the writer is left."""
        for lines in self._team.share(self._written):
            self._list(lines)

    def _list(self, lines: Sequence[Line]) -> None:
        if self._manifest is not None:
            for line in lines:
                self._manifest.add(line)

    def _close(self, most_open: int) -> None:
        while len(self._open) > most_open:
            mine, future = self._open.popleft()
            answers = future.result()
            kept = [flag for flags, _ in answers for flag in flags]
            first = sum(len(flags) for flags, _ in answers[: self._team.rank])
            for _, lines in answers:
                self._list(lines)
            end = enough(kept, self._wanted)
            for one in mine[: max(0, end - first)]:
                self._writer.add(*one)
            found = sum(kept[:end])
            self._wanted = None if self._wanted is None else self._wanted - found
            self._progress(end, found)


def enough(kept: Sequence[bool], wanted: int | None) -> int:
    """How many candidates, in order, it takes until `wanted` are kept; all where that is None."""
    if wanted is None:
        return len(kept)
    for number, found in enumerate(kept):
        if wanted == 0:
            return number
        wanted -= found
    return len(kept)
