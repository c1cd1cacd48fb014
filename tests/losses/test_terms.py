import pytest
import torch

from geoseg_gan.losses.terms import (
    balanced_cross_entropy,
    diversity,
    feature_matching,
    gradient_penalty,
    label_mix,
    perceptual,
)


def test_feature_matching_by_hand_and_with_a_detached_real_side():
    real = [
        [torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([0.0])],
        [torch.tensor([5.0]), torch.tensor([[1.0, 1.0]])],
    ]
    fake = [
        [torch.tensor([2.0, 1.0], requires_grad=True), torch.tensor([4.0])],
        [torch.tensor([5.5]), torch.tensor([[0.0, 3.0]])],
    ]
    # Scale 1: (1 + 2) / 2 + 4 = 5.5. Scale 2: 0.5 + (1 + 2) / 2 = 2. Mean over scales: 3.75.
    loss = feature_matching(real, fake)
    assert loss.item() == pytest.approx(3.75)
    loss.backward()
    assert real[0][0].grad is None
    assert fake[0][0].grad is not None


def test_five_maps_have_the_published_perceptual_weights():
    real = [torch.zeros(1, requires_grad=True) for _ in range(5)]
    fake = [torch.ones(1, requires_grad=True) for _ in range(5)]
    loss = perceptual(real, fake)
    assert loss.item() == pytest.approx(1 / 32 + 1 / 16 + 1 / 8 + 1 / 4 + 1)
    loss.backward()
    assert [value.grad.item() for value in fake] == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1]
    assert all(value.grad is None for value in real)


def test_a_perceptual_distance_is_a_mean_within_each_map():
    real = [torch.tensor([0.0, 0.0]), torch.tensor([1.0])]
    fake = [torch.tensor([1.0, 3.0]), torch.tensor([0.5])]
    # The finer of two maps weighs 1/4: 2 / 4, and 0.5 for the coarser.
    assert perceptual(real, fake).item() == pytest.approx(0.5 + 0.5)


def test_diversity_by_hand():
    first, second = torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2)
    second[0] = torch.tensor([0.2, 0.4])
    second[1] = torch.tensor([-0.1, 0.1])
    # Ratios 0.3 / 2 = 0.15 and 0.1 / 0.5 = 0.2.
    loss = diversity(first, second, torch.tensor([2.0, 0.5]), limit=1.0)
    assert loss.item() == pytest.approx(-(0.15 + 0.2) / 2)


def test_diversity_above_its_limit_earns_nothing_more():
    first = torch.zeros(2, 1, 1, 1, requires_grad=True)
    second = torch.tensor([0.9, 0.1]).view(2, 1, 1, 1)
    loss = diversity(first, second, torch.ones(2), limit=0.3)
    assert loss.item() == pytest.approx(-(0.3 + 0.1) / 2)
    loss.backward()
    assert first.grad.flatten().tolist() == [0, 0.5]


def test_the_gradient_penalty_of_a_known_gradient():
    images = torch.tensor([[1.0, 2.0], [3.0, 0.0]]).view(2, 1, 1, 2).requires_grad_()
    # The gradient of x^2 / 2 is x: squared norms 5 and 9.
    penalty = gradient_penalty(images.square().sum() / 2, images)
    assert penalty.item() == pytest.approx(7)
    penalty.backward()
    assert images.grad is not None  # a gradient of a gradient


def test_balance_is_the_paper_s_weighting_over_the_batch():
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 0, 0, 1, 0] * 6).view(2, 1, 3, 5)
    label[0, 0, 0, 0] = 9  # ignored; class 2 is not there
    shown = (label == torch.arange(3).view(1, 3, 1, 1)).float()
    pixels = shown.sum((0, 2, 3))
    # w_c = pixels of all classes / (pixels of c * classes present), per pixel and averaged.
    weight = 29 / (pixels * 2)
    each = -(logits.log_softmax(1)[:, 1:] * shown) * weight.view(1, 3, 1, 1).nan_to_num(0, 0, 0)
    balanced = balanced_cross_entropy(logits, shown, pixels)
    assert balanced.item() == pytest.approx(each.sum().item() / 29)


def test_label_mix_by_hand():
    real, fake = torch.tensor([4.0, 1.0]), torch.tensor([0.0, 2.0])
    from_real, mixed = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 5.0])
    shapes = [value.view(1, 1, 1, 2) for value in (mixed, real, fake, from_real)]
    # (3 - 4)^2 and (5 - 2)^2.
    assert label_mix(*shapes).item() == pytest.approx((1 + 9) / 2)
