"""Typed configuration, and the frame in which every command runs as a Hydra app."""

import dataclasses
import difflib
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from geoseg_gan.callbacks.evaluation import MONITORS
from geoseg_gan.config_help import CONFIGS, choice_names, help_of, settings_of
from geoseg_gan.errors import UserError, check_choice
from geoseg_gan.models.registry import DISCRIMINATORS, GENERATORS
from geoseg_gan.resume import LAST
from geoseg_gan.schemas import SCHEMAS, TrainConfig
from geoseg_gan.sweeps import (
    CONSTANT,
    JOB,
    JobFailure,
    add_overrides,
    become_job_of_parent,
    is_same_run,
    job_folder,
    job_processes,
    launcher_errors,
    read_result,
    say_error,
    settle,
)

ConfigT = TypeVar("ConfigT")

_EXTRAS = r"Could not find '(hydra/launcher|hydra/sweeper)/(joblib|submitit_\w+|optuna)'"
"""What Hydra says where a plugin of the extra `sweep` is not installed."""


def command(schema: type[ConfigT]) -> Callable[[Callable[[ConfigT], Any]], Callable[[], None]]:
    """Makes a function of a typed configuration a Hydra app.

    A user's mistake becomes one line on stderr and exit code 1. In a sweep the failed job prints
    its line, the others run, and the exit code is 1 at the end.

    Args:
        schema: The configuration's dataclass; its entry in SCHEMAS names the app's primary config.
    """
    name = next(name for name, known in SCHEMAS.items() if known is schema)
    outputs = ("save_dir", "out_dir", "data_root")
    output = next((key for key in outputs if key in settings_of(schema)), None)

    def decorate(run: Callable[[ConfigT], Any]) -> Callable[[], None]:
        @functools.wraps(run)
        def main() -> None:
            become_job_of_parent()
            register()
            settle()
            # Exceptions are told apart below: Hydra itself would print every one as its own.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            script = str(Path(sys.argv[0]).absolute())

            # Launchers pickle it; all that it needs elsewhere are its arguments.
            def task(config: DictConfig) -> Any:
                return _run_task(config, run, schema, output, script)

            task.__module__ = run.__module__  # of which Hydra makes the name of jobs
            app = hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name=name)
            try:
                os.environ[CONSTANT] = ",".join(_constant_keys(sys.argv[1:]))
                with JobFailure.heard() as failures, launcher_errors():
                    app(task)()
            except (HydraException, OmegaConfBaseException) as error:
                say_error(_explain(error, schema))
                sys.exit(1)
            except UserError as error:
                say_error(str(error))
                sys.exit(1)
            except KeyboardInterrupt:
                say_error("interrupted; what was finished is saved.")
                sys.exit(130)
            finally:
                # Told to this sweep's processes; what the caller starts next is no part of it.
                for variable in (CONSTANT, JOB):
                    os.environ.pop(variable, None)
            if failures:
                sys.exit(1)

        return main

    return decorate


def typed(config: DictConfig, schema: type[ConfigT]) -> ConfigT:
    """Turns a composed configuration into the schema's dataclass, all the way down.

    Raises:
        UserError: If a value that has no default is not set.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        key = missing[0]
        text = (
            settings_of(schema)[key].metadata.get("help", key)
            if key in settings_of(schema)
            else key
        )
        raise UserError(f"{key} is not set: give {text}, as in {key}=... .")
    content = OmegaConf.to_object(config)
    assert isinstance(content, schema)
    return content


def plain(config: Any) -> dict[str, Any]:
    """A typed configuration as plain dicts, as checkpoints and JSON files keep it."""
    return dataclasses.asdict(config)


def write_yaml(path: Path, config: Any) -> None:
    """Writes a typed configuration as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(plain(config)), path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads what `write_yaml` wrote, as plain dicts."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


@functools.cache
def register() -> None:
    """Registers schemas and resolvers with Hydra; a second call changes nothing."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
    for kind, networks in (("generator", GENERATORS), ("discriminator", DISCRIMINATORS)):
        for name, network in networks.items():
            store.store(f"{name}_schema", constructor_schema(network, name), f"model/{kind}")
    OmegaConf.register_new_resolver("knob_help", help_of, replace=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    OmegaConf.register_new_resolver("direction_of", _direction_of, replace=True)


def read_group(group: str) -> dict[str, dict[str, Any]]:
    """Composes every choice of a config group, as `model/generator` is one.

    Returns:
        The settings of each choice by its name, as plain types.
    """
    with _configs():
        found: dict[str, dict[str, Any]] = {}
        for choice in choice_names(group):
            content = OmegaConf.select(compose(f"{group}/{choice}"), group.replace("/", "."))
            settings: Any = OmegaConf.to_container(content, resolve=True)
            found[choice] = settings
    return found


def compose_model(name: str) -> TrainConfig:
    """The training configuration with a choice of `model`, and the loss that it brings.

    Raises:
        UserError: If there is no such choice.
    """
    check_choice("model", name, choice_names("model"))
    return compose_train([f"model={name}"])


def compose_train(overrides: Sequence[str]) -> TrainConfig:
    """The configuration that the train command would have.

    Args:
        overrides: What its command line says.

    Raises:
        UserError: If it would refuse them.
    """
    try:
        with _configs():
            return typed(compose("train", overrides=list(overrides)), TrainConfig)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{_explain(error, TrainConfig)} (In {' '.join(overrides)}.)") from None


def _configs() -> AbstractContextManager[None]:
    register()
    # A command that runs has its own configuration open, and Hydra no place for a second one.
    running = GlobalHydra.instance().is_initialized()
    return nullcontext() if running else initialize_config_module(CONFIGS, version_base="1.3")


def constructor_schema(network: type, name: str) -> type:
    """A dataclass of the keyword-only arguments of a network's constructor, with their defaults.

    So a misspelt or mistyped model setting is refused when composing, and the constructor stays
    the one place where settings are listed.
    """
    parameters = inspect.signature(network).parameters.values()
    fields = [("name", str, field(default=name))]
    fields += [
        (p.name, p.annotation, field(default=p.default))
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    return dataclasses.make_dataclass(f"{network.__name__}Settings", fields)


def _constant_keys(arguments: Sequence[str]) -> list[str]:
    """The settings that a command line gives one value."""
    overrides = [a for a in arguments if not a.startswith("-") and "=" in a]
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [o.key_or_group for o in parsed if not o.is_sweep_override()]


def _run_task(
    config: DictConfig,
    run: Callable[[ConfigT], Any],
    schema: type[ConfigT],
    output: str | None,
    script: str,
) -> Any:
    """Runs a command's function once, and returns what a sweeper is to be given."""
    settle()
    state = HydraConfig.get()
    sweep = state.mode is RunMode.MULTIRUN
    try:
        if not sweep:
            return _figure(run(typed(config, schema)))
        with job_processes(script):
            return _run_job(config, run, schema, output)
    except Exception as error:
        # Whatever is wrong with a sweep's job, the others shall run.
        if not sweep and not isinstance(error, UserError):
            raise
        return JobFailure.of(error, Path(state.runtime.output_dir).name if sweep else None)


def _run_job(
    config: DictConfig, run: Callable[[ConfigT], Any], schema: type[ConfigT], output: str | None
) -> Any:
    """Runs a sweep's job in a folder of its own, unless it has ended well there before."""
    state = HydraConfig.get()
    folder = Path(state.runtime.output_dir)
    optimises = not state.sweeper["_target_"].endswith(".BasicSweeper")
    if optimises and config.get("evaluate_every") == 0:
        raise UserError(
            "the sweeper needs a figure to go by: set evaluate_every=1 or more, and inner_share."
        )
    going_on = bool(config.get("resume"))
    if going_on and not (folder / LAST).exists():
        config["resume"] = False  # a job that the sweep had not come to
    if output is not None:
        config[output] = str(folder)
        # Quoted, since a folder that is named by overrides holds equals signs and commas.
        quoted = "'" + str(folder).replace("'", "\\'") + "'"
        own = [o for o in state.overrides.task if o.split("=")[0] not in (output, "resume")]
        resume = [f"resume={config.resume}"] if "resume" in config else []
        os.environ[JOB] = "\n".join([*own, *resume, f"{output}={quoted}"])
    content = typed(config, schema)
    result = read_result(folder) if going_on else None
    if result is not None and is_same_run(read_yaml(folder / "config.yaml"), plain(content)):
        print(f"{folder} has ended well before.")
        return result["objective"]
    figure = _figure(run(content))
    add_overrides(folder, state.overrides.task)
    return figure


def _figure(figures: Any) -> Any:
    """What a sweeper that optimises goes by."""
    return figures.get("objective") if isinstance(figures, dict) else figures


def _direction_of(monitor: str) -> str:
    """Where a sweeper shall go by a figure that training monitors."""
    check_choice("monitor", monitor, MONITORS)
    return "maximize" if MONITORS[monitor] > 0 else "minimize"


def _explain(error: Exception, schema: type) -> str:
    """One line for what Hydra or OmegaConf say in several."""
    text = " ".join(str(error).split())
    cause = " ".join(str(error.__cause__ or "").split())
    if isinstance(error.__cause__, UserError):
        return cause
    if extra := re.search(_EXTRAS, text):
        return f"{extra[1]}={extra[2]} is not installed: pip install 'geoseg-gan[sweep]'."
    wrong = re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text)
    if wrong and "not in" in cause + text:
        key = wrong.group(1) or wrong.group(2)
        close = difflib.get_close_matches(key.split(".")[0], settings_of(schema), 1)
        hint = f" Did you mean '{close[0]}'?" if close and close[0] != key.split(".")[0] else ""
        if ".options." in key:  # the one place whose keys no schema lists
            hint = f" A new option takes a plus: +{key}=... ."
        inner = re.search(r"Key '([^']+)' (?:is )?not in", cause)
        what = f" (no '{inner.group(1)}' there)" if inner and "." in key else ""
        return f"there is no setting '{key}'{what}.{hint} See --help, or --cfg job for all."
    if isinstance(error, OverrideParseException):
        text += """. Quote values that hold special characters twice, as in "key='a[b]'"."""
    return f"{text} {cause}".strip()
