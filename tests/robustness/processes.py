"""Commands as processes that can be killed, and folders that can be compared."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import killed
import numpy as np
import psutil
import torch
import yaml
from PIL import Image

FORKS = multiprocessing.get_context("forkserver")
PRELOADED = [
    "geoseg_gan.data.audit.check",
    "geoseg_gan.data.pack",
    "geoseg_gan.data.prepare",
    "geoseg_gan.data.tile",
    "geoseg_gan.evaluation.evaluate",
    "geoseg_gan.evaluation.predict",
    "geoseg_gan.export.export",
    "geoseg_gan.synthesis.generate",
    "geoseg_gan.training.compare",
    "geoseg_gan.training.train",
    "geoseg_gan.training.train_segmenter",
    "geoseg_gan.trials.trial",
    "hydra._internal.hydra",
    "litdata",
]
FORKS.set_forkserver_preload(["killed", *PRELOADED])

STUCK = 300.0
"""Seconds after which a tiny command counts as stuck."""

ORPHANED = 10.0
"""Seconds in which all processes of a command end after it."""


@dataclass
class Run:
    """A started command, the leader of a session of its own."""

    pid: int
    log: Path
    wait: object = field(repr=False)  # seconds -> exit code or None
    started: float = field(default_factory=time.monotonic)

    def begun(self):
        """Whether a command has come to its first line."""
        return Path(f"{self.log}.begun").exists()

    def end(self, limit=STUCK):
        """The exit code; an AssertionError where the command is stuck."""
        code = self.wait(limit)
        if code is None:
            sessions = " ".join(map(str, members(self.pid)))
            self.kill_all()
            raise AssertionError(f"stuck after {limit} s (processes {sessions}): {self.texts()}")
        return code

    def kill_all(self):
        for pid in members(self.pid):
            os.kill(pid, 9)

    def texts(self):
        """What was printed to stdout and to stderr."""
        return [
            Path(f"{self.log}.{ending}").read_text(errors="replace") for ending in ("out", "err")
        ]


def members(session):
    """Processes of a session that are not zombies."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if alive and os.getsid(process.pid) == session:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def start(name, arguments, cwd, kill_at="", *, fresh=False, **environment):
    """Starts a command in `cwd`, which is made: forked from a preloaded process, or `fresh`.

    Args:
        name: Of the script.
        arguments: Its settings.
        cwd: Where it runs; its scan cache and the log lie beside.
        kill_at: See `killed`.
        fresh: Whether a new interpreter is started.
        environment: More environment variables.
    """
    cwd.mkdir(parents=True, exist_ok=True)
    log = cwd.with_name(f"{cwd.name}-log")
    for ending in ("out", "err"):
        Path(f"{log}.{ending}").write_text("")
    Path(f"{log}.begun").unlink(missing_ok=True)
    variables = {"XDG_CACHE_HOME": str(cwd / "cache"), "OMP_NUM_THREADS": "1", "KILL_AT": kill_at}
    variables |= {"BEGUN": f"{log}.begun"}
    variables |= {"MPLCONFIGDIR": str(cwd.with_name("matplotlib")), **environment}
    if not fresh:
        process = FORKS.Process(target=killed.run, args=(name, arguments, cwd, log, variables))
        process.start()

        def wait(seconds):
            process.join(seconds)
            return process.exitcode

        return Run(process.pid, log, wait)
    with Path(f"{log}.out").open("w") as out, Path(f"{log}.err").open("w") as err:
        command = [sys.executable, killed.__file__, name, *arguments]
        child = subprocess.Popen(
            command, cwd=cwd, env=os.environ | variables, stdout=out, stderr=err
        )

    def wait_fresh(seconds):
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    return Run(child.pid, log, wait_fresh)


def alive_after(session, seconds=ORPHANED):
    """Processes of a session that are still alive once some seconds are over."""
    end = time.monotonic() + seconds
    while (left := members(session)) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def is_scratch(path):
    """Whether a file's name is not one that a finished command leaves."""
    return path.name != ".lock" and (path.name.startswith(".") or path.suffix in (".tmp", ".part"))


def files_of(folder):
    """Relative paths of files, one for all of TensorBoard's event files of a folder.

    The names of scan caches depend on where the data lie.
    """
    found = set()
    for path in folder.rglob("*"):
        name = re.sub("^(events|scan-).*", r"\1", path.name)
        if path.is_file():
            found.add(str(path.relative_to(folder).with_name(name)))
    return found


def content_of(path):
    """A file's content as plain values and tensors; bytes where that is all there is to say."""
    match path.suffix:
        case ".pt" | ".ckpt":
            return torch.load(path, map_location="cpu", weights_only=True)
        case ".json":
            return json.loads(path.read_text())
        case ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        case ".yaml":
            return yaml.safe_load(path.read_text())
        case ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: _plain(arrays[name]) for name in arrays}
        case ".png" | ".jpg" | ".tif":
            with Image.open(path) as image:
                image.load()
    return path.read_bytes()


def _plain(array):
    if array.dtype.kind != "U":
        return torch.as_tensor(array) if array.dtype.kind in "iufb" else array.tobytes()
    text = array.tolist()
    return json.loads(text) if str(text).startswith("{") else text


TIMES = re.compile("second|minute|time|throughput|images_per|updated_at|sha256|generators$")
"""Keys of what a clock measures, and of digests of files that hold such."""


def difference(first, second, where=""):
    """Where two contents differ first, clocks left out; None where they do not."""
    if isinstance(first, dict) and isinstance(second, dict):
        lone = first.keys() ^ second.keys()
        if lone := [key for key in lone if not TIMES.search(str(key))]:
            return f"{where}: keys {sorted(map(str, lone))}"
        keys = [key for key in first if key in second and not TIMES.search(str(key))]
        pairs = [(key, first[key], second[key]) for key in keys]
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if len(first) != len(second):
            return f"{where}: lengths {len(first)}, {len(second)}"
        pairs = list(zip(range(len(first)), first, second, strict=True))
    elif torch.is_tensor(first) and torch.is_tensor(second):
        same = first.dtype == second.dtype and first.shape == second.shape
        same = same and torch.equal(first.nan_to_num(), second.nan_to_num())
        return None if same else f"{where}: tensors"
    else:
        same = first == second or (first != first and second != second)
        short = [f"{value!r:.80}" for value in (first, second)]
        return None if same else f"{where}: {short[0]}, {short[1]}"
    return next((d for k, a, b in pairs if (d := difference(a, b, f"{where}/{k}"))), None)


def compare(folder, reference, clocks=()):
    """Asserts that a folder is that of an undisturbed run; `clocks` are files that show times."""
    scratch = [str(path) for path in folder.rglob("*") if is_scratch(path)]
    assert not scratch, f"scratch is left: {scratch}"
    first, second = files_of(folder), files_of(reference)
    assert first == second, f"missing {sorted(second - first)}, more {sorted(first - second)}"
    for name in sorted(first):
        if Path(name).name not in ("events", "scan-", ".lock", *clocks):
            found = difference(content_of(folder / name), content_of(reference / name))
            assert found is None, f"{name} differs at {found}"


def check_whole(folder):
    """Asserts that an interrupted command has cut off no file but scratch and appended ones."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not is_scratch(path) and path.suffix != ".jsonl":
            try:
                content_of(path)
            except Exception as error:
                raise AssertionError(f"{path} is truncated: {error!r}") from None
