"""The files of the model groups, which every tester of networks builds from."""

import functools
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

CONFIGS = Path(__file__).parents[2] / "configs" / "model"


@functools.cache
def settings_of(kind, choice):
    """The settings that a file stands for, defaults included."""
    with initialize_config_module("geoseg_gan.configs", version_base="1.3"):
        return OmegaConf.to_container(compose(f"model/{kind}/{choice}").model[kind])


def tensors(output):
    """All that a network returns, as a list."""
    if hasattr(output, "logits"):
        return [*output.logits, *(layer for scale in output.features for layer in scale)]
    return [output]


def check_testers(kind, testers):
    """Every file of a group must have a tester, and those that share one must come out alike."""
    known = {path.stem for path in (CONFIGS / kind).glob("*.yaml")}
    assert known == {name for tester in testers for name in tester.files}
    for tester in testers:
        first, *others = (settings_of(kind, name) | tester.tiny for name in tester.files)
        assert all(other == first for other in others), tester
