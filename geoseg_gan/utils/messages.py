"""What commands tell their users: help from the YAML files, and mistakes in a line."""

import dataclasses
import difflib
import errno
import os
import re
import types
import typing
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException

from geoseg_gan.utils.errors import UserError, check_choice, install, one_line
from geoseg_gan.utils.files import WRITING
from geoseg_gan.utils.yaml_files import load_yaml

CONFIGS = "geoseg_gan.configs"  # the package of all YAML files
_FOLDER = Path(str(resources.files(CONFIGS)))
_MEMORY = "out of memory: use a smaller bs or image_size, or accumulate=2 in training."
_AGAIN = "Then call again: what is finished stays."
_REMEDIES = {
    errno.ENOSPC: f"Free some space, or choose another folder. {_AGAIN}",
    errno.EDQUOT: f"Your quota is used up: free some space, or choose another folder. {_AGAIN}",
    errno.EROFS: "Choose a folder that can be written.",
    errno.EACCES: "Change its permissions, or choose another folder.",
    errno.EPERM: "Change its permissions, or choose another folder.",
    errno.EFBIG: f"Raise the limit of file sizes (ulimit -f). {_AGAIN}",
    errno.EMFILE: f"Raise the limit of open files (ulimit -n), or lower num_workers. {_AGAIN}",
    errno.ENFILE: f"Close other programs, or lower num_workers. {_AGAIN}",
    errno.EAGAIN: f"Raise the limit of processes (ulimit -u), or lower num_workers. {_AGAIN}",
    errno.EIO: f"See whether disk or network are sound. {_AGAIN}",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOTDIR: "A part of this path is a file. Choose another folder.",
    errno.EISDIR: "It is a folder. Give a file.",
    errno.ENOENT: "Correct the path.",
    errno.EEXIST: "Choose another folder, or remove this one.",
    errno.ELOOP: "Remove the link, or choose another folder.",
    errno.ESTALE: f"See whether the network's disk is there. {_AGAIN}",
    errno.ENOMEM: _MEMORY,
}
_OF_LIBRARIES = {
    r"shared memory|[Bb]us error|</torch_": "the shared memory of the machine is used "
    "up: raise its limit (df /dev/shm; docker run --shm-size), or set num_workers=0, in training "
    "data.num_workers=0.",
    r"^\w*MemoryError|t allocate memory|[Oo]ut of memory|bad_alloc|Cannot allocate": _MEMORY,
    r"DataLoader worker.* (exited|killed)": "a process that reads data ended unexpectedly (killed "
    "by a signal, perhaps for want of memory): lower num_workers, in training data.num_workers. "
    + _AGAIN,
    r"PytorchStreamWriter|inline_container|file write failed|unexpected pos": "the file could not "
    f"be written: see whether the disk is full or a limit reached. {_AGAIN}",
}
"""What errors say that have no number of the system's, and what that means."""

_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


Texts = typing.Annotated[typing.Any, "texts"]
"""The type of a setting that is a text, a list of texts, or null."""


def choices(group: str) -> list[str]:
    """The choices of a config group; none if there is no such group."""
    return sorted(choice.stem for choice in (_FOLDER / group).glob("*.yaml"))


def commands_of(experiment: str) -> list[str]:
    """The commands that have all settings and groups which an experiment of the package sets."""
    wanted = _names(_FOLDER / "experiment" / f"{experiment}.yaml")
    known = {path.stem: _names(path) for path in sorted(_FOLDER.glob("*.yaml"))}
    return [name for name, own in known.items() if "experiment" in own and wanted <= own]


def _names(path: Path) -> set[str]:
    """The top-level settings and groups of a config, and of those of its folder it builds on."""
    content = load_yaml(path)[1]
    names = content.keys() - {"defaults"}
    for default in content.get("defaults", []):
        if isinstance(default, dict):
            names |= {re.split("[/@]", key.split()[-1].lstrip("/"))[0] for key in default}
        elif (base := path.with_name(f"{default}.yaml")).is_file():
            names |= _names(base)
    return names - {"hydra"}


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
    content = load_yaml(_FOLDER / f"{name}.yaml")[1]
    parts = {k: v for k, v in content.items() if isinstance(v, dict) and v and k != "hydra"}
    lines += ["", "Parts, adjusted as part.key=value:"] if parts else []
    lines += [f"  {part}: {_keys(inner)}" for part, inner in parts.items()]
    groups = re.findall(r"^  - (?!override)(\w+)(?:@\S+)?: (\S+)(?:  #.*)?$", text, re.MULTILINE)
    lines += ["", "Groups, chosen as group=choice and adjusted as group.key=value:"] * bool(groups)
    for group, default in groups:
        inner = (f"{group}/{path.name}" for path in sorted((_FOLDER / group).glob("*/")))
        for folder in (group, *inner):
            found = choices(folder)
            if folder == "experiment":
                found = [choice for choice in found if name in commands_of(choice)]
            lines.append(f"  {folder}: {', '.join(found)}")
        keys = "" if default == "null" else _keys(_choice(group, default))
        lines += [f"    keys of {group}: {keys}"] * bool(keys)
    lines += ["", f"Keys stand with defaults and comments in {_FOLDER}/GROUP/CHOICE.yaml."] * bool(
        groups
    )
    return "\n".join([*lines, "", "--cfg job shows every setting; -m sweeps over a,b,c values."])


def _choice(group: str, name: str) -> dict[str, Any]:
    """What a choice of a group sets, with what it takes from others of its group."""
    content = load_yaml(_FOLDER / group / f"{name}.yaml")[1]
    bases = [base for base in content.pop("defaults", []) if isinstance(base, str)]
    found: dict[str, Any] = {}
    for part in (*(_choice(group, base) for base in bases if base != "_self_"), content):
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = found[key] | value if both else value
    return found


def _keys(content: dict[str, Any]) -> str:
    """The keys of a group in words, each with its own keys in parentheses."""
    return ", ".join(
        f"{key} ({_keys(value)})" if isinstance(value, dict) and value else key
        for key, value in content.items()
    )


def mistake(error: BaseException) -> str | None:
    """One line for a mistake of the user or the system; None for one of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return f"a name is not UTF-8: {error.object[:200]}. Rename this file."
    found: BaseException | None = error
    while found is not None:
        text = f"{type(found).__name__}: {found}".strip().rpartition("\n")[2]
        notes = (note for note in getattr(found, "__notes__", ()) if note.startswith(WRITING))
        written = _path_in(next(notes, ""))
        number = found.errno if isinstance(found, OSError) else None
        if number is None and isinstance(found, OSError | RuntimeError | MemoryError):
            for pattern, line in _OF_LIBRARIES.items():
                if re.search(pattern, text):
                    return f"{written}: {line}" if written else line
            # Workers send the text of an error alone.
            number = next((n for n in _REMEDIES if os.strerror(n) in text), None)
        if number == errno.ENOMEM:
            return _MEMORY
        if number is not None:
            where = written or getattr(found, "filename", None) or _path_in(text)
            where = where or "while reading or writing"
            return f"{os.strerror(number)}: {where}. {_REMEDIES.get(number, '')}".strip()
        found = found.__cause__
    # Libraries, Hydra among them, raise some without a number.
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return f"{one_line(str(error)) or type(error).__name__} (while reading or writing)."
    return None


def _path_in(text: str) -> str | None:
    """The last path that a text quotes."""
    found = re.findall(r"""['"<]([^'"<>]*[/.][^'"<>]*)['">]""", text)
    return found[-1] if found else None


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
            more = f" More come with {install('sweep')}." if "hydra/" in group else ""
            return f"{wrong}{more}"
    pattern = r"(?:Could not override '|Error merging override \+*)([^'=]+)(?:=(.*))?"
    found = re.search(pattern, str(error), re.DOTALL)
    if isinstance(cause, AttributeError | KeyError) and (key or found):
        if found and not key.startswith(found[1]):
            key = found[1] if found[1].startswith(key) else f"{found[1]}.{key}"
        return _no_setting(key, schema)
    if found:
        settings = dict(settings_of(schema))
        allowed = _allowed(settings.get(found[1]))
        if known := choices(group := found[1].replace(".", "/")):
            if group.partition("/")[0] not in settings:  # a part of other commands
                return _no_setting(found[1], schema)
            allowed = f"{group}=... with one of {', '.join(known)}"
        return f"{found[1]}={found[2]}: use {allowed}."
    if "Unexpected type for root" in str(error):
        return "a key lies inside a part that is null: choose the part first, as data=demo does."
    line = str(cause).partition("full_key:")[0] or type(error).__name__
    line = re.sub(r"In '(.+)': \w+ raised while composing config:", r"\1.yaml:", line)
    return " ".join([f"{key}:" if key else "", *line.split()]).strip()


def _no_setting(key: str, schema: type) -> str:
    """Says that a key is not known, and which one may be meant."""
    known = [name.rpartition(".") for name, _ in settings_of(schema)]
    parent, _, leaf = key.rpartition(".")
    near = difflib.get_close_matches(leaf, [name for place, _, name in known if place == parent])
    close = [f"{parent}.{name}".lstrip(".") for name in near]
    close += ["".join(parts) for parts in known if parts[2] == leaf]
    hint = f" Did you mean '{close[0]}'?" if close else ""
    if ".options." in key:  # the one place whose keys no schema lists
        hint = f" A new option takes a plus: +{key}=... ."
    return f"there is no setting '{key}'.{hint} See --help, or --cfg job for all."


def settings_of(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a dataclass with its type, those of inner dataclasses included."""
    for name, hint in typing.get_type_hints(schema, include_extras=True).items():
        yield path + name, hint
        for kind in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(kind) and typing.get_origin(hint) is not list:
                yield from settings_of(kind, f"{path}{name}.")


def _allowed(hint: Any) -> str:
    """What a setting of a type may be, in words."""
    inner = map(_allowed, typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return f"a list, each item {next(inner)}"
    if isinstance(hint, types.UnionType):
        return " or ".join(inner)
    return _TYPES.get(hint, "null" if hint is types.NoneType else "{key: value, ...}")
