"""Confusion matrices tile by tile: what figures with intervals are worked out from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TileConfusions:
    """What a segmenter predicted on every one of T real tiles.

    Attributes:
        stems: The tiles' names.
        groups: The ground that each shows.
        counts: Pixels by tile, true class and predicted class, shape (T, C, C), int64.
    """

    stems: list[str]
    groups: list[str]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of_windows(
        cls, stems: Sequence[str], groups: Sequence[str], counts: npt.NDArray[np.int64]
    ) -> Self:
        """Adds up windows that show the same tile.

        Args:
            stems: The tile of each of the N windows.
            groups: The ground of each.
            counts: Pixels by window, true class and predicted class, shape (N, C, C), int64.
        """
        names, first, tile = np.unique(stems, return_index=True, return_inverse=True)
        totals = np.zeros((len(names), *counts.shape[1:]), np.int64)
        np.add.at(totals, tile, counts)
        return cls(names.tolist(), [groups[row] for row in first], totals)

    def to_arrays(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        """The entries of an `.npz` file, their names beginning with `prefix`."""
        return {
            f"{prefix}_stems": np.array(self.stems, np.str_),
            f"{prefix}_groups": np.array(self.groups, np.str_),
            f"{prefix}_counts": self.counts,
        }

    @classmethod
    def from_arrays(cls, arrays: Any, prefix: str) -> Self:
        """What `to_arrays` made.

        Raises:
            KeyError: If an entry is missing.
        """
        return cls(
            arrays[f"{prefix}_stems"].tolist(),
            arrays[f"{prefix}_groups"].tolist(),
            arrays[f"{prefix}_counts"].astype(np.int64),
        )
