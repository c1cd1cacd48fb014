from typing import ClassVar

import pytest
import torch
from choices import check_testers, settings_of, tensors

from geoseg_gan.data.batch import one_hot_of
from geoseg_gan.models import layers
from geoseg_gan.models.discriminators.oasis import OasisDis
from geoseg_gan.models.discriminators.patch import PatchDis
from geoseg_gan.models.discriminators.projected import ProjectedDis
from geoseg_gan.models.registry import build_discriminator
from geoseg_gan.utils.errors import UserError

CLASSES = 4


class Listed(torch.nn.Module):
    """A discriminator that returns plain tensors, as exported programs do."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image, one_hot):
        return tensors(self.network(image, one_hot))


class DiscriminatorTester:
    """What every discriminator must do; a subclass names choices and makes them tiny."""

    choices: ClassVar[tuple]
    tiny: ClassVar[dict]
    output_kind: ClassVar[str] = "realness"
    shown_mask: ClassVar[bool] = True

    def build(self, classes=CLASSES, bands=3, **changes):
        torch.manual_seed(0)
        settings = settings_of("model/discriminator", self.choices[0]) | self.tiny | changes
        return build_discriminator(settings, classes, bands)

    def inputs(self, height=64, width=64, batch=2, classes=CLASSES, bands=3):
        rng = torch.Generator().manual_seed(0)
        label = torch.randint(classes + 1, (batch, height, width), generator=rng)  # some ignored
        image = torch.rand(batch, bands, height, width, generator=rng) * 2 - 1
        return image, one_hot_of(label.byte(), classes)

    def test_it_takes_any_size_from_its_minimum(self):
        network = self.build()
        least = network.minimum_size
        for height, width in ((least, least), (least, least + 13), (least + 13, least + 6)):
            output = network(*self.inputs(height, width))
            assert len(output.logits) == len(output.features) >= 1
            assert all(scale for scale in output.features)
            assert all(len(found) == 2 and found.numel() for found in tensors(output))

    @pytest.mark.parametrize(("classes", "bands"), [(2, 1), (200, 3), (3, 6)])
    def test_logits_are_of_its_kind(self, classes, bands):
        network = self.build(classes, bands)
        output = network(*self.inputs(33, 40, classes=classes, bands=bands))
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
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    def test_the_mask_matters_where_it_is_shown(self):
        network = self.build().eval()
        image, one_hot = self.inputs()
        first, second = (network(image, mask).logits for mask in (one_hot, one_hot.flip(1)))
        pairs = list(zip(first, second, strict=True))
        for one, other in pairs[
            self.output_kind == "both" :
        ]:  # classes are predicted without the mask
            assert torch.allclose(one, other, atol=1e-4) != self.shown_mask

    def test_halves_are_the_outputs_of_both_halves(self):
        network = self.build().eval()
        image, one_hot = self.inputs(batch=4)
        halves = network(image, one_hot).halves()
        for half, part in zip(halves, (slice(2), slice(2, 4)), strict=True):
            alone = network(image[part], one_hot[part])
            torch.testing.assert_close(tensors(half), tensors(alone), atol=1e-4, rtol=1e-4)

    def test_its_state_restores_it(self, tmp_path):
        network, other = self.build(), self.build()
        inputs = self.inputs()
        network(*inputs)  # moves what spectral norm keeps
        for tensor in other.state_dict().values():
            tensor.zero_()
        torch.save(network.state_dict(), tmp_path / "state.pt")
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        found, expected = (tensors(built.eval()(*inputs)) for built in (other, network))
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))

    def test_in_bfloat16_its_output_is_nearly_the_same(self):
        network = self.build().eval()
        inputs = self.inputs()
        with torch.autocast("cpu", torch.bfloat16):
            found = tensors(network(*inputs))
        for one, expected in zip(found, tensors(network(*inputs)), strict=True):
            assert (one.float() - expected).norm() < 0.25 * expected.norm()

    @pytest.mark.parametrize(
        "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
    )
    def test_compiled_as_a_whole_its_output_is_the_same(self, backend):
        torch.compiler.reset()
        network, other = self.build(), self.build()
        inputs = self.inputs()
        for built in (network, other):
            built(*inputs)  # loads a backbone
        compiled = torch.compile(other, fullgraph=True, backend=backend)
        with torch.set_grad_enabled(backend == "inductor"):  # which doubles what is compiled
            found, expected = tensors(compiled(*inputs)), tensors(network(*inputs))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    def test_exported_its_output_is_the_same(self):
        network = self.build().eval()
        inputs = self.inputs()
        expected = network(*inputs)  # loads a backbone
        exported = torch.export.export(Listed(network), inputs).module()
        torch.testing.assert_close(exported(*inputs), tensors(expected), atol=1e-4, rtol=1e-4)

    def test_malformed_settings_are_refused(self):
        with pytest.raises(UserError, match=r"^model.discriminator: .*width=0"):
            self.build(width=0)


class TestPatch(DiscriminatorTester):
    choices = ("patch", "patch_light")
    tiny: ClassVar[dict] = {"width": 4, "layers": 2, "scales": 2}

    def test_below_its_minimum_it_cannot(self):
        network = self.build()
        with pytest.raises(RuntimeError):
            network(*self.inputs(network.minimum_size // 2, network.minimum_size // 2))

    def test_it_has_as_many_scales_and_layers_as_asked(self):
        output = self.build(scales=3, layers=3)(*self.inputs(128, 128))
        assert len(output.logits) == 3
        assert all(len(scale) == 4 for scale in output.features)

    def test_logits_are_not_among_the_features(self):
        output = self.build()(*self.inputs())
        assert all(feature.shape[1] > 1 for scale in output.features for feature in scale)

    def test_spectral_norm_bounds_every_layer(self):
        network = self.build(spectral_norm=True)
        for _ in range(30):  # power iterations
            network(*self.inputs())
        for scale in network.scales:
            weight = scale.head.weight.flatten(1)
            assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=0.05)

    def test_a_logit_of_three_layers_sees_seventy_pixels(self):
        network = PatchDis(1, 1, width=4, layers=3, scales=1, spectral_norm=False)
        image = torch.zeros(1, 1, 256, 256, requires_grad=True)
        logits = network(image, torch.zeros(1, 1, 256, 256)).logits[0]
        logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
        rows = image.grad[0, 0].abs().sum(1).nonzero()
        assert rows.max() - rows.min() + 1 == 70


class TestProjected(DiscriminatorTester):
    choices = ("projected", "projected_light")
    tiny: ClassVar[dict] = {"mixed": 4, "width": 4, "patch": 4}

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compiled_as_a_whole_its_output_is_the_same(self, backend):
        super().test_compiled_as_a_whole_its_output_is_the_same(backend)


class TestOasis(DiscriminatorTester):
    choices = ("oasis",)
    tiny: ClassVar[dict] = {"width": 4, "depth": 3, "max_width": 8}
    output_kind = "classes"
    shown_mask = False

    def test_below_its_minimum_it_cannot(self):
        network = self.build()
        with pytest.raises(RuntimeError):
            network(*self.inputs(network.minimum_size // 2, network.minimum_size // 2))

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

    def test_it_is_the_one_and_the_other(self):
        network = self.build()
        inputs = self.inputs()
        output, beside = network(*inputs), network.patch(*inputs)
        network.patch = None
        for ours, theirs in ((output.classes(), network(*inputs)), (output.realness(), beside)):
            pairs = zip(tensors(ours), tensors(theirs), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)


class TestBothProjected(DiscriminatorTester):
    choices = ("both_projected", "both_projected_light")
    tiny: ClassVar[dict] = {**TestOasis.tiny, "stem": 0, "projected": 4}
    output_kind = "both"
    # Slow, and done with each of its two parts.
    test_compiled_as_a_whole_its_output_is_the_same = None
    test_exported_its_output_is_the_same = None

    def test_it_is_the_one_and_the_other(self):
        network = self.build()
        inputs = self.inputs()
        output, beside = network(*inputs), network.projected(*inputs)
        assert isinstance(network.projected, ProjectedDis)
        pairs = zip(tensors(output.realness()), tensors(beside), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("tester", [TestPatch, TestProjected])
def test_outlines_matter_where_they_are_shown(tester, monkeypatch):
    network = tester().build(edges=True).eval()
    inputs = tester().inputs()
    first = network(*inputs).logits
    monkeypatch.setattr(layers, "edge_map", lambda one_hot: torch.zeros_like(one_hot[:, :1]))
    for one, other in zip(first, network(*inputs).logits, strict=True):
        assert not torch.allclose(one, other, atol=1e-4)


def test_every_choice_has_a_tester():
    check_testers("model/discriminator", DiscriminatorTester.__subclasses__())
