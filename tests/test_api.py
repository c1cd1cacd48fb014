import subprocess
import sys

import numpy as np
import pytest

import geoseg_gan as gg
from geoseg_gan.training.settings import TrainConfig
from geoseg_gan.utils.errors import UserError


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
        {"optimizer.ema": 0, "optimizer.betas": (0.1, 0.2), "model/generator": "clade"},
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


def test_images_are_generated_from_label_maps(generator, tmp_path):
    loaded = gg.load_generator(str(generator(tmp_path)))
    labels = [np.zeros((32, 32), np.uint8), np.full((32, 32), 255, np.uint8)]
    images = gg.generate_images(loaded, labels, seed=3)
    assert [(image.shape, image.dtype) for image in images] == [((32, 32, 3), np.uint8)] * 2
    assert (gg.generate_image(loaded, labels[0], seed=3) == images[0]).all()
    assert (gg.generate_image(loaded, labels[0], seed=4) != images[0]).any()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((30, 33), np.uint8), r"labels\[1\] has shape \(30, 33\)"),
        (np.zeros((32, 32, 1), np.uint8), r"has shape \(32, 32, 1\)"),
        (np.full((32, 32), 9, np.uint8), r"labels\[1\] holds class 9: use 0 to 2"),
    ],
)
def test_label_maps_that_cannot_be_are_refused(generator, tmp_path, label, message):
    loaded = gg.load_generator(str(generator(tmp_path)))
    with pytest.raises(UserError, match=message):
        gg.generate_images(loaded, [np.zeros((32, 32), np.uint8), label])


@pytest.mark.parametrize("name", ["train", "generate", "train_segmenter", "evaluate", "trial"])
def test_commands_refuse_what_the_command_line_refuses(name):
    with pytest.raises(UserError, match=r"there is no setting 'sead'\. Did you mean 'seed"):
        getattr(gg, name)(sead=3)


def test_a_segmenter_is_loaded(segmenter):
    assert gg.load_segmenter(segmenter()).facts.config["image_size"] == 32
