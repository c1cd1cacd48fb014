from dataclasses import replace

import pytest
import torch
from defaults import defaults

from geoseg_gan.data.batch import Batch, one_hot_of
from geoseg_gan.losses.diff_augment import DiffAugment
from geoseg_gan.losses.settings import DiffAugmentSettings

SIDE = 40


def batch_of(serials, bands=3):
    """Images of rows, columns and noise, that identify every pixel."""
    count = len(serials)
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(count, bands, SIDE, SIDE, generator=rng) - 0.5
    image[:, 0] = (torch.arange(SIDE).view(-1, 1) * SIDE + torch.arange(SIDE) + 1) / SIDE**2
    label = torch.randint(3, (count, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    valid = torch.ones(count, 1, SIDE, SIDE)
    return Batch(image, label, one_hot_of(label, 3), valid, serials)


def changed(p=1.0, serials=range(4), bands=3, **settings):
    """A batch, generated images of its masks, and both after augmentation."""
    batch = batch_of(serials, bands)
    fake = -batch.image
    augment = DiffAugment(defaults(DiffAugmentSettings, **settings), seed=0)
    return batch, fake, *both(augment, batch, fake, p)


def both(augment, batch, fake=None, p=1.0):
    """A batch and generated images of its masks after augmentation."""
    after, change = augment(batch, p)
    return after, change(batch.image if fake is None else fake)


def test_a_probability_of_zero_returns_the_inputs():
    batch, fake, after, generated = changed(p=0.0)
    assert after is batch and generated is fake


@pytest.mark.parametrize("settings", [{"geometry": False}, {"color": False}, {}])
def test_a_probability_of_one_changes_every_pair_and_leaves_the_inputs(settings):
    batch, fake, after, generated = changed(serials=range(20), **settings)
    for first, second in ((batch.image, after.image), (fake, generated)):
        assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    original = batch_of(range(20))
    assert torch.equal(batch.image, original.image) and torch.equal(batch.label, original.label)


def test_a_probability_between_changes_some_pairs():
    batch, _, after, _ = changed(p=0.15, serials=range(100))
    same = (batch.image - after.image).abs().amax((1, 2, 3)) < 1e-5
    # None of five changes: 0.85^5 = 0.44.
    assert 30 < same.sum() < 60


def test_the_draw_belongs_to_the_pair_and_the_seed():
    augment = DiffAugment(defaults(DiffAugmentSettings), seed=0)
    together, _ = both(augment, batch_of(range(4)))
    whole = batch_of(range(4))
    alone = replace(
        whole,
        **{key: getattr(whole, key)[2:3] for key in ("image", "label", "one_hot", "valid")},
        serials=[2],
    )
    again, _ = both(augment, alone)
    assert torch.equal(again.image, together.image[2:3])
    assert torch.equal(again.label, together.label[2:3])
    other, _ = both(DiffAugment(defaults(DiffAugmentSettings), seed=1), alone)
    assert not torch.equal(other.image, again.image)
    numbered, _ = both(augment, replace(alone, serials=[3]))
    assert not torch.equal(numbered.image, again.image)


def offset(image, valid):
    """How far the first band has moved down and right."""
    rows, columns = valid[0].nonzero(as_tuple=True)
    number = (image[0, rows, columns] * SIDE**2).round().long() - 1
    down, right = rows - number // SIDE, columns - number % SIDE
    assert (down == down[0]).all() and (right == right[0]).all()
    return down[0].item(), right[0].item()


def test_image_generated_image_and_mask_move_together_within_the_paper_s_range():
    batch, fake, after, generated = changed(serials=range(60), color=False)
    offsets = []
    for n in range(60):
        valid = after.valid[n] > 0
        down, right = offset(after.image[n], valid)
        offsets.append((down, right))
        for before, now in (
            (batch.image[n], after.image[n]),
            (fake[n], generated[n]),
            (batch.label[n][None], after.label[n][None]),
            (batch.one_hot[n], after.one_hot[n]),
        ):
            moved = before.roll((down, right), (1, 2))
            assert torch.equal(now[:, valid[0]], moved[:, valid[0]])
    largest = max(abs(step) for pair in offsets for step in pair)
    assert largest == 0.125 * SIDE
    assert len({down for down, _ in offsets}) > 8 and len({right for _, right in offsets}) > 8


def test_what_is_shifted_in_or_cut_out_is_ignored():
    _, _, after, generated = changed(serials=range(60), color=False)
    gone = after.valid[:, 0] == 0
    assert (after.label[gone] == 255).all() and (after.label[~gone] != 255).all()
    for maps in (after.one_hot, after.image, generated):
        assert (maps.movedim(1, -1)[gone] == 0).all()
    assert torch.equal(after.one_hot, one_hot_of(after.label, 3))
    # A hole of half of the sides may lie partly outside; a shift takes at most an eighth of each.
    shares = gone.float().mean((1, 2))
    assert shares.min() >= 1 / 16 and shares.max() <= 1 / 4 + 1 - (7 / 8) ** 2
    assert shares.max() > 1 / 4 and len(set(shares.tolist())) > 20


def test_colours_are_drawn_once_a_pair_over_the_paper_s_ranges():
    batch, fake, after, generated = changed(serials=range(200), geometry=False)
    assert torch.equal(after.label, batch.label) and after.valid.all()
    ranges = []
    for before, now in ((batch.image, after.image), (fake, generated)):
        grey, grey_now = before.mean(1, keepdim=True), now.mean(1, keepdim=True)
        mean, mean_now = (v.mean((2, 3), keepdim=True) for v in (grey, grey_now))
        brightness = (mean_now - mean).flatten()
        contrast = ((grey_now - mean_now).std((1, 2, 3))) / (grey - mean).std((1, 2, 3))
        saturation = (now - grey_now).std((1, 2, 3)) / (before - grey).std((1, 2, 3)) / contrast
        ranges.append(torch.stack([brightness, contrast, saturation]))
    torch.testing.assert_close(ranges[0], ranges[1], atol=1e-4, rtol=0)
    low, high = ranges[0].min(1).values, ranges[0].max(1).values
    torch.testing.assert_close(low, torch.tensor([-0.5, 0.5, 0.0]), atol=0.03, rtol=0)
    torch.testing.assert_close(high, torch.tensor([0.5, 1.5, 2.0]), atol=0.03, rtol=0)
    assert (low >= torch.tensor([-0.5001, 0.4999, 0])).all()
    assert (high <= torch.tensor([0.5001, 1.5001, 2.0001])).all()


def test_amounts_are_drawn_over_the_whole_range_at_every_probability():
    batch, _, after, _ = changed(p=0.3, serials=range(400), geometry=False)
    brightness = after.image.mean((1, 2, 3)) - batch.image.mean((1, 2, 3))
    drawn = brightness[brightness.abs() > 1e-5]
    assert 0.2 < len(drawn) / 400 < 0.4
    assert drawn.min() < -0.45 and drawn.max() > 0.45 and drawn.mean().abs() < 0.1


def test_images_of_one_band_change_in_brightness_and_contrast():
    batch, _, after, _ = changed(bands=1, geometry=False)
    spreads = [(v - v.mean((1, 2, 3), keepdim=True)).flatten(1) for v in (batch.image, after.image)]
    factor = spreads[1].std(1, keepdim=True) / spreads[0].std(1, keepdim=True)
    torch.testing.assert_close(spreads[1], spreads[0] * factor)


def test_gradients_pass_to_what_stays_in_sight():
    batch = batch_of(range(4))
    fake = (-batch.image).requires_grad_()
    after, generated = both(DiffAugment(defaults(DiffAugmentSettings, color=False), 0), batch, fake)
    generated.sum().backward()
    assert fake.grad.sum() == 3 * after.valid.sum()
    assert set(fake.grad.unique().tolist()) == {0, 1}
    fake = (-batch.image).requires_grad_()
    _, generated = both(DiffAugment(defaults(DiffAugmentSettings, geometry=False), 0), batch, fake)
    generated.square().sum().backward()
    assert (fake.grad != 0).all()
