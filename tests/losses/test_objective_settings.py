import pytest
from defaults import defaults

from geoseg_gan.losses.objective import Objective
from geoseg_gan.losses.settings import (
    DiffAugmentSettings,
    DiversitySettings,
    ObjectiveSettings,
    PenaltySettings,
    PerceptualSettings,
    Weight,
)
from geoseg_gan.utils.errors import UserError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adversarial": "hing"}, r"loss\.adversarial=hing .*Did you mean 'hinge'"),
        ({"feature_matching": Weight(-1.0)}, r"loss\.feature_matching\.weight=-1"),
        ({"perceptual": defaults(PerceptualSettings, -1.0)}, r"loss\.perceptual\.weight=-1"),
        ({"diversity": defaults(DiversitySettings, -1.0)}, r"loss\.diversity\.weight=-1"),
        ({"diversity": defaults(DiversitySettings, 1.0, limit=0.0)}, r"loss\.diversity\.limit=0"),
        ({"labelmix": Weight(-1.0)}, r"loss\.labelmix\.weight=-1"),
        ({"r1": defaults(PenaltySettings, -1.0)}, r"loss\.r1\.weight=-1"),
        ({"r1": defaults(PenaltySettings, 1.0, every=0)}, r"loss\.r1\.every=0"),
        ({"augment": defaults(DiffAugmentSettings, p=1.5)}, r"loss\.augment\.p=1\.5: use 0 to 1"),
        ({"augment": defaults(DiffAugmentSettings, target=-0.1)}, r"loss\.augment\.target=-0\.1"),
        ({"augment": defaults(DiffAugmentSettings, most=2.0)}, r"loss\.augment\.most=2"),
        ({"augment": defaults(DiffAugmentSettings, images=0)}, r"loss\.augment\.images=0"),
        (
            {"augment": defaults(DiffAugmentSettings, p=0.5, color=False, geometry=False)},
            r"loss\.augment\.p=0\.5 changes nothing",
        ),
        (
            {"augment": defaults(DiffAugmentSettings, adaptive=True, color=False, geometry=False)},
            r"changes nothing with color=false and geometry=false: .* adaptive=false",
        ),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as refusal:
        defaults(ObjectiveSettings, **settings).check()
    assert "\n" not in str(refusal.value)


def test_the_defaults_are_in_range():
    defaults(ObjectiveSettings).check()
    defaults(
        ObjectiveSettings, augment=defaults(DiffAugmentSettings, color=False, geometry=False)
    ).check()


@pytest.mark.parametrize(
    ("settings", "output_kind", "noise", "why", "use"),
    [
        (
            {"adversarial": "classes"},
            "realness",
            1,
            "needs a discriminator that tells the class of every pixel",
            r"model/discriminator=oasis, or loss=hinge_fm",
        ),
        (
            {"adversarial": "lsgan"},
            "classes",
            1,
            "loss.adversarial=lsgan needs a discriminator that says how real",
            r"Use model/discriminator=patch, or loss=oasis",
        ),
        (
            {"adversarial": "both"},
            "realness",
            1,
            "needs a discriminator that does both.* says how real an image is",
            r"Use model/discriminator=both, or loss=hinge_fm",
        ),
        (
            {"labelmix": Weight(10.0)},
            "realness",
            1,
            "mixes images along their classes, which loss.adversarial=hinge does not tell",
            r"Set it to 0, or use loss=oasis",
        ),
        (
            {"diversity": defaults(DiversitySettings, 1.0)},
            "realness",
            0,
            "compares images of different noise, but the generator takes none",
            r"Set it to 0, or give model\.generator some style_channels",
        ),
    ],
)
def test_networks_that_do_not_fit_are_refused_with_why_and_what_to_use(
    settings, output_kind, noise, why, use
):
    with pytest.raises(UserError, match=f"{why}.*{use}") as refusal:
        defaults(ObjectiveSettings, **settings).check_fit(output_kind, noise)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("adversarial", "output_kind"),
    [
        ("hinge", "realness"),
        ("lsgan", "realness"),
        ("nonsaturating", "realness"),
        ("classes", "classes"),
        ("both", "both"),
    ],
)
def test_networks_that_fit_are_taken(adversarial, output_kind):
    defaults(ObjectiveSettings, adversarial).check_fit(output_kind, 0)
    defaults(ObjectiveSettings, adversarial, diversity=defaults(DiversitySettings, 1.0)).check_fit(
        output_kind, 1
    )


@pytest.mark.parametrize(
    ("network", "bands", "message"),
    [
        ("vgg19", 5, "vgg19 takes RGB images, not 5 bands. Use lite2"),
        ("resnet81", 3, "resnet81 is not lite2, vgg19 or .*Did you mean 'resnet"),
    ],
)
def test_a_perceptual_network_that_cannot_be_is_refused_at_once(network, bands, message):
    settings = defaults(ObjectiveSettings, perceptual=defaults(PerceptualSettings, 1.0, network))
    with pytest.raises(UserError, match=message):
        Objective(settings, bands, seed=0)
    Objective(
        defaults(ObjectiveSettings, perceptual=defaults(PerceptualSettings, 0.0, network)),
        bands,
        seed=0,
    )
