"""The order in which training draws its pairs, real and synthetic, and the classes of its crops."""

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from geoseg_gan.data.jitter import Warp, Window, draw_window
from geoseg_gan.data.settings import Schedule
from geoseg_gan.data.transplant import rare_classes
from geoseg_gan.utils.errors import UserError, check_choice

CROPS = ("uniform", "balanced", "rare")
"""How crops are placed: anywhere, on all classes alike, or every other one on a rare class."""

_GOLDEN = (math.sqrt(5) - 1) / 2
"""Steps of this share of a circle are spread evenly over it, however many they are."""

_NO_CLASS = -1  # the class of a crop that is placed on none
_TRIES = 32  # pixels of a class; the crop is placed on the first that is in the frame


class SampleIndex(NamedTuple):
    """Index of a training sample: a pair, and the number that fixes its randomness.

    A number of its own makes a sample's augmentation the same whatever the number of workers, and
    after a resume the same as without the interruption.
    """

    row: int  # the pair
    serial: int  # number of the sample in the run, over all processes
    focus: int | None = None  # ID of a class that the crop has to show; None for any crop


@dataclass(frozen=True, eq=False)
class Focus:
    """Which of an epoch's crops are placed on which classes."""

    share: float  # of the crops that are placed on a class, above 0 and at most 1
    classes: list[int]  # IDs of K classes, drawn equally often
    pixels: npt.NDArray[np.int64]  # of each class in every row, at least one in all: (N, K)

    def draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Draws a class for each crop, and a row in proportion to its pixels of that class.

        Every class is drawn equally often, give or take one, in a random order.

        Returns:
            Rows and class IDs, each of shape (count,), int64.
        """
        k = len(self.classes)
        rounds = np.tile(np.arange(k), (math.ceil(count / k), 1))
        order = rng.permuted(rounds, axis=1).ravel()[:count]
        rows = np.empty(count, np.int64)
        for n in range(k):
            mine = order == n
            ends = self.pixels[:, n].cumsum()
            pixels = rng.integers(ends[-1], size=int(mine.sum()))
            rows[mine] = ends.searchsorted(pixels, side="right")
        return rows, np.array(self.classes)[order]


def crop_focus(crops: str, pixels: npt.NDArray[np.int64]) -> Focus | None:
    """Which crops are placed on which classes.

    - "uniform": none; a tile is drawn, and a window of it.
    - "balanced": all; one of the classes that occur is drawn, and then one of its pixels.
    - "rare": half of them, in the same way on classes that are rare (see `rare_classes`).

    Args:
        crops: One of `CROPS`.
        pixels: Pixels of every class and, last, of ignore in each row: shape (N, C + 1), int64.

    Raises:
        UserError: If `crops` is unknown, or no class occurs.
    """
    check_choice("crops", crops, CROPS)
    if crops == "uniform":
        return None
    occurring = np.flatnonzero(pixels[:, :-1].any(0)).tolist()
    if not occurring:
        raise UserError(
            f"crops={crops}: no training mask holds a pixel of any class. Check data_root and "
            "data.palette, or set crops=uniform."
        )
    classes = rare_classes(pixels) if crops == "rare" else occurring
    return Focus(0.5 if crops == "rare" else 1.0, classes, pixels[:, classes])


def draw_focused(
    label: npt.NDArray[np.uint8], class_id: int, warp: Warp, side: int, rng: np.random.Generator
) -> Window:
    """Draws the place of a crop that contains a pixel of a class, anywhere in it.

    A pixel that the warp moves out of the frame is drawn again; where none of 32 stays in it, the
    crop is as near to the first as the frame allows. The label map (H, W) is that before the warp,
    and contains the class.
    """
    height, width = label.shape
    places = np.flatnonzero(label == class_id)
    y, x = np.divmod(places[rng.integers(len(places), size=_TRIES)], width)
    columns, rows = warp.frame_points(height, width, x, y)
    points = np.rint(np.stack([rows, columns], axis=1)).astype(np.int64)
    frame = np.array(warp.shape(height, width))
    is_inside = ((points >= 0) & (points < frame)).all(1)
    row, column = points[is_inside.argmax()].clip(0, frame - 1).tolist()
    return draw_window(*warp.shape(height, width), side, rng, (row, column))


def batches_per_epoch(length: int, global_batch: int) -> int:
    """Whole global batches in `length` pairs; at least one, in which pairs may repeat."""
    return max(1, length // global_batch)


@dataclass(eq=False)
class EpochSampler(Sampler[SampleIndex]):
    """Random order without replacement, new every epoch, fixed by the seed.

    An epoch is a whole number of global batches; if it needs more pairs than there are, pairs
    repeat. The ranks of a distributed run split each global batch, so that together they train on
    what one process would.

    Rows 0 to `length - 1` are real pairs, the `synthetic` rows after them synthetic ones. Exactly
    `round(ratio * samples)` of an epoch's samples are synthetic; with a schedule, as many on
    average. They are spread evenly: a rank's number in a batch is within one of its even share.
    Neither the epoch's length nor the order of the real pairs depends on them.

    Attributes:
        length: How many real pairs there are.
        global_batch: Batch size over all ranks; a multiple of `world_size`.
        seed: Fixes the order.
        rank: This process.
        world_size: How many processes share a batch.
        batches: Global batches an epoch; 0 for as many as the real pairs fill.
        synthetic: How many synthetic pairs there are.
        ratio: Share of all samples that are synthetic, in [0, 1]; without synthetic pairs, 0.
        schedule: In which epochs they are used.
        epochs: How many epochs the schedule covers; later ones are as its last.
        repeats: How often each real pair is in the pool that is shuffled, shape (length,), each at
            least 1; a fraction is rounded up with that probability, for each pool again. None for
            once each.
        parts: The part of the storage in which each real pair lies, shape (length,). The order then
            goes through one part after the other, both in random order; None for any order.
        focus: Which of the real samples are crops on a class: without synthetic pairs exactly
            `round(share * samples)`, as evenly spread as these, which replace some of each kind.
            They replace as many pairs of the order. None for none.
        epoch: The epoch whose order is drawn.
        done: Batches of that epoch which are left out, since a run that is resumed has seen them.
    """

    length: int
    global_batch: int
    seed: int
    rank: int = 0
    world_size: int = 1
    _: KW_ONLY
    batches: int = 0
    synthetic: int = 0
    ratio: float = 0.0
    schedule: Schedule = "constant"
    epochs: int = 1
    repeats: npt.NDArray[np.float64] | None = None
    parts: npt.NDArray[np.int64] | None = None
    focus: Focus | None = None
    epoch: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        """Counts the synthetic samples of every epoch."""
        self.batches = self.batches or batches_per_epoch(self.length, self.global_batch)
        total = self.batches * self.global_batch
        each = round(self.ratio * total) if self.synthetic else 0
        self.synthetic_counts = synthetic_by_epoch(self.schedule, each, total, self.epochs)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order; Lightning calls it at the start of each epoch.

        It comes too late for the first epoch of a run, whose order workers have asked for by then.
        """
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0

    def __len__(self) -> int:
        """How many samples of a whole epoch are this rank's."""
        return self.batches * self.global_batch // self.world_size

    def __iter__(self) -> Iterator[SampleIndex]:
        """Yields this rank's samples of the epoch, without those of the batches that are done."""
        rng = np.random.default_rng((self.seed, self.epoch))
        total = self.batches * self.global_batch
        # Real pairs are drawn first, so that mixing and its ratio do not change their order.
        order = np.stack([self._real(rng, total), np.full(total, _NO_CLASS)])
        if self.focus is not None:
            count = round(self.focus.share * total)
            is_focused = _evenly_marked(count, self.batches, self.global_batch, rng)
            order = _inserted(order, is_focused, np.stack(self.focus.draw(count, rng)))
        if count := self.synthetic_counts[min(self.epoch, len(self.synthetic_counts) - 1)]:
            is_synthetic = _evenly_marked(count, self.batches, self.global_batch, rng)
            rows = self._synthetic(rng, count)
            order = _inserted(order, is_synthetic, np.stack([rows, np.full_like(rows, _NO_CLASS)]))
        first = self.epoch * total
        batches = np.arange(total).reshape(self.batches, self.world_size, -1)
        for position in batches[self.done :, self.rank].ravel().tolist():
            row, class_id = order[:, position].tolist()
            yield SampleIndex(row, first + position, None if class_id == _NO_CLASS else class_id)

    def _real(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        rounds = math.ceil(count / self.length)
        return np.concatenate([self._round(rng) for _ in range(rounds)])[:count]

    def _round(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """All real pairs in random order, part after part where they lie in parts."""
        rows = np.arange(self.length)
        if self.repeats is not None:
            rows = rows.repeat((self.repeats + rng.random(self.length)).astype(np.int64))
        rows = rng.permutation(rows)
        if self.parts is not None:
            turns = rng.permutation(self.parts.max() + 1)
            rows = rows[turns[self.parts[rows]].argsort(kind="stable")]
        return rows

    def _synthetic(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        rounds = math.ceil(count / self.synthetic)
        order = np.concatenate([rng.permutation(self.synthetic) for _ in range(rounds)])
        return self.length + order[:count]


def _inserted(
    order: npt.NDArray[np.int64], is_other: npt.NDArray[np.bool_], others: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Inserts `others` at their marks; the first of `order` keep their order around them."""
    mixed = np.empty_like(order)
    mixed[:, is_other] = others
    mixed[:, ~is_other] = order[:, : order.shape[1] - others.shape[1]]
    return mixed


def _evenly_marked(
    count: int, batches: int, size: int, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Marks `count` of `batches * size` positions, as evenly as whole numbers allow.

    A line that rises by `count` over all batches gives a batch one mark for every whole number that
    it passes there (Bresenham 1965); within a batch, a line over its places does the same. Any run
    of places of a batch then has its even share, rounded down or up.
    """
    marks = np.diff((np.arange(batches + 1) * count + rng.integers(batches)) // batches)
    # If the lines of equal batches began alike, rounding would always favour the same ranks.
    is_fuller = marks == marks.max()
    nth = np.where(is_fuller, is_fuller.cumsum(), (~is_fuller).cumsum())
    begin = ((rng.random() + nth * _GOLDEN) % 1 * size).astype(np.int64)
    lines = (begin[:, None] + np.arange(size + 1) * marks[:, None]) // size
    marked: npt.NDArray[np.bool_] = np.diff(lines) > 0
    return marked.ravel()


def synthetic_by_epoch(schedule: Schedule, each: int, total: int, epochs: int) -> list[int]:
    """How many of the `total` samples of every epoch are synthetic, `each` on average."""
    if schedule == "constant" or epochs == 1:
        return [each] * epochs
    if schedule == "first":
        return [min(max(each * epochs - epoch * total, 0), total) for epoch in range(epochs)]
    high, low = min(total, 2 * each), max(0, 2 * each - total)
    # Cumulative sums are rounded rather than epochs, so that no sample is lost.
    steps = 2 * (epochs - 1)
    sums = [e * high - (high - low) * e * (e - 1) // steps for e in range(epochs + 1)]
    return np.diff(sums).tolist()
