"""How ONNX models are opened."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.reading import read_bytes


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
