import pytest
import timm
import torch
import torchvision
from torch.nn import functional as F

from geoseg_gan.models.pretrained.backbone import LITE2_BACKBONE, VGG, Backbone
from geoseg_gan.utils.errors import UserError

NAMES = (LITE2_BACKBONE, VGG, "resnet18", "resnet18.a1_in1k")


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def vgg_layers():
    """VGG19's convolutions with random weights."""
    torch.manual_seed(0)
    vgg = torchvision.models.vgg
    return vgg.make_layers(vgg.cfgs["E"], batch_norm=False)


@pytest.fixture
def offline_vgg(vgg_layers, monkeypatch):
    """Random weights in the place of the published ones."""

    class Network:
        features = vgg_layers

    monkeypatch.setattr(torchvision.models, "vgg19", lambda weights: Network)


@pytest.fixture
def offline_timm(monkeypatch):
    """Random weights in the place of timm's."""
    create = timm.create_model

    def without_weights(*args, pretrained, **kwargs):
        torch.manual_seed(0)
        return create(*args, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", without_weights)


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_as_announced_and_gradients_pass_through_to_the_image(
    name, images, offline_vgg, offline_timm
):
    backbone = Backbone(name, 3)
    images.requires_grad_()
    maps = backbone(images)
    assert [(found.shape[1], 64 // found.shape[2]) for found in maps] == backbone.levels()
    assert len(maps) == 5
    sum(found.square().mean() for found in maps).backward()
    assert images.grad.abs().sum() > 0
    assert not backbone._network.training
    assert not any(weight.requires_grad for weight in backbone._network.parameters())


def test_vgg_gives_the_first_rectified_map_of_each_of_its_five_levels(
    images, vgg_layers, offline_vgg
):
    maps = Backbone(VGG, 3)(images)
    weights = iter([layer for layer in vgg_layers if isinstance(layer, torch.nn.Conv2d)])
    mean = torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(-1, 1, 1)
    x = ((images + 1) / 2 - mean) / deviation  # as it was trained
    for found, convolutions in zip(maps, (2, 2, 4, 4, 1), strict=True):
        for number in range(convolutions):
            layer = next(weights)
            x = F.relu(F.conv2d(x, layer.weight, layer.bias, padding=1))
            if not number:
                torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-4)
        x = F.max_pool2d(x, 2)


@pytest.fixture(scope="module")
def lite2():
    """Lite2 for 1, 3 and 6 bands."""
    return {bands: Backbone(LITE2_BACKBONE, bands) for bands in (1, 3, 6)}


@pytest.mark.parametrize("bands", [1, 3, 6])
def test_every_map_has_a_root_mean_square_near_one(bands, lite2):
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(4, bands, 16, 16, generator=generator) / 2
    images = F.interpolate(coarse, scale_factor=8, mode="bicubic")
    for found in lite2[bands](images):
        assert 0.5 < found.square().mean().sqrt() < 2


@pytest.mark.parametrize("bands", [1, 6])
def test_lite2_takes_any_number_of_bands(bands, images, lite2):
    grey = images[:, :1]
    maps, expected = (lite2[k](grey.expand(-1, k, -1, -1)) for k in (bands, 3))
    for found, other in zip(maps, expected, strict=True):  # apart from a factor for each map
        assert F.cosine_similarity(found.flatten(), other.flatten(), 0) > 0.999


def test_a_network_of_timm_takes_other_bands_with_the_mean_of_its_scales(images, offline_timm):
    backbone = Backbone("resnet18", 1)
    assert backbone(images[:, :1])[0].shape[1] == 64
    shift, scale = (value.item() for value in backbone._scale)
    assert (shift, scale) == pytest.approx((2 * 0.449 - 1, 2 * 0.226))


def test_loading_it_moves_no_random_state_and_gives_the_same_every_time(images, offline_vgg):
    for name in (LITE2_BACKBONE, VGG):
        before = torch.get_rng_state()
        first, second = Backbone(name, 3)(images), Backbone(name, 3)(images)
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("name", "bands", "message"),
    [
        ("resnet81", 3, r"^resnet81 is not lite2, vgg19 or .* Did you mean 'resnet\d+'"),
        ("resnet18.none", 3, r"^resnet18.none is not lite2"),
        (VGG, 4, r"^vgg19 takes RGB images, not 4 bands. Use lite2"),
    ],
)
def test_names_and_bands_that_do_not_fit_are_refused(name, bands, message):
    with pytest.raises(UserError, match=message):
        Backbone(name, bands)


@pytest.mark.parametrize(
    ("name", "module", "function", "error", "message"),
    [
        (VGG, torchvision.models, "vgg19", OSError, "the weights of vgg19 cannot be downloaded"),
        ("resnet18", timm, "create_model", OSError, "the weights of resnet18 cannot be downloaded"),
        ("resnet18", timm, "create_model", RuntimeError, "resnet18 gives no feature maps"),
    ],
)
def test_networks_that_cannot_be_loaded_are_reported_in_one_line(
    name, module, function, error, message, images, monkeypatch
):
    def refuse(*args, **kwargs):
        raise error("no route\nto host")

    monkeypatch.setattr(module, function, refuse)
    with pytest.raises(UserError, match=rf"^{message} .*no route to host.*lite2") as caught:
        Backbone(name, 3)(images)
    assert "\n" not in str(caught.value)
