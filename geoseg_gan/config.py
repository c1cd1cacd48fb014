"""The frame in which every command runs as a Hydra app with a typed configuration."""

import dataclasses
import difflib
import errno
import importlib
import os
import re
import sys
import traceback
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
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from geoseg_gan.utils.errors import UserError

ConfigT = TypeVar("ConfigT")

CONFIGS = "geoseg_gan.configs"
"""The package of all YAML files."""

_OUTPUTS = ("save_dir", "out_dir", "data_root")
_SCHEMAS: dict[str, type] = {}
_SYSTEM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG)


def command(name: str, schema: type[ConfigT], run: str) -> Callable[[], None]:
    """Makes a function of a typed configuration a Hydra app.

    A user's or the system's mistake becomes one line on stderr and exit code 1. In a sweep the
    failed job prints its line, the others run, and the exit code is 1 at the end.

    Args:
        name: The command's primary config, `configs/{name}.yaml`.
        schema: The configuration's dataclass.
        run: The function, as in "geoseg_gan.training.train:train". It is imported only when it
            runs, so that `--help` loads no torch.
    """
    _SCHEMAS[name] = schema
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)

    def main() -> None:
        # Hydra would print every exception as its own; they are told apart below.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        failed: list[str] = []

        def task(config: DictConfig) -> Any:
            return _run(config, schema, run, failed)

        app = hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name=name)
        try:
            app(task)()
        except (HydraException, OmegaConfBaseException) as error:
            _say(explain(error, name))
            sys.exit(1)
        except KeyboardInterrupt:
            _say("interrupted; what was finished is saved.")
            sys.exit(130)
        except Exception as error:
            if not failed:  # else it has been told when its job failed
                _say(_one_line(error) or traceback.format_exc())
            sys.exit(1)
        if failed:
            sys.exit(1)

    return main


def _run(config: DictConfig, schema: type, run: str, failed: list[str]) -> Any:
    """Runs a command's function once; returns what a sweeper optimises."""
    state = HydraConfig.get()
    sweep = state.mode is RunMode.MULTIRUN
    folder = Path(state.runtime.output_dir)
    try:
        if sweep:
            output = next(key for key in _OUTPUTS if key in config)
            config[output] = str(folder)
            if config.get("resume") and not folder.exists():
                config["resume"] = False  # a job that the sweep had not come to
        content = typed(config, schema)
        module, _, function = run.partition(":")
        figures = getattr(importlib.import_module(module), function)(content)
    except Exception as error:
        line = _one_line(error)
        if sweep:
            _say(f"{folder.name}: {line or traceback.format_exc()}")
            failed.append(folder.name)
            raise
        if line is None:
            raise
        _say(line)
        sys.exit(1)
    return figures.get("objective") if isinstance(figures, dict) else figures


def compose(schema: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """The configuration that a command would have.

    Args:
        schema: The dataclass of the command.
        overrides: What its command line says.

    Raises:
        UserError: If the command would refuse them.
    """
    name = _name_of(schema)
    # A command that runs has its own configuration open, and Hydra no place for a second one.
    running = GlobalHydra.instance().is_initialized()
    frame = nullcontext() if running else initialize_config_module(CONFIGS, version_base="1.3")
    try:
        with frame:
            return typed(hydra_compose(name, overrides=list(overrides)), schema)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, name)) from None


def typed(config: DictConfig, schema: type[ConfigT]) -> ConfigT:
    """Turns a composed configuration into the schema's dataclass, all the way down.

    Raises:
        UserError: If a value that has no default is not set, or a key is not known.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        key = missing[0]
        text = knob_texts(_name_of(schema)).get(key, ("", key))[1]
        raise UserError(f"{key} is not set: give {text}, as in {key}=... .")
    if unknown := next(_unknown(config, schema), None):
        raise UserError(f"there is no setting '{unknown}'. See --help, or --cfg job for all.")
    return cast(ConfigT, OmegaConf.to_object(config))


def _name_of(schema: type) -> str:
    return next(name for name, known in _SCHEMAS.items() if known is schema)


def _unknown(config: Any, schema: Any, path: str = "") -> Iterator[str]:
    """Keys that +key=value has added and no dataclass lists."""
    if not (dataclasses.is_dataclass(schema) and isinstance(config, DictConfig)):
        return
    for key in config:
        if str(key) not in schema.__dataclass_fields__:
            yield f"{path}{key}"
        elif not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            yield from _unknown(config[key], OmegaConf.get_type(config, key), f"{path}{key}.")


def plain(config: Any) -> dict[str, Any]:
    """A typed configuration as plain dicts, as checkpoints and JSON files keep it."""
    return dataclasses.asdict(config)


def write_yaml(path: Path, config: Any) -> None:
    """Writes a typed configuration as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(plain(config)), path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads what `write_yaml` wrote, as plain dicts."""
    content = cast(dict[Any, Any], OmegaConf.to_container(OmegaConf.load(path)))
    return {str(key): value for key, value in content.items()}


def choices(group: str) -> list[str]:
    """The choices of a config group."""
    folder = Path(str(resources.files(CONFIGS))) / group
    return sorted(choice.stem for choice in folder.glob("*.yaml"))


def knob_texts(name: str) -> dict[str, tuple[str, str]]:
    """Default and comment of every top-level knob of a command, as its YAML file has them."""
    text = (Path(str(resources.files(CONFIGS))) / f"{name}.yaml").read_text()
    found = re.findall(r"^(\w+): (.+?)(?:  # (.*))?$", text, re.MULTILINE)
    return {key: (default, comment) for key, default, comment in found}


def _help(name: str) -> str:
    """What `--help` tells of a command: the head of its YAML file, knobs, and choices of groups."""
    folder = Path(str(resources.files(CONFIGS)))
    text = (folder / f"{name}.yaml").read_text()
    lines = [line.removeprefix("# ") for line in text.partition("defaults:")[0].splitlines()]
    lines.append("")
    lines += [
        f"  {f'{key}={default}'.replace(', ', ','):<34}{comment}"
        for key, (default, comment) in knob_texts(name).items()
    ]
    groups = re.findall(r"^  - (?!override)(\w+)(?:@\S+)?: \S+$", text, re.MULTILINE)
    if groups:
        lines += ["", "Groups, chosen as group=choice and adjusted as group.key=value:"]
    for group in groups:
        inner = [p.relative_to(folder).as_posix() for p in sorted((folder / group).glob("*/"))]
        lines += [f"  {part}: {', '.join(choices(part))}" for part in (group, *inner)]
    lines += ["", "--cfg job shows every setting; -m sweeps over comma-separated values."]
    return "\n".join(lines).replace("$", "$$")  # Hydra's help is a string.Template


OmegaConf.register_new_resolver("knobs", _help, replace=True)


def _say(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)


def _one_line(error: BaseException) -> str | None:
    """One line for a mistake of the user or the system; None for one of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory: use a smaller bs or image_size, or accumulate=2 in training."
    if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
        return f"{error.strerror}: {error.filename or 'while writing'}. Nothing was overwritten."
    return None


_EXTRAS = r"Could not find '(hydra/launcher|hydra/sweeper)/(joblib|submitit_\w+|optuna)'"
_KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def explain(error: Exception, name: str) -> str:
    """One line in the user's words for what Hydra or OmegaConf say of a command line."""
    text = " ".join(str(error).split())
    cause = error.__cause__ or error
    because = " ".join(str(cause).split())
    if isinstance(cause, UserError):
        return str(cause)
    if extra := re.search(_EXTRAS, text):
        return f"{extra[1]}={extra[2]} is not installed: pip install 'geoseg-gan[sweep]'."
    if wrong := re.search(r"Value '(.*?)'.* could not be converted to (\w+)", because):
        key = getattr(cause, "full_key", None) or "a setting"
        return f"{key}={wrong[1]}: use {_KINDS.get(wrong[2], wrong[2])}."
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text)
    if unknown and "not in" in because + text:
        key = unknown[1] or unknown[2]
        first = key.split(".")[0]
        close = difflib.get_close_matches(first, knob_texts(name), 1)
        hint = f" Did you mean '{close[0]}'?" if close and close[0] != first else ""
        return f"there is no setting '{key}'.{hint} See --help, or --cfg job for all."
    if isinstance(error, OverrideParseException):
        text += """. Quote values that hold special characters twice, as in "key='a[b]'"."""
    return text
