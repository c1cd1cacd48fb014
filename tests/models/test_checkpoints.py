import re
import zipfile
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import geoseg_gan
from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.models.checkpoints import RunFacts, read_training_state, save_network
from geoseg_gan.models.generators.noise import sample_noise
from geoseg_gan.models.loaded import load_generator, load_segmenter, start_from, with_files
from geoseg_gan.models.registry import build_discriminator, build_generator
from geoseg_gan.models.settings import current_config
from geoseg_gan.utils.errors import UserError

NOISE = {"style_channels": 2, "region_channels": 2, "texture_octaves": 2}
MODEL = {
    "generator": {"name": "spade", "width": 4, "depth": 2, "max_width": 8, "hidden": 4, **NOISE},
    "discriminator": {"name": "oasis", "width": 4, "depth": 2, "max_width": 8},
}


DATA = {"mask_format": "rgb", "unknown": "error", "fit": "crop", "gsd": None, "group_regex": None}
CONFIG = {"data_root": "data", "image_size": 32, "seed": 0, "data": DATA, "model": MODEL}


def facts(palette, **model):
    config = CONFIG | {"model": MODEL | model}
    return RunFacts(config, palette, ImageScaling([0.0] * 3, [255.0] * 3))


def build(seed, facts):
    torch.manual_seed(seed)
    model = facts.config["model"]
    classes = facts.palette.num_classes
    return (
        build_generator(model["generator"], classes, 3),
        build_discriminator(model["discriminator"], classes, 3),
    )


def test_safetensors_of_a_network_are_the_same_bytes_each_time(tmp_path, palette):
    run = facts(palette)
    generator, path = build(0, run)[0], tmp_path / "model.safetensors"
    written = set()
    for _ in range(6):
        save_network(path, "generator", generator, run, 1)
        written.add(path.read_bytes())
    assert len(written) == 1
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in generator.state_dict().items():
        assert torch.equal(found.pop(name), value)
    assert not found and load_generator(path).epoch == 1


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
    own = {"name": "pixel", "image_scale": 2.0}
    stored = {"segmenter": own, "mixing": {"classes": None, "batch_norm": "apart"}}
    assert current_config(stored) == stored
    stored["mixing"]["batch_norm"] = "shared"
    assert current_config(stored) == stored | {"mixing": {"classes": None}}
    assert current_config({"segmenter": {"name": "pixel"}})["segmenter"]["image_scale"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            None,
            r"G\.pt is not a checkpoint of this project. Give a .* \(G_e###\.pt\)",
        ),
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


def test_a_folder_stands_for_the_last_generator_or_the_segmenter_in_it(composed, tmp_path, capsys):
    for name in ("G_e998.pt", "G_e999.pt", "G_e1000.pt", "G_best.pt", "D_e1001.pt", "segmenter.pt"):
        (tmp_path / name).touch()
    (tmp_path / "G_e1001.pt").mkdir()  # is no checkpoint
    given = [f"gen_ckpt={tmp_path}", f"segmenter_ckpt={tmp_path}"]
    found = with_files(composed("generate", *given))
    last, segmenter = str(tmp_path / "G_e1000.pt"), str(tmp_path / "segmenter.pt")
    assert (found.gen_ckpt, found.segmenter_ckpt) == (last, segmenter)
    line = f"gen_ckpt={tmp_path} is a folder: using G_e1000.pt in it."
    assert capsys.readouterr().out.splitlines()[0] == line
    assert with_files(composed("export", f"ckpt={tmp_path}")).ckpt == last
    for path in tmp_path.glob("G_e*.pt"):
        path.rmdir() if path.is_dir() else path.unlink()
    assert with_files(composed("export", f"ckpt={tmp_path}")).ckpt == segmenter
    capsys.readouterr()
    assert with_files(found) == found and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("training.train", "init_from"),
        ("training.train", "segmenter_ckpt"),
        ("synthesis.generate", "gen_ckpt"),
        ("evaluation.evaluate", "gen_ckpt"),
        ("evaluation.predict", "segmenter_ckpt"),
        ("export.export", "ckpt"),
        ("studio.studio", "gen_ckpt"),
    ],
)
def test_a_folder_without_a_network_is_refused_by_each_command(command, key, composed, tmp_path):
    name = command.partition(".")[2]
    more = ["image_path=x.tif"] if name == "predict" else []
    call = resolve_name(f"geoseg_gan.{command}:{name}")
    with pytest.raises(UserError, match=f"{key}=.* is a folder without a checkpoint. Give a "):
        call(composed(name, f"{key}={tmp_path}", *more))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, "is not a checkpoint of this project"),
        ({"geoseg_gan": "[1]"}, "is not a checkpoint of this project"),
        ({"geoseg_gan": "[" * 100_000}, "is not a checkpoint of this project"),
        ({"geoseg_gan": '{"kind": "segmenter", "format": 1}'}, "holds a segmenter"),
        ({"geoseg_gan": '{"kind": "generator", "format": 2}'}, "lacks 'epoch'"),
    ],
)
def test_other_safetensors_are_refused_in_one_line(entries, message, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, path, entries)
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


def changed(content, key, value):
    """A copy of nested dicts with another value, or without the entry, where the keys lead."""
    name, _, rest = key.partition("/")
    new = {name: changed(content[name], rest, value)} if rest else {name: value}
    return {key: entry for key, entry in {**content, **new}.items() if entry is not ...}


def laps():
    value = [0]
    for _ in range(40):
        value = [value, value]
    return value


HUGE = MODEL["generator"] | {"width": 60_000, "max_width": 60_000}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("epoch", ..., "lacks 'epoch'"),
        ("epoch", -5, "has 'epoch', which is -5, not a whole number of 0 or more"),
        ("config/data/fit", "x", "has 'config.data.fit', which is 'x', not one of crop, resize"),
        ("config/image_size", 10**9, "has 'config.image_size', which is 1000000000, not"),
        ("config/model", None, "has 'config.model', which is None, not a mapping"),
        ("config/model/generator", HUGE, r"cannot be used: its network has \d+,.* parameters"),
        ("config/model/generator/hidden", ..., "cannot be used: its network has"),
        ("config/model/generator/name", "x", "cannot be used: model.generator.name=x is not one"),
        ("config/more", laps(), "is not a checkpoint of this project"),
        ("palette/classes", [{"name": "a", "color": [0, 0, 0]}], "is damaged: .* 1 classes"),
        ("palette/ignore", [[0, 0, 999]], r"has 'palette.ignore\[0\]\[2\]', which is 999"),
        ("scaling/low", [0.0], "is damaged: scaling: low and high need one number for every band"),
        ("scaling/high", [0.0] * 3, "is damaged: scaling: low=0.0 is not less than high=0.0"),
        ("scaling/dtype", "object", "has 'scaling.dtype', which is 'object', not one of float32"),
        ("weights", {}, "cannot be used: its network has 11,371 parameters, but it holds 0"),
        ("weights/stem.bias", ..., "is damaged: it lacks the weights 'stem.bias'"),
        ("weights/more", torch.zeros(1), "is damaged: it has, in excess, the weights 'more'"),
        ("weights/stem.bias", torch.zeros(3), "is damaged: .* of shape .3., but"),
        ("weights/stem.bias", torch.full((8,), torch.nan), "holds .* that are NaN or infinite"),
        ("weights/stem.bias", torch.zeros(1).expand(8), "is not a checkpoint of this project"),
        ("weights/stem.bias", "x", "has 'weights.stem.bias', which is 'x', not Tensor"),
    ],
)  # fmt: skip
def test_a_field_that_is_not_as_it_must_be_is_named(key, value, message, saved):
    path = saved[0]
    content = torch.load(path, weights_only=True)
    torch.save(changed(content, key, value), path)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} {message}"):
        load_generator(path)


def test_a_file_that_unpacks_to_more_than_it_is_is_not_read(saved):
    path = saved[0]
    with zipfile.ZipFile(path) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, part in parts.items():
            packed.writestr(name, part)
    with pytest.raises(UserError, match="is not a checkpoint of this project"):
        load_generator(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("epoch", -5, "has 'epoch', which is -5"),
        ("loops", ..., "lacks 'loops'"),
        ("loops/fit_loop", {}, "lacks 'loops.fit_loop.epoch_progress'"),
        ("state_dict", [], r"has 'state_dict', which is \[\], not a mapping"),
        ("optimizer_states", [1], r"has 'optimizer_states\[0\]', which is 1, not a mapping"),
        ("config/epochs", "two", "has 'config.epochs', which is 'two', not a whole number"),
        (None, b"", "is not a checkpoint of this project"),
        (None, b"PK", "is not a checkpoint of this project"),
    ],
)
def test_training_states_are_checked_field_by_field(key, value, message, trained):
    path = trained[1] / "last.ckpt"
    content = read_training_state(path)
    assert content["epoch"] == 1
    if key is None:
        path.write_bytes(value)
    else:
        torch.save(changed(torch.load(path, weights_only=True), key, value), path)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} {message}.*cannot be continued"):
        read_training_state(path)


def test_everything_that_torch_reads_is_plain_data():
    for path in Path(geoseg_gan.__file__).parent.rglob("*.py"):
        for call in re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", path.read_text()):
            assert "weights_only=True" in call, path


def test_the_same_network_makes_the_same_file(generator, tmp_path):
    first = generator(tmp_path).read_bytes()
    assert generator(tmp_path).read_bytes() == first


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_refused(device, generator, segmenter, tmp_path):
    for load, path in ((load_generator, generator(tmp_path)), (load_segmenter, segmenter())):
        with pytest.raises(UserError, match=rf"^device={device}: .+\. Use device=cpu, or leave"):
            load(path, device)
