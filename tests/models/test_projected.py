import pytest
import torch

from geoseg_gan.data.batch import one_hot_of
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.models.registry import build_discriminator
from geoseg_gan.utils.errors import UserError

PATCH = {"name": "patch", "width": 4, "scales": 1}


def build(bands=3, seed=0, **settings):
    torch.manual_seed(seed)
    return build_discriminator({"name": "projected", "mixed": 4, "width": 4} | settings, 2, bands)


@pytest.fixture
def inputs():
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return image, one_hot_of(torch.zeros(1, 64, 64, dtype=torch.uint8), 2)


def test_there_are_four_levels_and_no_backbone_is_saved_or_learnt(inputs):
    network = build()
    assert len(network(*inputs).logits) == 4
    names = {*network.state_dict(), *(name for name, _ in network.named_parameters())}
    assert all(name.startswith(("scales.", "across_")) for name in names)
    assert sum(value.numel() for value in network.state_dict().values()) < 50_000


def test_a_patchgan_beside_them_is_a_scale_more(inputs):
    output = build(patch=4)(*inputs)
    assert len(output.logits) == len(output.features) == 5
    assert output.logits[4].shape == build_discriminator(PATCH, 2, 3)(*inputs).logits[0].shape


@pytest.mark.parametrize("setting", ["mixed=0", "width=0", "patch=-1"])
def test_malformed_settings_are_refused(setting):
    name, value = setting.split("=")
    with pytest.raises(UserError, match=rf"^model.discriminator: .*{setting}"):
        build(**{name: int(value)})


def test_random_mixes_are_saved_but_not_learnt():
    network = build()
    learnt = {name for name, _ in network.named_parameters()}
    mixes = {name for name in network.state_dict() if name.startswith("across_")}
    assert len(mixes) == 4 + 3
    assert not mixes & learnt


def test_mixing_keeps_the_size_of_activations():
    for name, weight in build(mixed=64).named_buffers():
        if name.startswith("across_"):
            assert weight.square().sum((1, 2, 3)).mean().item() == pytest.approx(1, abs=0.1)


def test_the_seed_alone_fixes_what_it_starts_with(inputs):
    one, same, other = build(), build(), build(seed=1)
    one(*inputs)  # loads the backbone
    for name, value in one.named_buffers():
        if name.startswith("across_"):
            assert torch.equal(value, same.get_buffer(name)), name
            assert not torch.equal(value, other.get_buffer(name)), name
    for name, parameter in same.named_parameters():
        assert torch.equal(parameter, one.get_parameter(name)), name


def test_loading_the_backbone_moves_no_random_state(inputs):
    network = build().eval()
    before = torch.get_rng_state()
    network(*inputs)
    assert torch.equal(torch.get_rng_state(), before)


def test_freezing_and_freeing_it_leaves_the_backbone_as_it_is(inputs):
    network = build()
    network(*inputs)
    network.train().requires_grad_(True)
    backbone = network.backbone._network
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone.training


def test_a_frozen_one_still_hands_gradients_to_the_image(inputs):
    network = build().requires_grad_(False)
    image, one_hot = inputs
    image.requires_grad_()
    network(image, one_hot).logits[-1].sum().backward()
    assert image.grad.abs().sum() > 0


def test_it_sees_the_share_of_each_class_at_every_feature(inputs):
    network = build()
    label = torch.zeros(1, 64, 64, dtype=torch.uint8)
    label[:, :, :16], label[:, :, 32:] = 1, IGNORE
    seen = []
    for head in network.scales:
        head.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, -3:]))
    network(inputs[0], one_hot_of(label, 2))
    assert [tuple(shares.shape[2:]) for shares in seen] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert seen[3][0, :, 0].T.tolist() == [[0.5, 0.5, 0], [0, 0, 1]]


@pytest.mark.parametrize("bands", [1, 3, 6])
def test_the_backbone_sees_no_pattern_of_two_pixels(bands):
    network, seen = build(bands), []
    backbone = network.backbone
    network.backbone = lambda images: seen.append(images) or backbone(images)
    stripes = (-1.0) ** torch.arange(32)
    for pattern in (stripes.expand(32, 32), stripes.outer(stripes)):
        network(0.25 + pattern.expand(1, bands, 32, 32) / 2, torch.ones(1, 2, 32, 32) / 2)
        assert torch.equal(seen.pop()[..., 1:-1, 1:-1], torch.full((1, bands, 30, 30), 0.25))


def test_an_unknown_backbone_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"resnet81 is not lite2.* Did you mean") as caught:
        build(backbone="resnet81")
    assert "\n" not in str(caught.value)
