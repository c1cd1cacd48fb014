"""Confusion matrices tile by tile: what figures with intervals are worked out from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORE = 255

"""The label of pixels that do not count; the palette's, which this layer does not import."""


def confusion_matrix(label: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """Counts the pixels of every pair of true and predicted class.

    Args:
        label: True classes of any shape, integers; 255 (ignore) is left out.
        prediction: Predicted classes of the same shape, integers in 0..C-1 where they count.
        num_classes: How many classes (C) there are.

    Returns:
        Shape (C, C), int64, on the label's device: rows are true, columns are predicted classes.

    Raises:
        ValueError: If the shapes differ, or a class that counts is not in 0..C-1.
    """
    if label.shape != prediction.shape:
        raise ValueError(
            f"label is {tuple(label.shape)} but prediction is {tuple(prediction.shape)}"
        )
    cells = num_classes**2
    true, guess = label.long(), prediction.long()
    codes = true * num_classes + guess
    outside = (true < 0) | (true >= num_classes) | (guess < 0) | (guess >= num_classes)
    # Two cells of their own, since picking pixels by a mask would make a GPU wait once more.
    codes = codes.masked_fill(outside, cells + 1).masked_fill(true == IGNORE, cells)
    counts = torch.bincount(codes.flatten(), minlength=cells + 2)
    if counts[cells + 1]:
        raise ValueError(
            f"{int(counts[cells + 1])} pixels have a class outside 0..{num_classes - 1}"
        )
    return counts[:cells].view(num_classes, num_classes)


def class_iou(confusion: Tensor) -> Tensor:
    """Intersection over union of every class, TP / (TP + FP + FN) (Everingham et al. 2010).

    Args:
        confusion: Shape (C, C): rows are true, columns are predicted classes.

    Returns:
        Shape (C,), float64 in 0..1, on the CPU; NaN where the class is in neither label nor
        prediction.
    """
    counts = confusion.cpu().double()  # some accelerators have no float64
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def mean_iou(confusion: Tensor) -> float:
    """The mean IoU over the classes that occur in label or prediction; NaN where none does.

    Args:
        confusion: Shape (C, C): rows are true, columns are predicted classes.
    """
    return float(class_iou(confusion).nanmean())


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
