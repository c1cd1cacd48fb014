"""Fingerprints of data, by which a later call sees whether what a run has read has changed."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.pairs import groups_of, stems_of
from geoseg_gan.data.scan import FolderIndex
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.reading import whole

Fingerprints = dict[str, dict[str, Any]]
"""By split: how many pairs it has, and digests of their names, masks and images."""

FINGERPRINTS = {"*": {"pairs": whole(), "names": str, "masks": str, "images": str}}
"""The same as a shape of `utils.reading`."""

_WORDS = {
    "names": "the names or location groups of its pairs are others",
    "masks": "its masks hold other classes",
    "images": "its images have other sizes, bands, types or values",
}


def fingerprint(index: FolderIndex) -> dict[str, Any]:
    """The fingerprint of pairs, whatever their order: that of a copied folder is the same.

    It is of what the scan has found, and of neither paths nor times. An 8-bit image that is
    replaced by another one of its size and bands is not noticed.
    """
    stems, groups = list(stems_of(index.pairs)), list(groups_of(index.pairs))
    order = sorted(range(len(stems)), key=stems.__getitem__)
    names = "".join(f"{stems[row]}\0{groups[row]}\0" for row in order)
    counts = (index.sizes, index.pixels, index.unknown)
    kind = f"{index.bands} {index.dtype}".encode()
    return {
        "pairs": len(order),
        "names": _digest(names.encode(errors="surrogateescape")),
        "masks": _digest(*(part[order].astype(np.int64) for part in counts)),
        # Rounded, since percentiles may differ in their last digits between machines.
        "images": _digest(kind, *(p[order].astype(np.float32) for p in (index.low, index.high))),
    }


def fingerprint_files(paths: Sequence[Path]) -> dict[str, Any]:
    """The fingerprint of images without masks, by their names and bytes."""
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda path: hashlib.sha256(path.read_bytes()).digest(), paths))
    names = "".join(f"{path.name}\0" for path in paths)
    return {
        "pairs": len(paths),
        "names": _digest(names.encode(errors="surrogateescape")),
        "masks": "",
        "images": _digest(*found),
    }


def refuse_change(
    stored: Mapping[str, Any] | None, found: Fingerprints, what: str, advice: str
) -> None:
    """Refuses, with a UserError, data that are not those of a stored fingerprint.

    Args:
        stored: The fingerprint; None, as in files of earlier versions, is accepted.
        found: That of the data.
        what: What the stored one is of, for the message.
        advice: What to do.
    """
    if change := change_in(stored, found):
        raise UserError(f"{what} other data: {change}. {advice}")


def change_in(stored: Mapping[str, Any] | None, found: Fingerprints) -> str | None:
    """The first change of data since a stored fingerprint, in words; None where there is none."""
    if stored is None:
        return None
    for split in sorted(stored.keys() | found.keys()):
        old, new = stored.get(split), found.get(split)
        if old is None or new is None:
            return f"{split} is {'new' if old is None else 'gone'}"
        if old["pairs"] != new["pairs"]:
            return f"{split} had {old['pairs']:,} pairs, now {new['pairs']:,}"
        if changed := [word for key, word in _WORDS.items() if old[key] != new[key]]:
            return f"in {split}, {changed[0]}"
    return None


def _digest(*parts: bytes | npt.NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]
