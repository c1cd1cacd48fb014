import pytest
import torch

from geoseg_gan.data.batch import Batch
from geoseg_gan.errors import UserError
from geoseg_gan.losses.objective import HingeFM, Weight
from geoseg_gan.models.patch import DiscriminatorOutput


class Mean(torch.nn.Module):
    """A discriminator whose logit is the image's mean and whose only feature is the image."""

    minimum_size = 1

    def forward(self, image, one_hot):
        return DiscriminatorOutput([image.mean((1, 2, 3))], [[image]])


def batch_of(value, valid=None):
    image = torch.full((2, 3, 4, 4), value)
    label = torch.zeros(2, 4, 4, dtype=torch.uint8)
    valid = torch.ones(2, 1, 4, 4) if valid is None else valid
    return Batch(image, label, torch.ones(2, 1, 4, 4), valid)


def test_discriminator_terms_by_hand():
    terms = HingeFM().d_terms(Mean(), batch_of(0.5), torch.full((2, 3, 4, 4), -0.25))
    assert terms["hinge_real"].item() == pytest.approx(0.5)
    assert terms["hinge_fake"].item() == pytest.approx(0.75)
    assert terms.total().item() == pytest.approx(1.25)
    assert terms.monitors["accuracy_real"].item() == 1
    assert terms.monitors["accuracy_fake"].item() == 1


def test_generator_terms_by_hand():
    terms = HingeFM().g_terms(Mean(), batch_of(0.5), torch.full((2, 3, 4, 4), -0.25))
    assert terms["hinge"].item() == pytest.approx(0.25)
    assert terms["feature_matching"].item() == pytest.approx(10 * 0.75)


def test_a_weight_of_zero_leaves_feature_matching_out():
    objective = HingeFM(feature_matching=Weight(0.0))
    terms = objective.g_terms(Mean(), batch_of(0.5), torch.zeros(2, 3, 4, 4))
    assert list(terms) == ["hinge"]


def test_ignored_ground_reaches_neither_network():
    valid = torch.ones(2, 1, 4, 4)
    valid[..., :2] = 0
    fake = torch.full((2, 3, 4, 4), -0.25, requires_grad=True)
    HingeFM().g_terms(Mean(), batch_of(0.5, valid), fake).total().backward()
    assert (fake.grad[..., :2] == 0).all()
    assert (fake.grad[..., 2:] != 0).all()


def test_a_negative_weight_is_refused():
    with pytest.raises(UserError, match=r"loss.feature_matching.weight=-1"):
        HingeFM(feature_matching=Weight(-1.0))
