import math

import pytest
import torch
from defaults import defaults

from geoseg_gan.losses.segmentation import SegmentationLoss
from geoseg_gan.losses.settings import SegmentationLossSettings


def logits_of(probabilities):
    """Two classes on one row: (1, 2, 1, W) from the probability of class 1 at every pixel."""
    p = torch.tensor(probabilities)
    return torch.stack([(1 - p).log(), p.log()])[None, :, None]


LABEL = torch.tensor([[[1, 0, 255]]], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("weights", "by_hand"),
    [(None, (math.log(2) + math.log(4)) / 2), ([1.0, 3.0], (3 * math.log(2) + math.log(4)) / 4)],
)
def test_cross_entropy_is_the_mean_over_labelled_pixels_weighed_by_class(weights, by_hand):
    loss = SegmentationLoss(defaults(SegmentationLossSettings, dice=0.0), weights)
    terms = loss(logits_of([0.5, 0.75, 0.9]), LABEL)
    assert terms["ce"].item() == pytest.approx(by_hand)
    assert list(terms) == ["ce"]


def test_dice_leaves_ignored_pixels_out():
    loss = SegmentationLoss(defaults(SegmentationLossSettings, ce=0.0, dice=2.0))
    terms = loss(logits_of([0.5, 0.25, 0.9]), LABEL)
    # Class 0: 2 * 0.75 / (0.5 + 0.75 + 1); class 1: 2 * 0.5 / (0.5 + 0.25 + 1).
    expected = 1 - (2 * 0.75 / 2.25 + 2 * 0.5 / 1.75) / 2
    assert terms.total().item() == pytest.approx(2 * expected, rel=1e-5)


def test_a_batch_without_a_labelled_pixel_costs_nothing_and_has_a_gradient():
    loss = SegmentationLoss(defaults(SegmentationLossSettings))
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    total = loss(logits, torch.full((2, 4, 4), 255, dtype=torch.uint8)).total()
    total.backward()
    assert total.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
