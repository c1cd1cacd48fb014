"""Many short strings in a little memory."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
import numpy.typing as npt


class Names(Sequence[str]):
    """Strings, one after another in a single piece of memory.

    A list of 100,000 strings is as many objects, each of which every loader process would copy as
    soon as it counts a reference to it. Here they are one object.

    Args:
        strings: What to hold; file names that are not text are held as they are.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        """Packs the strings."""
        packed = [os.fsencode(string) for string in strings]
        self._bytes = b"".join(packed)
        self._ends = np.cumsum([0, *map(len, packed)])

    def __len__(self) -> int:
        """How many strings there are."""
        return len(self._ends) - 1

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> "Names": ...
    def __getitem__(self, position: int | slice) -> "str | Names":
        """One string, or some of them."""
        if isinstance(position, slice):
            return self.rows(range(len(self))[position])
        place = range(len(self))[position]
        return os.fsdecode(self._bytes[self._ends[place] : self._ends[place + 1]])

    def __iter__(self) -> Iterator[str]:
        """The strings in order."""
        ends = self._ends.tolist()
        for start, end in pairwise(ends):
            yield os.fsdecode(self._bytes[start:end])

    def __eq__(self, other: object) -> bool:
        """Whether the other holds the same strings."""
        if not isinstance(other, Names):
            return NotImplemented
        return self._bytes == other._bytes and np.array_equal(self._ends, other._ends)

    __hash__ = None  # type: ignore[assignment]

    def rows(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> "Names":
        """Some of the strings, in the order asked for."""
        starts, ends = self._ends[:-1][rows].tolist(), self._ends[1:][rows].tolist()
        chosen = Names()
        chosen._bytes = b"".join(
            self._bytes[start:end] for start, end in zip(starts, ends, strict=True)
        )
        chosen._ends = np.cumsum([0, *np.diff(self._ends)[rows].tolist()])
        return chosen

    def arrays(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The bytes and where each string ends, as `of_arrays` takes them."""
        return np.frombuffer(self._bytes, np.uint8), self._ends

    @classmethod
    def of_arrays(cls, data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> "Names":
        """The strings that `arrays` gave."""
        names = cls()
        names._bytes, names._ends = data.tobytes(), ends
        return names
