"""ONNX models of generators and segmenters, checked against the networks that they come from."""

import copy
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from geoseg_gan.models.loaded import LoadedGenerator, LoadedSegmenter
from geoseg_gan.models.onnx_segmenters import open_session
from geoseg_gan.models.segmenters import segmenter_stride
from geoseg_gan.utils.errors import UserError, install

if TYPE_CHECKING:
    from onnx import ModelProto

TOLERANCE = 1e-4
"""The largest difference from the network that passes: of images in [-1, 1], of probabilities."""

_TRIED = ((1, 2, 3), (3, 4, 2))  # batch, rows and columns that are compared, in strides
_TRACED = (2, 3, 4)  # likewise, for tracing


class GeneratorModel(nn.Module):
    """A generator as it is exported: from class IDs and noise to stored values.

    Attributes:
        stride: Height and width must be multiples of it.
        names: Those of the inputs and, last, of the output.
        scale: What a difference of the output is divided by, shape (1, K, 1, 1).
    """

    def __init__(self, loaded: LoadedGenerator) -> None:
        """Takes a copy of the network."""
        super().__init__()
        self.network = _plain_copy(cast(nn.Module, loaded.network))
        self.stride, self.noise = loaded.network.stride, loaded.network.noise
        self.names = ("label", "noise", "image") if self.noise.channels else ("label", "image")
        self.classes: Tensor
        self.low: Tensor
        self.scale: Tensor
        self.register_buffer("classes", torch.arange(loaded.facts.palette.num_classes))
        low, high = torch.tensor([loaded.facts.scaling.low, loaded.facts.scaling.high])
        self.register_buffer("low", low.view(1, -1, 1, 1))
        self.register_buffer("scale", ((high - low) / 2).view(1, -1, 1, 1))

    def forward(self, label: Tensor, noise: Tensor | None = None) -> Tensor:
        """Maps class IDs (B, H, W) uint8 and noise (B, Z, H, W) to stored values (B, K, H, W)."""
        one_hot = (label.long().unsqueeze(1) == self.classes.view(1, -1, 1, 1)).float()
        # Without channels it is no input, which ONNX cannot have without values.
        image = self.network(one_hot, one_hot[:, :0] if noise is None else noise)
        return cast(Tensor, (image + 1) * self.scale + self.low)

    def inputs(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Random inputs of a size, ignored pixels among them."""
        label = torch.randint(len(self.classes) + 1, (batch, height, width))
        label = label.where(label < len(self.classes), 255).byte()
        if not self.noise.channels:
            return (label,)
        return label, torch.randn(batch, self.noise.channels, height, width)


class SegmenterModel(nn.Module):
    """A segmenter as it is exported: from images in [-1, 1] to probabilities.

    Attributes are those of `GeneratorModel`.
    """

    names = ("image", "probabilities")
    scale = torch.ones(1)

    def __init__(self, loaded: LoadedSegmenter) -> None:
        """Takes a copy of the network."""
        super().__init__()
        self.network = _plain_copy(loaded.network)
        self.stride = segmenter_stride(loaded.network)
        self.bands = len(loaded.facts.scaling.low)

    def forward(self, image: Tensor) -> Tensor:
        """Maps images (B, K, H, W) to probabilities (B, C, H, W)."""
        # Values outside of the scaling are clamped in training too.
        return cast(Tensor, self.network(image.clamp(-1, 1)).softmax(1))

    def inputs(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Random inputs of a size, values outside of [-1, 1] among them."""
        return (torch.rand(batch, self.bands, height, width) * 2.2 - 1.1,)


def _plain_copy(network: nn.Module) -> nn.Module:
    """A copy on the CPU whose weights are plain: divided by their spectral norms already."""
    plain = copy.deepcopy(network).cpu().eval()
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            for name in list(cast(Any, module).parametrizations):
                parametrize.remove_parametrizations(module, name)
    return plain


def require_onnx() -> None:
    """Makes sure that what writes ONNX is installed.

    Raises:
        UserError: Saying how to install it.
    """
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise UserError(
            f"formats=[onnx] needs ONNX, which is not installed: {install('export')}."
        ) from None


def to_onnx(model: GeneratorModel | SegmenterModel, opset: int) -> "ModelProto":
    """Exports a model of open batch, height and width.

    Raises:
        UserError: If a layer cannot be exported.
    """
    import onnx

    inputs = model.inputs(_TRACED[0], *(model.stride * count for count in _TRACED[1:]))
    # Height and width are always last.
    open_sides = {
        name: {0: "batch", x.ndim - 2: "height", x.ndim - 1: "width"}
        for name, x in zip(model.names, (*inputs, torch.empty(1, 1, 1, 1)), strict=True)
    }
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what exporters say to developers
            torch.onnx.export(
                model.eval(),
                inputs,
                cast(Any, file),
                dynamo=False,  # which takes minutes for a segmenter, over symbolic sizes
                opset_version=opset,
                dynamic_axes=open_sides,
                input_names=model.names[:-1],
                output_names=model.names[-1:],
            )
    except Exception as error:  # the exporter raises exceptions of many types
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"this network cannot be exported to ONNX ({reason}). Leave onnx out of formats."
        ) from error
    return _tidied(onnx.load_from_string(file.getvalue()))


def _tidied(model: "ModelProto") -> "ModelProto":
    """The model without notes for developers, and with names for its output's sides."""
    for node in model.graph.node:
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output):
        sides = value.type.tensor_type.shape.dim
        for side, name in ((sides[0], "batch"), (sides[-2], "height"), (sides[-1], "width")):
            side.dim_param = name
    return model


def fixed(model: "ModelProto", size: int) -> "ModelProto":
    """A copy of a model that takes one square image of this side at a time."""
    closed = copy.deepcopy(model)
    for value in (*closed.graph.input, *closed.graph.output):
        sides = value.type.tensor_type.shape.dim
        for side, length in ((sides[0], 1), (sides[-2], size), (sides[-1], size)):
            side.dim_value = length
    return closed


def with_metadata(model: "ModelProto", entries: Mapping[str, Any]) -> "ModelProto":
    """The model with these entries as JSON; changed in place."""
    import onnx

    onnx.helper.set_model_props(
        model, {key: json.dumps(value, ensure_ascii=False) for key, value in entries.items()}
    )
    return model


@torch.inference_mode()
def largest_difference(
    content: bytes,
    model: GeneratorModel | SegmenterModel,
    sizes: Sequence[tuple[int, int, int]] = _TRIED,
) -> float:
    """How far ONNX Runtime is from PyTorch, at most, on random inputs.

    Args:
        content: An ONNX file.
        model: What it was exported from.
        sizes: Batch, rows and columns, the latter in strides.
    """
    session = open_session(content, "the exported model")
    differences: list[float] = []
    for batch, rows, columns in sizes:
        inputs = model.inputs(batch, rows * model.stride, columns * model.stride)
        named = {n: x.numpy() for n, x in zip(model.names[:-1], inputs, strict=True)}
        found = torch.from_numpy(session.run(None, named)[0])
        differences.append(((found - model(*inputs)) / model.scale).abs().max().item())
    return max(differences)
