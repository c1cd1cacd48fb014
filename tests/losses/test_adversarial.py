import math

import pytest
import torch

from geoseg_gan.data.batch import Batch, one_hot_of
from geoseg_gan.losses.adversarial import build_adversarial
from geoseg_gan.models.discriminators.output import DiscriminatorOutput


def output(*scales):
    return DiscriminatorOutput([torch.tensor(scale) for scale in scales], [])


def softplus(value):
    return math.log1p(math.exp(value))


REAL = output([2.0, 0.5], [-1.0])
FAKE = output([-3.0, 1.0], [0.0])

BY_HAND = {
    # Real: max(0, 1 - 2) = 0 and max(0, 1 - 0.5) = 0.5, mean 0.25; max(0, 1 + 1) = 2.
    # Fake: max(0, 1 - 3) = 0 and max(0, 1 + 1) = 2, mean 1; max(0, 1 + 0) = 1.
    "hinge": ((0.25 + 2) / 2, (1 + 1) / 2, -(-1 + 0) / 2),
    # Real: (1 + 0.25) / 4, 4 / 2. Fake: (4 + 4) / 4, 1 / 2. Generator: (9 + 1) / 4, 0.
    "lsgan": ((0.3125 + 2) / 2, (2 + 0.5) / 2, (2.5 + 0) / 2),
    "nonsaturating": (
        ((softplus(-2) + softplus(-0.5)) / 2 + softplus(1)) / 2,
        ((softplus(-3) + softplus(1)) / 2 + softplus(0)) / 2,
        ((softplus(3) + softplus(-1)) / 2 + softplus(0)) / 2,
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_losses_of_one_logit_a_patch_by_hand(name):
    loss = build_adversarial(name, class_balance=True)
    terms = [*loss.d_terms(REAL, FAKE, None).values(), loss.g_term(FAKE, None)]
    assert [term.item() for term in terms] == pytest.approx(list(BY_HAND[name]))
    # Scales weigh alike, however many logits they have.
    assert loss.realness(REAL, None).item() == pytest.approx((1.25 - 1) / 2)
    assert loss.accuracy(REAL, None, real=True).item() == pytest.approx((1 + 0) / 2)
    # A logit of 0 counts as wrong.
    assert loss.accuracy(FAKE, None, real=False).item() == pytest.approx((0.5 + 0) / 2)
    logits = torch.tensor([-1.0], requires_grad=True)
    loss.g_term(DiscriminatorOutput([logits], []), None).backward()
    assert logits.grad.item() < 0  # a real-looking fake is what the generator wants


def batch_of(*label):
    """One row of pixels of two classes."""
    label = torch.tensor([[label]], dtype=torch.uint8)
    valid = (label != 255).unsqueeze(1).float()
    return Batch(torch.zeros(1, 3, *label.shape[1:]), label, one_hot_of(label, 2), valid, [0])


def logits_of(*pixels):
    """What is said of a row of pixels, each the probabilities of fake, class 0 and class 1."""
    return DiscriminatorOutput([torch.tensor(pixels).log().T[None, :, None]], [])


SAID = logits_of((0.5, 0.25, 0.25), (0.25, 0.5, 0.25), (0.125, 0.75, 0.125), (0.9, 0.05, 0.05))
BATCH = batch_of(0, 0, 1, 255)
LN2 = math.log(2)


@pytest.mark.parametrize(
    ("balance", "by_hand"), [(True, ((2 + 1) / 2 + 3) / 2), (False, (2 + 1 + 3) / 3)]
)
def test_class_losses_by_hand(balance, by_hand):
    loss = build_adversarial("classes", balance)
    terms = loss.d_terms(SAID, SAID, BATCH)
    # Of the true classes' probabilities 1/4, 1/2 and 1/8; the ignored pixel does not count.
    assert terms["classes_real"].item() == pytest.approx(by_hand * LN2, rel=1e-5)
    assert loss.g_term(SAID, BATCH).item() == pytest.approx(by_hand * LN2, rel=1e-5)
    # Of the probabilities of fake 1/2, 1/4 and 1/8, however classes weigh.
    assert terms["classes_fake"].item() == pytest.approx((1 + 2 + 3) / 3 * LN2, rel=1e-5)


def test_realness_and_accuracy_of_classes_by_hand():
    loss = build_adversarial("classes", True)
    # Log odds of any class: 1/2 to 1/2, 3/4 to 1/4 and 7/8 to 1/8.
    by_hand = (0 + math.log(3) + math.log(7)) / 3
    assert loss.realness(SAID, BATCH).item() == pytest.approx(by_hand, rel=1e-5)
    # Guesses: fake, class 0, class 0. Real: only the second is right. Fake: only the first.
    assert loss.accuracy(SAID, BATCH, real=True).item() == pytest.approx(1 / 3)
    assert loss.accuracy(SAID, BATCH, real=False).item() == pytest.approx(1 / 3)


def test_a_batch_without_a_label_has_class_losses_of_zero():
    loss, nothing = build_adversarial("classes", True), batch_of(255, 255, 255, 255)
    terms = [*loss.d_terms(SAID, SAID, nothing).values(), loss.g_term(SAID, nothing)]
    assert [term.item() for term in terms] == [0, 0, 0]
    assert loss.realness(SAID, nothing).item() == 0


def test_both_kinds_add_up():
    both, classes, hinge = (build_adversarial(name, True) for name in ("both", "classes", "hinge"))
    real, fake = (DiscriminatorOutput(SAID.logits + one.logits, []) for one in (REAL, FAKE))
    expected = {**classes.d_terms(SAID, SAID, BATCH), **hinge.d_terms(REAL, FAKE, BATCH)}
    assert both.d_terms(real, fake, BATCH) == expected
    assert both.g_term(fake, BATCH) == classes.g_term(SAID, BATCH) + hinge.g_term(FAKE, BATCH)
    assert both.accuracy(real, BATCH, real=True) == classes.accuracy(SAID, BATCH, real=True)
