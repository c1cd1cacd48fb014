"""Writes pairs while the next ones are painted, and remembers what is done."""

import json
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy.typing as npt

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.images import MaskReader, write_image
from geoseg_gan.data.synthetic import GENERATION
from geoseg_gan.synthesis.candidates import Candidate
from geoseg_gan.synthesis.filter import Verdict
from geoseg_gan.utils.errors import UserError


def stored_facts(folder: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """What a folder says of itself, once it is seen to hold pairs of the same generation.

    Args:
        folder: Where pairs go.
        facts: What this generation would say; entries that only the folder has are not compared.

    Returns:
        The content of `generation.json`; None for a folder that is new or empty.

    Raises:
        UserError: If the folder holds other files, or pairs of another generation.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not (folder / GENERATION).is_file():
        raise UserError(f"save_dir={folder} holds other files. Choose a new folder.")
    try:
        stored = dict(json.loads((folder / GENERATION).read_text()))
    except (TypeError, ValueError):
        raise UserError(
            f"{folder / GENERATION} is not as generate writes it. Choose a new folder."
        ) from None
    for key, value in facts.items():
        if stored.get(key) != value:
            was, now = stored.get(key), value
            if isinstance(was, dict) and isinstance(now, dict):
                differing = [k for k in now if was.get(k) != now[k]]
                key = f"{key}.{differing[0]}" if differing else key
                was, now = (was.get(differing[0]), now[differing[0]]) if differing else (was, now)
            raise UserError(
                f"save_dir={folder} holds pairs of another generation: {key} was {was}, now "
                f"{now}. Choose a new folder, or repeat the settings in {folder / GENERATION}."
            )
    return stored


MANIFEST = "manifest.jsonl"


Layout = Literal["pairs", "folders"]


class Manifest:
    """Lists candidates in order of their index: a line that comes early waits for its turn.

    Used as a context manager.

    Args:
        folder: Where pairs go; it exists.
    """

    def __init__(self, folder: Path) -> None:
        """Opens it for appending."""
        path = folder / MANIFEST
        self._next = path.read_bytes().count(b"\n") if path.is_file() else 0
        self._early: dict[int, dict[str, Any]] = {}
        self._file = path.open("a")

    def __enter__(self) -> Self:
        """Returns the manifest."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it; what still waits for its turn is not listed."""
        self._file.close()

    def add(self, line: dict[str, Any]) -> None:
        """Lists a candidate whose files are on disk, once all before it are listed."""
        self._early[line["index"]] = line
        while self._next in self._early:
            self._file.write(json.dumps(self._early.pop(self._next)) + "\n")
            self._next += 1
        self._file.flush()


class PairWriter:
    """Saves pairs in threads of its own, and has each listed once it is on disk.

    Pairs are listed in order of their index, so that the last one tells where to go on. Used as a
    context manager: leaving it waits for all that was handed in, also after Ctrl-C.

    Args:
        folder: Where to.
        layout: "pairs" for pair_00000_img.jpg beside pair_00000_mask.png, "folders" for images/
            and masks/ with the same stem.
        reader: Writes label maps as masks.
        scaling: Tells how images are stored: 8-bit ones as JPEG, others as GeoTIFF.
        listing: Takes the manifest's line of each pair that is on disk, or was dropped.
        threads: How many pairs are written at once.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        reader: MaskReader,
        scaling: ImageScaling,
        listing: Callable[[dict[str, Any]], None],
        threads: int = 4,
    ) -> None:
        """Starts no thread before there is something to write."""
        self.folder = folder
        self.layout = layout
        self.reader = reader
        self.scaling = scaling
        is_picture = scaling.dtype == "uint8" and len(scaling.low) in (1, 3)
        self.suffix = ".jpg" if is_picture else ".tif"
        self._list = listing
        self._pool = ThreadPoolExecutor(threads)
        self._waiting: deque[Future[dict[str, Any]]] = deque()
        self._most_waiting = 8 * threads  # bounds the memory where the disk is slow

    def __enter__(self) -> Self:
        """Returns the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Writes what is still waiting, and lists it."""
        try:
            self._settle(0)
        finally:
            self._pool.shutdown()

    def add(self, candidate: Candidate, image: npt.NDArray[Any] | None, verdict: Verdict) -> None:
        """Hands in a candidate to be written if it is kept; waits only where the disk lags behind.

        Args:
            candidate: The mask.
            image: Its painted image, (H, W, K) in the stored dtype; None if it was not painted.
            verdict: Whether it is kept, and with which mask; both ways it is listed.

        Raises:
            OSError: If an earlier pair could not be written.
        """
        self._waiting.append(self._pool.submit(self._write, candidate, image, verdict))
        self._settle(self._most_waiting)

    def paths(self, index: int) -> tuple[Path, Path]:
        """Where image and mask of a pair go."""
        return pair_paths(self.folder, self.layout, index, self.suffix)

    def _write(
        self, candidate: Candidate, image: npt.NDArray[Any] | None, verdict: Verdict
    ) -> dict[str, Any]:
        if verdict.kept and image is not None:
            image_path, mask_path = self.paths(candidate.index)
            write_image(image_path, image)
            self.reader.write(mask_path, verdict.label)
        return candidate.to_dict() | verdict.to_dict()

    def _settle(self, most: int) -> None:
        while self._waiting and (len(self._waiting) > most or self._waiting[0].done()):
            # One that failed stays first, lest those behind it be listed and leave a hole.
            line = self._waiting[0].result()
            self._waiting.popleft()
            self._list(line)


def pair_paths(folder: Path, layout: Layout, index: int, suffix: str) -> tuple[Path, Path]:
    """Paths of a pair's image and mask in a layout."""
    stem = f"pair_{index:05d}"
    if layout == "folders":
        return folder / "images" / f"{stem}{suffix}", folder / "masks" / f"{stem}.png"
    return folder / f"{stem}_img{suffix}", folder / f"{stem}_mask.png"


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The manifest's entries; a last line that was cut off by a crash is removed from the file."""
    path = folder / MANIFEST
    if not path.is_file():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]
