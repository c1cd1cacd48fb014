from typing import ClassVar

import pytest
import torch

from geoseg_gan.errors import UserError
from geoseg_gan.models.patch import PatchDis
from geoseg_gan.models.registry import build_discriminator


class DiscriminatorTester:
    """What every discriminator must do; a subclass names one."""

    settings: ClassVar[dict]

    def build(self, **changes):
        torch.manual_seed(0)
        return build_discriminator({**self.settings, **changes}, 4, 3)

    def inputs(self, side, batch=2):
        rng = torch.Generator().manual_seed(0)
        one_hot = torch.randint(2, (batch, 4, side, side), generator=rng).float()
        return torch.rand(batch, 3, side, side, generator=rng) * 2 - 1, one_hot

    def test_it_judges_any_size_from_its_minimum(self):
        network = self.build()
        for side in (network.minimum_size, network.minimum_size + 13):
            output = network(*self.inputs(side))
            assert len(output.logits) == len(output.features) >= 1
            assert all(logit.shape[0] == 2 and logit.numel() for logit in output.logits)
            assert all(len(scale) >= 1 for scale in output.features)

    def test_below_its_minimum_it_cannot(self):
        network = self.build()
        with pytest.raises(RuntimeError):
            network(*self.inputs(network.minimum_size // 2))

    def test_gradients_reach_every_parameter_and_the_image(self):
        network = self.build()
        image, one_hot = self.inputs(64)
        image.requires_grad_()
        torch.stack([logit.sum() for logit in network(image, one_hot).logits]).sum().backward()
        assert image.grad.abs().sum() > 0
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    def test_the_mask_matters(self):
        network = self.build().eval()
        image, one_hot = self.inputs(64)
        first = network(image, one_hot).logits[0]
        second = network(image, 1 - one_hot).logits[0]
        assert not torch.allclose(first, second, atol=1e-4)

    def test_halves_are_the_outputs_of_both_halves(self):
        network = self.build().eval()
        image, one_hot = self.inputs(64, batch=4)
        real, fake = network(image, one_hot).halves()
        torch.testing.assert_close(real.logits[0], network(image[:2], one_hot[:2]).logits[0])
        torch.testing.assert_close(
            fake.features[0][1], network(image[2:], one_hot[2:]).features[0][1]
        )

    def test_its_state_restores_it(self):
        network = self.build().eval()
        inputs = self.inputs(64)
        other = self.build()
        other.load_state_dict(network.state_dict())
        assert torch.equal(other.eval()(*inputs).logits[0], network(*inputs).logits[0])


class TestPatch(DiscriminatorTester):
    settings: ClassVar[dict] = {"name": "patch", "width": 8, "layers": 2, "scales": 2}

    def test_it_has_as_many_scales_and_layers_as_asked(self):
        output = self.build(scales=3, layers=3)(*self.inputs(128))
        assert len(output.logits) == 3
        assert all(len(scale) == 4 for scale in output.features)

    def test_logits_are_not_among_the_features(self):
        output = self.build()(*self.inputs(64))
        assert all(feature.shape[1] > 1 for scale in output.features for feature in scale)

    def test_spectral_norm_bounds_every_layer(self):
        network = self.build(spectral_norm=True)
        for _ in range(30):  # power iterations
            network(*self.inputs(64))
        for scale in network.scales:
            weight = scale.head.weight.flatten(1)
            assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=0.05)

    def test_three_layers_judge_seventy_pixels(self):
        network = PatchDis(1, 1, width=4, layers=3, scales=1, spectral_norm=False)
        image = torch.zeros(1, 1, 256, 256, requires_grad=True)
        logits = network(image, torch.zeros(1, 1, 256, 256)).logits[0]
        logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
        rows = image.grad[0, 0].abs().sum(1).nonzero()
        assert rows.max() - rows.min() + 1 == 70

    def test_malformed_settings_are_refused(self):
        with pytest.raises(UserError, match=r"model.discriminator: .*scales=0"):
            self.build(scales=0)
