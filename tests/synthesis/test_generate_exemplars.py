"""Generating with compose.source=exemplars: images from regions of real tiles."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from defaults import defaults
from synthesis_helpers import facts, files, refused

from geoseg_gan.data.images import read_image, write_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.palette import IGNORE, Palette
from geoseg_gan.data.settings import JitterSettings
from geoseg_gan.synthesis.generate import generate
from geoseg_gan.synthesis.settings import generate_command


@pytest.fixture
def known(segmenter, tiny_config, root):
    """A segmenter that knows the data it was trained on."""
    return segmenter(**(tiny_config | {"data_root": str(root)}))


@pytest.fixture
def exemplars(generate_defaults, known, tmp_path):
    compose = replace(generate_defaults.compose, source="exemplars")
    plain = {"num_samples": 6, "tau": 0, "compose": compose, "segmenter_ckpt": str(known)}

    def run(name, gen_ckpt=None, **settings):
        places = {"gen_ckpt": gen_ckpt, "save_dir": str(tmp_path / name)}
        generate(replace(generate_defaults, **(plain | places | settings)))
        return tmp_path / name

    return run


def test_pairs_are_made_without_a_generator(exemplars, root, palette):
    folder = exemplars("pairs", jitter=defaults(JitterSettings))
    assert facts(folder)["checkpoint"] is None
    reader = MaskReader(palette)
    tiles = [reader.read_pair(pair.image, pair.mask)[:2] for pair in find_pairs(root, "train")]
    means = [np.mean([i[m == c].mean(0) for i, m in tiles if (m == c).any()], 0) for c in range(3)]
    for number in range(6):
        stem = folder / f"pair_{number:05d}"
        image, mask = read_image(Path(f"{stem}_img.jpg")), reader.read(Path(f"{stem}_mask.png"))[0]
        for kind in range(3):
            pixels = image[cv2.erode((mask == kind).astype(np.uint8), np.ones((7, 7))) > 0]
            if len(pixels) > 30:
                assert np.abs(pixels.mean(0) - means[kind]).max() < 30


@pytest.mark.parametrize("changes", [{"num_workers": 2}, {"bs": 3}])
def test_pairs_do_not_depend_on_workers_and_batches(exemplars, changes):
    assert files(exemplars("plain"), "pair_*") == files(exemplars("other", **changes), "pair_*")


def test_a_second_call_goes_on(exemplars):
    whole = files(exemplars("whole"), "pair_*")
    exemplars("parts", num_samples=2)
    assert files(exemplars("parts"), "pair_*") == whole


def test_variants_of_a_mask_differ(exemplars):
    folder = exemplars("variants", variants=3)
    images, masks = (
        [read_image(folder / f"pair_{number:05d}_{kind}") for number in range(3)]
        for kind in ("img.jpg", "mask.png")
    )
    assert all((mask == masks[0]).all() for mask in masks)
    assert len({image.tobytes() for image in images}) > 1


def test_a_generator_tells_the_data_as_well(exemplars, generator, root):
    assert files(exemplars("with", generator(root)), "pair_*") == files(
        exemplars("without"), "pair_*"
    )


def test_regions_come_from_another_folder_where_one_is_given(exemplars):
    look = exemplars("look")
    for path in look.glob("*_img.jpg"):
        noise = np.random.default_rng(len(path.name)).integers(0, 256, (32, 32, 3))
        write_image(path, noise.astype(np.uint8))
    own, other = exemplars("own"), exemplars("other", style_from=str(look))
    assert files(own, "*_mask.png") == files(other, "*_mask.png")
    roughness = [
        np.mean([np.abs(np.diff(read_image(path).astype(float), axis=0)).mean() for path in paths])
        for paths in (sorted(folder.glob("*_img.jpg")) for folder in (own, other))
    ]
    assert roughness[1] > 2 * roughness[0]


def test_pixels_of_classes_that_another_folder_lacks_do_not_count(
    exemplars, make_generated, palette, tmp_path
):
    look = make_generated(tmp_path / "look", range(4))
    with pytest.warns(UserWarning, match="look holds no Background: its pixels will not count"):
        folder = exemplars("pairs", style_from=str(look))
    masks = [MaskReader(palette).read(path)[0] for path in folder.glob("*_mask.png")]
    assert set(np.unique(masks)) == {1, 2, IGNORE}


def test_pixels_that_do_not_count_need_a_value(
    exemplars, make_generated, segmenter, tiny_config, palette, root, tmp_path
):
    look = make_generated(tmp_path / "look", range(4))
    data = tiny_config["data"] | {"unknown": "nearest"}
    facts = tiny_config | {"data_root": str(root), "data": data}
    strict = segmenter(palette=Palette(palette.classes), **facts)
    with refused("look holds no Background, and the data have no value for pixels"):
        exemplars("pairs", style_from=str(look), segmenter_ckpt=str(strict))
    assert not (tmp_path / "pairs").exists()


def test_neither_generator_nor_segmenter_is_a_user_s_mistake(run_command, tmp_path, capsys):
    arguments = ("compose.source=exemplars", f"save_dir={tmp_path / 'pairs'}", "trainer=cpu")
    assert run_command(generate_command, *arguments) == 1
    assert "gen_ckpt is not set: give the generator" in capsys.readouterr().err
    assert not (tmp_path / "pairs").exists()


def test_a_segmenter_that_does_not_know_its_data_is_refused(exemplars, segmenter):
    with refused("segmenter.pt does not know what data it was trained on"):
        exemplars("pairs", segmenter_ckpt=str(segmenter()))


def test_a_required_class_that_another_folder_lacks_is_refused(exemplars, make_generated, tmp_path):
    look = make_generated(tmp_path / "look", range(4))
    with refused("look holds no Background, which require_classes asks for"):
        exemplars("pairs", style_from=str(look), require_classes=["Background"])


def test_real_pixels_of_classes_that_another_folder_lacks_count(
    exemplars, generate_defaults, make_generated, palette, tmp_path
):
    look = make_generated(tmp_path / "look", range(4))
    compose = replace(generate_defaults.compose, source="exemplars", generate="regions")
    with pytest.warns(UserWarning, match="holds no Background"):
        folder = exemplars("pairs", style_from=str(look), compose=compose)
    masks = [MaskReader(palette).read(path)[0] for path in folder.glob("*_mask.png")]
    assert 0 in np.unique(masks)


def test_a_placebo_shows_no_exemplars(exemplars, generate_defaults):
    compose = replace(generate_defaults.compose, source="exemplars", generate="none")
    with refused("compose.generate=none shows real images alone"):
        exemplars("pairs", compose=compose)


def test_an_onnx_segmenter_does_not_know_its_data(exemplars):
    with refused("gen_ckpt is not set: .* segmenter_ckpt=segmenter.pt"):
        exemplars("pairs", segmenter_ckpt="segmenter.onnx")


def test_an_unknown_source_is_refused(generate_defaults):
    compose = replace(generate_defaults.compose, source="tiles")
    with refused("compose.source=tiles"):
        generate(replace(generate_defaults, compose=compose, gen_ckpt=None))
