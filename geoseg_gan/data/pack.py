"""The pack command: from a data folder to a stream of few big files."""

import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from geoseg_gan.config import command_line
from geoseg_gan.data.datamodule import check_same_type
from geoseg_gan.data.demo.world import write_world
from geoseg_gan.data.images import mask_reader
from geoseg_gan.data.pairs import STREAM, Pair, PairList, Split, find_pairs
from geoseg_gan.data.scan import FolderIndex, scan
from geoseg_gan.data.settings import PackSettings
from geoseg_gan.data.stream import (
    CHUNKS,
    FIGURES,
    FORMAT,
    INDEX,
    NAMES,
    StreamFacts,
    check_root,
    reading_of,
    require_litdata,
)
from geoseg_gan.data.synthetic import refuse_synthetic
from geoseg_gan.utils.errors import plural
from geoseg_gan.utils.files import write_json


@dataclass(frozen=True)
class PackedSplit:
    """What became of a split.

    Attributes:
        pairs: How many pairs it holds.
        chunks: In how many files they lie.
        bytes: Size of all its files.
    """

    pairs: int
    chunks: int
    bytes: int


def pack_folder(settings: PackSettings) -> dict[Split, PackedSplit]:
    """Packs all splits of a folder; the stream appears whole or not at all.

    Args:
        settings: What to pack, and where to.

    Returns:
        What became of each split that is there.

    Raises:
        UserError: If settings or folder are not as they must be.
    """
    settings.check()
    check_root(settings.data, Path(settings.data_root))
    require_litdata()
    root, reader = Path(settings.data_root), mask_reader(settings.data)
    if settings.data.demo is not None:
        write_world(root, reader.palette, settings.data.demo)
    refuse_synthetic(root)
    splits: list[Split] = [s for s in get_args(Split) if s == "train" or (root / s).is_dir()]
    found = {split: find_pairs(root, split, settings.data.group_regex) for split in splits}
    indices = {split: scan(pairs, reader) for split, pairs in found.items()}
    for index in indices.values():
        check_same_type(indices["train"], index)
    facts = StreamFacts(
        splits={split: len(pairs) for split, pairs in found.items()},
        # As they will be read back.
        reading=json.loads(json.dumps(reading_of(reader))),
        group_regex=settings.data.group_regex,
        dtype=indices["train"].dtype.name,
    )
    out = Path(settings.out_dir).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        # One level down, since the scratch folder itself is private to the user.
        folder = Path(scratch) / out.name
        packed = {
            split: _pack(folder / split, found[split], indices[split], settings.chunk_mb)
            for split in splits
        }
        write_json(folder / STREAM, {"format": FORMAT, **asdict(facts)})
        folder.replace(out)
    return packed


def _pack(folder: Path, pairs: PairList, index: FolderIndex, chunk_mb: float) -> PackedSplit:
    # Training reads chunk after chunk, so that each must be a fair sample of all pairs.
    is_mixed = folder.name == "train"
    order = np.random.default_rng(0).permutation(len(pairs)) if is_mixed else np.arange(len(pairs))
    _write_chunks(folder, pairs.rows(order), chunk_mb)
    chunks = json.loads((folder / CHUNKS).read_text())["chunks"]
    columns: dict[str, npt.NDArray[Any]] = {name: getattr(index, name) for name in FIGURES}
    for name in NAMES:
        columns[name], columns[f"{name}_ends"] = getattr(pairs, name).arrays()
    columns["places"] = order.argsort()
    columns["chunk_ends"] = np.cumsum([chunk["chunk_size"] for chunk in chunks])
    np.savez(folder / INDEX, allow_pickle=False, **columns)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return PackedSplit(len(pairs), len(chunks), size)


def _write_chunks(folder: Path, pairs: Sequence[Pair], chunk_mb: float) -> None:
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes=round(chunk_mb * 2**20))
    title = f"Packing {plural(len(pairs), 'pair')} ({folder.name})"
    for place, pair in track(enumerate(pairs), title, len(pairs)):
        # As they are: decoding is quick, and pixels would take many times the room.
        cache[place] = (pair.image.read_bytes(), pair.mask.read_bytes())
    cache.done()
    cache.merge()


def pack(config: PackSettings) -> dict[Split, PackedSplit]:
    """Packs a data folder, and prints what became of it.

    Args:
        config: What to pack, and where to.

    Returns:
        What became of each split.

    Raises:
        UserError: If settings or folder are not as they must be.
    """
    packed = pack_folder(config)
    console = Console(soft_wrap=True)  # so that the command below can be copied
    for split, part in packed.items():
        console.print(
            f"{split}: {plural(part.pairs, 'pair')} in {plural(part.chunks, 'file')}, "
            f"{part.bytes / 2**20:,.0f} MB",
            highlight=False,
        )
    console.print(f"Wrote {config.out_dir}. Next: {_next_command(config)}", markup=False)
    return packed


def _next_command(config: PackSettings) -> str:
    """The training command with the same data settings."""
    words = [
        o for o in command_line() if o.startswith(("data=", "data.")) and "data.cache" not in o
    ]
    words += [f"data_root={config.out_dir}", "data.format=stream", "data.cache=none"]
    return shlex.join(["python", "scripts/train.py", *words])
