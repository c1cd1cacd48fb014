"""Reading streams, which scripts/pack.py packs: few large files in place of millions of small ones.

LitData stores and fetches the files. The order in which they are read is the project's own (see
`EpochSampler`), since it must be the same for every number of processes and workers.
"""

import logging
import os
import re
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.dataset import Decoded, PairSource, retried
from geoseg_gan.data.demo.world import is_drawn
from geoseg_gan.data.image_files import UnreadableError
from geoseg_gan.data.images import DTYPES
from geoseg_gan.data.masks import MaskReader, mask_reader
from geoseg_gan.data.pairs import STREAM, DataError, PackedStrings, PairList, Split
from geoseg_gan.data.palette import PALETTE
from geoseg_gan.data.scan import FolderIndex, default_cache_folder
from geoseg_gan.data.settings import DataSettings
from geoseg_gan.utils.errors import UserError, install, one_line
from geoseg_gan.utils.reading import (
    Array,
    Number,
    check_content,
    parse_json,
    read_arrays,
    read_json,
    whole,
)

FORMAT = 1
"""Version of the layout of a stream."""

INDEX, CHUNKS = "pairs.npz", "index.json"
"""Files beside the chunks: the index of the pairs, and LitData's list of chunks."""

STRING_COLUMNS = ("stems", "image_names", "mask_names", "groups")
INDEX_COLUMNS = ("sizes", "pixels", "unknown", "low", "high")
"""Fields of `PairList` and of `FolderIndex` that pairs.npz holds."""

_AGAIN = "Copy the stream again, or pack the folder again."
_INFO = {
    "splits": {"*": whole(1)},
    "reading": {
        **{"palette": PALETTE, "mask_format": str, "unknown": str},
        "index_map?": (None, [[whole(-(2**31))]]),
        "nodata?": (None, Number()),
    },
    "group_regex": (None, str),
    "dtype": set(DTYPES),
}
_INDEX = {
    **{name: Array("u", (f"bytes of {name}",)) for name in STRING_COLUMNS},
    **{f"{name}_ends": Array("i", ("ends",), 0) for name in STRING_COLUMNS},
    "sizes": Array("i", ("pairs", 2), 1, 2**31),
    "pixels": Array("i", ("pairs", "classes"), 0, 2**62),
    "unknown": Array("i", ("pairs",), 0, 2**62),
    "low": Array("f", ("pairs", "bands"), -1e38, 1e38),
    "high": Array("f", ("pairs", "bands"), -1e38, 1e38),
    "places": Array("i", ("pairs",), 0, 2**62),
    "chunk_ends": Array("i", ("chunks",), 0, 2**62),
}
_CHUNKS = {
    "chunks": [{"filename": str, "chunk_bytes": whole(0, 2**40), "chunk_size": whole(1)}],
    # Other formats can hold what runs code when it is read.
    "config": {
        "data_format": [{"bytes"}],
        "data_spec": str,
        "compression": None,
        "encryption?": None,
        "item_loader?": {"PyTreeLoader"},
    },
}
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": [set()]}
_PAIR = {"type": {"builtins.tuple"}, "context": {"null"}, "children_spec": [_LEAF]}
_SPEC = {"version": whole(), "tree": _PAIR}
_REMOTE = re.compile(r"(s3|gs|r2|azure):/+")


@dataclass(frozen=True)
class StreamInfo:
    """What stream.json holds."""

    splits: dict[str, int]  # pairs of each split
    reading: dict[str, Any]  # how its masks were read, as `MaskReader.to_dict` gives it
    group_regex: str | None  # what named the location groups of its pairs
    dtype: str  # NumPy name of the images' dtype


def require_litdata() -> None:
    """Makes sure that LitData is installed, and silences what it prints about its settings.

    Raises:
        UserError: Saying how to install it.
    """
    try:
        import litdata  # noqa: F401
    except ImportError:
        raise UserError(
            f"streams need LitData, which is not installed: {install('stream')}."
        ) from None
    logging.getLogger("litdata").setLevel(logging.WARNING)


def address(root: Path) -> str:
    """Where a stream is, as LitData writes it: a path, or an URL that `Path` took a slash from."""
    return _REMOTE.sub(r"\1://", str(root), count=1)


def is_remote(root: Path) -> bool:
    """Whether a stream must be fetched before it can be read."""
    return bool(_REMOTE.match(str(root))) or str(root).startswith("local:")


def read_info(root: Path) -> StreamInfo:
    """Reads stream.json.

    Raises:
        UserError: If it is missing or of another version, or LitData is not installed.
    """
    require_litdata()
    try:
        with _local(root, STREAM) as path:
            info = read_json(path, {"format": whole(), "*": object}, _AGAIN)
            if info.pop("format") == FORMAT:
                check_content(path, info, _INFO, _AGAIN)
                return StreamInfo(**{field.name: info[field.name] for field in fields(StreamInfo)})
            raise OSError("another version")
    except OSError as error:
        # What a service says can be a traceback of its own; credentials are what lacks most often.
        said = textwrap.shorten(one_line(str(error)), 200, placeholder=" ...")
        why = f" that can be read, with credentials and a network ({said})" * is_remote(root)
        raise DataError(
            f"data.format=stream, but data_root={address(root)} holds no {STREAM} of this "
            f"version{why}. Pack a folder with scripts/pack.py, or set data.format=folder."
        ) from None


@contextmanager
def _local(root: Path, name: str) -> Iterator[Path]:
    """A file of a stream; a remote one is downloaded for the duration of the block.

    Raises:
        OSError: If it is missing or cannot be fetched.
    """
    if not is_remote(root):
        yield root / name
        return
    from litdata.streaming.downloader import get_downloader

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        try:
            remote = f"{address(root)}/{name}"
            get_downloader(address(root), folder, []).download_file(remote, str(path))
        except Exception as error:  # each service has its own
            raise OSError(f"{remote}: {error}") from error
        yield path


def check_root(settings: DataSettings, root: Path) -> None:
    """Refuses, with a UserError, a data folder or stream that is not as the settings say.

    A demo world need not exist yet.
    """
    if settings.format == "stream":
        info = read_info(root)
        asked = mask_reader(settings).to_dict()
        asked["group_regex"] = settings.group_regex or info.group_regex
        packed = info.reading | {"group_regex": info.group_regex}
        if changed := [key for key, value in asked.items() if value != packed.get(key)]:
            raise DataError(
                f"data_root={address(root)} was packed with another data.{changed[0]}. Set it as "
                f"{STREAM} there says, or pack the folder again."
            )
    elif settings.demo is not None:
        is_drawn(root, settings.demo)
    elif not root.is_dir():
        raise UserError(
            f"data_root={root} is not a folder. Point it at one that holds train/images and "
            "train/masks, or try data=demo."
        )


def open_stream(root: Path, split: Split, reader: MaskReader) -> tuple[FolderIndex, "StreamSource"]:
    """Reads the index of a split; no pair is read.

    Raises:
        DataError: If the split is not as scripts/pack.py writes it.
    """
    info = read_info(root)
    try:
        with _local(root, f"{split}/{INDEX}") as path:
            columns = read_arrays(path, _INDEX, _AGAIN)
        with _local(root, f"{split}/{CHUNKS}") as path:
            listed = read_json(path, _CHUNKS, _AGAIN)
            spec = parse_json(listed["config"]["data_spec"])
            named = dict(zip(("version", "tree"), spec, strict=True))
            check_content(f"{path}: data_spec", named, _SPEC, _AGAIN)
        chunks = listed["chunks"]
        names = {
            n: PackedStrings.from_arrays(columns[n], columns[f"{n}_ends"]) for n in STRING_COLUMNS
        }
        pairs = PairList(root / split / "images", root / split / "masks", **names)
        count, ends = info.splits[split], columns["chunk_ends"]
        sizes = [chunk["chunk_size"] for chunk in chunks]
        if {len(pairs), len(columns["places"]), *map(len, names.values())} != {count}:
            raise ValueError(f"they list {len(pairs)} pairs, but {STREAM} has {count}")
        if ends.tolist() != np.cumsum(sizes).tolist() or sum(sizes) != count:
            raise ValueError("the pairs of the chunks are other ones")
        if not np.array_equal(np.sort(columns["places"]), np.arange(count)):
            raise ValueError("the places of the pairs are not those of the chunks")
        for chunk in chunks:
            _check_chunk(root / split, chunk, is_remote(root))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{address(root)}/{split} is not whole: {INDEX}, {CHUNKS} or a chunk is missing or not "
            f"as scripts/pack.py writes it ({error}). {_AGAIN}"
        ) from None
    statistics = {name: columns[name] for name in INDEX_COLUMNS}
    places = columns["places"]
    source = StreamSource(
        pairs, reader, chunks=Chunks(f"{address(root)}/{split}", ends), places=places
    )
    return FolderIndex(pairs, **statistics, dtype=np.dtype(info.dtype)), source


def _check_chunk(folder: Path, chunk: dict[str, Any], remote: bool) -> None:
    """Refuses a chunk that lies elsewhere, and one that is not whole, for which LitData waits."""
    name, size = chunk["filename"], chunk["chunk_bytes"]
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ValueError(f"{name!r} is not the name of a chunk")
    if not remote and (found := (folder / name).stat().st_size) < size:
        raise ValueError(f"{name} has {found} of {size} bytes")


@dataclass(eq=False)
class Chunks:
    """Reads the pairs of one split from LitData's files.

    Attributes:
        url: Where they are.
        ends: Place after the last pair of each chunk.
        whole: Whether remote chunks are downloaded whole and kept, which suits reading all pairs
            again and again, or only the pairs asked for are fetched.
    """

    url: str
    ends: npt.NDArray[np.int64]
    whole: bool = False
    _opened: tuple[int, Any] | None = field(default=None, init=False)

    def of(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The chunk in which each place lies."""
        return self.ends.searchsorted(places, side="right")

    def read(self, place: int) -> tuple[bytes, bytes]:
        """The bytes of an image file and of its mask file."""
        from litdata import StreamingDataset
        from litdata.streaming.sampler import ChunkedIndex

        # Processes that were forked share no files and no fetching threads.
        if self._opened is None or self._opened[0] != os.getpid():
            kept = str(default_cache_folder() / "chunks")  # of remote chunks
            dataset = StreamingDataset(self.url, cache_dir=kept, batch_decode=0)
            self._opened = (os.getpid(), dataset)
        dataset = self._opened[1]
        chunk = int(self.ends.searchsorted(place, side="right"))
        try:
            image, mask = dataset[ChunkedIndex(index=place, chunk_index=chunk)]
        except Exception as error:  # LitData raises exceptions of many types for other files
            wrong = UnreadableError(
                f"{self.url}, chunk {chunk} cannot be read: {error or 'it is damaged'}. {_AGAIN}"
            )
            wrong.errno = getattr(error, "errno", None)
            raise wrong from None
        dataset.on_demand_bytes = not self.whole
        return bytes(image), bytes(mask)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open dataset, which each process opens for itself."""
        return self.__dict__ | {"_opened": None}


@dataclass(frozen=True)
class StreamSource(PairSource):
    """Reads pairs from a stream, where each lies at one of the places, shape (N,), int64."""

    chunks: Chunks = field(kw_only=True)
    places: npt.NDArray[np.int64] = field(kw_only=True)

    def read(self, row: int) -> Decoded:
        """Image (H, W, K) in its stored dtype and label map (H, W) uint8 of one pair."""
        contents = retried(lambda: self.chunks.read(int(self.places[row])))
        pair = self.pairs[row]
        return self.reader.read_pair(pair.image, pair.mask, contents)[:2]

    def rows(self, rows: Sequence[int]) -> "StreamSource":
        """A source of some of the pairs, in the order asked for."""
        some = super().rows(rows)
        places = self.places[np.asarray(rows, np.int64)]
        return StreamSource(some.pairs, self.reader, chunks=self.chunks, places=places)

    def parts(self) -> npt.NDArray[np.int64]:
        """The chunk in which each pair lies, shape (N,), int64."""
        return self.chunks.of(self.places)

    def repeated(self) -> "StreamSource":
        """The same source for reading all pairs repeatedly: remote chunks are kept on disk."""
        return replace(self, chunks=replace(self.chunks, whole=True))
