"""The choices of the config groups of networks, which their tests build from."""

import functools

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from geoseg_gan.config import choices


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


def check_testers(group, testers):
    """Every choice must have a tester, and those that share one must be alike once tiny."""
    assert set(choices(group)) == {name for tester in testers for name in tester.choices}
    for tester in testers:
        first, *others = (settings_of(group, name) | tester.tiny for name in tester.choices)
        assert all(other == first for other in others), tester
