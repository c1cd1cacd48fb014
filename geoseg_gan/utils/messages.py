"""What commands tell their users: help from the YAML files, and mistakes in a line."""

import dataclasses
import difflib
import errno
import re
import types
import typing
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException

from geoseg_gan.utils.errors import UserError, check_choice

CONFIGS = "geoseg_gan.configs"  # the package of all YAML files
_FOLDER = Path(str(resources.files(CONFIGS)))
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def choices(group: str) -> list[str]:
    """The choices of a config group; none if there is no such group."""
    return sorted(choice.stem for choice in (_FOLDER / group).glob("*.yaml"))


def knob_texts(name: str) -> dict[str, tuple[str, str]]:
    """Default and comment of every top-level knob of a command, as its YAML file has them."""
    text = (_FOLDER / f"{name}.yaml").read_text()
    found = re.findall(r"^(\w+): (\S.*?)(?:  # (.*))?$", text, re.MULTILINE)
    return {key: (default, comment) for key, default, comment in found}


def help_text(name: str) -> str:
    """What `--help` prints: a line a knob, parts with their keys, groups with their choices."""
    text = (_FOLDER / f"{name}.yaml").read_text()
    lines = [line.removeprefix("# ") for line in text.partition("defaults:")[0].splitlines()]
    lines.append("")
    for key, (default, comment) in knob_texts(name).items():
        lines.append(f"  {f'{key}={default}'.replace(', ', ','):<34}{comment}")
    parts = re.findall(r"^(?!defaults|hydra)(\w+):.*\n((?:  .*\n)+)", text, re.MULTILINE)
    lines += ["", "Parts, adjusted as part.key=value:"] if parts else []
    for part, block in parts:
        keys = re.findall(r"^  (\w+):", block, re.MULTILINE)
        lines.append(f"  {part}: {', '.join(keys)}")
    groups = re.findall(r"^  - (?!override)(\w+)(?:@\S+)?: \S+(?:  #.*)?$", text, re.MULTILINE)
    lines += ["", "Groups, chosen as group=choice and adjusted as group.key=value:"] * bool(groups)
    for group in groups:
        inner = (f"{group}/{path.name}" for path in sorted((_FOLDER / group).glob("*/")))
        lines += [f"  {folder}: {', '.join(choices(folder))}" for folder in (group, *inner)]
    return "\n".join([*lines, "", "--cfg job shows every setting; -m sweeps over a,b,c values."])


def mistake(error: BaseException) -> str | None:
    """One line for a mistake of the user or the system; None for one of the program."""
    if isinstance(error, UserError):
        return str(error)
    if type(error).__name__.endswith("MemoryError") or "t allocate memory" in str(error):
        return "out of memory: use a smaller bs or image_size, or accumulate=2 in training."
    if isinstance(error, OSError) and error.errno is not None:
        advice = " Free some space." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{error.strerror}: {error.filename or 'while reading or writing'}.{advice}"
    return None


def explain(error: Exception, schema: type) -> str:
    """One line in the user's words for what Hydra, OmegaConf or a plugin say of a command line."""
    cause = error.__cause__ or error
    key = str(getattr(cause, "full_key", None) or "")
    if line := mistake(cause):
        return line
    if isinstance(error, OverrideParseException):
        return f"""{error.override} cannot be read: use key=value, and quote as in "key='a[b]'"."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        try:
            check_choice(group, choice, error.options)
        except UserError as wrong:
            more = " More come with pip install 'geoseg-gan[sweep]'." if "hydra/" in group else ""
            return f"{wrong}{more}"
    pattern = r"(?:Could not override '|Error merging override \+*)([^'=]+)(?:=(.*))?"
    found = re.search(pattern, str(error), re.DOTALL)
    if isinstance(cause, AttributeError | KeyError) and (key or found):
        if found and not key.startswith(found[1]):
            key = found[1] if found[1].startswith(key) else f"{found[1]}.{key}"
        return _no_setting(key, schema)
    if found:
        allowed = _allowed(dict(_settings(schema)).get(found[1]))
        if known := choices(group := found[1].replace(".", "/")):
            allowed = f"{group}=... with one of {', '.join(known)}"
        return f"{found[1]}={found[2]}: use {allowed}."
    if "Unexpected type for root" in str(error):
        return "a key lies inside a part that is null: choose the part first, as data=demo does."
    line = str(cause).partition("full_key:")[0] or type(error).__name__
    line = re.sub(r"In '(.+)': \w+ raised while composing config:", r"\1.yaml:", line)
    return " ".join([f"{key}:" if key else "", *line.split()]).strip()


def _no_setting(key: str, schema: type) -> str:
    """Says that a key is not known, and which one may be meant."""
    known = [name.rpartition(".") for name, _ in _settings(schema)]
    parent, _, leaf = key.rpartition(".")
    near = difflib.get_close_matches(leaf, [name for place, _, name in known if place == parent])
    close = [f"{parent}.{name}".lstrip(".") for name in near]
    close += ["".join(parts) for parts in known if parts[2] == leaf]
    hint = f" Did you mean '{close[0]}'?" if close else ""
    if ".options." in key:  # the one place whose keys no schema lists
        hint = f" A new option takes a plus: +{key}=... ."
    return f"there is no setting '{key}'.{hint} See --help, or --cfg job for all."


def _settings(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a dataclass with its type, those of inner dataclasses included."""
    for name, hint in typing.get_type_hints(schema).items():
        yield path + name, hint
        for kind in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(kind) and typing.get_origin(hint) is not list:
                yield from _settings(kind, f"{path}{name}.")


def _allowed(hint: Any) -> str:
    """What a setting of a type may be, in words."""
    inner = map(_allowed, typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return f"a list, each item {next(inner)}"
    if isinstance(hint, types.UnionType):
        return " or ".join(inner)
    return _TYPES.get(hint, "null" if hint is types.NoneType else "{key: value, ...}")
