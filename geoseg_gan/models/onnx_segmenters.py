"""ONNX models: how they are opened, and the segmenters that scripts/export.py made of a network."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.reading import check_content, read_bytes, whole

_ADVICE = "Export the segmenter with scripts/export.py, and give the segmenter.onnx that it writes."


def open_session(content: bytes, name: str) -> Any:
    """Opens an ONNX model on the CPU; nothing but its content is read.

    Args:
        content: The file's content.
        name: What the model is called in messages.

    Raises:
        UserError: If ONNX Runtime cannot read it.
    """
    # From version 1.29 on it would send names and digests of models to Microsoft.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime  # slow to import, and not every run has an ONNX model

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised too, and shown as one line
    options.intra_op_num_threads = torch.get_num_threads()
    # Weights in a second file would escape the digest, by which figures of the model are kept; in a
    # folder that cannot be, they are not found.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", f"{os.devnull}/none"
    )
    options.add_session_config_entry("session.load_model_format", "ONNX")  # whatever it looks like
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base but this
        reason = " ".join(str(error).split())
        if "External data" in reason:
            raise UserError(
                f"{name} keeps its weights in another file. Export it with "
                "torch.onnx.export(..., external_data=False), so that they stand in this one."
            ) from error
        raise UserError(f"{name} is not a model that ONNX Runtime reads: {reason}") from error


def open_model(path: Path) -> tuple[Any, str]:
    """Opens an ONNX file: its session, and the SHA-256 of the file in hexadecimal.

    Raises:
        UserError: If there is no such file, or it is no ONNX model.
    """
    if not path.is_file():
        raise UserError(f"segmenter_ckpt={path} does not exist. Give an ONNX model.")
    try:
        content = read_bytes(path, 2**31)  # of which Protocol Buffers have no more
    except ValueError as error:
        raise UserError(f"segmenter_ckpt={path} is not an ONNX model: {error}.") from None
    return open_session(content, f"segmenter_ckpt={path}"), hashlib.sha256(content).hexdigest()


class OnnxSegmenter(nn.Module):
    """An exported segmenter in place of the network that it was made of.

    Attributes:
        encoder: Its `output_stride`, as networks of segmentation-models-pytorch have it.
    """

    def __init__(self, session: Any, stride: int) -> None:
        """Wraps a session of a model that maps images in [-1, 1] to probabilities."""
        super().__init__()
        self._session, self._name = session, session.get_inputs()[0].name
        self.encoder = SimpleNamespace(output_stride=stride)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, K, H, W) to logits (B, C, H, W): logarithms of the probabilities."""
        [found] = self._session.run(None, {self._name: images.cpu().numpy()})
        return torch.from_numpy(found).clamp_min(torch.finfo(torch.float32).tiny).log()


def load_exported(
    path: Path, shape: Mapping[str, Any]
) -> tuple[OnnxSegmenter, dict[str, Any], str]:
    """Reads a segmenter.onnx that scripts/export.py wrote.

    Args:
        path: The file.
        shape: Of what it must say of itself, beside stride and size of its tiles; see
            `check_content`.

    Returns:
        The segmenter, what it says of itself, and the file's SHA-256 in hexadecimal.

    Raises:
        UserError: If it cannot be read, is another's, or takes images of one size alone.
    """
    session, digest = open_model(path)
    try:
        stored = session.get_modelmeta().custom_metadata_map
        said = {key: json.loads(text) for key, text in stored.items()}
    except ValueError:
        said = {}
    known = {"stride": whole(1, 2**15), "tile_size": whole(1, 2**15), **shape, "*": object}
    check_content(path, said, known, _ADVICE)
    wanted = 1, len(said["palette"]["classes"]), *2 * (2 * said["stride"],)
    network = OnnxSegmenter(session, said["stride"])
    try:
        found = tuple(network(torch.zeros(1, len(said["scaling"]["low"]), *wanted[2:])).shape)
    except Exception as error:  # onnxruntime's errors have no common base but this
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"segmenter_ckpt={path} does not take images of any size ({reason}). {_ADVICE}"
        ) from None
    if found != wanted:
        raise UserError(f"segmenter_ckpt={path} gives {found}, not {wanted}. {_ADVICE}")
    return network, said, digest
