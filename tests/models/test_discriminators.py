import functools
from typing import ClassVar

import pytest
import torch
from choices import (
    CLASSES,
    NetworkTester,
    all_equal,
    assert_gradients_everywhere,
    check_testers,
    some_labels,
    tensors,
)
from torch import nn
from torch.nn.utils import parametrize

from geoseg_gan.data.batch import one_hot_of
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.models import layers
from geoseg_gan.models.discriminators import projected
from geoseg_gan.models.discriminators.oasis import OasisDis
from geoseg_gan.models.discriminators.patch import PatchDis
from geoseg_gan.utils.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def one_backbone():
    """Loads the pretrained network once for each number of bands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projected, "Backbone", functools.cache(projected.Backbone))
        yield


class DiscriminatorTester(NetworkTester):
    """What every discriminator must do."""

    kind = "discriminator"
    output_kind: ClassVar[str] = "realness"
    shown_mask: ClassVar[bool] = True

    def inputs(self, network=None, size=(64, 64), batch=2, classes=CLASSES, bands=3):
        rng = torch.Generator().manual_seed(0)
        image = torch.rand(batch, bands, *size, generator=rng) * 2 - 1
        return image, one_hot_of(some_labels(*size, classes, batch), classes)

    def test_it_takes_any_size_from_its_minimum(self):
        network = self.build()
        least = network.minimum_size
        for size in ((least, least), (least, least + 13), (least + 13, least + 6)):
            output = network(*self.inputs(size=size))
            assert len(output.logits) == len(output.features) >= 1
            assert all(scale for scale in output.features)
            assert all(len(found) == 2 and found.numel() for found in tensors(output))

    @pytest.mark.parametrize(("classes", "bands"), [(2, 1), (200, 3), (3, 6)])
    def test_logits_are_of_its_kind(self, classes, bands):
        network = self.build(classes, bands)
        output = network(*self.inputs(size=(33, 40), classes=classes, bands=bands))
        assert network.output_kind == self.output_kind
        scales = list(output.logits)
        if self.output_kind != "realness":
            assert scales.pop(0).shape == (2, classes + 1, 33, 40)
        assert bool(scales) == (self.output_kind != "classes")
        assert all(logits.shape[1] == 1 for logits in scales)

    def test_gradients_reach_every_parameter_and_every_pixel(self):
        network = self.build()
        image, one_hot = self.inputs()
        image.requires_grad_()
        sum(logits.square().sum() for logits in network(image, one_hot).logits).backward()
        assert image.grad.abs().sum(1).all()
        assert_gradients_everywhere(network)

    def test_the_mask_matters_where_it_is_shown(self):
        network = self.build().eval()
        image, one_hot = self.inputs()
        first, second = (network(image, mask).logits for mask in (one_hot, one_hot.flip(1)))
        pairs = list(zip(first, second, strict=True))
        without_mask = self.output_kind == "both"  # the logits of classes
        for one, other in pairs[without_mask:]:
            assert torch.allclose(one, other, atol=1e-4) != self.shown_mask

    def test_halves_are_the_outputs_of_both_halves(self):
        network = self.build().eval()
        image, one_hot = self.inputs(batch=4)
        halves = network(image, one_hot).halves()
        for half, part in zip(halves, (slice(2), slice(2, 4)), strict=True):
            alone = network(image[part], one_hot[part])
            torch.testing.assert_close(tensors(half), tensors(alone), atol=1e-4, rtol=1e-4)

    def test_in_bfloat16_its_output_is_nearly_the_same(self):
        network = self.build().eval()
        inputs = self.inputs()
        with torch.autocast("cpu", torch.bfloat16):
            found = tensors(network(*inputs))
        for one, expected in zip(found, tensors(network(*inputs)), strict=True):
            assert (one.float() - expected).norm() < 0.25 * expected.norm()


class TestPatch(DiscriminatorTester):
    choices = ("patch", "patch_light")
    tiny: ClassVar[dict] = {"width": 4, "layers": 2, "scales": 2}

    def test_it_has_as_many_scales_and_layers_as_asked_and_no_logits_among_them(self):
        output = self.build(scales=3, layers=3)(*self.inputs(size=(128, 128)))
        assert len(output.logits) == 3
        for scale in output.features:
            assert len(scale) == 4
            assert all(feature.shape[1] > 1 for feature in scale)

    @pytest.mark.parametrize("on", [False, True])
    def test_spectral_norm_is_of_every_convolution_or_of_none(self, on):
        layers = [m for m in self.build(spectral_norm=on).modules() if isinstance(m, nn.Conv2d)]
        assert [parametrize.is_parametrized(layer) for layer in layers] == [on] * len(layers)

    def test_a_logit_of_three_layers_sees_seventy_pixels(self):
        network = PatchDis(1, 1, width=4, layers=3, scales=1, spectral_norm=False)
        image = torch.zeros(1, 1, 256, 256, requires_grad=True)
        logits = network(image, torch.zeros(1, 1, 256, 256)).logits[0]
        logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
        rows = image.grad[0, 0].abs().sum(1).nonzero()
        assert rows.max() - rows.min() + 1 == 70


class TestOasis(DiscriminatorTester):
    choices = ("oasis",)
    tiny: ClassVar[dict] = {"width": 4, "depth": 3, "max_width": 8}
    output_kind = "classes"
    shown_mask = False

    def test_every_skip_is_used(self):
        network = self.build(spectral_norm=False)
        network(*self.inputs()).logits[0].square().sum().backward()
        for block in network.up:
            assert block.one.weight.grad.abs().sum((0, 2, 3)).all()

    def test_the_default_has_the_paper_s_widths(self):
        with torch.device("meta"):
            network = OasisDis(3, 3, spectral_norm=False)
        blocks = [*network.down, *network.up[::-1]]
        widths = [(block.one.in_channels, block.one.out_channels) for block in blocks]
        down = [(3, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
        up = [(512, 512), (1024, 256), (512, 256), (512, 128), (256, 128), (256, 64)]
        assert widths == down + up


class TestOasisLight(DiscriminatorTester):
    choices = ("oasis_light",)
    tiny = TestOasis.tiny
    output_kind = "classes"
    shown_mask = False


class TestBoth(DiscriminatorTester):
    choices = ("both", "both_light")
    tiny: ClassVar[dict] = {**TestOasis.tiny, "stem": 4, "patch": 4}
    output_kind = "both"
    extra = "patch"

    def test_it_is_the_one_and_the_other(self):
        network = self.build()
        inputs = self.inputs()
        output, beside = network(*inputs), network.get_submodule(self.extra)(*inputs)
        assert all_equal(output.realness(), beside)
        setattr(network, self.extra, None)
        assert all_equal(output.classes(), network(*inputs))


class TestBothProjected(TestBoth):
    choices = ("both_projected", "both_projected_light")
    tiny: ClassVar[dict] = {**TestOasis.tiny, "stem": 0, "projected": 4}
    extra = "projected"


class TestProjected(DiscriminatorTester):
    choices = ("projected", "projected_light")
    tiny: ClassVar[dict] = {"mixed": 4, "width": 4, "patch": 4}

    @pytest.mark.parametrize("setting", ["mixed", "patch"])
    def test_numbers_out_of_range_are_refused(self, setting):
        with pytest.raises(UserError, match=rf"^model\.discriminator\.{setting}=-1: use 0 or more"):
            self.build(**{setting: -1})

    def test_mixes_and_heads_of_four_levels_are_saved_and_no_backbone(self):
        network, inputs = self.build(), self.inputs()
        *levels, beside = network(*inputs).logits
        assert len(levels) == 4 and torch.equal(beside, network.patch(*inputs).logits[0])
        network.patch = None
        learnt = {name for name, _ in network.named_parameters()}
        mixes = {name for name in network.state_dict() if not name.startswith("scales.")}
        assert learnt and all(name.startswith("scales.") for name in learnt)
        assert len(mixes) == 4 + 3 and all(name.startswith("across_") for name in mixes)

    def test_mixing_keeps_the_size_of_activations(self):
        for name, weight in self.build(mixed=64).named_buffers():
            if name.startswith("across_"):
                assert weight.square().sum((1, 2, 3)).mean().item() == pytest.approx(1, abs=0.1)

    def test_the_seed_alone_fixes_what_it_starts_with(self):
        one, same, other = self.build(), self.build(), self.build(seed=1)
        for name, value in one.state_dict().items():
            assert torch.equal(value, same.state_dict()[name]), name
            if name.startswith("across_"):
                assert not torch.equal(value, other.state_dict()[name]), name

    def test_it_sees_the_share_of_each_class_at_every_feature(self):
        network, seen = self.build(classes=2), []
        label = torch.zeros(1, 64, 64, dtype=torch.uint8)
        label[:, :, :16], label[:, :, 32:] = 1, IGNORE
        for head in network.scales:
            head.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, -3:]))
        network(torch.zeros(1, 3, 64, 64), one_hot_of(label, 2))
        assert [tuple(shares.shape[2:]) for shares in seen] == [(16, 16), (8, 8), (4, 4), (2, 2)]
        assert seen[3][0, :, 0].T.tolist() == [[0.5, 0.5, 0], [0, 0, 1]]

    @pytest.mark.parametrize("bands", [1, 3, 6])
    def test_the_backbone_sees_no_pattern_of_two_pixels(self, bands):
        network, seen = self.build(classes=2, bands=bands), []
        backbone = network.backbone
        network.backbone = lambda images: seen.append(images) or backbone(images)
        stripes = (-1.0) ** torch.arange(32)
        for pattern in (stripes.expand(32, 32), stripes.outer(stripes)):
            network(0.25 + pattern.expand(1, bands, 32, 32) / 2, torch.ones(1, 2, 32, 32) / 2)
            assert torch.equal(seen.pop()[..., 1:-1, 1:-1], torch.full((1, bands, 30, 30), 0.25))


@pytest.mark.parametrize("tester", [TestPatch, TestOasis])
def test_below_their_minimum_they_cannot(tester):
    network = tester().build()
    half = network.minimum_size // 2
    with pytest.raises(RuntimeError):
        network(*tester().inputs(size=(half, half)))


@pytest.mark.parametrize("tester", [TestPatch, TestProjected])
def test_outlines_matter_where_they_are_shown(tester, monkeypatch):
    network = tester().build(edges=True).eval()
    inputs = tester().inputs()
    first = network(*inputs).logits
    monkeypatch.setattr(layers, "edge_map", lambda one_hot: torch.zeros_like(one_hot[:, :1]))
    for one, other in zip(first, network(*inputs).logits, strict=True):
        assert not torch.allclose(one, other, atol=1e-4)


def test_every_choice_has_a_tester():
    check_testers("model/discriminator", [*DiscriminatorTester.__subclasses__(), TestBothProjected])
