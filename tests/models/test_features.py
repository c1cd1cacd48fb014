import urllib.error

import pytest
import torch

from geoseg_gan.models.pretrained.features import Lite0Features, build_features
from geoseg_gan.utils.errors import UserError


@pytest.mark.parametrize("bands", [1, 3, 6])
def test_lite0_gives_a_vector_an_image_and_maps_of_five_strides_the_same_every_time(bands):
    first, second = Lite0Features(bands), Lite0Features(bands)
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())
    images = torch.rand(2, bands, 64, 96) * 2 - 1
    assert first.pooled(images).shape == (2, 1280)
    assert torch.equal(first.pooled(images), second.pooled(images))
    shapes = [tuple(features.shape[2:]) for features in first.layers(images)]
    assert shapes == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.fixture(scope="module")
def network():
    """Inception with random weights in the place of the published ones."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    kind = module.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(kind, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        return kind("inception-v3-compat", ["2048"])


def test_inception_features_are_those_that_torchmetrics_takes(network, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as module

    monkeypatch.setattr(
        module, "load_state_dict_from_url", lambda *args, **kw: network.state_dict()
    )
    images = torch.randint(0, 256, (2, 3, 40, 48), dtype=torch.uint8)
    found = build_features("inception", 3).pooled(images / 127.5 - 1)
    assert found.shape == (2, 2048)
    assert torch.equal(found, network(images)[0])


@pytest.mark.parametrize(("name", "bands"), [("inception", 4), ("vgg", 3)])
def test_unknown_networks_and_other_bands_are_refused(name, bands):
    with pytest.raises(UserError, match=f"features={name}"):
        build_features(name, bands)


def test_weights_that_cannot_be_downloaded_are_reported(monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as module

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(module, "load_state_dict_from_url", refuse)
    with pytest.raises(UserError, match=r"cannot be downloaded .*features=lite0"):
        build_features("inception", 3)
