import pytest
import torch

from geoseg_gan.losses.terms import feature_matching, hinge_d, hinge_g, sign_accuracy


def test_hinge_of_the_discriminator_by_hand():
    # Scale 1, real: max(0, 1-2)=0, max(0, 1-0.5)=0.5, mean 0.25. Scale 2: max(0, 1+1)=2.
    real = [torch.tensor([2.0, 0.5]), torch.tensor([-1.0])]
    # Scale 1, fake: max(0, 1-3)=0, max(0, 1+1)=2, mean 1. Scale 2: max(0, 1+0)=1.
    fake = [torch.tensor([-3.0, 1.0]), torch.tensor([0.0])]
    on_real, on_fake = hinge_d(real, fake)
    assert on_real.item() == pytest.approx((0.25 + 2) / 2)
    assert on_fake.item() == pytest.approx((1 + 1) / 2)


def test_hinge_of_the_generator_by_hand():
    fake = [torch.tensor([1.0, 3.0]), torch.tensor([-4.0])]
    assert hinge_g(fake).item() == pytest.approx((-2 + 4) / 2)


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


def test_sign_accuracy_by_hand():
    logits = [torch.tensor([1.0, -1.0, 2.0, 0.0]), torch.tensor([-1.0])]
    assert sign_accuracy(logits, real=True).item() == pytest.approx((0.5 + 0) / 2)
    assert sign_accuracy(logits, real=False).item() == pytest.approx((0.25 + 1) / 2)
