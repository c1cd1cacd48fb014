import pytest
import torch

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.models.checkpoints import RunFacts, load_generator, save_network, start_from
from geoseg_gan.models.generators.noise import sample_noise
from geoseg_gan.models.registry import build_discriminator, build_generator
from geoseg_gan.models.settings import current_config
from geoseg_gan.utils.errors import UserError

NOISE = {"style_channels": 2, "region_channels": 2, "texture_octaves": 2}
MODEL = {
    "generator": {"name": "spade", "width": 4, "depth": 2, "max_width": 8, "hidden": 4, **NOISE},
    "discriminator": {"name": "oasis", "width": 4, "depth": 2, "max_width": 8},
}


def facts(palette, **model):
    return RunFacts({"model": MODEL | model}, palette, ImageScaling([0.0] * 3, [255.0] * 3))


def build(seed, facts):
    torch.manual_seed(seed)
    model = facts.config["model"]
    classes = facts.palette.num_classes
    return (
        build_generator(model["generator"], classes, 3),
        build_discriminator(model["discriminator"], classes, 3),
    )


@pytest.fixture
def saved(tmp_path, palette):
    """Saves the networks of a run as one of earlier versions did; returns the generator too."""
    run = facts(palette)
    generator, discriminator = build(0, run)
    old = {
        "generator": MODEL["generator"] | {"name": "modulated"},
        "discriminator": MODEL["discriminator"] | {"name": "pixel"},
    }
    save_network(tmp_path / "G_e001.pt", "generator", generator, facts(palette, **old), 1)
    save_network(tmp_path / "D_e001.pt", "discriminator", discriminator, facts(palette, **old), 1)
    return tmp_path / "G_e001.pt", generator, discriminator


def test_generators_under_their_old_name_load(saved, palette):
    path, generator, _ = saved
    loaded = load_generator(path)
    assert loaded.facts.config["model"]["generator"]["name"] == "spade"
    assert not loaded.network.training
    one_hot = torch.ones(1, palette.num_classes, 8, 8)
    noise = sample_noise(generator.noise, 0, [0], torch.zeros(1, 8, 8, dtype=torch.uint8))
    assert torch.equal(loaded.network(one_hot, noise), generator.eval()(one_hot, noise))


def test_a_run_starts_from_networks_under_their_old_names(saved, palette):
    path, *old = saved
    run = facts(palette, discriminator=MODEL["discriminator"] | {"patch": 4})
    new = build(1, run)
    start_from(path, *new, run)
    for before, after in zip(old, new, strict=True):
        state = after.state_dict()
        assert all(torch.equal(state[name], value) for name, value in before.state_dict().items())
    run = facts(palette, generator=MODEL["generator"] | {"width": 8})
    with pytest.raises(UserError, match=r"has model\.generator\.width=4, not 8"):
        start_from(path, *build(1, run), run)


def test_configurations_of_segmenters_lose_only_a_removed_knob_left_at_its_default():
    stored = {"segmenter": {"name": "pixel"}, "mixing": {"classes": None, "batch_norm": "apart"}}
    assert current_config(stored) == stored
    stored["mixing"]["batch_norm"] = "shared"
    assert current_config(stored) == stored | {"mixing": {"classes": None}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, r"G\.pt is not a checkpoint of this project. Give a G_e###\.pt"),
        ({"kind": "segmenter"}, "holds a segmenter, but a generator is needed"),
        ({"format": 1}, "has format 1, but this version reads format 2"),
    ],
)
def test_other_files_are_refused_in_one_line(changes, message, tmp_path):
    path = tmp_path / "G.pt"
    with pytest.raises(UserError, match=r"G\.pt does not exist"):
        load_generator(path)
    torch.save([1] if changes is None else {"kind": "generator", "format": 2} | changes, path)
    with pytest.raises(UserError, match=message):
        load_generator(path)


class _Runs:
    def __reduce__(self):
        return print, ("run",)


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"kind": "generator", "format": 2, "weights": _Runs()}, tmp_path / "G.pt")
    with pytest.raises(UserError, match="is not a checkpoint of this project"):
        load_generator(tmp_path / "G.pt")
    assert "run" not in capsys.readouterr().out
