"""The frame of every command: a Hydra app with a typed configuration, its help and its errors."""

import argparse
import dataclasses
import difflib
import errno
import importlib
import logging
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from geoseg_gan.utils.errors import UserError, check_choice, show_warnings_as_lines

ConfigT = TypeVar("ConfigT")

CONFIGS = "geoseg_gan.configs"
"""The package of all YAML files."""

_COMMANDS: dict[str, type] = {}
_OUTPUTS = ("save_dir", "out_dir", "data_root")


def command(name: str, schema: type[ConfigT], run: str) -> Callable[[], None]:
    """Makes a function of a typed configuration a Hydra app.

    A mistake of the user or the system becomes one line on stderr and exit code 1. In a sweep the
    failed job prints its line, the others run, and the exit code is 1 at the end.

    Args:
        name: The command's primary config, `configs/{name}.yaml`.
        schema: The configuration's dataclass.
        run: The function, as in "geoseg_gan.training.train:train". It is imported only when it
            runs, so that `--help` loads no torch.
    """
    _COMMANDS[name] = schema
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)

    def main() -> None:
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(help_text(name))
            return

        def task(config: DictConfig) -> Any:
            return _run(config, schema, run)

        show_warnings_as_lines()
        for library in ("alembic", "hydra_plugins"):  # what Optuna imports, and what calls it
            logging.getLogger(library).setLevel(logging.ERROR)
        _JobError.count = 0
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, which are explained below
        app = hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name=name)
        try:
            _check_config_dir()
            app(task)()
        except (KeyboardInterrupt, SystemExit) as stop:
            # Lightning leaves by SystemExit, from where it has caught a KeyboardInterrupt.
            if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
                sys.exit(143 if type(stop).__name__ == "SIGTERMException" else stop.code)
            _say("error: interrupted; what was finished is saved.")
            sys.exit(130)
        except Exception as error:
            _say(f"error: {explain(error, schema)}")
            sys.exit(1)
        if _JobError.count:
            sys.exit(1)

    return main


class _JobError(Exception):
    """The error of a sweep's job, whose line is printed; returned, so that the sweep goes on.

    Launchers pickle it back into the command's process, where making it again counts it too.
    """

    count = 0

    def __init__(self, text: str) -> None:
        super().__init__(text)
        _JobError.count += 1


def _run(config: DictConfig, schema: type, run: str) -> Any:
    """Runs a command's function once; returns what a sweeper optimises."""
    show_warnings_as_lines()  # again, since a launcher may have started this process
    state = HydraConfig.get()
    folder = Path(state.runtime.output_dir)
    sweep = state.mode is RunMode.MULTIRUN
    try:
        if sweep and (output := next((key for key in _OUTPUTS if key in config), None)):
            config[output] = str(folder)
            if config.get("resume"):  # but a job that the sweep had not come to starts
                config["resume"] = any(folder.glob("*.ckpt"))
        content: Any = typed(config, schema)
        module, _, function = run.partition(":")
        figures = getattr(importlib.import_module(module), function)(content)
    except Exception as error:
        line = _mistake(error)
        if line is None:
            traceback.print_exc()
            line = f"{type(error).__name__}: {error}"
        _say(f"error: {line}" + (f" (In the job {folder.name}.)" if sweep else ""))
        if sweep:
            return _JobError(line)
        sys.exit(1)
    return figures.get("objective") if isinstance(figures, dict) else figures


def _check_config_dir() -> None:
    """Refuses files of --config-dir, perhaps a stranger's, that could have Hydra run code."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd")
    folder = parser.parse_known_args()[0].config_dir
    for path in sorted(Path(folder).rglob("*.yaml")) if folder else ():
        text = path.read_text()  # as it stands, for comments, and as read, for escaped characters
        if re.search(r"_target_|\bhydra\b", f"{path.relative_to(folder)} {text} {read_yaml(path)}"):
            raise UserError(f"{path}: files of --config-dir may set neither hydra nor _target_.")


class SweepNames(Callback):
    """Names the folders of a sweep's jobs by the settings in which the jobs differ."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Has Hydra leave out of the names what the command line gives one value."""
        parsed = OverridesParser.create().parse_overrides(config.hydra.overrides.task)
        fixed = ",".join(f"'{o.key_or_group}'" for o in parsed if not o.is_sweep_override())
        with read_write(config), open_dict(config):
            config.hydra.overrides.hydra.append(
                f"hydra.job.config.override_dirname.exclude_keys=[{fixed}]"
            )


def command_line() -> list[str]:
    """The overrides of the command that runs, of its job in a sweep; empty where none runs."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def compose(schema: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """The configuration that a command would have.

    Args:
        schema: The dataclass of the command.
        overrides: What its command line says.

    Raises:
        UserError: If the command would refuse them.
    """
    name = next(name for name, known in _COMMANDS.items() if known is schema)
    # A command that runs has its own configuration open, and Hydra no place for a second one.
    running = GlobalHydra.instance().is_initialized()
    frame = nullcontext() if running else initialize_config_module(CONFIGS, version_base="1.3")
    try:
        with frame:
            return typed(hydra_compose(name, overrides=list(overrides)), schema)
    except (HydraException, OmegaConfBaseException, AssertionError, ValueError) as error:
        raise UserError(explain(error, schema)) from None


def typed(config: DictConfig, schema: type[ConfigT]) -> ConfigT:
    """Turns a composed configuration into the schema's dataclass, all the way down.

    Raises:
        UserError: If a value that has no default is not set, or a key is not known.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        name = next(name for name, known in _COMMANDS.items() if known is schema)
        meaning = knob_texts(name).get(missing[0], ("", missing[0]))[1]
        raise UserError(f"{missing[0]} is not set: give {meaning}, as in {missing[0]}=... .")
    content = cast(ConfigT, OmegaConf.to_object(config))
    if unknown := next(_unlisted(content), None):
        raise UserError(_no_setting(unknown, schema))
    return content


def _unlisted(value: Any, path: str = "") -> Iterator[str]:
    """Keys that +key=value has added and no dataclass lists."""
    entries: Any = ()
    if dataclasses.is_dataclass(value):
        entries = vars(value).items()
        yield from (path + key for key, _ in entries if key not in value.__dataclass_fields__)
    elif isinstance(value, dict):
        entries = value.items()
    for key, inner in entries:
        yield from _unlisted(inner, f"{path}{key}.")


def plain(config: Any) -> dict[str, Any]:
    """A typed configuration as plain dicts, as checkpoints and JSON files keep it."""
    return dataclasses.asdict(config)


def write_yaml(path: Path, config: Any) -> None:
    """Writes a typed configuration as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(plain(config)), path)


def read_yaml(path: Path) -> Any:
    """Reads a YAML file as plain dicts and lists."""
    return OmegaConf.to_container(OmegaConf.load(path))


def choices(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(choice.stem for choice in (_folder() / group).glob("*.yaml"))


def _folder() -> Path:
    return Path(str(resources.files(CONFIGS)))


def knob_texts(name: str) -> dict[str, tuple[str, str]]:
    """Default and comment of every top-level knob of a command, as its YAML file has them."""
    text = (_folder() / f"{name}.yaml").read_text()
    found = re.findall(r"^(\w+): (\S.*?)(?:  # (.*))?$", text, re.MULTILINE)
    return {key: (default, comment) for key, default, comment in found}


def help_text(name: str) -> str:
    """What `--help` prints: a line a knob, parts with their keys, groups with their choices."""
    text = (_folder() / f"{name}.yaml").read_text()
    knobs = knob_texts(name)
    lines = [line.removeprefix("# ") for line in text.partition("defaults:")[0].splitlines()]
    lines.append("")
    for key, (default, comment) in knobs.items():
        lines.append(f"  {f'{key}={default}'.replace(', ', ','):<34}{comment}")
    parts = re.findall(r"^(?!defaults|hydra)(\w+):.*\n((?:  .*\n)+)", text, re.MULTILINE)
    groups = re.findall(r"^  - (?!override)(\w+)(?:@\S+)?: \S+(?:  #.*)?$", text, re.MULTILINE)
    if parts:
        lines += ["", "Parts, adjusted as part.key=value:"]
    for part, block in parts:
        keys = re.findall(r"^  (\w+):", block, re.MULTILINE)
        lines.append(f"  {part}: {', '.join(keys)}")
    if groups:
        lines += ["", "Groups, chosen as group=choice and adjusted as group.key=value:"]
    for group in groups:
        for folder in (_folder() / group, *sorted((_folder() / group).glob("*/"))):
            name = folder.relative_to(_folder()).as_posix()
            lines.append(f"  {name}: {', '.join(choices(name))}")
    return "\n".join([*lines, "", "--cfg job shows every setting; -m sweeps over a,b,c values."])


OmegaConf.register_new_resolver("pick", lambda key, table: table[key], replace=True)
OmegaConf.register_new_resolver(
    "file_name", lambda text: re.sub(r"[^\w.,=+-]", "_", text), replace=True
)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _mistake(error: BaseException) -> str | None:
    """One line for a mistake of the user or the system; None for one of the program."""
    if isinstance(error, UserError):
        return str(error)
    out_of_memory = type(error).__name__ == "OutOfMemoryError" or "t allocate memory" in str(error)
    if isinstance(error, MemoryError) or out_of_memory:
        return "out of memory: use a smaller bs or image_size, or accumulate=2 in training."
    if isinstance(error, OSError) and error.errno is not None:
        place = error.filename or "while reading or writing"
        advice = " Free some space." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{error.strerror}: {place}.{advice}"
    return None


def explain(error: Exception, schema: type) -> str:
    """One line in the user's words for what Hydra, OmegaConf or a plugin say of a command line."""
    cause = error.__cause__ or error
    if told := _mistake(cause):
        return told
    text, because = str(error), str(cause)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} cannot be read: use key=value, and quote a value that holds special "
            """characters twice, as in "key='a[b]'"."""
        )
    if absent := re.match(r".*Could not find '(.+)/([^/]*)'\s+Available.*':\n((?:\t.+\n)+)", text):
        group, choice, known = absent[1], absent[2], absent[3].split()
        if group in ("hydra/launcher", "hydra/sweeper") and re.match("joblib|submitit|opt", choice):
            return f"{group}={choice} is not installed: pip install 'geoseg-gan[sweep]'."
        try:
            check_choice(group, choice, known)
        except UserError as mistake:
            return str(mistake)
    if several := re.search(r"Ambiguous value for argument '(.+?)=(.+)'", text):
        return f"{several[0]}: give one value, [{several[2]}] for a list, or -m to sweep."
    if unknown := re.search(r"Could not override '(.+?)'", text):
        inner = getattr(cause, "full_key", None) or unknown[1]
        nested = not (inner.startswith(unknown[1]) or unknown[1].startswith(inner))
        key = f"{unknown[1]}.{inner}" if nested else max(inner, unknown[1], key=len)
        return _no_setting(key, schema)
    if wrong := re.search(r"Error merging override \+*([^=]+)=(.*)", text, re.DOTALL):
        if "not in" in because:
            return _no_setting(getattr(cause, "full_key", wrong[1]), schema)
        group = wrong[1].replace(".", "/")
        if known := choices(group):
            return f"{wrong[1]}={wrong[2]}: choose {group}=... , one of {', '.join(known)}."
        return f"{wrong[1]}={wrong[2]}: use {_allowed(dict(_settings(schema)).get(wrong[1]))}."
    if "Unexpected type for root" in text:
        return "a key lies inside a part that is null: choose the part first, as data=demo does."
    if "No trials are completed" in text:
        return "no job has given the sweeper a figure."
    if type(error).__module__.split(".")[0] in ("joblib", "submitit"):
        return f"a job was ended from outside ({text.splitlines()[0]}): go on with resume=true."
    place = re.match(r"In '(.+)': \w+ raised while composing config:\s", because)
    parts = [f"{place[1]}.yaml"] if place else []
    parts += filter(None, [getattr(cause, "full_key", None)])
    told = because[place.end() :] if place else because or type(error).__name__
    return ": ".join([*parts, " ".join(told.partition("full_key:")[0].split())])


def _no_setting(key: str, schema: type) -> str:
    """Says that a key is not known, and which one may be meant."""
    known = dict(_settings(schema))
    parent, _, leaf = key.rpartition(".")
    beside = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
    elsewhere = [name for name in known if name.endswith(f".{leaf}")]
    if ".options." in key:  # the one place whose keys no schema lists
        hint = f"A new option takes a plus: +{key}=... . "
    elif close := difflib.get_close_matches(leaf, beside, 1):
        hint = f"Did you mean '{parent}{'.' if parent else ''}{close[0]}'? "
    elif elsewhere:
        hint = f"Did you mean '{elsewhere[0]}'? "
    else:
        hint = f"{parent} has {', '.join(beside)}. " if parent and beside else ""
    return f"there is no setting '{key}'. {hint}See --help, or --cfg job for all."


def _settings(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a dataclass with its type, those of inner dataclasses included."""
    for name, hint in typing.get_type_hints(schema).items():
        yield path + name, hint
        for kind in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
            if dataclasses.is_dataclass(kind):
                yield from _settings(kind, f"{path}{name}.")


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _allowed(hint: Any) -> str:
    """What a setting of a type may be, in words."""
    if isinstance(hint, types.UnionType):
        return " or ".join(map(_allowed, typing.get_args(hint)))
    if hint is types.NoneType:
        return "null"
    if typing.get_origin(hint) is list:
        return f"a list, each item {_allowed(typing.get_args(hint)[0])}"
    if dataclasses.is_dataclass(hint):
        return f"{{{', '.join(f'{f.name}: ...' for f in dataclasses.fields(hint))}}}"
    return _KINDS.get(hint, "another value")
