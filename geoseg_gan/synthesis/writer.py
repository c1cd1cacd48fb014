"""The folder of generated pairs: its files, its manifest, and what it says of its generation."""

import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.fingerprint import FINGERPRINTS, refuse_change
from geoseg_gan.data.images import write_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.synthetic import (
    GENERATION,
    MANIFEST,
    MANIFEST_ADVICE,
    Line,
    manifest_lines,
    pair_stem,
    read_manifest,
)
from geoseg_gan.synthesis.filter import GeneratedPair
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path, held, is_unused, open_append
from geoseg_gan.utils.reading import Number, read_json, whole

BY_HAND = "dropped by hand"
"""Why a pair is not kept although its files are there."""

Layout = Literal["pairs", "folders"]


def stored_facts(folder: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """What a folder says of its generation, which must be this one.

    Args:
        folder: Where pairs go.
        facts: What this generation would say; entries that only the folder has are not compared.

    Returns:
        The content of `generation.json`; None for a folder that is new or empty.

    Raises:
        UserError: If the folder holds other files, or pairs of another generation.
    """
    if is_unused(folder):
        return None
    if not (folder / GENERATION).is_file():
        raise UserError(f"save_dir={folder} holds other files. Choose a new folder.")
    shape = {
        **{"format": whole(), "config": dict, "data?": FINGERPRINTS},
        **{"tau?": Number(), "class_losses?": [(None, Number(0))]},
    }
    stored: dict[str, Any] = read_json(folder / GENERATION, shape, "Choose a new folder.")
    for key, value in facts.items():
        was, now = map(_without_places, (stored.get(key), value))
        if key == "data":
            what, advice = (
                f"save_dir={folder} holds pairs of",
                "Restore them, or choose a new folder.",
            )
            refuse_change(stored.get(key), value, what, advice)
        elif was != now:
            if isinstance(was, dict) and isinstance(now, dict):
                for inner in [k for k in now if was.get(k) != now[k]][:1]:
                    key, was, now = f"{key}.{inner}", was.get(inner), now[inner]
            raise UserError(
                f"save_dir={folder} holds pairs of another generation: {key} was {was}, now "
                f"{now}. Choose a new folder, or repeat the settings in {folder / GENERATION}."
            )
    return stored


def _without_places(entry: Any) -> Any:
    """An entry without the paths of data: these may move, and digests say which data they are."""
    places = ("data_root", "true_masks")
    is_dict = isinstance(entry, dict)
    return {k: v for k, v in entry.items() if k not in places} if is_dict else entry


def manifest_path(folder: Path, rank: int = 0) -> Path:
    """Where a process lists its candidates: rank 0 in the manifest, the others in parts of it."""
    return folder / (f"manifest.part{rank}.jsonl" if rank else MANIFEST)


def merge_manifest(folder: Path) -> list[Line]:
    """Moves the lines of all processes into the manifest, in order of their index.

    Lines that a crash cut off are dropped; what they would have listed is generated again.

    Returns:
        The manifest's lines.
    """
    path = manifest_path(folder)
    parts = sorted(folder.glob("manifest.part*.jsonl"))
    by_index: dict[int, str] = {}
    for file in (path, *parts):
        for index, line in manifest_lines(file).items():
            # Listed twice is what had been merged when the call before was stopped.
            if by_index.setdefault(index, line) != line:
                raise UserError(
                    f"{file} lists pair {index} otherwise than before. {MANIFEST_ADVICE}"
                )
    merged = "".join(f"{by_index[index]}\n" for index in sorted(by_index))
    if (path.is_file() and merged != path.read_text()) or parts:
        with atomic_path(path) as scratch:
            scratch.write_text(merged)
    for part in parts:
        part.unlink()
    return read_manifest(folder)


def drop_by_hand(folder: Path, index: int, dropped: bool = True) -> None:
    """Notes in the manifest that a user drops a kept pair, or takes it back; its files stay.

    Training leaves dropped pairs out, and `generate` counts them as dropped.

    Args:
        folder: A generated folder, which no other process may hold meanwhile.
        index: The number of the pair's candidate.
        dropped: Whether to drop it.

    Raises:
        UserError: If another process holds the folder, the manifest cannot be read or does not
            list the pair, or the pair is not one that can be dropped or taken back.
    """
    with held(folder, "save_dir"):
        merge_manifest(folder)
        path = manifest_path(folder)
        lines = manifest_lines(path)
        line = json.loads(lines.get(index, "{}"))
        if not line or not (line["kept"] or line.get("why") == BY_HAND):
            raise UserError(
                f"{path} does not list pair {index} as kept: only such a pair can be dropped."
            )
        line.pop("why", None)
        line["kept"] = not dropped
        lines[index] = json.dumps(line | ({"why": BY_HAND} if dropped else {}))
        with atomic_path(path) as scratch:
            scratch.write_text("".join(f"{lines[index]}\n" for index in sorted(lines)))


@dataclass(frozen=True)
class PairFiles:
    """Where the pairs of a folder are, and how they are stored.

    Args:
        folder: The folder.
        layout: "pairs" for pair_00000_img.jpg beside pair_00000_mask.png, "folders" for images/
            and masks/ with the same stem.
        reader: Reads and writes masks.
        scaling: Tells how images are stored: 8-bit ones as JPEG, others as GeoTIFF.
    """

    folder: Path
    layout: Layout
    reader: MaskReader
    scaling: ImageScaling

    def paths(self, index: int) -> tuple[Path, Path]:
        """Paths of a pair's image and mask."""
        is_picture = self.scaling.dtype == "uint8" and len(self.scaling.low) in (1, 3)
        stem, suffix = pair_stem(index), ".jpg" if is_picture else ".tif"
        if self.layout == "folders":
            return self.folder / "images" / f"{stem}{suffix}", self.folder / "masks" / f"{stem}.png"
        return self.folder / f"{stem}_img{suffix}", self.folder / f"{stem}_mask.png"

    def write(self, pair: GeneratedPair) -> Line:
        """Writes a pair if it is kept; returns the manifest's line of it."""
        if pair.decision.kept and pair.image is not None:
            image_path, mask_path = self.paths(pair.candidate.index)
            write_image(image_path, pair.image)
            self.reader.write(mask_path, pair.decision.label)
        return pair.candidate.to_dict() | pair.decision.to_dict()


class PairWriter:
    """Saves pairs in threads, and lists each once its files are on disk.

    Used as a context manager: leaving it waits for all pairs that were added, also after Ctrl-C.

    Args:
        files: Where to.
        rank: Number of the process that writes.
        threads: How many pairs are written at once.
    """

    def __init__(self, files: PairFiles, rank: int = 0, threads: int = 4) -> None:
        """Opens the manifest, or this process's part of it, for appending."""
        self._files = files
        self._list = open_append(manifest_path(files.folder, rank))
        self._pool = ThreadPoolExecutor(threads)
        self._waiting: deque[Future[Line]] = deque()
        self._most_waiting = 8 * threads  # bounds the memory where the disk is slow

    def __enter__(self) -> Self:
        """Returns the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Writes and lists what is still waiting."""
        try:
            self._settle(0)
        finally:
            self._pool.shutdown()
            self._list.close()

    def add(self, pairs: Sequence[GeneratedPair]) -> None:
        """Adds pairs in order of their index; waits only where the disk is slower than this.

        Raises:
            OSError: If an earlier pair could not be written.
        """
        for pair in pairs:
            self._waiting.append(self._pool.submit(self._files.write, pair))
            self._settle(self._most_waiting)

    def _settle(self, most: int) -> None:
        while self._waiting and (len(self._waiting) > most or self._waiting[0].done()):
            # A failed write stays first, so that no later pair is listed and leaves a gap.
            line = self._waiting[0].result()
            self._waiting.popleft()
            self._list.write(json.dumps(line) + "\n")
