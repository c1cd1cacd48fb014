import math

import pytest
import torch

from geoseg_gan.utils.confusion import IGNORE, class_iou, confusion_matrix, mean_iou


def label_of(rows):
    return torch.tensor(rows, dtype=torch.uint8)


def agreement(label, prediction, num_classes):
    return confusion_matrix(label_of(label), torch.tensor(prediction), num_classes)


def test_iou_of_a_two_by_two_mask_by_hand():
    # Class 0: TP 1, FP 1: 1/2. Class 1: FN 1, FP 1: 0. Class 2: TP 1, FN 1: 1/2.
    confusion = agreement([[0, 1], [2, 2]], [[0, 0], [1, 2]], 3)
    assert confusion.dtype == torch.int64
    assert confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert class_iou(confusion).tolist() == [0.5, 0.0, 0.5]
    assert mean_iou(confusion) == pytest.approx(1 / 3)


def test_the_mean_is_over_the_classes_of_the_labels():
    # Class 0: TP 1, FN 1: 1/2. Class 1: TP 1, FP 1, FN 1: 1/3. Class 2, only predicted, is 0 and
    # does not count in the mean; class 3 is in neither.
    confusion = agreement([[0, 0], [1, 1]], [[0, 1], [1, 2]], 4)
    assert class_iou(confusion).tolist() == pytest.approx([1 / 2, 1 / 3, 0, math.nan], nan_ok=True)
    assert mean_iou(confusion) == mean_iou(confusion.numpy()) == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_many_matrices_at_once_give_the_iou_of_each():
    first = agreement([[0, 1]], [[0, 0]], 2)
    second = agreement([[0, 1]], [[0, 1]], 2)
    assert class_iou(torch.stack([first, second])).tolist() == [[0.5, 0.0], [1.0, 1.0]]


def test_ignored_pixels_count_neither_as_true_nor_as_predicted():
    # Without its ignored pixels, where 2 and 1 are predicted, the label is met exactly.
    confusion = agreement([[0, 255], [255, 1]], [[0, 2], [1, 1]], 3)
    assert confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert mean_iou(confusion) == 1


def test_a_label_of_ignore_alone_has_no_agreement():
    confusion = agreement([[255, 255]], [[0, 1]], 2)
    assert confusion.tolist() == [[0, 0], [0, 0]]
    assert math.isnan(mean_iou(confusion))


def test_the_matrix_of_a_batch_is_the_sum_of_its_images():
    torch.manual_seed(0)
    label = torch.randint(0, 4, (3, 5, 7), dtype=torch.uint8)
    label[label == 3] = IGNORE
    prediction = torch.randint(0, 3, (3, 5, 7))
    singles = [confusion_matrix(*pair, 3) for pair in zip(label, prediction, strict=True)]
    assert torch.equal(confusion_matrix(label, prediction, 3), torch.stack(singles).sum(0))
    assert int(torch.stack(singles).sum()) == int((label != IGNORE).sum())


def test_254_classes_do_not_wrap_round():
    label = torch.tensor([253, 0], dtype=torch.uint8)
    confusion = confusion_matrix(label, label.clone(), 254)
    assert confusion[253, 253] == confusion[0, 0] == 1 and int(confusion.sum()) == 2


@pytest.mark.parametrize(
    ("label", "prediction"), [([0, 3], [0, 0]), ([0, 0], [0, 3]), ([0, 1], [0, -1])]
)
def test_classes_out_of_range_are_refused(label, prediction):
    with pytest.raises(ValueError, match=r"1 pixels have a class outside 0\.\.2"):
        agreement(label, prediction, 3)


def test_shapes_that_differ_are_refused():
    with pytest.raises(RuntimeError, match="size"):
        agreement([[0, 1], [1, 1]], [0, 1, 0], 2)
