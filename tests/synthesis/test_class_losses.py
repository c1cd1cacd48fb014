import json
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from defaults import defaults
from synthesis_helpers import BYTES, refused

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.scan import scan
from geoseg_gan.synthesis import recognizer as class_losses
from geoseg_gan.synthesis.recognizer import Recognizer, with_class_losses
from geoseg_gan.synthesis.settings import OnnxSettings


@pytest.fixture
def measure(palette, tmp_path, make_folder):
    """Measures losses on three pictures of 40x72 px; `measure.seen` counts the windows looked at.

    The recognizer is sure of class 0 everywhere: cross-entropy ln(1 + 2/e) and ln(e + 2).
    """
    reader = MaskReader(palette)
    pairs = find_pairs(make_folder(tmp_path / "data", train=3, size=(40, 72)), "train")
    index = scan(pairs, reader)
    logits = torch.zeros(1, 3, 32, 32)
    logits[:, 0] = 1

    def call(onnx=None, scaling=BYTES, channels=(0, 1, 2), index=index):
        call.seen = 0

        def predict(pixels):
            call.seen += 1
            return logits

        recognizer = Recognizer("abc", None, None, predict, channels)
        path, onnx = tmp_path / "model.onnx", onnx or defaults(OnnxSettings)
        measured = with_class_losses(recognizer, path, onnx, index, reader, scaling, "crop", 32)
        return measured.class_losses

    call.index = index
    call.store = tmp_path / "model.onnx.class_losses.json"
    return call


def test_every_pixel_of_the_real_images_counts_once(measure, monkeypatch):
    added = []
    add = class_losses.ClassLosses.add

    def spy(self, label, logits):
        added.append(np.bincount(np.asarray(label).ravel(), minlength=256)[:3])
        add(self, label, logits)

    monkeypatch.setattr(class_losses.ClassLosses, "add", spy)
    means = measure()
    assert measure.seen == 3 * 2 * 3
    assert np.sum(added, 0).tolist() == measure.index.pixels.sum(0)[:3].tolist()
    right, wrong = np.log(1 + 2 / np.e), np.log(np.e + 2)
    assert means == pytest.approx([right, wrong, wrong], abs=1e-6)


def test_losses_are_measured_once_for_all_that_would_change_them(measure):
    first = measure()
    (stored,) = json.loads(measure.store.read_text()).values()
    assert stored["class_losses"] == first and stored["segmenter"] == "abc"
    for changes in (
        {"onnx": defaults(OnnxSettings, [0.4], [0.5])},
        {"scaling": ImageScaling([0, 0, 0], [200, 255, 255])},
        {"channels": (2, 0, 1)},
        {"index": measure.index.rows([0, 1])},
    ):
        measure(**changes)
        assert measure.seen
    assert measure() == first
    assert measure.seen == 0
    assert len(json.loads(measure.store.read_text())) == 5


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_file_of_something_else_is_replaced(measure, content):
    measure.store.write_text(content)
    measure()
    assert len(json.loads(measure.store.read_text())) == 1


def test_a_folder_that_cannot_be_written_to_costs_the_next_call_its_speed(measure, monkeypatch):
    full = Mock(side_effect=OSError("disk full"))
    monkeypatch.setattr(class_losses, "write_json", full)
    with pytest.warns(UserWarning, match=r"class_losses\.json cannot be written \(disk full\)"):
        assert measure() is not None


def test_images_of_another_kind_are_refused(measure):
    with refused(r"has 3 bands of uint8, but .* is to score 1 band of uint16"):
        measure(scaling=ImageScaling([0], [1], "uint16"))
