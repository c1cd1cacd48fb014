"""What `--help` tells of a command: its settings, and the choices of its parts."""

import dataclasses
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from geoseg_gan.schemas import MISSING, SCHEMAS, TrainConfig, TrialConfig

CONFIGS = "geoseg_gan.configs"
"""The package of all configs."""


def help_of(name: str) -> str:
    """The settings of a command, a line each, and its parts with their choices."""
    schema = SCHEMAS[name]
    lines = [f"  {'setting=default':<34}meaning"]
    groups = []
    for entry in settings_of(schema).values():
        text = entry.metadata.get("help")
        if text is None:
            groups.append(entry.name)
            continue
        default: Any = entry.default
        if entry.default_factory is not dataclasses.MISSING:
            default = str(entry.default_factory()).replace(" ", "")
        default = {MISSING: "...", None: "null"}.get(default, default)
        shown = str(default).lower() if isinstance(default, bool) else default
        lines.append(f"  {f'{entry.name}={shown}':<34}{text}")
    if groups:
        if schema is TrainConfig:
            groups.append("experiment")
        if schema is TrialConfig:
            groups.append("recipe")
        lines += ["", "Parts, chosen as group=choice and adjusted as group.key=value:"]
        lines += [f"  {group}: {choices}" for group, choices in _choices(groups)]
    lines += ["", "--cfg job shows every setting; -m sweeps over comma-separated values."]
    return "\n".join(lines)


def _choices(groups: Sequence[str]) -> list[tuple[str, str]]:
    """Config groups, subgroups included, with the names of their choices."""
    folder = Path(str(resources.files(CONFIGS)))
    found = []
    for group in groups:
        inner = sorted(p.relative_to(folder) for p in (folder / group).glob("**/") if p.is_dir())
        found += [(path.as_posix(), ", ".join(choice_names(path.as_posix()))) for path in inner]
    return found


def choice_names(group: str) -> list[str]:
    """The choices of a config group."""
    folder = Path(str(resources.files(CONFIGS))) / group
    return sorted(choice.stem for choice in folder.glob("*.yaml"))


def settings_of(schema: type) -> dict[str, dataclasses.Field[Any]]:
    """The entries of a configuration by name."""
    return {entry.name: entry for entry in dataclasses.fields(schema)}
