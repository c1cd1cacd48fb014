"""Confusion matrices, and the one definition of IoU and mIoU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from geoseg_gan.utils.reading import Array

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = 255
"""The label of pixels that belong to no class: no loss, no one-hot channel, no agreement."""


def confusion_matrix(label: "Tensor", prediction: "Tensor", num_classes: int) -> "Tensor":
    """Counts the pixels of every pair of true and predicted class.

    Args:
        label: True classes of any shape, integers; 255 (ignore) is left out.
        prediction: Predicted classes of the same shape, integers in 0..C-1.
        num_classes: How many classes (C) there are.

    Returns:
        Shape (C, C), int64, on the label's device: rows are true, columns are predicted classes.

    Raises:
        ValueError: If a class is not in 0..C-1.
        RuntimeError: If the shapes differ.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    # torchmetrics looks only at how many classes there are, and would count these elsewhere.
    outside = (label != IGNORE) & ((label < 0) | (label >= num_classes))
    outside |= (prediction < 0) | (prediction >= num_classes)
    if outside.any():
        raise ValueError(f"{int(outside.sum())} pixels have a class outside 0..{num_classes - 1}")
    return multiclass_confusion_matrix(
        prediction.long(), label.long(), num_classes, ignore_index=IGNORE
    )


def class_iou(counts: Any) -> npt.NDArray[np.float64]:
    """Intersection over union of every class, TP / (TP + FP + FN) (Everingham et al. 2010).

    Args:
        counts: Confusion matrices, shape (..., C, C), a tensor or an array: rows are true, columns
            are predicted classes.

    Returns:
        Shape (..., C) in 0..1; NaN where the class is in neither label nor prediction.
    """
    values = np.asarray(counts.cpu() if hasattr(counts, "cpu") else counts, np.float64)
    hits = np.diagonal(values, axis1=-2, axis2=-1)
    return iou_of(hits, values.sum(-1) + values.sum(-2) - hits)


def iou_of(
    hits: npt.NDArray[np.float64], union: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Intersection over union from pixel counts of the same shape; NaN where the union is empty."""
    return np.divide(hits, union, out=np.full_like(union, np.nan), where=union > 0)


def mean_iou(counts: Any) -> float:
    """The mean IoU over the classes that occur in the labels; NaN where none does.

    Args:
        counts: A confusion matrix, shape (C, C), a tensor or an array.
    """
    return float(mean_over(class_iou(counts), np.asarray(counts.sum(-1).tolist()) > 0))


def mean_over(
    iou: npt.NDArray[np.float64], occurs: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """The mean over the classes that occur and have an IoU.

    Args:
        iou: IoU of every class, shape (..., C).
        occurs: Which classes occur, shape (C,).

    Returns:
        Shape (...); NaN where there is no such class.
    """
    chosen = iou[..., occurs]
    count = (~np.isnan(chosen)).sum(-1)
    return np.where(count > 0, np.nansum(chosen, -1) / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class TileConfusions:
    """What a segmenter predicted on every one of T real tiles.

    Attributes:
        stems: The tiles' names.
        groups: The location group of each.
        counts: Pixels by tile, true class and predicted class, shape (T, C, C), int64.
    """

    stems: list[str]
    groups: list[str]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of_windows(
        cls, stems: Sequence[str], groups: Sequence[str], counts: npt.NDArray[np.int64]
    ) -> Self:
        """Adds up the counts (N, C, C) of windows that show the same tile, given for each of N."""
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

    @staticmethod
    def shape(prefix: str) -> dict[str, Array]:
        """What `to_arrays` gives, as a shape of `utils.reading`."""
        tiles = f"{prefix} tiles"
        return {
            f"{prefix}_stems": Array("U", (tiles,)),
            f"{prefix}_groups": Array("U", (tiles,)),
            f"{prefix}_counts": Array("iu", (tiles, "classes", "classes"), 0, 2**53),
        }

    @classmethod
    def from_arrays(cls, arrays: Any, prefix: str) -> Self:
        """What `to_arrays` made."""
        return cls(
            arrays[f"{prefix}_stems"].tolist(),
            arrays[f"{prefix}_groups"].tolist(),
            arrays[f"{prefix}_counts"].astype(np.int64),
        )
