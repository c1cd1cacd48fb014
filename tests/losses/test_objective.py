import io
import math
from dataclasses import replace

import pytest
import torch
from defaults import defaults

from geoseg_gan.data.batch import Batch, one_hot_of
from geoseg_gan.losses.objective import Objective
from geoseg_gan.losses.settings import (
    DiffAugmentSettings,
    DiversitySettings,
    ObjectiveSettings,
    PenaltySettings,
    PerceptualSettings,
    SegmenterTermSettings,
    Weight,
)
from geoseg_gan.models.discriminators.output import DiscriminatorOutput


class OfRealness(torch.nn.Module):
    output_kind = "realness"
    minimum_size = 1


class Mean(OfRealness):
    """Its logit is the image's mean, its only feature the image; it remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, image, one_hot):
        self.seen.append(image.detach())
        return DiscriminatorOutput([image.mean((1, 2, 3)).view(-1, 1, 1, 1)], [[image]])


class Bands(Mean):
    """Its logits are 0 for fake and the image's bands for the classes."""

    output_kind = "classes"

    def forward(self, image, one_hot):
        self.seen.append(image.detach())
        return DiscriminatorOutput([torch.cat([0 * image[:, :1], image], 1)], [[image]])


def batch_of(value=0.5, ignored=0, count=2, side=4, classes=3):
    """Images of one value; so many columns on the left are ignored, the others have all classes."""
    columns = torch.arange(side * side).view(side, side) % classes
    label = columns.expand(count, side, side).to(torch.uint8).clone()
    label[..., :ignored] = 255
    image = torch.full((count, 3, side, side), value)
    valid = (label != 255).unsqueeze(1).float()
    return Batch(image, label, one_hot_of(label, classes), valid, range(count))


FAKE = torch.full((2, 3, 4, 4), -0.25)


def build(**settings):
    return Objective(defaults(ObjectiveSettings, **settings), bands=3, seed=0)


def d_terms(objective, discriminator, batch, fake):
    """The discriminator's terms of a whole batch, which is then over."""
    (view,) = objective.views([batch])
    terms = objective.d_terms(discriminator, view, fake)
    objective.stepped()
    return terms


def g_terms(objective, discriminator, batch, fake, regenerate):
    """The generator's terms of a whole batch."""
    (view,) = objective.views([batch])
    return objective.g_terms(discriminator, view, fake, regenerate)


def unused():
    raise AssertionError("generated again though nothing asks for it")


def test_terms_of_both_steps_by_hand():
    objective = build(feature_matching=Weight(10.0))
    terms = d_terms(objective, Mean(), batch_of(0.5), FAKE)
    assert {name: value.item() for name, value in terms.items()} == {
        "hinge_real": 0.5,
        "hinge_fake": 0.75,
    }
    assert terms.total().item() == 1.25
    assert {name: value.item() for name, value in terms.monitors.items()} == {
        "accuracy_real": 1,
        "accuracy_fake": 1,
    }
    terms = g_terms(objective, Mean(), batch_of(0.5), FAKE, unused)
    assert {name: value.item() for name, value in terms.items()} == {
        "adversarial": 0.25,
        "feature_matching": 7.5,
    }
    assert terms.total().item() == 7.75


@pytest.mark.parametrize(
    ("adversarial", "names"),
    [
        ("lsgan", ["lsgan_real", "lsgan_fake"]),
        ("nonsaturating", ["logistic_real", "logistic_fake"]),
        ("classes", ["classes_real", "classes_fake"]),
    ],
)
def test_weights_of_zero_leave_terms_out(adversarial, names):
    objective, network = build(adversarial=adversarial), Bands()
    assert list(d_terms(objective, network, batch_of(), FAKE)) == names
    assert list(g_terms(objective, network, batch_of(), FAKE, unused)) == ["adversarial"]


def test_the_diversity_term_generates_again_with_other_noise():
    objective = build(diversity=defaults(DiversitySettings, weight=2.0, limit=1.0))
    batch = batch_of(ignored=2)
    terms = g_terms(objective, Mean(), batch, FAKE, lambda: (FAKE + 0.4, torch.tensor([1.0, 2.0])))
    # Half of the pixels are ignored: mean differences of 0.2 over noise distances of 1 and 2.
    assert terms["diversity"].item() == pytest.approx(-2 * (0.2 + 0.1) / 2)


@pytest.mark.parametrize(("adversarial", "network"), [("hinge", Mean), ("classes", Bands)])
def test_ignored_pixels_reach_neither_network(adversarial, network):
    objective = build(
        adversarial=adversarial,
        feature_matching=Weight(5.0),
        diversity=defaults(DiversitySettings, weight=1.0, limit=9.0),
    )
    discriminator, batch = network(), batch_of(0.5, ignored=2)
    fake = FAKE.clone().requires_grad_()
    d_terms(objective, discriminator, batch, fake.detach())
    terms = g_terms(objective, discriminator, batch, fake, lambda: (-fake, torch.ones(2)))
    terms.total().backward()
    for image in discriminator.seen:
        assert (image[..., :2] == 0).all() and (image[..., 2:] != 0).all()
    assert (fake.grad[..., :2] == 0).all()
    assert (fake.grad[..., 2:] != 0).all()


def mixed_images(serials, classes=3):
    """What the discriminator is shown of real images of 1 and generated ones of -1, mixed."""
    batch = replace(batch_of(1.0, ignored=1, count=len(serials)), serials=serials)
    discriminator = Bands()
    terms = d_terms(
        build(adversarial="classes", labelmix=Weight(10.0)),
        discriminator,
        batch,
        -torch.ones(len(serials), 3, 4, 4),
    )
    _, mixed = discriminator.seen
    return batch, mixed, terms


def test_labelmix_takes_each_class_wholly_from_one_image():
    batch, mixed, _ = mixed_images(range(16))
    taken = set()
    for image, label in zip(mixed, batch.label, strict=True):
        assert (image[:, label == 255] == 0).all()
        sources = [image[:, label == c].unique().tolist() for c in range(3)]
        assert all(source in ([1.0], [-1.0]) for source in sources)
        taken.add(tuple(source[0] for source in sources))
    assert len(taken) > 4


def test_labelmix_draws_by_the_number_of_the_sample():
    _, together, terms = mixed_images(range(16))
    assert terms["labelmix"].item() == 0  # the discriminator looks at single pixels
    _, alone, _ = mixed_images([9, 4])
    assert torch.equal(alone, together[[9, 4]])


def test_labelmix_by_hand():
    class Brightness(Mean):
        def forward(self, image, one_hot):
            self.seen.append(image)
            whole = image.mean((1, 2, 3), keepdim=True).expand(-1, 4, 4, 4)
            return DiscriminatorOutput([whole], [])

    objective, discriminator = build(adversarial="classes", labelmix=Weight(10.0)), Brightness()
    terms = d_terms(objective, discriminator, batch_of(1.0, count=1), -torch.ones(1, 3, 4, 4))
    # With a share s of real pixels 2s - 1 is said of all, and should be 1 there and -1 elsewhere.
    share = (discriminator.seen[1] > 0).float().mean().item()
    assert 0 < share < 1
    by_hand = share * (2 * share - 2) ** 2 + (1 - share) * (2 * share) ** 2
    assert terms["labelmix"].item() == pytest.approx(10 * by_hand)


class Linear(OfRealness):
    """A discriminator whose logit is the sum of the image times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, image, one_hot):
        return DiscriminatorOutput([(image * self.weight).sum((1, 2, 3)).view(-1, 1, 1, 1)], [])


def test_a_lazy_r1_of_a_known_gradient_counts_as_many_times_as_batches_pass():
    discriminator = Linear()
    objective = build(r1=defaults(PenaltySettings, weight=10.0, every=3))
    found = [d_terms(objective, discriminator, batch_of(), FAKE).get("r1") for _ in range(5)]
    assert [value is not None for value in found] == [True, False, False, True, False]
    # The gradient is 0.5 at each of 48 values: 48 / 4, times half of the weight.
    assert found[0].item() == found[3].item() == pytest.approx(3 * 5 * 12)
    found[0].backward()
    assert discriminator.weight.grad.item() == pytest.approx(3 * 5 * 48 * 2 * 0.5)


class Convolved(OfRealness):
    """A discriminator whose convolutions lose digits under autocast."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.Tanh(), torch.nn.Conv2d(8, 1, 1)
        )

    def forward(self, image, one_hot):
        return DiscriminatorOutput([self.layers(image)], [])


def test_r1_is_unaffected_by_autocast():
    objective, discriminator = build(r1=defaults(PenaltySettings, 10.0, every=1)), Convolved()
    plain = d_terms(objective, discriminator, batch_of(), FAKE)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = d_terms(objective, discriminator, batch_of(), FAKE)
    assert mixed["hinge_real"].item() != plain["hinge_real"].item()
    assert mixed["r1"].dtype == torch.float32
    assert torch.equal(mixed["r1"], plain["r1"])


def test_real_and_generated_images_of_both_steps_see_the_same_augmentation():
    augment = defaults(DiffAugmentSettings, p=1.0)
    objective = build(feature_matching=Weight(1.0), augment=augment)
    rng = torch.Generator().manual_seed(0)
    batch = replace(batch_of(side=32), image=torch.rand(2, 3, 32, 32, generator=rng))
    discriminator = Mean()
    d_terms(objective, discriminator, batch, batch.image.clone())
    terms = g_terms(objective, discriminator, batch, batch.image.clone(), unused)
    assert terms["feature_matching"].item() == 0  # the same places are compared
    both, shown, real = discriminator.seen
    assert torch.equal(shown, real) and not torch.equal(real, batch.image)
    assert torch.equal(both, torch.cat([real, shown]))
    # Realness is monitored without augmentation.
    plain = objective.realness(Mean(), batch.image, batch).item()
    assert plain == pytest.approx(batch.image.mean().item())


@pytest.mark.parametrize("balance", [False, True])
def test_means_over_classes_are_those_of_all_parts_of_a_batch(balance):
    objective = build(adversarial="classes", class_balance=balance)
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(4, 3, 4, 4, generator=rng)
    whole = replace(batch_of(count=4), image=image)
    label = whole.label.clone()
    label[1] = 0  # classes and ignored pixels differ between the parts
    label[2, :3] = 255
    valid = (label != 255).unsqueeze(1).float()
    whole = replace(whole, label=label, one_hot=one_hot_of(label, 3), valid=valid)
    keys = ("image", "label", "one_hot", "valid", "serials")
    parts = [
        replace(whole, **{key: getattr(whole, key)[start : start + 2] for key in keys})
        for start in (0, 2)
    ]
    (view,) = objective.views([whole])
    once = objective.d_terms(Bands(), view, -image)
    split = [objective.d_terms(Bands(), own, -own.batch.image) for own in objective.views(parts)]
    for name, value in once.items():
        torch.testing.assert_close(torch.stack([own[name] for own in split]).mean(), value)
        assert not torch.isclose(split[0][name], value)


def test_the_perceptual_term_is_zero_for_the_real_image_and_else_pulls_the_fake():
    objective = build(perceptual=defaults(PerceptualSettings, weight=10.0))
    batch = batch_of(0.5, ignored=8, side=32)
    same = batch.image.clone()
    same[..., :8] = -1  # ignored
    assert g_terms(objective, Mean(), batch, same, unused)["perceptual"].item() == 0
    fake = torch.zeros(2, 3, 32, 32, requires_grad=True)
    term = g_terms(objective, Mean(), batch, fake, unused)["perceptual"]
    term.backward()
    assert term.item() > 0
    assert (fake.grad[..., :8] == 0).all() and fake.grad[..., 8:].abs().sum() > 0
    # The network is in neither state nor parameters.
    assert not list(objective.parameters()) and list(objective.state_dict()) == ["_extra_state"]


def test_the_segmenter_term_is_its_cross_entropy_with_the_mask_until_the_named_share_is_over():
    def bands(images):
        return 4 * images  # each band is the logit of a class

    term = defaults(SegmenterTermSettings, weight=3.0, until=0.5)
    objective = Objective(defaults(ObjectiveSettings, segmenter=term), 3, 0, bands)
    batch = batch_of(ignored=2)
    fake = (batch.one_hot - 0.5).requires_grad_()
    found = g_terms(objective, Mean(), batch, fake, unused)["segmenter"]
    # The logit of the true class is 2, those of the others are -2; half of the pixels count.
    assert found.item() == pytest.approx(3 * 0.5 * math.log(1 + 2 * math.exp(-4)))
    found.backward()
    assert (fake.grad[..., :2] == 0).all()
    right = batch.one_hot[..., 2:].bool()
    assert (fake.grad[..., 2:][right] < 0).all() and (fake.grad[..., 2:][~right] > 0).all()
    objective.progress = 0.5
    assert list(g_terms(objective, Mean(), batch, fake, unused)) == ["adversarial"]


def test_warped_masks_are_of_generated_images_alone_which_are_compared_with_no_real_one():
    class Pairs(Bands):
        def forward(self, image, one_hot):
            pairs.append((image.detach(), one_hot))
            return super().forward(image, one_hot)

    pairs = []
    objective = build(
        adversarial="classes",
        feature_matching=Weight(10.0),
        labelmix=Weight(10.0),
        perceptual=defaults(PerceptualSettings, weight=10.0),
    )
    true = batch_of(ignored=2)
    bent = replace(
        true, **{key: getattr(true, key).flip(-1) for key in ("label", "one_hot", "valid")}
    )
    (view,) = objective.views([true], [bent])
    discriminator = Pairs()
    terms = objective.d_terms(discriminator, view, FAKE)
    assert list(terms) == ["classes_real", "classes_fake"]
    assert list(objective.g_terms(discriminator, view, FAKE, unused)) == ["adversarial"]
    (images, one_hot), (shown, beside) = pairs
    assert torch.equal(images, torch.cat([true.image * true.valid, FAKE * bent.valid]))
    assert torch.equal(one_hot, torch.cat([true.one_hot, bent.one_hot]))
    assert torch.equal(shown, FAKE * bent.valid) and torch.equal(beside, bent.one_hot)
    # Fake pixels count where the bent mask has a class: Bands says 0 for fake, -0.25 for classes.
    by_hand = math.log(1 + 3 * math.exp(-0.25))
    assert terms["classes_fake"].item() == pytest.approx(by_hand)


def test_what_it_remembers_survives_a_file_that_can_run_nothing():
    settings = defaults(
        ObjectiveSettings,
        r1=defaults(PenaltySettings, 10.0, every=3),
        augment=defaults(DiffAugmentSettings, adaptive=True, images=1000),
    )
    first, second = (Objective(settings, bands=3, seed=0) for _ in range(2))
    for _ in range(2):
        d_terms(first, Linear(), batch_of(), FAKE)
    first.strength.update(1.0, 0.0, 0.0, images=100)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert (second.strength.p, second.strength.gap) == (0.1, 1.0)
    # Two batches have passed, so that the next penalty is in the second one from now.
    terms = [d_terms(second, Linear(), batch_of(), FAKE) for _ in range(2)]
    assert ["r1" in each for each in terms] == [False, True]
