"""Writes pairs while the next ones are painted, and remembers what is done."""

import json
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy.typing as npt

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.images import MaskReader, write_image
from geoseg_gan.synthesis.judge import Verdict
from geoseg_gan.synthesis.masks import Candidate

MANIFEST = "manifest.jsonl"

Layout = Literal["pairs", "folders"]


class PairWriter:
    """Saves pairs in threads of its own, and lists each in the manifest once it is on disk.

    The manifest's lines stand in order of their index, so that the last one tells where to go on.
    Used as a context manager: leaving it waits for all that was handed in, also after Ctrl-C.

    Args:
        folder: Where to.
        layout: "pairs" for pair_00000_img.jpg beside pair_00000_mask.png, "folders" for images/
            and masks/ with the same stem.
        reader: Writes label maps as masks.
        scaling: Tells how images are stored: 8-bit ones as JPEG, others as GeoTIFF.
        threads: How many pairs are written at once.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        reader: MaskReader,
        scaling: ImageScaling,
        threads: int = 2,
    ) -> None:
        """Opens the manifest for appending."""
        self.folder = folder
        self.layout = layout
        self.reader = reader
        self.scaling = scaling
        is_picture = scaling.dtype == "uint8" and len(scaling.low) in (1, 3)
        self.suffix = ".jpg" if is_picture else ".tif"
        self._pool = ThreadPoolExecutor(threads)
        self._waiting: deque[Future[dict[str, Any]]] = deque()
        self._most_waiting = 16 * threads  # bounds the memory where the disk is slow
        self._manifest = (folder / MANIFEST).open("a")

    def __enter__(self) -> Self:
        """Returns the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Writes what is still waiting, lists it and closes the manifest."""
        try:
            self._settle(0)
        finally:
            self._pool.shutdown()
            self._manifest.close()

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
            self._manifest.write(json.dumps(line) + "\n")
            self._manifest.flush()


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
