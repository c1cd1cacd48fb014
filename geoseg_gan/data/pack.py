"""The pack command: packs a data folder into a stream of few large files."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track

from geoseg_gan.config import as_override, is_made, plain, script_command, stored_yaml, write_yaml
from geoseg_gan.data.demo.world import write_world
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.pairs import SPLITS, STREAM, Pair, PairList, Split, find_pairs
from geoseg_gan.data.scan import FolderIndex, check_same_type, refuse_binary_masks, scan
from geoseg_gan.data.settings import PackSettings
from geoseg_gan.data.stream import (
    CHUNKS,
    FORMAT,
    INDEX,
    INDEX_COLUMNS,
    STRING_COLUMNS,
    StreamInfo,
    check_root,
    require_litdata,
)
from geoseg_gan.data.synthetic import refuse_synthetic
from geoseg_gan.utils.errors import plural
from geoseg_gan.utils.files import atomic_folder, check_apart, check_new_folder, write_json
from geoseg_gan.utils.tables import console


@dataclass(frozen=True)
class PackedSplit:
    """The result of one split."""

    pairs: int
    chunks: int  # files that the pairs lie in
    bytes: int  # of all its files


def pack(config: PackSettings) -> dict[Split, PackedSplit]:
    """Packs all splits of a folder; the stream appears whole or not at all.

    Returns:
        The result of each split; nothing where these settings have made the stream already.

    Raises:
        UserError: If the folder is not as it must be, or `out_dir` exists.
    """
    root, out, reader = Path(config.data_root), Path(config.out_dir), mask_reader(config.data)
    if is_made(out, plain(config), stored_yaml(out)):
        return {}
    check_new_folder("out_dir", out)
    check_apart("out_dir", out, root)
    check_root(config.data, root)
    require_litdata()
    if config.data.demo is not None:
        write_world(root, reader.palette, config.data.demo)
    refuse_synthetic(root)
    splits = [split for split in SPLITS if split == "train" or (root / split).is_dir()]
    found = {split: find_pairs(root, split, config.data.group_regex) for split in splits}
    indices = {split: scan(pairs, reader) for split, pairs in found.items()}
    refuse_binary_masks(indices["train"].pixels, reader, root / "train")
    for index in indices.values():
        check_same_type(indices["train"], index)
    info = StreamInfo(
        splits={split: len(pairs) for split, pairs in found.items()},
        # As they will be read back.
        reading=json.loads(json.dumps(reader.to_dict())),
        group_regex=config.data.group_regex,
        dtype=indices["train"].dtype.name,
    )
    with atomic_folder(out, "out_dir") as folder:
        packed = {s: _pack(folder / s, found[s], indices[s], config.chunk_mb) for s in splits}
        write_yaml(folder / "config.yaml", config)
        write_json(folder / STREAM, {"format": FORMAT, **asdict(info)})
    shown = console(soft_wrap=True)  # so that the command below can be copied
    for split, part in packed.items():
        held = f"{plural(part.pairs, 'pair')} in {plural(part.chunks, 'file')}"
        shown.print(f"{split}: {held}, {part.bytes / 2**20:,.0f} MB", highlight=False)
    words = [
        as_override("data_root", config.out_dir, PackSettings),
        "data.format=stream",
        "data.cache=none",
    ]
    shown.print(f"Wrote {config.out_dir}. Next: {script_command('train', words)}")
    return packed


def _pack(folder: Path, pairs: PairList, index: FolderIndex, chunk_mb: float) -> PackedSplit:
    # Training reads chunk after chunk, so that each must be a fair sample of all pairs.
    shuffled = folder.name == "train"
    order = np.random.default_rng(0).permutation(len(pairs)) if shuffled else np.arange(len(pairs))
    _write_chunks(folder, pairs.rows(order), chunk_mb)
    chunks = json.loads((folder / CHUNKS).read_text())["chunks"]
    columns: dict[str, npt.NDArray[Any]] = {name: getattr(index, name) for name in INDEX_COLUMNS}
    for name in STRING_COLUMNS:
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
