"""What several tests of generation do to it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from geoseg_gan.synthesis import report
from geoseg_gan.synthesis.writer import PairWriter


@pytest.fixture
def root(make_folder, tmp_path):
    return make_folder(tmp_path / "data")


@pytest.fixture
def save_onnx(tmp_path):
    """Writes a model that is one 1x1 convolution, then pooled where `pool` is above 1, and so on.

    Without a weight it gives back its input.
    """

    def save(
        weight,
        shape=(1, 3, 32, 32),
        *,
        kind=TensorProto.FLOAT,
        pool=1,
        softmax=False,
        sigmoid=False,
        argmax=False,
    ):
        nodes, weights = [helper.make_node("Identity", ["x"], ["y"])], []
        if weight is not None:
            nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
            weight = np.asarray(weight, np.float32)[..., None, None]
            weights = [numpy_helper.from_array(weight, "w")]
        if pool > 1:
            sides = {"kernel_shape": [pool, pool], "strides": [pool, pool]}
            nodes.append(helper.make_node("AveragePool", [nodes[-1].output[0]], ["z"], **sides))
        if softmax:
            nodes.append(helper.make_node("Softmax", [nodes[-1].output[0]], ["s"], axis=1))
        if sigmoid:
            nodes.append(helper.make_node("Sigmoid", [nodes[-1].output[0]], ["p"]))
        if argmax:
            nodes.append(helper.make_node("ArgMax", [nodes[-1].output[0]], ["a"], axis=1))
        last = TensorProto.INT64 if argmax else kind
        inputs = [helper.make_tensor_value_info("x", kind, shape)]
        outputs = [helper.make_tensor_value_info(nodes[-1].output[0], last, None)]
        graph = helper.make_graph(nodes, "segmenter", inputs, outputs, weights)
        opset = helper.make_opsetid("", 17)
        path = tmp_path / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
        return path

    return save


@pytest.fixture
def plain_histogram(monkeypatch):
    """An empty picture in the place of the histogram, whose axes take longer than all the rest."""
    monkeypatch.setattr(report, "score_histogram", lambda *_: np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def interrupt_before(monkeypatch):
    """Makes a call stop as by Ctrl-C: `interrupt_before(index, call)`."""
    add = PairWriter.add

    def interrupt(index, call):
        def some(self, pairs):
            before = [pair for pair in pairs if pair.candidate.index < index]
            add(self, before)
            if len(before) < len(pairs):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(PairWriter, "add", some)
            call()

    return interrupt
