"""A folder of generated pairs to look through, and to drop pairs of by hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.images import read_image, resize_image, resize_label
from geoseg_gan.data.pairs import Pair
from geoseg_gan.data.synthetic import Line, pair_stem, read_manifest, read_synthetic
from geoseg_gan.synthesis.writer import drop_by_hand
from geoseg_gan.utils.pictures import RGB, beside

ORDERS = ("worst score first", "best score first", "by number")
FILTERS = ("all pairs", "kept", "dropped by hand")


@dataclass(frozen=True)
class Entry:
    """A pair of the folder.

    Attributes:
        pair: Its files.
        line: What the manifest says of it.
    """

    pair: Pair
    line: Line

    @property
    def index(self) -> int:
        """The number of its candidate."""
        return int(self.line["index"])

    @property
    def is_kept(self) -> bool:
        """Whether it is trained on."""
        return bool(self.line["kept"])

    @property
    def score(self) -> float | None:
        """The agreement (mIoU) of segmenter and mask; None where none was measured."""
        return self.line.get("score")


class PairFolder:
    """A generated folder and its manifest, which is read again whenever it has changed.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        """Reads what the folder says of itself.

        Raises:
            UserError: If it is not a generated folder, holds no pairs, or its manifest is damaged.
        """
        self.folder = folder
        self._facts = read_synthetic(folder, "save_dir", dropped_too=True)
        self._reader = self._facts.reader()
        self.entries()

    @property
    def counts(self) -> tuple[int, int]:
        """How many pairs are kept, and how many were dropped by hand."""
        kept = [entry.is_kept for entry in self.entries()]
        return sum(kept), len(kept) - sum(kept)

    def entries(self, order: str = ORDERS[-1], shown: str = FILTERS[0]) -> list[Entry]:
        """The pairs in one of `ORDERS` that pass one of `FILTERS`; those without a score last.

        Raises:
            UserError: If the manifest is damaged.
        """
        lines = {pair_stem(line["index"]): line for line in read_manifest(self.folder)}
        entries = [Entry(p, lines[p.stem]) for p in self._facts.pairs if p.stem in lines]
        if shown != FILTERS[0]:
            entries = [entry for entry in entries if entry.is_kept == (shown == "kept")]
        if order != ORDERS[-1]:
            sign = 1 if order == ORDERS[0] else -1
            entries.sort(key=lambda e: np.inf if e.score is None else sign * e.score)
        return entries

    def set_dropped(self, index: int, dropped: bool) -> None:
        """Drops a pair, or takes it back; see `drop_by_hand`."""
        drop_by_hand(self.folder, index, dropped)

    def picture(self, entry: Entry, side: int) -> RGB:
        """Mask and image of a pair side by side, each of at most `side` pixels a side.

        Raises:
            UserError: If a file cannot be read.
        """
        label, _ = self._reader.read(entry.pair.mask)
        image = _to_rgb(read_image(entry.pair.image))
        if len(label) > side:
            label, image = resize_label(label, side), resize_image(image, side)
        return beside([self._reader.palette.color_table[label], image])


def _to_rgb(image: npt.NDArray[Any]) -> RGB:
    """The first three bands; 8-bit pictures as they are, others between their percentiles."""
    bands = image.shape[2]
    if image.dtype == np.uint8 and bands in (1, 3):
        return ImageScaling([0] * bands, [255] * bands).to_rgb(image)
    low, high = np.nanpercentile(image, (1, 99), axis=(0, 1))
    return ImageScaling(low.tolist(), np.where(high > low, high, low + 1).tolist()).to_rgb(image)
