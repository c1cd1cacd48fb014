"""Files that appear whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read once, since asking sets it: two threads that ask at once would leave it at 0.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a scratch path beside `path`, and moves it there if the block ends well.

    The ending is kept, since libraries choose a format by it. Parents are made as needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        # mkstemp makes files private; a run folder is as readable as the umask says.
        scratch.chmod(0o666 & ~_UMASK)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` as indented JSON, whole or not at all."""
    with atomic_path(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
