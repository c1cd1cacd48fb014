"""The folder that generated pairs go to, and what it says of itself."""

import json
from pathlib import Path
from typing import Any

from geoseg_gan.data.synthetic import FACTS
from geoseg_gan.errors import UserError


def stored_facts(folder: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """What a folder says of itself, once it is seen to hold pairs of the same generation.

    Args:
        folder: Where pairs go.
        facts: What this generation would say; entries that only the folder has are not compared.

    Returns:
        The content of `generation.json`; None for a folder that is new or empty.

    Raises:
        UserError: If the folder holds other files, or pairs of another generation.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not (folder / FACTS).is_file():
        raise UserError(f"save_dir={folder} holds other files. Choose a new folder.")
    try:
        stored = dict(json.loads((folder / FACTS).read_text()))
    except (TypeError, ValueError):
        raise UserError(
            f"{folder / FACTS} is not as generate writes it. Choose a new folder."
        ) from None
    for key, value in facts.items():
        if stored.get(key) != value:
            was, now = stored.get(key), value
            if isinstance(was, dict) and isinstance(now, dict):
                differing = [k for k in now if was.get(k) != now[k]]
                key = f"{key}.{differing[0]}" if differing else key
                was, now = (was.get(differing[0]), now[differing[0]]) if differing else (was, now)
            raise UserError(
                f"save_dir={folder} holds pairs of another generation: {key} was {was}, now "
                f"{now}. Choose a new folder, or repeat the settings in {folder / FACTS}."
            )
    return stored
