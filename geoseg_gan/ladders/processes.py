"""Commands of this package as processes, of which several may go on side by side."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

_GRACE = 20.0  # seconds in which processes that are told to end must have ended


class Processes:
    """Runs commands, and ends those that go on.

    Args:
        threads: Cores of each, where the user has not given a number (OMP_NUM_THREADS).
    """

    def __init__(self, threads: int) -> None:
        """Keeps the number of threads."""
        self._environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        self._running: list[subprocess.Popen[bytes]] = []
        self._ended = False
        self._lock = Lock()

    def run(self, command: str, overrides: Sequence[str], log: Path) -> str | None:
        """Runs a command to its end.

        Args:
            command: The module of `geoseg_gan` whose `main` it is.
            overrides: Its settings.
            log: The file that gets what it prints, behind what is there.

        Returns:
            None if it ended well; else the last line that it printed.
        """
        # By its function: scripts stand beside the package in a clone only.
        call = f"from geoseg_gan.{command} import main; main()"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as lines:
            begin = lines.tell()
            with self._lock:
                if self._ended:
                    return "stopped"
                process = subprocess.Popen(
                    [sys.executable, "-c", call, *overrides],
                    stdin=subprocess.DEVNULL,
                    stdout=lines,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                )
                self._running.append(process)
        code = process.wait()
        with self._lock:
            self._running.remove(process)
        return None if code == 0 else _last_line(log, begin) or f"exit code {code}"

    def end(self) -> None:
        """Ends what runs, and has nothing more begin."""
        with self._lock:
            self._ended = True
            running = list(self._running)
        for process in running:
            process.terminate()  # files appear whole or not at all, so this costs an epoch at most
        for process in running:
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()


def setting(key: str, value: object) -> str:
    """An override whose value may hold any characters."""
    return f"{key}='" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _last_line(log: Path, begin: int) -> str:
    with log.open("rb") as lines:
        lines.seek(begin)
        text = lines.read().decode(errors="replace")
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
