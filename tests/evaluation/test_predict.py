"""A segmenter's map of images of any size, checked against the network itself."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import rasterio
import torch
from rasterio.enums import ColorInterp

from geoseg_gan.data.scene import LineStore
from geoseg_gan.evaluation.predict import predict
from geoseg_gan.export.export import export
from geoseg_gan.models.loaded import load_segmenter
from geoseg_gan.utils.errors import UserError

TRANSFORM = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (3, 48, 80)).astype(np.uint8)


@pytest.fixture
def write(tmp_path):
    def write(pixels, name="images/scene.tif", **profile):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        profile = {"crs": "EPSG:32633", "transform": TRANSFORM} | profile
        profile |= {"driver": "GTiff", "dtype": pixels.dtype, "count": len(pixels)}
        height, width = pixels.shape[1:]
        with rasterio.open(path, "w", height=height, width=width, **profile) as target:
            target.write(pixels)
        return str(path)

    return write


@pytest.fixture
def run(segmenter, composed, tmp_path):
    """Predicts `images/`, or an image, and returns the folder: `run(path, "tta=d4")`."""

    def call(path, *overrides, out="out", **kind):
        checkpoint = f"segmenter_ckpt={segmenter(**kind)}"
        places = (f"image_path='{path}'", f"out_dir={tmp_path / out}", "trainer=cpu")
        predict(composed("predict", checkpoint, *places, *overrides))
        return tmp_path / out

    return call


def maps(folder, name="scene"):
    found = []
    for kind in ("classes", "confidence"):
        with rasterio.open(folder / f"{name}_{kind}.tif", driver="GTiff") as source:
            found.append(source.read(1))
    return found


def probabilities(path, pixels):
    """What the network says of one window, (C, S, S)."""
    with torch.inference_mode():
        scaled = torch.from_numpy(pixels.astype(np.float32))[None] / 127.5 - 1
        return load_segmenter(path).network(scaled).softmax(1)[0].numpy()


def test_one_window_is_what_the_network_says(run, write, image, tmp_path):
    folder = run(write(image[:, :32, :32]))
    expected = probabilities(tmp_path / "segmenter.pt", image[:, :32, :32])
    classes, confidence = maps(folder)
    np.testing.assert_array_equal(classes, expected.argmax(0))
    assert np.abs(confidence - 100 * expected.max(0)).max() <= 0.51


@pytest.mark.slow
def test_an_exported_segmenter_says_what_the_network_says(
    segmenter, composed, write, image, tmp_path, monkeypatch
):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    path = write(image)
    export(composed("export", f"ckpt={segmenter()}", f"out_dir={tmp_path / 'onnx'}"))
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    found = {}
    for name in ("segmenter.pt", "onnx/segmenter.onnx"):
        out = tmp_path / Path(name).suffix
        places = (f"image_path='{path}'", f"out_dir={out}", "trainer=cpu", "overlap=8")
        predict(composed("predict", f"segmenter_ckpt={tmp_path / name}", *places))
        found[name] = maps(out)
    (classes, percent), (other, other_percent) = found.values()
    assert (classes != other).mean() < 0.01  # ties of classes aside
    assert np.abs(percent.astype(int) - other_percent).max() <= 1
    loaded = load_segmenter(tmp_path / "onnx" / "segmenter.onnx")
    expected = load_segmenter(tmp_path / "segmenter.pt").probabilities(np.moveaxis(image, 0, -1))
    np.testing.assert_allclose(loaded.probabilities(np.moveaxis(image, 0, -1)), expected, atol=1e-4)
    with pytest.raises(UserError, match=r"deepness.onnx does not take images of any size"):
        load_segmenter(tmp_path / "onnx" / "deepness.onnx")
    model = onnx.load(tmp_path / "onnx" / "segmenter.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match=r"foreign.onnx.* Export the segmenter with scripts/export"):
        load_segmenter(tmp_path / "foreign.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(("tta", "views"), [("flips", 4), ("d4", 8)])
def test_views_are_averaged(tta, views, run, write, image, tmp_path):
    pixels = image[:, :32, :32]
    folder = run(write(pixels), f"tta={tta}")
    turned = [np.rot90(pixels, k, (1, 2)) for k in range(4)]
    if tta == "flips":
        turned = turned[::2]
    total = np.zeros((3, 32, 32))
    for k, view in zip(range(0, 4, 4 // len(turned)), turned, strict=True):
        for flip in (False, True):
            seen = view[..., ::-1] if flip else view
            found = probabilities(tmp_path / "segmenter.pt", np.ascontiguousarray(seen))
            total += np.rot90(found[..., ::-1] if flip else found, -k, (1, 2)) / views
    _, confidence = maps(folder)
    assert np.abs(confidence - 100 * total.max(0)).max() <= 0.51


def test_the_value_for_no_data_of_the_training_is_no_class(run, write, image):
    image[:, 3, 4] = 0
    classes, _ = maps(run(write(image[:, :32, :32]), data={"nodata": 0.0}))
    assert classes[3, 4] == 255 and (classes == 255).sum() == 1


def test_a_map_lies_where_its_image_lies(run, write, image, palette, capsys):
    image[:, 3, 4] = 0
    folder = run(write(image, nodata=0))
    with rasterio.open(folder / "scene_classes.tif", driver="GTiff") as source:
        assert (source.crs, source.transform) == ("EPSG:32633", TRANSFORM)
        assert source.shape == (48, 80) and source.nodata == 255
        assert source.colorinterp == (ColorInterp.palette,)
        table = source.colormap(1)
        assert [table[n][:3] for n in range(3)] == [tuple(c.color) for c in palette.classes]
        assert source.tags()["CLASS_1"] == "Forest land"
        classes = source.read(1)
    assert classes[3, 4] == 255 and (classes == 255).sum() == 1
    confidence = maps(folder)[1]
    assert confidence[3, 4] == 255 and confidence[classes != 255].min() >= 33
    assert confidence[classes != 255].max() <= 100
    facts = json.loads((folder / "predict.json").read_text())
    shares = [(classes == n).sum() / (classes != 255).sum() for n in range(3)]
    np.testing.assert_allclose(list(facts["shares"].values()), shares)
    assert facts["images"]["scene.tif"]["shares"] == facts["shares"]
    assert f"Forest land {shares[1]:.1%}" in " ".join(capsys.readouterr().out.split())
    assert {p.name for p in folder.iterdir()} == {
        *(".lock", "predict.json", "scene_classes.tif", "scene_confidence.tif")
    }


@pytest.mark.slow
def test_a_folder_is_mapped_image_by_image(run, write, image, tmp_path, capsys):
    for name in ("a.tif", "b c.tif"):
        write(image, f"images/{name}")
    write(image[:, :20, :9], "images/small.tif")  # smaller than a window
    folder = run(tmp_path / "images")
    assert len(list(folder.glob("*_classes.tif"))) == 3
    assert maps(folder, "small")[0].shape == (20, 9)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.tif")}
    write(image, "images/z.tif")
    run(tmp_path / "images")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (folder / "z_classes.tif").is_file()
    with pytest.raises(UserError, match="is of another call: tta was none, now d4"):
        run(tmp_path / "images", "tta=d4")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_an_image_without_a_place_is_named_and_a_repeated_call_claims_no_map(
    run, write, image, tmp_path, capsys
):
    nowhere = {"crs": None, "transform": rasterio.Affine.identity()}
    for name in ("a.tif", "b.tif"):
        write(image, f"images/{name}", **nowhere)
    run(tmp_path / "images/a.tif")
    out = capsys.readouterr().out
    assert "\na.tif has no georeference: its maps have none.\nWrote 1 map into" in out
    run(tmp_path / "images/a.tif")
    out = capsys.readouterr().out
    assert out.startswith("Nothing to predict: ") and "Wrote" not in out and "georef" not in out
    write(image, "images/c.tif", **nowhere)
    run(tmp_path / "images")
    out = capsys.readouterr().out
    assert "Going on: 1 of 3 maps made already." in out and "Wrote 2 maps into" in out
    assert "\nb.tif and 1 more image have no georeference: their maps have none.\n" in out


def test_a_map_goes_on_after_it_was_stopped(run, write, image, tmp_path, monkeypatch):
    path = write(image)
    whole = run(path, "overlap=16", out="whole")
    append = LineStore.append

    def stop(self, lines):
        append(self, lines)
        raise KeyboardInterrupt

    monkeypatch.setattr(LineStore, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        run(path, "overlap=16")
    assert not (tmp_path / "out" / "scene_classes.tif").exists()
    monkeypatch.setattr(LineStore, "append", append)
    folder = run(path, "overlap=16")
    for name in ("scene_classes.tif", "scene_confidence.tif", "predict.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_maps_are_of_the_images_that_are_there(run, write, image, tmp_path):
    write(image, "images/a.tif")
    second = write(image[:, :40], "images/b.tif")
    both = tmp_path / "images"
    folder = run(both)
    before = (folder / "a_classes.tif").read_bytes()
    (folder / "a_confidence.tif").unlink()
    run(second)  # one of them, which the record of both outlives
    known = json.loads((folder / "predict.json").read_text())
    assert set(known["images"]) == {"a.tif", "b.tif"}
    run(both)
    assert (folder / "a_confidence.tif").is_file()
    assert (folder / "a_classes.tif").read_bytes() == before
    assert json.loads((folder / "predict.json").read_text()) == known
    write(image[:, 3:], "images/a.tif")
    with pytest.raises(UserError, match=r"a_classes.tif is of .*a.tif as it was before\. Choose"):
        run(both)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 9, 9), np.uint8), "scene.tif is 4-band uint8, .* trained on 3-band uint8"),
        (np.zeros((3, 9, 9), np.uint16), "scene.tif is 3-band uint16"),
    ],
)
def test_images_of_another_kind_are_refused(pixels, message, run, write):
    with pytest.raises(UserError, match=message):
        run(write(pixels, photometric="minisblack"))


def test_what_does_not_fit_is_refused(run, write, image, tmp_path):
    path = write(image)
    for override, message in (
        ("overlap=32", "overlap=32: use less than the 32 px of a window"),
        ("image_size=20", "image_size=20: this segmenter takes multiples of 8 px"),
        (f"out_dir={tmp_path / 'images'}", "lies inside of the data"),
        ("image_path=none", "image_path=none is neither a folder nor an image"),
        (f"image_path={tmp_path / 'segmenter.pt'}", "neither a folder nor an image"),
    ):
        with pytest.raises(UserError, match=message):
            run(path, override)
    write(image, "images/scene.tiff")
    with pytest.raises(UserError, match="have one stem, by which maps are named"):
        run(tmp_path / "images")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "scene_classes.tif").touch()
    with pytest.raises(UserError, match="exists already"):
        run(path, out="other")
