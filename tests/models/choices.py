"""The choices of the config groups of networks, and what every network must do."""

import functools
from typing import ClassVar

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from geoseg_gan.data.palette import IGNORE
from geoseg_gan.models.registry import build_discriminator, build_generator
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.messages import choices

BUILD = {"generator": build_generator, "discriminator": build_discriminator}
CLASSES = 4


@functools.cache
def settings_of(group, choice):
    """The settings of a choice, inherited ones included."""
    with initialize_config_module("geoseg_gan.configs", version_base="1.3"):
        config = compose(f"{group}/{choice}")
    for part in group.split("/"):
        config = config[part]
    return OmegaConf.to_container(config)


def tensors(output):
    """All that a network returns, as a list."""
    if hasattr(output, "logits"):
        return [*output.logits, *(layer for scale in output.features for layer in scale)]
    return [output]


def all_equal(first, second):
    """Whether two networks' outputs are the same to the last bit."""
    pairs = zip(tensors(first), tensors(second), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def some_labels(height, width, classes=CLASSES, batch=2):
    """Random classes and ignored pixels, in which no two rows or columns are alike."""
    rng = torch.Generator().manual_seed(0)
    label = torch.randint(classes + 1, (batch, height, width), generator=rng)
    return label.where(label < classes, IGNORE).byte()


def assert_gradients_everywhere(network):
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


class _Listed(torch.nn.Module):
    """A network that returns plain tensors, as exported programs do."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *inputs):
        return tensors(self.network(*inputs))


class NetworkTester:
    """What every network must do; a subclass names choices of its kind and makes them tiny."""

    kind: ClassVar[str]
    choices: ClassVar[tuple]
    tiny: ClassVar[dict]
    shallow: ClassVar[dict] = {}

    def build(self, classes=CLASSES, bands=3, seed=0, **changes):
        torch.manual_seed(seed)
        settings = settings_of(f"model/{self.kind}", self.choices[0]) | self.tiny | changes
        return BUILD[self.kind](settings, classes, bands)

    def test_its_state_restores_it(self, tmp_path):
        network, other = self.build(), self.build()
        inputs = self.inputs(network)
        network(*inputs)  # moves the statistics that it keeps
        for value in other.state_dict().values():
            value.zero_()
        torch.save(network.state_dict(), tmp_path / "state.pt")
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert all_equal(other.eval()(*inputs), network.eval()(*inputs))

    @pytest.mark.slow
    def test_compiled_as_a_whole_its_output_is_the_same(self):
        torch.compiler.reset()
        network, other = self.build(**self.shallow), self.build(**self.shallow)
        inputs = self.inputs(network)
        for built in (network, other):
            built(*inputs)  # loads a backbone
        compiled = torch.compile(other, fullgraph=True)
        found, expected = tensors(compiled(*inputs)), tensors(network(*inputs))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.slow
    def test_exported_its_output_is_the_same(self):
        network = self.build().eval()
        inputs = self.inputs(network)
        expected = tensors(network(*inputs))  # loads a backbone
        exported = torch.export.export(_Listed(network), inputs).module()
        torch.testing.assert_close(exported(*inputs), expected, atol=1e-4, rtol=1e-4)

    def test_a_width_of_zero_is_refused(self):
        with pytest.raises(UserError, match=rf"^model.{self.kind}: width=0 must be 1 or more"):
            self.build(width=0)


def check_testers(group, testers):
    """Every choice must have a tester, and those that share one must be alike once tiny."""
    assert set(choices(group)) == {name for tester in testers for name in tester.choices}
    for tester in testers:
        first, *others = (settings_of(group, name) | tester.tiny for name in tester.choices)
        assert all(other == first for other in others), tester
