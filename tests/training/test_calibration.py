import math

import pytest
import torch

from geoseg_gan.training.calibration import PixelSample


def sample_of(factor):
    """Pixels of three classes as likely as logits say, which are `factor` times too large."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4, 3, 64, 64, generator=generator)
    shares = logits.softmax(1).movedim(1, -1).reshape(-1, 3)
    labels = torch.multinomial(shares, 1, generator=generator).reshape(4, 64, 64)
    labels[:, :8] = 255
    sample = PixelSample(labels.numel())
    for part in (slice(0, 1), slice(1, 4)):
        sample.add(factor * logits[part], labels[part].to(torch.uint8))
    return sample


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_factor_and_then_confidence_is_accuracy(factor):
    sample = sample_of(factor)
    assert sample.temperature() == pytest.approx(factor, rel=0.03)
    assert sample.error(factor) < 0.015
    assert factor == 1 or sample.error() > 0.08


def test_the_error_is_the_mean_distance_of_confidence_and_accuracy():
    sample = PixelSample(4)
    # Sure by 0.8 and right in two of four, by hand: |0.8 - 0.5|.
    logits = torch.tensor([math.log(4), 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    sample.add(logits, torch.tensor([[[0, 0], [1, 1]]]))
    assert sample.error() == pytest.approx(0.3)


def test_pixels_are_drawn_evenly_and_without_any_nothing_changes(monkeypatch):
    monkeypatch.setattr("geoseg_gan.training.calibration._PIXELS", 100)
    sample = PixelSample(40 * 40)
    sample.add(torch.arange(1600.0).reshape(1, 1, 40, 40), torch.zeros(1, 40, 40))
    drawn = torch.cat(sample._logits).flatten() % 40
    assert 90 < len(drawn) < 110 and len(drawn.unique()) == 40
    empty = PixelSample(4)
    empty.add(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2), 255))
    assert empty.temperature() == 1 and math.isnan(empty.error())
