"""A run's folder: whether it holds a run, how one is resumed, and what a finished one leaves."""

import math
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from geoseg_gan.config import (
    as_override,
    plain,
    script_command,
    stored_yaml,
    value_as_override,
    write_yaml,
)
from geoseg_gan.data.datamodule import PairDataModule
from geoseg_gan.data.fingerprint import Fingerprints, refuse_change
from geoseg_gan.data.stream import check_root
from geoseg_gan.data.synthetic import GENERATION
from geoseg_gan.models.checkpoints import read_training_state
from geoseg_gan.models.settings import current_config
from geoseg_gan.training.settings import TrainingConfig
from geoseg_gan.utils.device import free_memory
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import check_apart, write_json
from geoseg_gan.utils.reading import Number, read_json
from geoseg_gan.utils.tables import console, print_table

LAST = "last.ckpt"
_LEAST_BYTES = 64  # a pixel: a one-hot mask, real and generated images, one map of features

OUTCOME = "result.json"
"""The file that a run of train leaves once it has finished."""

_OUTCOME = {
    "objective": (None, Number()),
    "figures": {"*": (None, Number())},
    "monitor?": str,
    "*": Number(),
}

FREE = (
    *("data_root", "out_dir", "epochs", "resume", "samples", "checkpoint_minutes"),
    *("devices", "precision", "trainer"),
)
"""Settings of every training command that may differ between a run and its continuation."""


def check_run(
    config: TrainingConfig, networks: str, others: Sequence[str], accumulate: int = 1
) -> None:
    """Refuses devices, a batch and folders with which no run can start.

    Args:
        config: The run.
        networks: What it leaves in `out_dir`, a pattern as in "G_e*.pt".
        others: Patterns of the other files that it leaves, once a `last.ckpt` is there.
        accumulate: Into how many micro-batches each device divides its share of a batch.

    Raises:
        UserError: Naming what does not fit.
    """
    config.trainer.check(config.devices, config.precision)
    nodes = config.trainer.num_nodes
    if config.bs % (config.devices * nodes * accumulate):
        machines = f", times trainer.num_nodes={nodes}" if nodes > 1 else ""
        parts = f", times accumulate={accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"bs={config.bs} is the batch over all devices and must be a multiple of "
            f"devices={config.devices}{machines}{parts}."
        )
    need = _LEAST_BYTES * config.bs // (nodes * accumulate) * config.image_size**2
    if not config.trainer.on_gpu() and need > (free := free_memory()):
        raise UserError(
            f"bs={config.bs} with image_size={config.image_size} takes more than "
            f"{need / 1e9:,.0f} GB of memory; {free / 1e9:,.0f} GB are free. Lower one of them."
        )
    check_root(config.data, Path(config.data_root))
    out_dir = Path(config.out_dir)
    check_apart("out_dir", out_dir, Path(config.data_root))
    if (out_dir / GENERATION).is_file():
        raise UserError(f"out_dir={out_dir} holds generated pairs. Choose another run folder.")
    has_run = (out_dir / LAST).exists() or any(out_dir.glob(networks))
    if has_run and not config.resume:
        raise UserError(
            f"out_dir={out_dir} already holds a run. Continue it with resume=true, or choose "
            "another out_dir."
        )
    if has_run and not (out_dir / LAST).exists():
        raise UserError(
            f"resume=true: {out_dir} holds a run that has ended, without the {LAST} to continue it "
            "from. Choose another out_dir; init_from starts a new run from its networks."
        )
    if not has_run and (strange := _not_ours(config, out_dir, others)):
        raise UserError(
            f"out_dir={out_dir} holds {strange} of something else, which this run would replace. "
            "Choose another out_dir."
        )
    if config.trainer.requeue and not config.resume:
        raise UserError(
            "trainer.requeue=true runs the same command again: add resume=true, which starts a run "
            "where there is none."
        )


def _not_ours(config: TrainingConfig, out_dir: Path, others: Sequence[str]) -> str | None:
    """A file in a folder without a run that a run of this command would replace; None for none.

    The `config.yaml` may be of this command: a run that was killed early leaves no more.
    """
    stored = stored_yaml(out_dir)
    if stored is not None and not stored.keys() <= plain(config).keys():
        return "config.yaml"
    found = (path.name for pattern in others for path in sorted(out_dir.glob(pattern)))
    return next(found, None)


def find_run(
    config: TrainingConfig, free: Collection[str], outcome: str
) -> tuple[dict[str, Any] | None, bool]:
    """The run that is to go on, where there is one.

    Args:
        config: The run as it is to go on.
        free: Top-level settings that may differ between a run and its continuation.
        outcome: Name of the JSON file that a finished run leaves. It is removed from a run that
            goes on.

    Returns:
        The content of its `last.ckpt`, None for a new run; and whether it has finished.

    Raises:
        UserError: Naming the first setting that differs.
    """
    out_dir = Path(config.out_dir)
    if any(folder.parent == out_dir for folder in config.synthetic_folders):
        free = {*free, "synthetic"}  # what a run has labelled moves with its folder
    if not (config.resume and (out_dir / LAST).exists()):
        if config.resume:
            rank_zero_only(print)(f"Nothing to resume in {out_dir}: starting a run.")
        return None, False
    content = read_training_state(out_dir / LAST)
    stored, settings = current_config(content["config"]), plain(config)
    for key, old, new in differences(stored, settings):
        if new is None and key not in flat(settings):
            raise UserError(
                f"resume=true: the run in {out_dir} has {key}={old}, which this version no longer "
                "has. Finish it with the version that began it, or start a new run in another "
                "out_dir."
            )
        if key.split(".")[0] not in free:
            raise UserError(
                f"resume=true: the run in {out_dir} has {in_words((key, old, new), type(config))}, "
                "or start a new run in another out_dir."
            )
    done = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    limits = [(own["epochs"], own.get("max_minutes")) for own in (stored, settings)]
    if (out_dir / outcome).is_file() and (done >= config.epochs or limits[0] == limits[1]):
        more = "epochs" if done >= config.epochs else "max_minutes"
        rank_zero_only(print)(
            f"The run in {out_dir} has finished, in epoch {done}. Raise {more} to train on."
        )
        return content, True
    if 0 < config.epochs < done:  # with 0, train_segmenter goes on to as many as it had
        raise UserError(
            f"epochs={config.epochs}: the run in {out_dir} has {plural(done, 'epoch')} already. "
            "Give as many at least."
        )
    (out_dir / outcome).unlink(missing_ok=True)
    return content, False


def refuse_other_data(
    config: TrainingConfig, stored: Mapping[str, Any] | None, found: Fingerprints
) -> None:
    """Refuses, with a UserError, to continue a run on data that have changed since it began.

    Args:
        config: The run as it is to go on.
        stored: The content of its `last.ckpt`; None for a new run.
        found: The fingerprints of the data.
    """
    if stored is not None:
        what = f"resume=true: data_root={config.data_root} is not what the run in {config.out_dir}"
        advice = "Bring that back, or start a new run in another out_dir."
        refuse_change(stored.get("data"), found, f"{what} began with, but", advice)


def differences(
    stored: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """What a stored configuration and a later one, both as plain types, differ in.

    Knobs that the stored one lacks are newer than it and do not count.

    Yields:
        The dotted key, the earlier value and the later one.
    """
    for key, old in stored.items():
        new = settings.get(key)
        if old and isinstance(old, dict) and isinstance(new, dict):
            for name, *values in differences(old, new):
                yield f"{key}.{name}", values[0], values[1]
        elif old != new:
            yield key, old, new


def in_words(difference: tuple[str, Any, Any], schema: type) -> str:
    """One of these, and what to give, in words of the command line of a schema."""
    key, *values = difference
    before, now = (value_as_override(key, value, schema) for value in values)
    return f"{before}, not {now.removeprefix(f'{key}=')}. Give {before}"


def data_summary(
    config: TrainingConfig,
    data: PairDataModule,
    training: str,
    windows: int,
    mixed: str = "every epoch",
) -> dict[str, str]:
    """What is trained and validated on, as lines by title.

    `training` says what it is trained on; `windows` counts those of the validation split; `mixed`
    says of what `synthetic_ratio` is the share.
    """
    index = data.train_index
    validation = f"{plural(windows, 'validation window')} of {config.image_size} px"
    images = f"{plural(index.bands, 'band')} of {index.dtype}"
    shares = zip(data.palette.names, index.class_shares(), strict=True)
    rows = {
        "data": f"{config.data_root}: {training}{validation}, {images}",
        "classes": ", ".join(f"{name} {share:.1%}" for name, share in shares),
    }
    if data.synthetic_folders:
        folders = ", ".join(str(f.folder) for f in data.synthetic_folders)
        pairs = plural(sum(len(f.pairs) for f in data.synthetic_folders), "pair")
        rows["synthetic"] = f"{config.synthetic_ratio:.0%} of {mixed} from {pairs} in {folders}"
    return rows


def announce(trainer: L.Trainer, config: TrainingConfig, rows: dict[str, str]) -> None:
    """Writes `config.yaml` and TensorBoard's hyperparameters, and shows what is about to happen.

    Only the first process writes and prints. `rows` are lines of the summary by title.
    """
    if not trainer.is_global_zero:
        return
    write_yaml(Path(config.out_dir) / "config.yaml", config)
    cast(TensorBoardLogger, trainer.logger).log_hyperparams(flat(plain(config)))
    place = "GPU" if config.trainer.on_gpu() else "CPU"
    last = {
        "device": f"{config.devices} x {place}, precision {config.precision}",
        "output": config.out_dir,
        "watch": shlex.join(["tensorboard", "--logdir", config.out_dir]),
    }
    print_table((rows | last).items())
    if config.data.format == "folder":
        root = as_override("data_root", config.data_root, type(config))
        words = [root, f"image_size={config.image_size}"]
        command = script_command("check_data", words)
        console(soft_wrap=True).print(f"More about the data: {command}")


def write_outcome(out_dir: Path, figures: Mapping[str, float], **facts: Any) -> None:
    """Writes `result.json`: the last logged scalars, the objective among them, and more facts."""
    rest = dict(figures)
    objective = rest.pop("objective", None)
    write_json(out_dir / OUTCOME, {"objective": objective, **facts, "figures": rest})


def read_outcome(out_dir: Path) -> dict[str, Any] | None:
    """Reads what `write_outcome` wrote; None where a run has not finished.

    Raises:
        UserError: If the file is not one that `write_outcome` writes.
    """
    try:
        content = read_json(out_dir / OUTCOME, _OUTCOME, "Remove it, and repeat the run.")
    except FileNotFoundError:
        return None
    return cast(dict[str, Any], content)


def stored_figures(out_dir: Path) -> dict[str, float]:
    """The figures that a finished run of train returned."""
    content = read_outcome(out_dir) or {}
    figures = {name: math.nan if v is None else v for name, v in content["figures"].items()}
    if content["objective"] is not None:
        figures["objective"] = content["objective"]
    return figures


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        leaves |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return leaves
