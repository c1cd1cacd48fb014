import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import geoseg_gan as gg
from geoseg_gan.synthesis.generate_images import generate_images
from geoseg_gan.training.settings import TrainConfig
from geoseg_gan.utils.errors import UserError

DOCS = Path(__file__).parents[1] / "docs"
COMMANDS = ["train", "generate", "train_segmenter", "evaluate", "predict", "trial"]


def test_the_package_is_imported_without_torch():
    code = "import sys, geoseg_gan; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "text", ["plain", "it's", "a=b,c", r"C:\new\ ", "quote\\'s", "[x]", "null", " spaced "]
)
def test_texts_arrive_as_they_are(text):
    assert gg.compose(TrainConfig, out_dir=text).out_dir == text


def test_settings_are_those_of_the_command_line():
    config = gg.compose(
        TrainConfig,
        ["optimizer.ema=0", "optimizer.betas=[0.1,0.2]", "model/generator=clade"],
        model="spade",
        resume=True,
        max_minutes=None,
        **{"data.palette": [{"name": n, "color": [1, 2, len(n)]} for n in ("Tree, tall", "Lake")]},
    )
    assert (config.optimizer.ema, config.optimizer.betas) == (0.0, [0.1, 0.2])
    assert (config.loss.perceptual.weight, config.model.generator["modulation"]) == (10, "clade")
    assert (config.resume, config.max_minutes, config.data.palette[0].name) == (
        True,
        None,
        "Tree, tall",
    )
    with pytest.raises(UserError, match="epochs='many': use a whole number"):
        gg.compose(TrainConfig, epochs="many")


@pytest.mark.parametrize("wrong", ["epochs=3", [3], {"epochs": "3"}, None, 3])
def test_settings_that_are_no_list_of_words_are_refused(wrong):
    with pytest.raises(UserError, match=r"give a list of settings, as in \['epochs=3'"):
        gg.train(wrong)


def test_data_configs_of_a_folder_of_one_s_own_are_found(tmp_path):
    (tmp_path / "my configs/data").mkdir(parents=True)
    classes = "{name: Field, color: [1, 2, 3]}, {name: Lake, color: [4, 5, 6]}"
    text = f"defaults: [landcover]\npalette: [{classes}]\n"
    (tmp_path / "my configs/data/fields.yaml").write_text(text)
    words = ["--config-dir", str(tmp_path / "my configs"), "data=fields"]
    assert [c.name for c in gg.compose(TrainConfig, words).data.palette] == ["Field", "Lake"]
    with pytest.raises(UserError, match="--config-dir: give the folder"):
        gg.compose(TrainConfig, ["data=fields", "--config-dir"])


def test_a_generator_is_called_with_masks_of_any_size(generator, tmp_path):
    loaded = gg.load_generator(str(generator(tmp_path)))
    mask = np.random.default_rng(0).integers(0, 3, (32, 48), np.uint8)
    mask[:4] = 255
    image = loaded(mask, seed=3)
    assert (image.shape, image.dtype) == ((32, 48, 3), np.uint8)
    cpu = torch.device("cpu")
    (same,) = generate_images(loaded, [mask], seed=3, indices=[0], device=cpu)
    assert (image == same).all()
    assert (loaded(mask, seed=4) != image).any()
    assert all((loaded(mask, seed=kind(3)) == image).all() for kind in (np.int64, np.uint8))
    with pytest.raises(UserError, match=r"seed is 1.5: give a whole number"):
        loaded(mask, seed=1.5)
    masked = np.ma.masked_array(np.where(mask == 255, 0, mask), mask == 255)
    assert (loaded(masked, seed=3) == image).all()
    odd = loaded(mask[:29, :41])
    assert odd.shape == (29, 41, 3)
    whole = np.pad(mask[:29, :41], [(0, 3), (0, 3)], mode="reflect")
    assert (loaded(whole)[:29, :41] == odd).all()
    assert loaded(mask[:1, :1]).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((32, 32, 1), np.uint8), r"mask is uint8 of shape \(32, 32, 1\)"),
        (np.zeros((0, 32), np.uint8), r"of shape \(0, 32\)"),
        (np.zeros((32, 32)), r"mask is float64 of shape \(32, 32\): give class IDs as uint8"),
        (np.full((32, 32), 9, np.uint8), "mask holds class 9: use 0 to 2"),
        ([[0, 1], [1, 0]], "mask is of type list: give a NumPy array"),
    ],
)
def test_label_maps_that_cannot_be_are_refused(generator, tmp_path, mask, message):
    loaded = gg.load_generator(str(generator(tmp_path)))
    with pytest.raises(UserError, match=message):
        loaded(mask)


def test_a_segmenter_is_called_with_images_of_any_size(segmenter):
    loaded = gg.load_segmenter(segmenter())
    image = np.random.default_rng(0).integers(0, 256, (40, 24, 3), np.uint8)
    found = loaded.probabilities(image)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        logits = loaded.network(pixels)[0]
    np.testing.assert_allclose(found, logits.softmax(0), atol=1e-6)
    label = loaded(image)
    assert (label.dtype, (label == logits.argmax(0).numpy()).all()) == (np.uint8, True)
    whole = np.pad(image[:37, :19], [(0, 3), (0, 5), (0, 0)], mode="reflect")
    assert (loaded(image[:37, :19]) == loaded(whole)[:37, :19]).all()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((8, 8), "uint8"), ((8, 8, 4), "uint8"), ((8, 8, 3), "float32"), ((1, 8, 8, 3), "uint8")],
)
def test_images_of_another_kind_are_refused(segmenter, shape, dtype):
    with pytest.raises(UserError, match=r"takes uint8 of shape \(H, W, 3\)\.$"):
        gg.load_segmenter(segmenter())(np.zeros(shape, dtype))
    with pytest.raises(UserError, match="image is of type Tensor: give a NumPy array"):
        gg.load_segmenter(segmenter())(torch.zeros(8, 8, 3))


def test_the_documented_example_runs_as_it_stands(trained, segmenter, monkeypatch, tiny):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "api.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) == 10
    segmenter()
    monkeypatch.chdir(trained[0].parent)
    train = gg.train
    monkeypatch.setattr(gg, "train", lambda words: train([*tiny, *words]))
    names = {}
    exec(code, names)
    assert names["image"].shape == (*names["mask"].shape, 3)
    assert names["label"].shape == names["mask"].shape
    assert names["figures"]


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_refuse_what_the_command_line_refuses(name):
    with pytest.raises(UserError, match=r"there is no setting 'traner'\. Did you mean 'trainer"):
        getattr(gg, name)(traner=3)


def test_a_segmenter_is_loaded(segmenter):
    assert gg.load_segmenter(segmenter()).facts.config["image_size"] == 32


@pytest.mark.parametrize("load", [gg.load_generator, gg.load_segmenter])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "^None is not a path. Give a "),
        (3, "^3 is not a path"),
        ("", "^'' is not a path"),
        ("a" * 5000, r"^a{200} cannot be read \(File name too long\). Give a "),
    ],
)
def test_what_is_no_path_is_refused(load, path, message):
    with pytest.raises(UserError, match=message):
        load(path)


def test_networks_are_loaded_from_the_folder_of_their_run(generator, segmenter, tmp_path):
    digests = [gg.load_generator(generator(tmp_path)).digest, gg.load_segmenter(segmenter()).digest]
    found = [load(str(tmp_path)).digest for load in (gg.load_generator, gg.load_segmenter)]
    assert found == digests
    (tmp_path / "empty").mkdir()
    for load, name in ((gg.load_generator, "G_e###.pt"), (gg.load_segmenter, "segmenter.pt")):
        with pytest.raises(
            UserError,
            match=rf"empty is a folder without a checkpoint. Give a \w+ checkpoint \({name}",
        ):
            load(tmp_path / "empty")
