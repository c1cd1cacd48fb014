"""A mask of any size becomes one image: seamless, in its place, and the same after a kill."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import MaskFlags
from synthesis_helpers import refused

import geoseg_gan.synthesis.scene as module
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.scene import LineStore
from geoseg_gan.data.transplant import region_map
from geoseg_gan.models.generators.noise import NoiseSpec, noise_maps
from geoseg_gan.synthesis.generate import generate
from geoseg_gan.synthesis.scene import SceneNoise, SceneRegions

TRANSFORM = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
SPEC = NoiseSpec(2, 3, 5)


def blobs(height, width, seed=0):
    """A label map of smooth areas of three classes, and a corner that is ignored."""
    rough = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(rough, (0, 0), 12)
    label = np.digitize(smooth, np.quantile(smooth, [0.33, 0.66])).astype(np.uint8)
    label[-9:, :13] = IGNORE
    return label


@pytest.fixture
def write_mask(palette, tmp_path):
    """Writes a label map as a georeferenced mask."""

    def write(label, name="scene.tif"):
        height, width = label.shape
        profile = {"driver": "GTiff", "height": height, "width": width, "count": 3}
        path = tmp_path / name
        with rasterio.open(
            path, "w", dtype="uint8", crs="EPSG:32633", transform=TRANSFORM, **profile
        ) as target:
            target.write(np.moveaxis(palette.decode(label), -1, 0))
        return str(path)

    return write


@pytest.fixture
def render(composed, tmp_path):
    """Calls generate and returns the folder: `render(gen_ckpt, name, mask_path=path)`."""

    def call(gen_ckpt, name, **settings):
        config = composed("generate", "gen_ckpt=G.pt", "trainer=cpu")
        places = {"gen_ckpt": str(gen_ckpt), "save_dir": str(tmp_path / name)}
        generate(replace(config, **places, **settings))
        return tmp_path / name

    return call


def image_of(folder):
    with rasterio.open(folder / "scene.tif", driver="GTiff") as source:
        return source.read(), source.dataset_mask()


def test_the_image_lies_where_its_mask_lies(generator, render, write_mask, tmp_path, capsys):
    label = blobs(70, 101)
    settings = {"mask_path": write_mask(label), "seed": 3}
    folder = render(generator(tmp_path), "out", **settings)
    with rasterio.open(folder / "scene.tif", driver="GTiff") as source:
        assert (source.count, source.height, source.width) == (3, 70, 101)
        assert (source.crs, source.transform) == ("EPSG:32633", TRANSFORM)
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.mask_flag_enums[0] == [MaskFlags.per_dataset]
        np.testing.assert_array_equal(source.dataset_mask() == 0, label == IGNORE)
        assert source.read()[:, label != IGNORE].std() > 0
        assert (source.read()[:, label == IGNORE] == 0).all()
    assert {path.name for path in folder.iterdir()} == {".lock", "scene.tif", "scene.json"}
    facts = json.loads((folder / "scene.json").read_text())
    assert (facts["seed"], facts["image_size"], facts["overlap"]) == (3, 32, 16)
    before = (folder / "scene.tif").stat().st_mtime_ns
    render(tmp_path / "G_e001.pt", "out", **settings)
    assert "is there already, made with these settings" in capsys.readouterr().out
    assert (folder / "scene.tif").stat().st_mtime_ns == before
    with refused("is of another call: seed was 3, now 4"):
        render(tmp_path / "G_e001.pt", "out", **settings | {"seed": 4})


def test_a_scene_goes_on_after_it_was_stopped(
    generator, render, write_mask, tmp_path, monkeypatch, capsys
):
    settings = {"mask_path": write_mask(blobs(130, 60)), "seed": 1}
    whole = render(generator(tmp_path), "whole", **settings)
    append = LineStore.append

    def stop(self, lines):
        append(self, lines)
        if self.done > 50:
            raise KeyboardInterrupt

    monkeypatch.setattr(LineStore, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        render(tmp_path / "G_e001.pt", "out", **settings)
    assert not (tmp_path / "out" / "scene.tif").exists()
    with refused("is of another call: seed was 1, now 2"):
        render(tmp_path / "G_e001.pt", "out", **settings | {"seed": 2})
    monkeypatch.setattr(LineStore, "append", append)
    folder = render(tmp_path / "G_e001.pt", "out", **settings)
    assert "Going on: 64 of 130 rows" in capsys.readouterr().out
    assert (folder / "scene.tif").read_bytes() == (whole / "scene.tif").read_bytes()


def test_a_file_of_others_is_not_overwritten(generator, render, write_mask, tmp_path):
    path = write_mask(blobs(40, 40))
    with refused("scene.tif exists already. Choose another save_dir"):
        render(generator(tmp_path), ".", mask_path=path)


def seams(image, step):
    """Mean gradient across the borders of windows, relative to that elsewhere."""
    gradient = np.abs(np.diff(image.astype(float).mean(0), axis=1)).mean(0)
    at_border = (np.arange(len(gradient)) + 1 - 16) % step == 0  # the first window begins at -16
    return gradient[at_border].mean() / gradient[~at_border].mean()


def test_no_seams_can_be_seen(trained, render, write_mask):
    path = write_mask(np.full((300, 400), 1, np.uint8))
    ratios = {}
    for overlap in (0, 16):
        folder = render(trained[1] / "G_e002.pt", f"out{overlap}", mask_path=path, overlap=overlap)
        image, _ = image_of(folder)
        rows = image.swapaxes(1, 2)
        ratios[overlap] = [seams(values, 32 - overlap) for values in (image, rows)]
    np.testing.assert_allclose(ratios[16], 1, atol=0.05)
    assert min(ratios[0]) > 1.1  # so that the measure can fail


def test_all_windows_see_parts_of_one_noise_field():
    noise = SceneNoise(SPEC, seed=5)
    assert (noise.margin, noise.align) == (16, 16)
    maps = {}
    for top, left in ((0, 0), (16, 32), (0, 32)):
        drawn = noise.drawn(noise.rows(top, 64, 160), left, 64)
        regions = torch.zeros(1, 96, 96, dtype=torch.uint8)
        found = noise_maps(SPEC, torch.from_numpy(drawn)[None], regions)
        maps[top, left] = found[0, :, 16:-16, 16:-16]
    torch.testing.assert_close(maps[0, 0][:, 16:, 32:], maps[16, 32][:, :48, :32], rtol=0, atol=0)
    torch.testing.assert_close(maps[0, 0][..., 32:], maps[0, 32][..., :32], rtol=0, atol=0)
    assert (maps[0, 0][2:, :32, :32] != maps[0, 0][2:, 32:, 32:]).any()
    # A wider scene has the same field; another seed has another one.
    wide = noise.rows(16, 64, 320)
    for octave, numbers in enumerate(noise.rows(16, 64, 160)):
        np.testing.assert_array_equal(wide[octave][:, : numbers.shape[1]], numbers)
    assert (SceneNoise(SPEC, seed=6).rows(0, 64, 160)[0] != noise.rows(0, 64, 160)[0]).any()


def test_the_field_has_unit_variance_at_every_pixel():
    spec = NoiseSpec(0, 0, 4)
    variances = torch.zeros(4, 32, 32)
    for seed in range(150):
        noise = SceneNoise(spec, seed)
        drawn = torch.from_numpy(noise.drawn(noise.rows(32, 32, 64), 32, 32))
        regions = torch.zeros(1, 48, 48, dtype=torch.uint8)
        variances += noise_maps(spec, drawn[None], regions)[0, :, 8:-8, 8:-8].square() / 150
    assert abs(variances.mean() - 1) < 0.05
    assert variances.min() > 0.5 and variances.max() < 1.7


@pytest.mark.parametrize("kind", ["smooth", "rough"])
def test_a_region_has_one_number_however_many_strips_it_spans(kind, monkeypatch):
    monkeypatch.setattr(module, "_STRIP", 8)
    label = blobs(61, 47, seed=2)
    if kind == "rough":
        label = np.random.default_rng(3).integers(0, 2, (61, 47)).astype(np.uint8)
    regions = SceneRegions(lambda first, last: label[first:last], 61)
    numbers = np.concatenate([regions.rows(s, min(s + 11, 61)) for s in range(0, 61, 11)])
    whole = region_map(label)
    _, places = np.unique(whole, return_index=True)
    expected = (module._mixed(places) % 256).astype(np.uint8)[whole]
    np.testing.assert_array_equal(numbers, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 5}, "num_samples=5 is of pairs, but mask_path=a.tif renders one mask"),
        ({"segmenter_ckpt": "s.pt"}, "segmenter_ckpt=s.pt is of pairs"),
        ({"layout": "folders"}, "layout=folders is of pairs"),
        (
            {"mask_path": None, "overlap": 8},
            "overlap=8 is of the windows of a scene: set mask_path",
        ),
    ],
)
def test_settings_of_pairs_are_refused(settings, message, composed):
    config = composed("generate", "gen_ckpt=G.pt", "trainer=cpu")
    with refused(message):
        module.check_scene(replace(config, **{"mask_path": "a.tif"} | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": 5}, "overlap=5: use less than the 32 px of a window, and a multiple of 16"),
        ({"image_size": 40}, "image_size=40: .* multiples of 16 px"),
        ({"mask_path": "none.tif"}, "none.tif cannot be read"),
    ],
)
def test_what_does_not_fit_a_scene_is_refused(
    settings, message, generator, render, write_mask, tmp_path
):
    mask = {"mask_path": write_mask(blobs(40, 40))}
    with refused(message):
        render(generator(tmp_path), "out", **mask | settings)
