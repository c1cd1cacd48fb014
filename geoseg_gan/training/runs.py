"""Runs that go on where they stopped: what must be there, and what must not have changed."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from geoseg_gan.models.settings import with_current_names
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import write_json

RESULT = "result.json"

"""The file that a run leaves once it has ended well."""


def write_result(out_dir: Path, figures: Mapping[str, float], **facts: Any) -> None:
    """Writes `result.json`: what a run has come to.

    Args:
        out_dir: The run's folder.
        figures: The last logged scalars; "objective" among them, if there is one.
        facts: What else is told of the run, as plain types.
    """
    finite = {name: v if math.isfinite(v) else None for name, v in figures.items()}
    objective = finite.pop("objective", None)
    write_json(out_dir / RESULT, {"objective": objective, **facts, "figures": finite})


def read_result(out_dir: Path) -> dict[str, Any] | None:
    """Reads what `write_result` wrote; None where a run has not ended well.

    Raises:
        UserError: If the file is not what `write_result` writes.
    """
    path = out_dir / RESULT
    try:
        content = json.loads(path.read_text())
        content["objective"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error!r}). Remove it, and repeat the run."
        ) from None
    assert isinstance(content, dict)
    return content


def add_overrides(out_dir: Path, overrides: Sequence[str]) -> None:
    """Adds a sweep job's overrides to what it has come to, if it has left that."""
    content = read_result(out_dir)
    if content is not None:
        told = dict(override.split("=", 1) for override in overrides)
        write_json(out_dir / RESULT, content | {"overrides": told})


def is_same_run(settings: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether two configurations, as plain types, stand for the same training."""
    free = set(FREE) - {"epochs"}
    ours, theirs = (
        flat({key: value for key, value in s.items() if key not in free})
        for s in (settings, others)
    )
    return ours == theirs


LAST = "last.ckpt"


FREE = (
    "data_root",
    "out_dir",
    "epochs",
    "resume",
    "samples",
    "devices",
    "precision",
    "trainer",
)

"""Settings of every training command that may differ between a run and its continuation."""


def check_out_dir(out_dir: Path, resume: bool, result: str) -> None:
    """Refuses to overwrite a run, and to resume where there is none.

    Args:
        out_dir: The run's folder.
        resume: Whether a run shall go on there.
        result: Pattern of the files that a finished run leaves, as in "G_e*.pt".

    Raises:
        UserError: Naming the folder and what to do.
    """
    has_run = (out_dir / LAST).exists() or any(out_dir.glob(result))
    if has_run and not resume:
        raise UserError(
            f"out_dir={out_dir} already holds a run. Continue it with resume=true, or choose "
            "another out_dir."
        )
    if resume and not (out_dir / LAST).is_file():
        raise UserError(
            f"resume=true, but {out_dir / LAST} does not exist. Correct out_dir, or leave "
            "resume away to start a run."
        )


def point_to_resume(
    out_dir: Path, settings: dict[str, Any], free: Collection[str], epochs: int, result: str
) -> Path:
    """The checkpoint to go on from, once its run is seen to be this one.

    Args:
        out_dir: The run's folder.
        settings: The configuration, plain types.
        free: Top-level settings that may differ between a run and its continuation.
        epochs: How many epochs the run shall have.
        result: Pattern of the files that a finished run leaves.

    Raises:
        UserError: Naming the first setting that differs, or that nothing is left to do.
    """
    last = out_dir / LAST
    content = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
    for key, stored in flat(with_current_names(content["config"])).items():
        now = flat(settings).get(key)
        if key.split(".")[0] not in free and now != stored:
            raise UserError(
                f"resume=true: the run in {out_dir} has {key}={stored}, not {now}. Give "
                f"{key}={stored}, or start a new run in another out_dir."
            )
    done = content["epoch"] + 1
    if done >= epochs and any(out_dir.glob(result)):
        raise UserError(
            f"resume=true: the run in {out_dir} has all its {plural(done, 'epoch')}. "
            f"Give epochs={done + 10} or so to train on."
        )
    return last


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        leaves |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return leaves
