import hashlib
import re

import numpy as np
import onnx
import pytest
import torch
from defaults import defaults
from onnx import TensorProto
from synthesis_helpers import BYTES, refused

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.palette import Palette, PaletteClass
from geoseg_gan.models.checkpoints import RunFacts, SegmenterEvaluation, save_network
from geoseg_gan.models.segmenters import build_segmenter
from geoseg_gan.synthesis.recognizer import load_recognizer, pixel_losses
from geoseg_gan.synthesis.settings import OnnxSettings

SETTINGS = {
    "arch": "unet",
    "encoder": "tu-test_resnet",
    "encoder_weights": None,
    "options": {"decoder_channels": [8, 8, 8, 8, 8]},
    "image_scale": 1.0,
}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture
def save_own(tmp_path):
    """Writes a small segmenter; returns its file and the network."""

    def save(palette, scaling=BYTES, held_out=(0.5, 0.75)):
        torch.manual_seed(0)
        network = build_segmenter(SETTINGS, palette.num_classes, len(scaling.low)).eval()
        facts = RunFacts({"segmenter": SETTINGS, "image_size": 32}, palette, scaling)
        evaluation = SegmenterEvaluation(list(held_out), {"val/miou": 0.6})
        path = tmp_path / "segmenter.pt"
        save_network(path, "segmenter", network, facts, 1, evaluation)
        return path, network

    return save


def load(path, palette, scaling=BYTES, size=32, class_map=None, settings=None):
    settings = settings or defaults(OnnxSettings)
    return load_recognizer(path, palette, scaling, size, "cpu", class_map, settings)


class TestOwn:
    @pytest.mark.parametrize("high", [255, 510])
    def test_its_logits_are_the_network_s_and_its_facts_the_file_s(
        self, palette, save_own, image, high
    ):
        path, network = save_own(palette, ImageScaling([0] * 3, [high] * 3))
        recognizer = load(path, palette)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / (high / 2) - 1
        with torch.inference_mode():
            expected = network(pixels)[0]
        logits = recognizer.logits(image)
        assert (logits.shape, logits.dtype) == ((3, 32, 32), torch.float32)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        assert recognizer.digest == hashlib.sha256(path.read_bytes()).hexdigest()
        assert recognizer.held_out == [0.5, 0.75]
        assert load(save_own(palette, held_out=())[0], palette).held_out is None

    def test_classes_are_mapped_by_what_they_are_or_by_the_class_map(
        self, palette, save_own, image
    ):
        path, _ = save_own(palette)
        first, second, third = palette.classes
        straight = load(path, palette).logits(image)
        mapped = load(path, Palette([third, first, second], palette.ignore))
        assert torch.equal(mapped.logits(image), straight[[2, 0, 1]])
        two = Palette([first, PaletteClass("Woods", [1, 2, 3])])
        mapped = load(path, two, class_map=[2, 1])
        assert torch.equal(mapped.logits(image), straight[[2, 1]])

    @pytest.mark.parametrize("change", ["name", "color"])
    def test_another_palette_is_refused_with_both_shown(self, palette, save_own, change):
        path, _ = save_own(palette)
        content = palette.to_dict()
        content["classes"][1][change] = {"name": "Woods", "color": [1, 2, 3]}[change]
        other = Palette.from_dict(content)
        described = re.escape(other.describe(1))
        with refused(rf"^(?=.*'Forest land' \(168, 232, 84\)).*{described}"):
            load(path, other)

    @pytest.mark.parametrize(
        ("scaling", "size", "message"),
        [
            (ImageScaling([0], [255]), 32, "3-band uint8 images.*makes 1-band uint8"),
            (ImageScaling([0] * 3, [1] * 3, "float32"), 32, "uint8 .*makes 3-band float32"),
            (BYTES, 48, "multiples of 32, but the generator makes 48x48"),
        ],
    )
    def test_images_of_another_kind_are_refused(self, palette, save_own, scaling, size, message):
        with refused(message):
            load(save_own(palette)[0], palette, scaling, size)


BAD_MAPS = ([0, 1], [0, 1, 1], [0, 1, 3], [-1, 0, 1])
BAD_MEANS = (defaults(OnnxSettings, mean=mean) for mean in ([0.5, 0.5], []))
OPEN = {"weight": np.ones((3, 4)), "shape": (1, "C", "H", "W")}
UNFIT = [
    *(({}, {"class_map": bad}, r"class_map=\[.*'Settlement'.* the 3 of") for bad in BAD_MAPS),
    *(({}, {"settings": bad}, r"onnx.mean=\[") for bad in BAD_MEANS),
    ({"weight": np.ones((4, 3))}, {}, r"4 classes apart.*palette has 3: 'Background'"),
    ({"argmax": True}, {}, r"gives int64 \[1, 1, 32, 32\], but float32 logits"),
    (OPEN, {}, "fails on images of 32x32 with 3 bands"),
]
"""By changes of the model and of what it is loaded with."""


class TestOnnx:
    def test_images_are_shifted_and_scaled_by_mean_and_std(self, palette, save_onnx):
        path = save_onnx(np.eye(3))
        settings = defaults(OnnxSettings, [0.5, 0.25, 0.0], [0.5, 0.25, 1.0])
        recognizer = load(path, palette, settings=settings)
        assert recognizer.digest == hashlib.sha256(path.read_bytes()).hexdigest()
        assert recognizer.held_out is None
        image = np.broadcast_to(np.array([0, 102, 204], np.uint8), (32, 32, 3))
        logits = recognizer.logits(image)
        assert (logits.shape, logits.dtype) == ((3, 32, 32), torch.float32)
        # Shares 0, 0.4 and 0.8.
        expected = torch.tensor([-1.0, 0.6, 0.8]).view(3, 1, 1).expand(3, 32, 32)
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)

    def test_values_are_shares_of_the_generator_s_range(self, palette, save_onnx):
        path = save_onnx([[1], [2], [3]], (1, 1, 32, 32))
        scaling = ImageScaling([100], [300], "uint16")
        recognizer = load(path, palette, scaling, settings=defaults(OnnxSettings, [0.0], [1.0]))
        logits = recognizer.logits(np.full((32, 32, 1), 150, np.uint16))
        torch.testing.assert_close(logits[:, 0, 0], torch.tensor([0.25, 0.5, 0.75]))

    def test_smaller_logits_are_enlarged_bilinearly(self, palette, save_onnx):
        path = save_onnx(np.eye(3), pool=16)
        image = np.zeros((32, 32, 3), np.uint8)
        image[:, 16:] = 255
        row = load(path, palette).logits(image)[0, 0]
        # Two columns of -1 and 1 whose centres stand at 7.5 and 23.5.
        expected = (torch.arange(32.0) - 15.5).div(8).clamp(-1, 1)
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("shape", [("N", 3, "H", "W"), (1, "C", 32, 32)])
    def test_sides_left_open_take_any_size(self, palette, save_onnx, shape, image):
        recognizer = load(save_onnx(np.eye(3), shape), palette)
        assert recognizer.logits(image).shape == (3, 32, 32)

    def test_a_class_map_picks_the_channel_of_every_class(self, palette, save_onnx, image):
        path = save_onnx([[0] * 3, [1] * 3, [2] * 3, [3] * 3])
        logits = load(path, palette, class_map=[3, 0, 2]).logits(image)
        assert torch.equal(logits.argmax(0), torch.where(logits[0] > 0, 0, 1))
        assert torch.equal(logits[1], torch.zeros(32, 32))

    @pytest.mark.parametrize(("model", "settings", "message"), UNFIT)
    def test_models_and_settings_that_do_not_fit_are_refused(
        self, palette, save_onnx, capfd, model, settings, message
    ):
        path = save_onnx(**({"weight": np.eye(3)} | model))
        with refused(message):
            load(path, palette, **settings)
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize(
        ("shape", "kind"),
        [
            ((1, 4, 32, 32), "float"),
            ((2, 3, 32, 32), "float"),
            ((1, 3, 64, 64), "float"),
            ((1, 3, 32), "float"),
            ((1, 3, 32, 32), "uint8"),
        ],
    )
    def test_images_it_does_not_take_are_refused_with_what_it_takes(
        self, palette, save_onnx, shape, kind
    ):
        takes, made = f"tensor({kind}) {list(shape)}", "tensor(float) [1, 3, 32, 32]"
        path = save_onnx(None, shape, kind=getattr(TensorProto, kind.upper()))
        with refused(f"takes {re.escape(takes)}, but .* are {re.escape(made)}"):
            load(path, palette)

    @pytest.mark.parametrize("pool", [1, 4])
    def test_probabilities_give_the_decisions_and_losses_of_their_logits(
        self, palette, save_onnx, image, pool
    ):
        weight = np.random.default_rng(0).normal(0, 4, (4, 3))
        found = []
        for softmax in (False, True):
            path = save_onnx(weight, pool=pool, softmax=softmax)
            found.append(load(path, palette, class_map=[3, 0, 2]).logits(image))
        label = image[..., 0] % 3
        assert torch.equal(found[0].argmax(0), found[1].argmax(0))
        losses = [pixel_losses(label, logits) for logits in found]
        torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)
        assert losses[0].max() > 3

    @pytest.mark.parametrize("size", [0.1, 4])
    def test_the_output_of_a_sigmoid_is_refused(self, palette, save_onnx, size):
        weight = np.random.default_rng(0).normal(0, size, (3, 3))
        with refused("from 0 to 1 that do not add up to 1, as a sigmoid does. Export it without"):
            load(save_onnx(weight, sigmoid=True), palette)

    def test_a_probability_of_0_has_a_finite_loss(self, palette, save_onnx, image):
        logits = load(save_onnx(np.eye(3) * 1000, softmax=True), palette).logits(image)
        assert logits.isfinite().all() and logits.min() < -80

    def test_weights_in_another_file_are_refused(self, palette, save_onnx, monkeypatch):
        path = save_onnx(np.eye(3))
        monkeypatch.chdir(path.parent)  # where ONNX Runtime would look for them
        external = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
        onnx.save_model(onnx.load(path), path, **external)
        with refused("external_data=False"):
            load(path, palette)


@pytest.mark.parametrize("name", ["model.pth", "model.pt2", "model.ts", "model.h5", "model"])
def test_other_formats_are_refused_with_those_that_are_read(palette, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"anything")
    with refused(r"segmenter.pt .*\.onnx.*that can run code"):
        load(path, palette)


@pytest.mark.parametrize("name", ["segmenter.pt", "model.onnx"])
def test_files_that_are_missing_or_broken_are_refused_in_one_line(palette, tmp_path, name):
    path = tmp_path / name
    with refused(f"{name} does not exist"):
        load(path, palette)
    path.write_bytes(b"anything")
    with refused(f"{name} is not a"):
        load(path, palette)


def test_a_pickle_that_runs_code_is_not_loaded(palette, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    path = tmp_path / "segmenter.pt"
    torch.save({"format": 1, "kind": "segmenter", "weights": Trap()}, path)
    with refused("not a checkpoint of this project"):
        load(path, palette)
    assert not (tmp_path / "sprung").exists()
