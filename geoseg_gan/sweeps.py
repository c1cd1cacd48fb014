"""What the jobs of a sweep need, in whichever process they run, and what a finished run leaves."""

import hashlib
import json
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

from geoseg_gan.errors import ToldElsewhereError
from geoseg_gan.files import write_json
from geoseg_gan.resume import FREE, LAST, flat

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

    Launchers run jobs in the sweep's own process, in others, or on other machines, and pickle what
    they return. The sweep's process hears of every failure made there: of a job of its own, or of
    one that has just been unpickled.

    Args:
        text: What went wrong, in a line.
        told: Whether the user knows it already.
    """

    _heard: ClassVar["list[JobFailure] | None"] = None

    def __init__(self, text: str, told: bool = False) -> None:
        """Tells the user, if this is the sweep's process."""
        self.text = text
        self.told = told
        if JobFailure._heard is not None:
            JobFailure._heard.append(self)
            if not told:
                say_error(text)

    @classmethod
    def of(cls, error: Exception, job: str | None) -> "JobFailure":
        """The failure that an exception is.

        Args:
            error: A user's mistake or anything else; of the latter the traceback is printed.
            job: The job's name, where there is more than one.
        """
        text = str(error) if str(error) else type(error).__name__
        if not hasattr(error, "__cause__") or not _is_mistake(error):
            traceback.print_exception(error)
            text = f"{type(error).__name__}: {text.splitlines()[0]}"
        where = f" (In the job {job}.)" if job else ""
        return cls(text + where, isinstance(error, ToldElsewhereError))

    @classmethod
    @contextmanager
    def heard(cls) -> "Iterator[list[JobFailure]]":
        """Makes this process the sweep's own, and yields the list that its failures join."""
        cls._heard = []
        try:
            yield cls._heard
        finally:
            cls._heard = None

    @classmethod
    def is_heard(cls) -> bool:
        """Whether this process is the sweep's own."""
        return cls._heard is not None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what makes it anew, so that it is heard where it arrives."""
        return JobFailure, (self.text, self.told)

    def __str__(self) -> str:
        """What went wrong."""
        return self.text
