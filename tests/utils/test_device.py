import pytest
import torch
from defaults import defaults

from geoseg_gan.utils.device import TrainerSettings


@pytest.mark.parametrize(
    ("accelerator", "supported", "expected"),
    [("auto", True, "bf16-mixed"), ("gpu", False, "32-true"), ("cpu", True, "32-true")],
)
def test_the_default_precision_follows_the_device(accelerator, supported, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    settings = defaults(TrainerSettings, accelerator)
    assert settings.full_precision(None) == expected
    assert settings.full_precision("16") == "16-mixed" and settings.full_precision("auto") == "auto"
