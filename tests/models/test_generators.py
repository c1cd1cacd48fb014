from typing import ClassVar

import pytest
import torch
from choices import (
    CLASSES,
    NetworkTester,
    assert_gradients_everywhere,
    check_testers,
    some_labels,
)

from geoseg_gan.data.batch import one_hot_of, regions_of
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.models.generators.noise import sample_noise
from geoseg_gan.models.generators.spade import SpadeGen
from geoseg_gan.models.generators.unet import UNetGen
from geoseg_gan.models.layers import update_spectral_norms
from geoseg_gan.utils.errors import UserError

NOISE = {"style_channels": 2, "region_channels": 2, "texture_octaves": 2}
NO_NOISE = dict.fromkeys(NOISE, 0)
# What full and light choices of one family differ in, besides widths and noise.
FULL_RESOLUTION = {"head_width": 0, "norm": "batch", "spectral_norm": True, "middle_blocks": 2}
HALF_RESOLUTION = {"head_width": 4, "norm": "pixel", "spectral_norm": False, "middle_blocks": 1}


class GeneratorTester(NetworkTester):
    """What every generator must do."""

    kind = "generator"
    shallow: ClassVar[dict] = {"depth": 1}

    def inputs(self, network, label=None, seed=0, classes=CLASSES):
        if label is None:
            label = some_labels(2 * network.stride, 3 * network.stride, classes)
        noise = sample_noise(network.noise, seed, range(len(label)), regions_of(label))
        return one_hot_of(label, classes), noise

    @pytest.mark.parametrize(
        ("rows", "columns", "classes", "bands"), [(1, 1, 2, 1), (2, 3, 200, 3), (7, 1, 3, 6)]
    )
    def test_images_have_the_mask_s_size_the_bands_asked_for_and_values_within_one(
        self, rows, columns, classes, bands
    ):
        network = self.build(classes, bands).eval()
        height, width = rows * network.stride, columns * network.stride
        label = some_labels(height, width, classes)
        image = network(*self.inputs(network, label, classes=classes))
        assert image.shape == (2, bands, height, width)
        assert image.abs().max() <= 1

    @pytest.mark.parametrize("edges", [False, True])
    def test_gradients_reach_every_parameter_and_all_that_is_shown(self, edges):
        network = self.build(edges=edges)
        network(*self.inputs(network)).square().sum().backward()
        assert_gradients_everywhere(network)
        shown = network.stem.weight.grad.abs().sum((0, 2, 3))
        assert len(shown) == CLASSES + 1 + edges + network.noise.channels
        assert shown.all()

    @pytest.mark.parametrize("kind", NOISE)
    def test_every_kind_of_noise_matters(self, kind):
        network = self.build(**NO_NOISE | {kind: 3}).eval()
        first, second = (network(*self.inputs(network, seed=seed)) for seed in (0, 1))
        assert (first - second).abs().mean() > 1e-3

    def test_noise_of_single_pixels_is_not_averaged_away(self):
        network = self.build(**NO_NOISE | {"texture_octaves": 1}).eval()
        one_hot, noise = self.inputs(network)
        rows, columns = (torch.arange(side) for side in noise.shape[2:])
        pattern = (-1.0) ** (rows.view(-1, 1) + columns).expand_as(noise)
        difference = network(one_hot, pattern) - network(one_hot, -pattern)
        assert difference.abs().mean() > 1e-3

    def test_without_noise_it_is_deterministic(self):
        network = self.build(**NO_NOISE).eval()
        one_hot, noise = self.inputs(network)
        assert noise.shape[1] == 0
        assert torch.equal(network(one_hot, noise), network(*self.inputs(network, seed=1)))

    @pytest.mark.parametrize("channels", [0, 3])
    def test_regions_of_one_class_differ_if_they_have_noise_of_their_own(self, channels):
        network = self.build(**NO_NOISE | {"region_channels": channels}).eval()
        label = torch.zeros(1, 32, 256, dtype=torch.uint8)
        for left in range(8, 256, 32):  # blocks of class 1 on class 0, which surrounds them
            label[:, 8:24, left : left + 16] = 1
        image = network(*self.inputs(network, label))
        one, other = image[..., 96:128], image[..., 128:160]
        if channels:
            assert (one - other)[..., 8:24, 8:24].abs().mean() > 1e-3
        else:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)

    def test_weights_of_the_unknown_channel_change_ignored_pixels_alone(self):
        network, other = self.build().eval(), self.build().eval()
        with torch.no_grad():
            other.stem.weight[:, CLASSES] += 1
        known = torch.zeros(1, 32, 32, dtype=torch.uint8)
        for label, same in ((known, True), (known + IGNORE, False)):
            inputs = self.inputs(network, label)
            assert torch.allclose(network(*inputs), other(*inputs), atol=1e-4) == same

    def test_an_image_does_not_depend_on_the_rest_of_its_batch(self):
        network = self.build().eval()
        one_hot, noise = self.inputs(network)
        alone = network(one_hot[1:], noise[1:])
        torch.testing.assert_close(network(one_hot, noise)[1:], alone, atol=1e-5, rtol=0)

    def test_a_mask_of_one_class_keeps_its_class(self):
        network = self.build(**NO_NOISE).eval()
        label = torch.zeros(1, 2 * network.stride, 2 * network.stride, dtype=torch.uint8)
        first, second = (network(*self.inputs(network, label + kind)) for kind in (0, 1))
        assert (first - second).abs().mean() > 1e-3

    def test_in_bfloat16_its_image_is_nearly_the_same(self):
        network = self.build()
        inputs = self.inputs(network)
        expected = network(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            image = network(*inputs)
        torch.testing.assert_close(image.float(), expected, atol=0.03, rtol=0)


class TestUNet(GeneratorTester):
    choices = ("unet", "unet_light")
    tiny: ClassVar[dict] = {"width": 4, "depth": 2, "max_width": 8} | NOISE

    def test_every_output_pixel_has_the_same_number_of_taps(self):
        # With all weights alike a constant input must give a constant interior; a transposed
        # convolution whose stride does not divide its kernel fails this: the checkerboard.
        network = self.build(**NO_NOISE).eval()
        for name, parameter in network.named_parameters():
            torch.nn.init.constant_(parameter, 0.01 if name.endswith("weight") else 0.0)
        image = network(torch.ones(1, 4, 128, 128), torch.zeros(1, 0, 128, 128))
        inside = image[..., 48:80, 48:80]
        assert inside.std() < 1e-6
        assert inside.abs().min() > 0

    def test_every_skip_is_used(self):
        network = self.build()
        network(*self.inputs(network)).square().sum().backward()
        for block in network.up:
            assert block[0].weight.grad.abs().sum((0, 2, 3)).all()

    @pytest.mark.parametrize(("depth", "sources"), [(2, [2]), (5, [4, 5])])
    def test_excitation_gates_fine_channels_by_what_is_sixteen_times_coarser(self, depth, sources):
        network = self.build(depth=depth, excitation=True)
        seen = {}
        for name, module in network.named_modules():
            module.register_forward_hook(
                lambda module, args, output, name=name: seen.update({name: (args, output)})
            )
        network(*self.inputs(network)).square().sum().backward()
        assert_gradients_everywhere(network)
        assert len(network.excitation) == len(sources)
        for level, source in enumerate(sources):
            (coarse,), gate = seen[f"excitation.{level}"]
            assert gate.shape[1:] == (network.squeeze[level].out_channels, 1, 1)
            assert ((gate > 0) & (gate < 1)).all() and gate[0].ne(gate[1]).any()
            assert coarse.shape[-2:] == (2 * 2 ** (depth - source), 3 * 2 ** (depth - source))
        (gated,), (_, fine) = seen["head"][0], seen["up.0"]
        assert torch.equal(gated, fine * seen["excitation.0"][1])

    def test_modulation_is_that_of_the_weight_and_the_output_has_unit_variance(self):
        network = self.build(modulation=True, width=8)
        _, noise = self.inputs(network)
        scales = network.mapping(noise)
        assert len(scales) == len(network.up) and scales[0][0].ne(scales[0][1]).any()
        assert torch.equal(scales[0], network.mapping(noise.flip(-1))[0])  # style alone
        block, scale = network.up[0], 3 + 2 * torch.randn(2, 16)
        block.rest, weight = torch.nn.Identity(), block.convolution.weight
        x = torch.randn(2, 16, 96, 96)
        for own, image, found in zip(scale, x, block(x, scale), strict=True):
            scaled = weight * own[:, None, None]
            norm = scaled.flatten(1).norm(dim=1)[:, None, None, None]
            bias = block.convolution.bias
            expected = torch.nn.functional.conv2d(image[None], scaled / norm, bias, padding=1)
            torch.testing.assert_close(found[None], expected, atol=1e-4, rtol=1e-4)
            assert found[:, 1:-1, 1:-1].var((1, 2)).sub(1).abs().max() < 0.1

    def test_modulation_trains_in_bfloat16_and_needs_a_style(self):
        network = self.build(modulation=True)
        inputs = self.inputs(network)
        expected = network(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            image = network(*inputs)
        torch.testing.assert_close(image.float(), expected, atol=0.03, rtol=0)
        image.float().square().sum().backward()
        assert_gradients_everywhere(network)
        with pytest.raises(UserError, match="style_channels=0 must be 1 or more"):
            self.build(modulation=True, style_channels=0)

    def test_the_default_has_the_paper_s_width_at_half_resolution(self):
        with torch.device("meta"):
            assert UNetGen(3, 3).down[0][0].out_channels == 64


class TestSpade(GeneratorTester):
    choices = ("spade",)
    tiny: ClassVar[dict] = {"width": 4, "depth": 2, "max_width": 8, "hidden": 6} | NOISE

    def test_the_default_has_the_paper_s_widths(self):
        with torch.device("meta"):
            stages = SpadeGen(3, 3, spectral_norm=False).stages
        widths = [[block.second_conv.out_channels for block in blocks] for blocks in stages]
        assert widths == [[1024], [1024, 1024], [512], [256], [128], [64]]

    @pytest.mark.parametrize(("key", "value"), [("modulation", "film"), ("norm", "layer")])
    def test_unknown_parts_are_refused_with_the_valid_names(self, key, value):
        with pytest.raises(UserError, match=rf"{key}={value} is not one of .*(clade|pixel)"):
            self.build(**{key: value})

    def test_spectral_norm_bounds_its_blocks(self):
        network = self.build(spectral_norm=True)
        for _ in range(30):
            update_spectral_norms(network)
        for block in network.blocks():
            for layer in (block.first_conv, block.second_conv):
                norm = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
                assert norm.item() == pytest.approx(1, abs=0.05)

    @pytest.mark.parametrize("norm", ["batch", "instance", "pixel"])
    def test_every_normalisation_trains(self, norm):
        network = self.build(norm=norm)
        network(*self.inputs(network)).sum().backward()
        assert network.stem.weight.grad.isfinite().all()


class TestSpadeLight(GeneratorTester):
    choices = ("spade_light",)
    tiny = TestSpade.tiny


class TestClade(GeneratorTester):
    choices = ("clade", "clade_light")
    tiny = TestSpade.tiny | FULL_RESOLUTION


class TestOasis(GeneratorTester):
    choices = ("oasis", "oasis_light")
    tiny = TestSpade.tiny | HALF_RESOLUTION

    def test_noise_enters_every_block_beside_the_mask(self):
        network = self.build()
        for block in network.blocks():
            assert block.noise is None
            assert block.first.shared.in_channels == CLASSES + 1 + network.noise.channels


def test_every_choice_has_a_tester():
    check_testers("model/generator", GeneratorTester.__subclasses__())
