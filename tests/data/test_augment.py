import numpy as np
import pytest
import torch
from defaults import defaults

from geoseg_gan.data.augment import jitter_color
from geoseg_gan.data.settings import AugmentSettings, ColorStep, FlipStep, TransplantStep
from geoseg_gan.utils.errors import UserError


def images(bands=3, count=2):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.uniform(-0.9, 0.9, (count, bands, 8, 8))).float()


def only(**spans):
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "gamma": 0.0}
    return defaults(ColorStep, p=1.0, **(off | spans))


def test_off_leaves_the_batch_alone_and_spans_of_zero_change_nothing():
    batch = images()
    assert jitter_color(batch, defaults(ColorStep), 0, [0, 1]) is batch
    torch.testing.assert_close(jitter_color(batch, only(), 0, [0, 1]), batch)


def test_brightness_scales_an_image_by_one_factor():
    batch = images() * 0.3 - 0.5
    changed = jitter_color(batch, only(brightness=0.3), 0, [0, 1])
    factors = (changed + 1) / (batch + 1)
    for factor in factors:
        assert factor.max() - factor.min() < 1e-5
        assert 0.7 <= factor.mean() <= 1.3
    assert abs(factors[0].mean() - factors[1].mean()) > 1e-3


def test_contrast_keeps_the_mean_and_saturation_the_gray():
    batch = images() * 0.3
    contrasted = jitter_color(batch, only(contrast=0.3), 0, [0, 1])
    torch.testing.assert_close(contrasted.mean((1, 2, 3)), batch.mean((1, 2, 3)))
    assert abs(contrasted.std() / batch.std() - 1) > 1e-3
    saturated = jitter_color(batch, only(saturation=0.3), 0, [0, 1])
    torch.testing.assert_close(saturated.mean(1), batch.mean(1))


def test_gamma_keeps_black_and_white():
    batch = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    changed = jitter_color(batch, only(gamma=0.5), 0, [0])
    torch.testing.assert_close(changed, batch, atol=5e-3, rtol=0)


def test_a_sample_s_colour_depends_on_its_number_alone():
    step, batch = defaults(ColorStep, p=0.8), images(count=4)
    whole = jitter_color(batch, step, 3, [4, 5, 6, 7])
    parts = [jitter_color(batch[i : i + 2], step, 3, [4 + i, 5 + i]) for i in (0, 2)]
    torch.testing.assert_close(whole, torch.cat(parts))
    assert not torch.equal(whole, jitter_color(batch, step, 4, [4, 5, 6, 7]))


def test_p_is_how_often_it_acts():
    batch = images(count=1).expand(400, 3, 8, 8)
    changed = jitter_color(batch, defaults(ColorStep, p=0.25), 0, range(400))
    share = ((changed - batch).abs() > 1e-5).flatten(1).any(1).float().mean()
    assert 0.18 < share < 0.32


@pytest.mark.parametrize("bands", [1, 5])
def test_any_number_of_bands_stays_in_range(bands):
    changed = jitter_color(images(bands), defaults(ColorStep, p=1.0), 0, [0, 1])
    assert changed.shape == (2, bands, 8, 8)
    assert changed.min() >= -1 and changed.max() <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": defaults(FlipStep, p=2.0)}, r"augment\.flip\.p=2"),
        ({"copy_paste": defaults(TransplantStep, p=-1.0)}, r"augment\.copy_paste\.p=-1"),
        ({"color": defaults(ColorStep, p=1.5)}, r"augment\.color\.p=1\.5"),
        ({"color": defaults(ColorStep, contrast=1.0)}, r"augment\.color\.contrast=1"),
        ({"color": defaults(ColorStep, gamma=-0.1)}, r"augment\.color\.gamma=-0\.1"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        defaults(AugmentSettings, **settings)
