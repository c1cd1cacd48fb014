"""Knobs of the export command."""

import re
from dataclasses import dataclass

from geoseg_gan.config import command
from geoseg_gan.utils.errors import UserError, check_choice, check_range

FORMATS = ("onnx", "safetensors", "card")


@dataclass
class ExportConfig:
    """Configuration of scripts/export.py."""

    ckpt: str
    out_dir: str
    formats: list[str]
    opset: int
    licence: str
    push: str | None

    def __post_init__(self) -> None:
        """Refuses values out of range: a UserError that names key, value and range."""
        if not self.formats:
            raise UserError(f"formats=[]: name one or more of {', '.join(FORMATS)}.")
        for name in self.formats:
            check_choice("formats", name, FORMATS)
        check_range("opset", self.opset, 17, 20)
        if not re.fullmatch(r"[\w.-]+", self.licence):
            raise UserError(
                f"licence={self.licence}: use a name of Hugging Face's list, such as cc-by-4.0."
            )
        if self.push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push):
            raise UserError(f"push={self.push}: name the repository as user/name.")


export_command = command("export", ExportConfig, "geoseg_gan.export.export:export")
