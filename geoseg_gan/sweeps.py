"""What the jobs of a sweep need, in whichever process they run, and what a finished run leaves."""

import hashlib
import json
import logging
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from torch import distributed

from geoseg_gan.errors import ToldElsewhereError, UserError
from geoseg_gan.files import write_json
from geoseg_gan.resume import FREE, flat

RESULT = "result.json"
"""The file that a run leaves once it has ended well."""

CONSTANT = "GEOSEG_GAN_CONSTANT"
"""Environment variable that tells a sweep's jobs, wherever they run, which settings all share."""

JOB = "GEOSEG_GAN_JOB"
"""Environment variable that tells the processes of a distributed sweep job which job it is."""

_MEETING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""Environment variables by which Lightning's processes find each other."""


class JobFailure:
    """What a failed job returns in place of a figure; sweepers that optimise take it for none.

    Launchers run jobs in the process of the command, in others or on other machines, from where
    they send pickled what jobs return. The command's process hears of every failure that is made
    there: by a job of its own, or by unpickling that of another.
    """

    _heard: ClassVar["list[JobFailure] | None"] = None

    def __init__(self, text: str, told: bool = False) -> None:
        """Tells the user, if this is the command's process.

        Args:
            text: What went wrong, in a line.
            told: Whether the user knows it already.
        """
        self.text = text
        self.told = told
        if JobFailure._heard is not None:
            # Once, although every process of a job may come upon a mistake.
            if not told and text not in map(str, JobFailure._heard):
                say_error(text)
            JobFailure._heard.append(self)

    @staticmethod
    def of(error: Exception, job: str | None) -> "JobFailure":
        """The failure that an exception means; a traceback of what is no user's mistake is printed.

        Args:
            error: What was raised.
            job: The name of the sweep's job; None if there is no sweep.
        """
        text = str(error)
        if not isinstance(error, UserError):
            traceback.print_exception(error)
            text = f"{type(error).__name__}: {text}"
        if job is not None:
            text = f"{text} (In the job {job}.)"
        return JobFailure(text, isinstance(error, ToldElsewhereError))

    @staticmethod
    @contextmanager
    def heard() -> "Iterator[list[JobFailure]]":
        """Makes this process the command's, and yields a list that its failures join."""
        JobFailure._heard = []
        try:
            yield JobFailure._heard
        finally:
            JobFailure._heard = None

    @staticmethod
    def is_heard() -> bool:
        """Whether this process is the command's, and not one that a launcher has started."""
        return JobFailure._heard is not None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what makes it anew, so that it is heard where it arrives."""
        return JobFailure, (self.text, self.told)

    def __str__(self) -> str:
        """What went wrong."""
        return self.text


def settle() -> None:
    """Has this process show warnings as lines, and what is for developers not at all."""
    # Libraries speak of each other's deprecations, which no user of ours can mend.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # which Optuna imports
    warnings.showwarning = _say_warning  # type: ignore[assignment]


@contextmanager
def job_processes(script: str) -> Iterator[None]:
    """Lets a sweep's job train in several processes, and the next job in this process too.

    Args:
        script: The script of the command, by which Lightning starts a job's other processes. In a
            launcher's process it would start that launcher's script.
    """
    if not JobFailure.is_heard():
        sys.argv[:] = [script]
        sys.modules["__main__"].__spec__ = None
    before = set(os.environ)
    try:
        yield
    finally:
        # Lightning leaves both behind, and would take the next job for one of several processes.
        for name in set(_MEETING) - before:
            os.environ.pop(name, None)
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


@contextmanager
def launcher_errors() -> Iterator[None]:
    """Turns what the plugins of the extra `sweep` raise in a sweep's process into mistakes.

    Raises:
        UserError: If a job was ended from outside, or none has given a figure.
    """
    try:
        yield
    except Exception as error:
        text = str(error).strip().split("\n")[0]
        if type(error).__module__.split(".")[0] in ("joblib", "submitit"):
            raise UserError(
                f"a job was ended from outside, for lack of time or memory perhaps ({text}). Give "
                "the command again with resume=true to go on with the sweep."
            ) from None
        if "No trials are completed" in text:
            raise UserError("no job has given the sweeper a figure, so there is no best.") from None
        raise


def become_job_of_parent() -> None:
    """In a process that Lightning started for a sweep's job: run that job, not the sweep again."""
    if os.environ.get("LOCAL_RANK", "0") != "0" and JOB in os.environ:
        sys.argv[1:] = os.environ[JOB].split("\n")


def job_folder(overrides: Sequence[str]) -> str:
    """The name of a sweep job's folder: those of its overrides in which the jobs differ.

    Args:
        overrides: The job's overrides, as in `lr=0.001`.

    Returns:
        A name without slashes and of at most 120 characters, ending in a digest where shortened.
    """
    constant = os.environ.get(CONSTANT, "").split(",")
    told = [o for o in overrides if o.split("=")[0] not in constant] or list(overrides)
    whole = re.sub(r"[^\w.,=+-]", "_", ",".join(told)) or "job"
    # Numbers that a sweeper has drawn are of 16 digits.
    name = re.sub(r"\d*\.\d{6,}(e-?\d+)?", lambda number: f"{float(number[0]):.4g}", whole)
    if name != whole or len(name) > 120:
        digest = hashlib.sha256(",".join(told).encode()).hexdigest()[:8]
        name = f"{name[:111]}-{digest}"
    return name


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


def say_error(text: str) -> None:
    """Prints a line about what went wrong."""
    print(f"error: {text}", file=sys.stderr, flush=True)


def _say_warning(message: Warning | str, *_: Any) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
