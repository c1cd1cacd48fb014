import inspect

import pytest
from choices import BUILD, settings_of

from geoseg_gan.config import compose, plain
from geoseg_gan.models.registry import DISCRIMINATORS, GENERATORS, build_generator
from geoseg_gan.training.settings import TrainConfig
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.messages import choices

NETWORKS = {"generator": GENERATORS, "discriminator": DISCRIMINATORS}


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_base_choice_of_a_network_lists_its_constructor_s_defaults(kind):
    for name, network in NETWORKS[kind].items():
        parameters = inspect.signature(network).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        settings = settings_of(f"model/{kind}", name)
        assert list(settings) == ["name", *defaults]
        assert settings == {"name": name, **defaults}
    for choice in choices(f"model/{kind}"):  # which changes only what its network has
        settings = settings_of(f"model/{kind}", choice)
        assert list(settings) == list(settings_of(f"model/{kind}", settings["name"]))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("generator", {"name": "unett"}, "model.generator.name=unett .*Did you mean 'unet'"),
        ("discriminator", {"name": "pach"}, "discriminator.name=pach .*Did you mean 'patch'"),
        ("generator", {"name": None}, r"^model\.generator\.name=None is not one of unet, spade\.$"),
        ("generator", {"name": ["unet"]}, r"name=\['unet'\] is not one of"),
        ("discriminator", {"width": 4}, "discriminator.name=None is not one of"),
        (
            "generator",
            {"name": "unet", "widht": 3},
            r"^model\.generator\.widht=3: unet has no such setting. It has width, depth, ",
        ),
        ("generator", {"name": "unet", "width": "abc"}, "width=abc: use a whole number"),
        ("generator", {"name": "unet", "width": 8.0}, "width=8.0: use a whole number"),
        ("generator", {"name": "unet", "edges": 1}, "edges=1: use true or false"),
        ("generator", {"name": "spade", "norm": None}, "norm=None: use a text"),
        ("discriminator", {"name": "patch", "scales": True}, "scales=True: use a whole number"),
    ],
)
def test_settings_that_a_network_does_not_take_are_refused_in_one_line(kind, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        BUILD[kind](settings, 3, 3)
    assert "\n" not in str(caught.value)


def test_what_the_command_line_adds_reaches_that_check():
    settings = plain(compose(TrainConfig, ["+model.generator.widht=3"]).model)["generator"]
    with pytest.raises(UserError, match=r"model\.generator\.widht=3"):
        build_generator(settings, 3, 3)
