"""Candidate masks: training masks under random geometry."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from geoseg_gan.data.dataset import Fit
from geoseg_gan.data.images import MaskReader, resize_label
from geoseg_gan.data.jitter import (
    JitterSettings,
    Warp,
    Window,
    draw_warp,
    draw_window,
    sample_label,
)
from geoseg_gan.data.pairs import Pair


@dataclass(frozen=True)
class Candidate:
    """A new mask and how it came about.

    Attributes:
        index: Its number in the run; with the run's seed it fixes everything else.
        source: Stem of the training mask.
        warp: The geometry that was drawn.
        window: Its place in the warped mask, in pixels.
        label: Shape (S, S), uint8.
    """

    index: int
    source: str
    warp: Warp
    window: Window
    label: npt.NDArray[np.uint8]

    def to_dict(self) -> dict[str, Any]:
        """The manifest's entries: all but the pixels."""
        return {
            "index": self.index,
            "source": self.source,
            "jitter": self.warp.to_dict(),
            "window": list(self.window),
        }


class CandidateMasks(Dataset[Candidate]):
    """Candidates by number: mask, geometry and place are drawn from (seed, number) alone.

    The whole mask is warped before it is cropped, so that a crop's border shows real neighbours.

    Args:
        pairs: Whose masks are drawn from, uniformly.
        reader: How masks become label maps.
        image_size: Side of the candidates in pixels.
        fit: "crop" takes a window of the mask, "resize" shows it whole.
        jitter: The geometry.
        seed: The run's seed.
        start: Number of the first candidate.
        stop: Number after the last candidate.
    """

    def __init__(
        self,
        pairs: list[Pair],
        reader: MaskReader,
        *,
        image_size: int,
        fit: Fit,
        jitter: JitterSettings,
        seed: int,
        start: int,
        stop: int,
    ) -> None:
        """Keeps the settings; nothing is read yet."""
        self.pairs = pairs
        self.reader = reader
        self.image_size = image_size
        self.fit = fit
        self.jitter = jitter
        self.seed = seed
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        """How many candidates there are."""
        return max(0, self.stop - self.start)

    def __getitem__(self, position: int) -> Candidate:
        """The candidate number `start + position`."""
        if not 0 <= position < len(self):
            raise IndexError(position)
        index = self.start + position
        rng = np.random.default_rng((self.seed, index))
        pair = self.pairs[int(rng.integers(len(self.pairs)))]
        label, _ = self.reader.read(pair.mask)
        if self.fit == "resize":
            label = resize_label(label, self.image_size)
        height, width = label.shape
        warp = draw_warp(self.jitter, rng)
        window = draw_window(*warp.shape(height, width), self.image_size, rng)
        sampled = sample_label(label, warp.source_map(height, width, window))
        return Candidate(index, pair.stem, warp, window, sampled)
