"""Runs that go on where they stopped: what must be there, and what must not have changed."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from geoseg_gan.errors import UserError, plural

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
    for key, stored in flat(content["config"]).items():
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
