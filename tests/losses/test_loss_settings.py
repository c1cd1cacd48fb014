import numpy as np
import pytest
from defaults import defaults

from geoseg_gan.config import compose
from geoseg_gan.data.settings import ElasticStep
from geoseg_gan.losses.objective import Objective, check_compatible
from geoseg_gan.losses.settings import (
    DiffAugmentSettings,
    DiversitySettings,
    ObjectiveSettings,
    PenaltySettings,
    PerceptualSettings,
    SegmentationLossSettings,
    SegmenterTermSettings,
    Weight,
)
from geoseg_gan.training.settings import TrainConfig
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.messages import choices


def augment(**settings):
    return {"augment": defaults(DiffAugmentSettings, **settings)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adversarial": "hing"}, r"loss\.adversarial=hing .*Did you mean 'hinge'"),
        ({"feature_matching": Weight(-1.0)}, r"loss\.feature_matching\.weight=-1"),
        ({"feature_matching": Weight(float("nan"))}, r"loss\.feature_matching\.weight=nan"),
        ({"perceptual": defaults(PerceptualSettings, -1.0)}, r"loss\.perceptual\.weight=-1"),
        ({"segmenter": defaults(SegmenterTermSettings, -1.0)}, r"loss\.segmenter\.weight=-1"),
        ({"segmenter": defaults(SegmenterTermSettings, until=0.0)}, r"loss\.segmenter\.until=0"),
        ({"diversity": defaults(DiversitySettings, -1.0)}, r"loss\.diversity\.weight=-1"),
        ({"diversity": defaults(DiversitySettings, 1.0, limit=0.0)}, r"loss\.diversity\.limit=0"),
        ({"labelmix": Weight(float("inf"))}, r"loss\.labelmix\.weight=inf"),
        ({"r1": defaults(PenaltySettings, -1.0)}, r"loss\.r1\.weight=-1"),
        ({"r1": defaults(PenaltySettings, 1.0, every=0)}, r"loss\.r1\.every=0"),
        ({"warp": ElasticStep(1.5, 4.0, 48.0)}, r"loss\.warp\.p=1\.5"),
        ({"warp": ElasticStep(0.5, 4.0, 1.0)}, r"loss\.warp\.wavelength=1"),
        (augment(p=1.5), r"loss\.augment\.p=1\.5: use 0 to 1"),
        (augment(target=-0.1), r"loss\.augment\.target=-0\.1"),
        (augment(most=2.0), r"loss\.augment\.most=2"),
        (augment(images=0), r"loss\.augment\.images=0"),
        (augment(p=0.5, color=False, geometry=False), r"loss\.augment\.p=0\.5 changes nothing"),
        (
            augment(adaptive=True, color=False, geometry=False),
            r"changes nothing with color=false and geometry=false: .* adaptive=false",
        ),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as refusal:
        defaults(ObjectiveSettings, **settings).check()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("choice", choices("loss"))
def test_every_choice_is_in_range(choice):
    compose(TrainConfig, [f"loss={choice}"]).loss.check()


def test_augmentation_that_is_off_may_change_nothing():
    defaults(ObjectiveSettings, **augment(color=False, geometry=False)).check()


@pytest.mark.parametrize(
    ("settings", "output_kind", "noise", "message"),
    [
        (
            {"adversarial": "classes"},
            "realness",
            1,
            "needs a discriminator that tells the class of every pixel, and model.discriminator "
            "says how real an image is. Use model/discriminator=oasis, or loss=hinge_fm",
        ),
        ({"adversarial": "lsgan"}, "classes", 1, "Use model/discriminator=patch, or loss=oasis"),
        ({"adversarial": "both"}, "realness", 1, "Use model/discriminator=both, or loss=hinge_fm"),
        (
            {"labelmix": Weight(10.0)},
            "realness",
            1,
            "mixes images along their classes, .* Set it to 0, or use loss=oasis",
        ),
        (
            {"diversity": defaults(DiversitySettings, 1.0)},
            "realness",
            0,
            "compares images of different noise, but .* Set it to 0, or give .* style_channels",
        ),
    ],
)
def test_networks_that_do_not_fit_are_refused_with_why_and_what_to_use(
    settings, output_kind, noise, message
):
    with pytest.raises(UserError, match=message) as refusal:
        check_compatible(defaults(ObjectiveSettings, **settings), output_kind, noise)
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
def test_networks_that_fit_are_accepted(adversarial, output_kind):
    check_compatible(defaults(ObjectiveSettings, adversarial), output_kind, 0)
    diverse = defaults(ObjectiveSettings, adversarial, diversity=defaults(DiversitySettings, 1.0))
    check_compatible(diverse, output_kind, 1)


def test_an_impossible_perceptual_network_is_refused_only_where_it_is_used():
    def settings(weight):
        return defaults(ObjectiveSettings, perceptual=PerceptualSettings(weight, "vgg19"))

    with pytest.raises(UserError, match=r"vgg19 takes RGB images, not 5 bands\. Use lite2"):
        Objective(settings(1.0), 5, seed=0)
    Objective(settings(0.0), 5, seed=0)


def test_balanced_weights_of_a_segmenter_follow_the_median_frequency():
    shares = np.array([0.6, 0.3, 0.1, 0.0])

    def weights(class_weights):
        settings = defaults(SegmentationLossSettings, class_weights=class_weights)
        return settings.weights(shares)

    assert weights("balanced") == pytest.approx([0.5, 1.0, 3.0, 1.0])
    assert weights(None) is None
    assert weights([1, 2, 3, 4]) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ce": -1.0}, "ce=-1.0"),
        ({"dice": float("nan")}, "dice=nan"),
        ({"ce": 0.0, "dice": 0.0}, "not both 0"),
        ({"class_weights": "balance"}, "class_weights=balance"),
        ({"class_weights": [1, 2]}, "3 numbers"),
        ({"class_weights": [0, 0, 0]}, "not all 0"),
        ({"class_weights": [1, "a", 0]}, "one a class"),
    ],
)
def test_a_segmenter_s_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        defaults(SegmentationLossSettings, **settings).check(3)
