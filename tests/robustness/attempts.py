"""Command lines that run in this process, and what is wrong with how they end."""

import dataclasses
import shlex
import signal
import sys
import time
import types
import typing
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from defaults import SCHEMAS
from killed import main_of

LIMIT = 20
"""Seconds after which a command line counts as one that hangs."""

NEEDED = {
    "generate": ("gen_ckpt=G.pt",),
    "tile": ("source=pictures",),
    "prepare": ("data=loveda", "source=pictures"),
    "compare": ("folder=sweep",),
    "export": ("ckpt=G.pt",),
    "studio": ("gen_ckpt=G.pt", "port=0"),
}
"""What a command does not start without."""


class Hangs(BaseException):
    """A command line took longer than its limit."""


@contextmanager
def limited(seconds):
    """Raises `Hangs` in a block that takes longer."""

    def stop(*_):
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Attempts:
    """Runs command lines in a folder: `attempts.faults("train", "bs=2")`."""

    def __init__(self, monkeypatch, capfd, folder):
        self.patch, self.capture, self.folder = monkeypatch, capfd, folder
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        self.code, self.text = 0, ""

    def without_work(self):
        """Has commands end where their checks have passed, tile, prepare, pack, compare aside."""

        def checked(function, config, check, **_):
            check(config)
            return {}

        for module in (
            "training.train", "training.train_segmenter", "synthesis.generate",
            "evaluation.evaluate",
        ):  # fmt: skip
            self.patch.setattr(f"geoseg_gan.{module}.launch", checked)
        self.patch.setattr("geoseg_gan.studio.studio.serve", lambda *_: None)
        from geoseg_gan.trials import trial

        self.patch.setattr(trial, "trial", lambda config: trial.check(config) or {})
        return self

    def faults(self, name, *arguments, mistake=True, limit=LIMIT):
        """What is wrong with how a command line ends; an empty text where nothing is.

        Args:
            name: The command.
            arguments: Its settings.
            mistake: Whether it is one, which has to be refused and to leave nothing.
            limit: Seconds that it may take.
        """
        handlers = {number: signal.getsignal(number) for number in range(1, 16) if number != 9}
        before = set(Path().iterdir())
        self.patch.setattr(sys, "argv", [f"{name}.py", *arguments])
        self.capture.readouterr()
        self.code, wrong, started = 0, [], time.monotonic()
        try:
            with limited(limit):
                main_of(name)()
        except SystemExit as stop:
            self.code = stop.code or 0
        except Hangs:
            self.code = None
            wrong.append(f"takes longer than {limit} s")
        except BaseException as error:
            wrong.append(f"raises {error!r:.300}")
        for number, handler in handlers.items():
            signal.signal(number, handler)
        self.seconds = time.monotonic() - started
        self.text = self.capture.readouterr().err
        stderr_lines = [line for line in self.text.splitlines() if not line.startswith("warning: ")]
        if mistake and self.code == 0 and not wrong:
            wrong.append("is accepted")
        if self.code not in (0, 1, None):
            wrong.append(f"exit code {self.code}")
        if self.code and (len(stderr_lines) != 1 or not stderr_lines[0].startswith("error: ")):
            wrong.append(f"stderr: {self.text[-600:]!r}")
        if self.code == 0 and stderr_lines:
            wrong.append(f"stderr of a success: {self.text[-300:]!r}")
        if (new := set(Path().iterdir()) - before) and self.code:
            wrong.append(f"leaves {sorted(map(str, new))}")
        if not wrong:
            return ""
        found = f"{shlex.join(['python', f'scripts/{name}.py', *arguments])}: {'; '.join(wrong)}"
        with self.capture.disabled():
            print(f"\n{found!s}".encode("utf-8", "backslashreplace").decode(), flush=True)
        return found


def knobs(name):
    """Every setting of a command with its type, those of parts included: (key, type) pairs."""
    return list(_walk(SCHEMAS[name], ""))


def _walk(schema, prefix):
    for key, hint in typing.get_type_hints(schema).items():
        yield prefix + key, hint
        for kind in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(kind) and typing.get_origin(hint) is not list:
                yield from _walk(kind, f"{prefix}{key}.")


def kinds_of(hint):
    """The types that a setting may have; None where it may be null."""
    if isinstance(hint, types.UnionType):
        return [None if kind is types.NoneType else kind for kind in typing.get_args(hint)]
    return [None, Any] if hint is Any else [hint]
