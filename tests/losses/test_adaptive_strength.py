import pytest
from defaults import defaults

from geoseg_gan.losses.diff_augment import AdaptiveStrength
from geoseg_gan.losses.settings import DiffAugmentSettings


def build(**settings):
    return AdaptiveStrength(defaults(DiffAugmentSettings, adaptive=True, images=1000, **settings))


@pytest.mark.parametrize(
    ("train", "held_out", "fake", "gap"),
    [
        (1.0, 0.5, -1.0, 0.25),
        (1.0, 1.0, -1.0, 0.0),
        (1.0, -1.0, -1.0, 1.0),
        (1.0, 1.5, -1.0, 0.0),  # held-out tiles look more real
        (1.0, -3.0, -1.0, 1.0),  # or less real than generated ones
        (0.5, 0.0, 0.5, 0.0),  # real and generated images look alike
        (0.0, -1.0, 1.0, 0.0),  # generated ones look more real
    ],
)
def test_the_gap_by_hand(train, held_out, fake, gap):
    strength = build()
    strength.update(train, held_out, fake, images=16)
    assert strength.gap == pytest.approx(gap)


def test_the_gap_is_smoothed_over_measurements():
    strength = build()
    assert strength.gap is None
    for held_out in (0.0, 1.0, 0.5):
        strength.update(1.0, held_out, 0.0, images=16)
    # 1, then 0.9 * 1 + 0.1 * 0, then 0.9 * 0.9 + 0.1 * 0.5.
    assert strength.gap == pytest.approx(0.86)


@pytest.mark.parametrize(
    ("settings", "held_out", "images", "p"),
    [
        ({"p": 0.5, "target": 0.6}, 0.0, [100], 0.6),
        ({"p": 0.5, "target": 0.6}, 0.0, [100, 20, 20], 0.64),
        ({"p": 0.5, "target": 0.6}, 0.5, [100], 0.4),
        ({"most": 0.3}, 0.0, [100] * 5, 0.3),
        ({"p": 0.05}, 1.0, [100], 0.0),
    ],
)
def test_the_probability_rises_above_the_target_falls_below_it_and_has_limits(
    settings, held_out, images, p
):
    strength = build(**settings)
    for count in images:
        strength.update(1.0, held_out, 0.0, images=count)
    assert strength.p == pytest.approx(p)


def test_a_fixed_probability_stays_while_the_gap_is_watched():
    strength = AdaptiveStrength(defaults(DiffAugmentSettings, p=1.0, most=0.8))
    strength.update(1.0, 0.0, 0.0, images=100)
    assert (strength.p, strength.gap) == (1.0, 1.0)


def test_its_state_is_plain_and_restores_it():
    strength, other = build(), build()
    strength.update(1.0, 0.25, 0.0, images=100)
    assert strength.state() == {"p": 0.1, "gap": 0.75}
    other.load(strength.state())
    assert (other.p, other.gap) == (0.1, 0.75)
