from typing import ClassVar

import pytest
import torch

from geoseg_gan.errors import UserError
from geoseg_gan.models.noise import NoiseSpec, sample_noise
from geoseg_gan.models.registry import build_generator
from geoseg_gan.models.unet import UNetGen


class GeneratorTester:
    """What every generator must do; a subclass names one."""

    settings: ClassVar[dict]

    def build(self, classes=4, channels=3, **changes):
        torch.manual_seed(0)
        return build_generator({**self.settings, **changes}, classes, channels)

    def inputs(self, network, height, width, seed=0, classes=4, batch=2):
        label = torch.randint(
            classes, (batch, 1, height, width), generator=torch.Generator().manual_seed(seed)
        )
        one_hot = (label == torch.arange(classes).view(1, -1, 1, 1)).float()
        noise = sample_noise(network.noise, seed, range(batch), (height, width))
        return one_hot, noise

    @pytest.mark.parametrize("channels", [1, 3, 5])
    def test_the_image_has_the_mask_s_size_and_lies_within_minus_one_and_one(self, channels):
        network = self.build(channels=channels)
        height, width = network.stride * 2, network.stride * 3
        image = network(*self.inputs(network, height, width))
        assert image.shape == (2, channels, height, width)
        assert image.abs().max() <= 1

    def test_gradients_reach_every_parameter(self):
        network = self.build()
        side = network.stride * 2
        network(*self.inputs(network, side, side)).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    def test_the_same_noise_gives_the_same_image_and_another_another(self):
        network = self.build().eval()
        side = network.stride * 2
        one_hot, noise = self.inputs(network, side, side)
        other = sample_noise(network.noise, 1, range(2), (side, side))
        assert torch.equal(network(one_hot, noise), network(one_hot, noise))
        assert not torch.allclose(network(one_hot, noise), network(one_hot, other), atol=1e-4)

    def test_an_image_does_not_depend_on_the_rest_of_its_batch(self):
        network = self.build().eval()
        side = network.stride * 2
        one_hot, noise = self.inputs(network, side, side)
        alone = network(one_hot[1:], noise[1:])
        torch.testing.assert_close(network(one_hot, noise)[1:], alone, atol=1e-5, rtol=0)

    def test_a_mask_of_one_class_keeps_its_class(self):
        network = self.build().eval()
        side = network.stride * 2
        _, noise = self.inputs(network, side, side, batch=1)
        first, second = torch.zeros(2, 1, 4, side, side)
        first[:, 0], second[:, 1] = 1, 1
        assert (network(first, noise) - network(second, noise)).abs().mean() > 1e-3

    def test_its_state_restores_it(self):
        network = self.build().eval()
        side = network.stride * 2
        inputs = self.inputs(network, side, side)
        other = self.build()
        for parameter in other.parameters():
            torch.nn.init.zeros_(parameter)
        other.load_state_dict(network.state_dict())
        assert torch.equal(other.eval()(*inputs), network(*inputs))

    def test_bfloat16_runs(self):
        network = self.build()
        side = network.stride * 2
        with torch.autocast("cpu", torch.bfloat16):
            image = network(*self.inputs(network, side, side))
        assert image.isfinite().all()


class TestUNet(GeneratorTester):
    settings: ClassVar[dict] = {"name": "unet", "width": 8, "depth": 3, "max_width": 32}

    def test_without_noise_channels_it_is_deterministic(self):
        network = self.build(style_channels=0, texture_octaves=0).eval()
        one_hot, noise = self.inputs(network, 16, 16)
        assert noise.shape == (2, 0, 16, 16)
        assert network(one_hot, noise).shape == (2, 3, 16, 16)

    def test_every_output_pixel_has_the_same_number_of_taps(self):
        # With all weights alike a constant input must give a constant interior; a transposed
        # convolution whose stride does not divide its kernel fails this: the checkerboard.
        network = self.build(style_channels=0, texture_octaves=0).eval()
        for name, parameter in network.named_parameters():
            torch.nn.init.constant_(parameter, 0.01 if name.endswith("weight") else 0.0)
        image = network(torch.ones(1, 4, 128, 128), torch.zeros(1, 0, 128, 128))
        inside = image[..., 48:80, 48:80]
        assert inside.std() < 1e-6
        assert inside.abs().min() > 0

    def test_a_malformed_width_is_refused(self):
        with pytest.raises(UserError, match=r"model.generator: width=0"):
            self.build(width=0)


def test_an_unknown_generator_is_refused_with_the_valid_names():
    with pytest.raises(UserError, match=r"model.generator.name=unett .*Did you mean 'unet'"):
        build_generator({"name": "unett"}, 3, 3)


def test_the_default_has_the_paper_s_width_at_half_resolution():
    assert UNetGen(3, 3).down[0][0].out_channels == 64


def test_noise_depends_on_seed_and_index_alone():
    spec = NoiseSpec(style=2, texture=3)
    together = sample_noise(spec, 7, [3, 4], (20, 24))
    assert torch.equal(together[1:], sample_noise(spec, 7, [4], (20, 24)))
    assert not torch.equal(together[:1], together[1:])
    assert not torch.equal(together[:1], sample_noise(spec, 8, [3], (20, 24)))


def test_noise_channels_have_unit_variance_and_style_is_broadcast():
    spec = NoiseSpec(style=4, texture=4)
    noise = sample_noise(spec, 0, range(40), (64, 64))
    assert noise.shape == (40, 8, 64, 64)
    assert (noise[:, :4] == noise[:, :4, :1, :1]).all()
    deviation = noise[:, 4:].std((0, 2, 3))
    torch.testing.assert_close(deviation, torch.ones(4), atol=0.08, rtol=0)
    # Coarser octaves change more slowly from pixel to pixel.
    roughness = noise[:, 4:].diff(dim=-1).abs().mean((0, 2, 3))
    assert (roughness.diff() < 0).all()
