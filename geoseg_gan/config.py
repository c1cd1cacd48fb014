"""The frame of every command: a Hydra app with a typed configuration."""

import dataclasses
import io
import json
import logging
import os
import pkgutil
import re
import shlex
import sys
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import hydra
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Quote, QuotedString
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from geoseg_gan.utils.errors import UserError, check_values, one_line, show_warnings_as_lines
from geoseg_gan.utils.files import atomic_path, sweep_beside
from geoseg_gan.utils.messages import (
    CONFIGS,
    Texts,
    choices,
    commands_of,
    explain,
    help_text,
    knob_texts,
    mistake,
    settings_of,
)
from geoseg_gan.utils.processes import end_with_parent
from geoseg_gan.utils.signals import Stopped, raising_signals
from geoseg_gan.utils.yaml_files import load_yaml

ConfigT = TypeVar("ConfigT")

_COMMANDS: dict[type, str] = {}
_OF_MASKS = ("palette", "ignore", "mask_format", "index_map", "unknown")  # settings in data
_NUMBERS = (bool, int, float)  # what Hydra may take a text for
_PARTS = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\[\](),]+""")  # of a list or sweep

OmegaConf.register_new_resolver("pick", lambda key, table: table[key])
OmegaConf.register_new_resolver("file_name", lambda text: re.sub(r"[^\w.,=+-]", "_", text))


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
    _COMMANDS[schema] = name
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)

    def task(config: DictConfig) -> Any:
        return _run(config, schema, run)

    def main() -> None:
        show_warnings_as_lines()
        if isinstance(sys.stdout, io.TextIOWrapper):  # names of files can hold what it cannot show
            sys.stdout.reconfigure(errors="backslashreplace")
        # What Optuna imports, what calls it, and what tells of its cache of fonts.
        for library in ("alembic", "hydra_plugins", "matplotlib"):
            logging.getLogger(library).setLevel(logging.ERROR)
        _JobError.count = 0
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, which are explained below
        try:
            with raising_signals():
                parser, options = _command_line(schema)
                if options.help:
                    print(help_text(name))
                else:  # as hydra.main does, which reads the command line itself
                    hydra.version.setbase("1.3")
                    _run_hydra(options, parser, task, f"pkg://{CONFIGS}", name)
            sys.stdout.flush()
        except BrokenPipeError:  # as in `--help | head`; what is left to print goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        except Stopped as stop:
            _print_error(" ".join([str(stop), *getattr(stop, "__notes__", ())]))
            sys.exit(stop.code)
        except Exception as error:
            _print_error(explain(error, schema))
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
    end_with_parent()
    folder = Path(HydraConfig.get().runtime.output_dir)
    sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    outputs = [key for key in ("save_dir", "out_dir", "data_root") if key in config]
    try:
        if sweep and outputs:
            config[outputs[0]] = str(folder)
            if config.get("resume"):  # but a job that the sweep had not come to starts
                config["resume"] = any(folder.glob("*.ckpt"))
        content: Any = typed(config, schema)
        with raising_signals():
            figures = pkgutil.resolve_name(run)(content)
    except Exception as error:
        line = mistake(error)
        if line is None:
            traceback.print_exc()
            line = f"{type(error).__name__}: {error}"
        _print_error(line + (f" (In the job {folder.name}.)" if sweep else ""))
        if sweep:
            return _JobError(line)
        sys.exit(1)
    return figures.get("objective") if isinstance(figures, dict) else figures


def _print_error(line: str) -> None:
    print(f"error: {one_line(line)}", file=sys.stderr, flush=True)


def _command_line(schema: type) -> tuple[ArgumentParser, Namespace]:
    """Hydra's parser and what it finds on the command line, texts as they were typed.

    Raises:
        UserError: If Hydra has no such options, or not in this order, or a group no such choice.
    """

    def refuse(message: str) -> NoReturn:
        found = re.search(r"--([\w.]+)(?:=(\S+))?", message)
        if found and found[1] in dict(settings_of(schema)):
            # The value of `--epochs 3` is an argument of its own, which the message may lack.
            _, _, rest = " ".join(sys.argv).partition(f" --{found[1]} ")
            value = found[2] or rest.partition(" ")[0]
            value = "..." if not value or value.startswith("-") or "=" in value else value
            raise UserError(f"{message}. Write {found[1]}={value}; see --help.")
        raise UserError(f"{message}. Options stand before all settings or behind them; see --help.")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    options = parser.parse_args()
    if options.experimental_rerun is not None:
        raise UserError("--experimental-rerun reads a pickle, which can run code: not supported.")
    if not options.help:
        options.overrides = texts_as_typed(schema, options.overrides)
        _check_groups(options.overrides, schema)
    return parser, options


def texts_as_typed(schema: type, overrides: Sequence[str]) -> list[str]:
    """Overrides in which the values of settings that are texts are quoted where they need it.

    Hydra reads 2024_06_01 as the number 20240601, 1e5 as 100000.0, and cannot read `a[b]` or `ü`.
    Null stays null, and quoted values, lists and sweeps stay what they are.
    """
    kinds = dict(settings_of(schema))
    return [_as_typed(kinds.get(text.partition("=")[0].lstrip("+")), text) for text in overrides]


def _as_typed(kind: Any, override: str) -> str:
    key, _, text = override.partition("=")
    if kind not in (str, str | None, list[str], list[str] | None, Texts):
        return override
    parser = OverridesParser.create()
    try:
        value = parser.parse_override(override).value()
    except HydraException:
        is_list = kind in (list[str], list[str] | None) or (kind == Texts and text[:1] == "[")
        whole = not is_list and text[:1] not in ("'", '"') and "," not in text
        return quoted(key, text) if whole else override
    if isinstance(value, _NUMBERS):
        return quoted(key, text.strip())
    if not isinstance(value, list | ChoiceSweep):
        return override

    def part_as_typed(found: re.Match[str]) -> str:
        is_number = isinstance(parser.parse_rule(found[0].strip(), "primitive"), _NUMBERS)
        return f"'{found[0].strip()}'" if is_number else found[0]

    return f"{key}={_PARTS.sub(part_as_typed, text)}"


def quoted(key: str, text: str) -> str:
    """The override that gives a setting a text, whatever is in it."""
    return f"{key}={QuotedString(text, Quote.single).with_quotes()}"


def as_override(key: str, text: str, schema: type) -> str:
    """The same, with quotes only where a command line of the schema needs them."""
    plain_one = f"{key}={text}"
    try:
        [override] = texts_as_typed(schema, [plain_one])
        if OverridesParser.create().parse_override(override).value() == text:
            return plain_one
    except HydraException:
        pass
    return quoted(key, text)


def value_as_override(key: str, value: Any, schema: type) -> str:
    """The same for any value that a stored configuration has, such as null or a list."""
    if isinstance(value, str):
        return as_override(key, value, schema)
    return f"{key}={json.dumps(value, ensure_ascii=False, default=str)}"


def _check_groups(overrides: Sequence[str], schema: type) -> None:
    """Refuses what is no choice of a group, of which Hydra says neither the group nor the value.

    Of an experiment for other commands it would name a setting that the user has not given.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        known = choices(override.key_or_group)
        if not known or override.is_delete() or override.is_sweep_override():
            continue
        value = override.value()
        if value is None and override.key_or_group == "experiment":  # which is none by default
            continue
        given = f"{override.key_or_group}={override.get_value_string()}"
        if not all(isinstance(v, str) for v in (value if isinstance(value, list) else [value])):
            raise UserError(f"{given}: use one of {', '.join(known)}.")
        if override.key_or_group == "experiment" and value in known:
            own = commands_of(str(value))
            if _COMMANDS[schema] not in own:
                scripts = " or ".join(f"scripts/{name}.py" for name in own)
                raise UserError(f"{given} is an experiment of {scripts}.")


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's reader of all YAML files outside of the package, which may be a stranger's.

    They are those of --config-dir, --config-path and hydra.searchpath. What Hydra or OmegaConf
    would run or look up for them is refused: settings of `hydra`, `_target_`, and resolvers, such
    as `oc.env`. It bears the name of the class whose place it takes, as Hydra wants it.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        """Reads a file.

        Raises:
            UserError: If it is no YAML file, too large, or asks for what is refused.
        """
        path = Path(self.path, self._normalize_file_name(config_path)).resolve()
        text, content = load_yaml(path)
        header = self._get_header_dict(text[:512])
        chosen = [config_path, header, content.get("defaults")]
        if _is_refused(content) or _is_refused(chosen, True):
            raise UserError(
                f"{path}: config files from outside the package may set neither hydra nor "
                "_target_, nor use resolvers, as in ${oc.env:NAME}. Give these on the command line."
            )
        place = f"{self.scheme()}://{self.path}"
        return ConfigResult(self.provider, place, OmegaConf.create(content), header)


# The first reader of a scheme stays: Hydra's own, of the same name, comes later.
SourcesRegistry.instance().types["file"] = FileConfigSource


def _is_refused(node: Any, choosing: bool = False) -> bool:
    """Whether Hydra or OmegaConf could run something for a part of a file.

    Args:
        node: The part.
        choosing: Whether it chooses further files or a place, so that its texts are keys as well.
    """
    if isinstance(node, dict):
        keys = " ".join(map(str, node))
        if re.search(r"\b_target_\b|(?<![^\W_])hydra(?![^\W_])|\$", keys):
            return True
        node = list(node.values())
    if isinstance(node, list):
        return any(_is_refused(entry, choosing) for entry in node)
    text = str(node)
    if choosing and ("hydra" in text or "$" in re.sub(r"^\$\{[\w./@]+\}$", "", text)):
        return True
    return bool(re.search(r"\$\{.*:", text, re.DOTALL))


class SweepNames(Callback):
    """Names the folders of a sweep's jobs by the settings in which the jobs differ."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Has Hydra leave out of the names what the command line gives one value."""
        parsed = OverridesParser.create().parse_overrides(config.hydra.overrides.task)
        fixed = ",".join(f"'{o.key_or_group}'" for o in parsed if not o.is_sweep_override())
        with read_write(config), open_dict(config):
            without = f"hydra.job.config.override_dirname.exclude_keys=[{fixed}]"
            config.hydra.overrides.hydra.append(without)


def command_line() -> list[str]:
    """The overrides of the command that runs, of its job in a sweep; empty where none runs."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def script_command(name: str, words: Sequence[str], config_dir: Path | None = None) -> str:
    """Another command with the data settings of the one that runs, and `words` in place of theirs.

    Args:
        name: The command.
        words: Its settings, as overrides.
        config_dir: The folder of config files for it; by default that of the one that runs.
    """
    given = [word for word in command_line() if word.startswith(("data=", "data."))]
    replaced = {word.split("=")[0] for word in words}
    if "data" in replaced:  # another data config, which says how masks are read
        replaced |= {f"data.{key}" for key in _OF_MASKS}
    kept = [word for word in given if word.split("=")[0] not in replaced]
    if config_dir is None and HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders = [Path(source.path) for source in sources if source.provider == "command-line"]
        config_dir = folders[0] if folders else None
    options: list[str] = []
    if config_dir is not None:
        here = config_dir.absolute().is_relative_to(Path.cwd())
        shown = config_dir.absolute().relative_to(Path.cwd()) if here else config_dir
        options = ["--config-dir", str(shown)]
    return shlex.join(["python", f"scripts/{name}.py", *options, *kept, *words])


def compose(schema: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """The configuration that a command of this schema has with these overrides.

    Raises:
        UserError: If the command would refuse them.
    """
    # A command that runs has its own configuration open, and Hydra no place for a second one.
    running = GlobalHydra.instance().is_initialized()
    frame = (
        nullcontext() if running else hydra.initialize_config_module(CONFIGS, version_base="1.3")
    )
    try:
        with frame:
            overrides = texts_as_typed(schema, _with_config_dir(overrides))
            _check_groups(overrides, schema)
            return typed(hydra.compose(_COMMANDS[schema], overrides=overrides), schema)
    except (HydraException, OmegaConfBaseException, AssertionError, ValueError) as error:
        raise UserError(explain(error, schema)) from None


def _with_config_dir(words: Sequence[str]) -> list[str]:
    """Overrides in which `--config-dir FOLDER`, as on a command line, is Hydra's search path."""
    rest = list(words)
    if "--config-dir" not in rest:
        return rest
    at = rest.index("--config-dir")
    if at + 1 == len(rest):
        raise UserError("--config-dir: give the folder of your config files behind it.")
    folder = Path(rest[at + 1]).absolute()
    return [*rest[:at], *rest[at + 2 :], f"hydra.searchpath=['file://{folder}']"]


def typed(config: DictConfig, schema: type[ConfigT]) -> ConfigT:
    """Turns a composed configuration into the schema's dataclass, all the way down.

    Raises:
        UserError: If a value that has no default is not set, or a key is not known.
    """
    try:
        if missing := sorted(OmegaConf.missing_keys(config)):
            meaning = knob_texts(_COMMANDS[schema]).get(missing[0], ("", missing[0]))[1]
            raise UserError(f"{missing[0]} is not set: give {meaning}, as in {missing[0]}=... .")
        # Merging refuses the keys that +key=value has added.
        values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        check_values(values)
        is_stream = OmegaConf.select(config, "data.format") == "stream"
        for key, value in values.items():
            if value == "":
                raise UserError(f"{key} is empty: give a value, or leave it out.")
            if "://" in str(value) and not (key == "data_root" and is_stream):
                raise UserError(f"{key}={value}: only data_root, of a stream, can be an address.")
        merged = OmegaConf.merge(schema, values)
        check_values(OmegaConf.to_container(merged))  # again, for numbers that were texts
        return cast(ConfigT, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise UserError(explain(error, schema)) from None


def plain(config: Any) -> dict[str, Any]:
    """A typed configuration as plain dicts, as checkpoints and JSON files keep it."""
    return dataclasses.asdict(config)


def write_yaml(path: Path, config: Any) -> None:
    """Writes a typed configuration as YAML."""
    with atomic_path(path) as scratch:
        OmegaConf.save(OmegaConf.create(plain(config)), scratch)


def stored_yaml(folder: Path) -> dict[str, Any] | None:
    """The settings that a folder's `config.yaml` says it was made with; None without one."""
    path = folder / "config.yaml"
    return load_yaml(path)[1] if path.is_file() else None


def has_settings(stored: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether stored settings are these; what earlier versions could set besides does not count."""
    return settings == {key: stored.get(key) for key in settings}


def is_made(folder: Path, settings: dict[str, Any], stored: dict[str, Any] | None) -> bool:
    """Whether a folder was made with these settings, of which the user is then told.

    Args:
        folder: The folder.
        settings: What the command would make it with, as plain dicts.
        stored: What it was made with; None where it is not there.
    """
    if stored is None or not has_settings(stored, settings):
        return False
    sweep_beside(folder)  # a kill may have left it after the folder was whole
    print(f"{folder} is there already, made with these settings. Remove it to make it again.")
    return True
