import functools
import socket

import pytest
import segmentation_models_pytorch as smp
import torch
from choices import settings_of
from defaults import defaults
from torch.nn.functional import interpolate

from geoseg_gan.models.segmenters import (
    build_segmenter,
    check_segmenter,
    divide_logits,
    segmenter_stride,
)
from geoseg_gan.models.settings import SegmenterSettings
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.messages import choices


def images(height, width):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def offline():
    def refuse(*_, **__):
        pytest.fail("the network was asked")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, refuse)
        for name in ("create_connection", "getaddrinfo"):
            patch.setattr(socket, name, refuse)
        yield


@pytest.fixture(scope="module", params=choices("segmenter"))
def choice(request):
    """The settings of every choice of the segmenter group, one after the other."""
    return settings_of("segmenter", request.param)


@pytest.fixture(scope="module")
def network(choice, offline):
    return build_segmenter(choice, 4, 3)


def test_every_choice_passes_its_check_offline(choice, offline):
    check_segmenter(defaults(SegmenterSettings, **choice), 64)


def test_every_choice_takes_any_number_of_bands(choice):
    with torch.device("meta"):  # shapes only
        network = build_segmenter(choice, 2, 5, pretrained=False)
        assert network(torch.zeros(2, 5, 64, 64)).shape == (2, 2, 64, 64)


def test_every_choice_gives_logits_of_the_image_s_size_and_gradients_for_all_parameters(network):
    side = segmenter_stride(network)
    logits = network.train()(images(2 * side, 3 * side))
    assert logits.shape == (2, 4, 2 * side, 3 * side)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@torch.inference_mode()
def test_the_state_of_every_choice_restores_it_without_packaged_weights(choice, network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other = build_segmenter(choice, 4, 3, pretrained=False)
    image = images(64, 64)
    assert not torch.equal(other.eval()(image), network.eval()(image))
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other(image), network(image))


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("arch", sorted(smp.MODEL_ARCHITECTURES_MAPPING))
def test_logits_of_every_architecture_are_divided_by_its_last_weights(arch):
    encoder, side = ("tu-vit_tiny_patch16_224", 224) if arch == "dpt" else ("resnet18", 128)
    choice = {"arch": arch, "encoder": encoder, "encoder_weights": None, "options": {}}
    choice["image_scale"] = 0.5 if arch == "fpn" else 1
    network = build_segmenter(choice, 3, 3, pretrained=False).eval()
    before = network(images(side, side))
    divide_logits(network, 2.5)
    torch.testing.assert_close(network(images(side, side)), before / 2.5)


@torch.inference_mode()
@pytest.mark.parametrize(("scale", "side", "inner"), [(2, 16, 32), (1.5, 64, 96), (0.5, 64, 32)])
def test_images_are_rescaled_inside_the_network_and_logits_brought_back(scale, side, inner):
    settings = settings_of("segmenter", "fpn_light")
    plain = build_segmenter(settings, 4, 3).eval()
    network = build_segmenter(settings | {"image_scale": scale}, 4, 3, pretrained=False).eval()
    network.network.load_state_dict(plain.state_dict())
    assert segmenter_stride(network) == side
    check_segmenter(defaults(SegmenterSettings, image_scale=scale), side)
    image = images(side, 3 * side)
    resize = functools.partial(interpolate, mode="bilinear", align_corners=False)
    expected = resize(plain(resize(image, (inner, 3 * inner))), (side, 3 * side))
    assert torch.equal(network(image), expected)


@pytest.mark.parametrize("bands", [1, 5])
def test_packaged_weights_adapt_to_the_bands(bands):
    network = build_segmenter(vars(defaults(SegmenterSettings)), 2, bands)
    assert network.encoder.model.conv_stem.in_channels == bands


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "unett"}, r"segmenter.arch=unett .*deeplabv3plus.*Did you mean 'unet'"),
        ({"encoder": "resnet35"}, r"segmenter.encoder=resnet35 is not one of .*resnet34, .* more"),
        (
            {"encoder": "tf_efficientnet_lite0"},
            r"encoder=tf_efficientnet_lite0 is not one of tu-tf_efficientnet_lite0, ",
        ),
        ({"encoder": "tu-hf_hub:someone/resnet18"}, r"is not one of"),
        ({"encoder": "tu-resnet18.a1_in1k"}, r"is not one of"),
        ({"encoder": "resnet34"}, r"encoder_weights=packaged are those of tu-tf_eff.*=resnet34"),
        (
            {"encoder": "resnet34", "encoder_weights": "imagnet"},
            r"encoder_weights=imagnet is not one of null, imagenet\. Did you mean 'imagenet'",
        ),
        ({"encoder_weights": "imagenet"}, r"weights=imagenet is not one of null, packaged, in1k"),
        (
            {"options": {"decoder_chanels": [1]}},
            r"segmenter.options=decoder_chanels .*Did you mean 'decoder_channels'",
        ),
        ({"options": {"activation": "sigmoid"}}, r"segmenter.options=activation is not one of"),
        ({"options": {"decoder_channels": [8]}}, r"segmenter.arch=unet with .*does not work: "),
        ({"options": {"encoder_depth": 9}}, r"does not work: .*depth"),
        (
            {"arch": "fpn", "options": {"upsampling": 2}},
            r"gives logits of 32x32 for images of 64x64",
        ),
        ({"arch": "pan"}, r"does not work at image_size=64: "),
        ({"arch": "dpt", "encoder": "resnet34", "encoder_weights": None}, r"must start with"),
    ],
)
def test_a_mistake_is_refused_in_one_line(changes, message, offline):
    with pytest.raises(UserError, match=message) as caught:
        check_segmenter(defaults(SegmenterSettings, **changes), 64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "fitting"),
    [(100, "96."), (250, "224."), (15, "32, with data.fit=resize where tiles are smaller.")],
)
def test_an_image_size_that_does_not_fit_is_refused_with_one_that_does(size, fitting):
    with pytest.raises(UserError, match=rf"multiple of 32.*Use e.g. image_size={fitting}"):
        check_segmenter(defaults(SegmenterSettings), size)


def test_a_scale_that_does_not_fit_is_refused_with_a_size_that_does():
    message = r"image_size=128 times segmenter.image_scale=1.3 is not a multiple of 32, which .*"
    with pytest.raises(
        UserError, match=message + r"Use e.g. image_size=320, .* Or set another scale\."
    ):
        check_segmenter(defaults(SegmenterSettings, image_scale=1.3), 128)


@pytest.mark.parametrize("scale", [0.2, 5])
def test_a_scale_out_of_range_is_refused(scale):
    with pytest.raises(UserError, match=rf"segmenter.image_scale={scale}: use 0.25 to 4"):
        defaults(SegmenterSettings, image_scale=scale)


def test_encoders_that_cannot_be_built_without_memory_are_checked_too():
    check_segmenter(defaults(SegmenterSettings, "segformer", "mit_b0", None), 64)


def test_weights_of_a_timm_encoder_become_the_tag_of_its_name(monkeypatch):
    asked = {}

    def stop(arch, **arguments):
        asked.update(arguments)
        raise RuntimeError("no connection,\ntry later")

    monkeypatch.setattr(smp, "create_model", stop)
    settings = vars(defaults(SegmenterSettings, "unet", "tu-resnet18", "a1_in1k"))
    with pytest.raises(UserError, match="no connection, try later"):
        build_segmenter(settings, 2, 3)
    assert asked["encoder_name"] == "tu-resnet18.a1_in1k"
    assert asked["encoder_weights"] is True


def test_weights_that_cannot_be_downloaded_are_named_in_one_line(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr(smp.encoders, "hf_hub_download", fail)
    settings = settings_of("segmenter", "unet_resnet34") | {"encoder_weights": "imagenet"}
    with pytest.raises(UserError, match=r"encoder=resnet34 .*no route to host.*encoder_weights"):
        build_segmenter(settings, 2, 3)
