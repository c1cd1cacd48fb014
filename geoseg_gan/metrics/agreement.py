"""Agreement of predicted with true label maps: confusion matrices and the IoU of classes."""

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
