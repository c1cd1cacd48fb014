"""What generated folders hold."""

import json


def files(folder, pattern="*"):
    """Names and bytes of a folder's files, but for the one by which it is held."""
    found = sorted(folder.glob(pattern))
    return {path.name: path.read_bytes() for path in found if path.name != ".lock"}


def facts(folder):
    return json.loads((folder / "generation.json").read_text())
