"""The LightningDataModule of a segmenter: real pairs, synthetic ones mixed in, held-out tiles."""

import math
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from geoseg_gan.data.batch import Sample
from geoseg_gan.data.datamodule import PairDataModule
from geoseg_gan.data.dataset import PairDataset, PairSource, WindowDataset
from geoseg_gan.data.pairs import Pair, groups_of, stems_of
from geoseg_gan.data.palette import IGNORE, class_ids
from geoseg_gan.data.sampler import EpochSampler, SampleIndex
from geoseg_gan.data.scan import FolderIndex, check_same_type
from geoseg_gan.data.settings import DataSettings, JitterSettings, MixingSettings, Schedule
from geoseg_gan.data.synthetic import (
    SyntheticFolder,
    check_synthetic,
    read_synthetic,
    refuse_synthetic,
)
from geoseg_gan.data.transplant import Transplanter
from geoseg_gan.utils.errors import UserError, plural


class SegmenterDataModule(PairDataModule):
    """Serves a segmenter's training.

    Some groups of the training split, chosen by the seed, are held out: all choices are made on
    them. Only the other pairs are fitted. Each epoch mixes in a share of synthetic pairs without
    changing its number of steps. Held-out and validation tiles are real, are shown in full, and
    count every pixel once over all windows and processes.

    Args:
        root: The data folder.
        settings: What it holds and how it is read.
        image_size: Side of the items in pixels.
        batch_size: Global batch size, divided over the processes.
        jitter: Geometry of training items; its transplant step is copy-paste between real pairs.
        seed: Fixes order, augmentation and which groups are held out.
        on_gpu: Whether batches go to a GPU (memory is then pinned, and more workers load).
        inner_share: Share of the training pairs to hold out, at most half; 0 for none.
        epoch_steps: Global batches an epoch; None for as many as the fitted real pairs fill.
        synthetic: Generated folders.
        synthetic_ratio: Share of all draws that are synthetic, in [0, 1].
        mixing: How they are mixed in; None for the defaults.
        epochs: How many epochs the training has, over which they are spread.
        oversample: Classes, by name or ID, whose real pairs are drawn more often.
        oversample_factor: How many times as often, 1 or more.

    Attributes:
        inner_dataset: Windows of the held-out tiles; None where none are held out.
        val_dataset: Windows of the validation tiles; None where there are none.
        synthetic_folders: What the generated folders say of themselves.

    Raises:
        UserError: On `setup`, for a folder that is not as the settings say.
    """

    def __init__(
        self,
        root: Path,
        settings: DataSettings,
        *,
        image_size: int,
        batch_size: int,
        jitter: JitterSettings,
        seed: int,
        mixing: MixingSettings,
        on_gpu: bool = False,
        inner_share: float = 0.0,
        epoch_steps: int | None = None,
        synthetic: Sequence[Path] = (),
        synthetic_ratio: float = 0.0,
        epochs: int = 1,
        oversample: Sequence[str | int] = (),
        oversample_factor: float = 1.0,
    ) -> None:
        """Keeps the settings; nothing is read yet."""
        super().__init__(
            root,
            settings,
            image_size=image_size,
            batch_size=batch_size,
            jitter=jitter,
            seed=seed,
            on_gpu=on_gpu,
            inner_share=inner_share,
            epoch_steps=epoch_steps,
        )
        self.synthetic = synthetic
        self.synthetic_ratio = synthetic_ratio
        self.mixing = mixing
        self.epochs = epochs
        self._gate = self.mixing.gate(self.palette)
        self.oversample = oversample
        self.oversample_factor = oversample_factor
        self.val_dataset: WindowDataset | None = None
        self.synthetic_folders: list[SyntheticFolder] = []
        self._real: PairDataset | None = None
        self._synthetic: list[PairDataset] = []
        self._repeats: npt.NDArray[np.float64] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Finds, scans and checks all pairs; the second call does nothing."""
        if self.index is not None:
            return
        refuse_synthetic(self.root)
        index, real = self._open_train()
        self._warn_of_classes(index, "The segmenter cannot learn it.")
        self._repeats = self._oversampled(index)
        self._real = self._pair_dataset(real, self._transplanter(index, real))
        self._synthetic, self.synthetic_folders = [], []
        for folder in self.synthetic:
            facts = read_synthetic(folder)
            check_synthetic(facts, self.palette, self.settings.gsd)
            seen, painted = self._open(facts.pairs, facts.reader(), folder)
            check_same_type(index, seen)
            self._synthetic.append(self._pair_dataset(painted))
            self.synthetic_folders.append(facts)
        if opened := self._open_val(index):
            self.val_dataset = self._windows(*opened)
        else:
            rank_zero_warn(f"{self.root / 'val'} is missing: there will be no validation figures.")
        self.index = index

    @property
    def train_dataset(self) -> "MixedDataset":
        """The pairs that are fitted, real ones first; available after `setup`."""
        assert self._real is not None, "setup() comes first"
        marks = bool(self._synthetic) and self.mixing.batch_norm == "apart"
        return MixedDataset([self._real, *self._synthetic], self._gate, marks=marks)

    def split_summary(self) -> str:
        """How many pairs of how many groups are fitted and held out; available after `setup`."""
        held_out = self.inner_dataset.source.pairs if self.inner_dataset else []
        return f"{_counted(self.train_index.pairs)} fitted, {_counted(held_out)} held out"

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled training batches of `batch_size / processes` items, some of them synthetic."""
        rank, world = self._place()
        dataset, real = self.train_dataset, len(self.train_index.pairs)
        sampler = EpochSampler(
            real,
            self.batch_size,
            self.seed,
            rank,
            world,
            batches=self.steps_per_epoch,
            synthetic=len(dataset) - real,
            ratio=self.synthetic_ratio,
            schedule=cast(Schedule, self.mixing.schedule),
            epochs=self.epochs,
            repeats=self._repeats,
            parts=dataset.parts[0].source.parts(),
        )
        return self._load(dataset, sampler)

    def val_dataloader(self) -> DataLoader[Sample] | list[Any]:
        """This process's share of the held-out tiles; an empty list where there are none."""
        if self.inner_dataset is None:
            # Lightning would ask whether that is intended.
            warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
            return []
        return self._load(RankWindows(self.inner_dataset, *self._place()))

    def _pair_dataset(
        self, source: PairSource, transplanter: Transplanter | None = None
    ) -> PairDataset:
        return PairDataset(
            source, self.image_size, self.fit, self.jitter, self.seed, transplanter=transplanter
        )

    def _transplanter(self, index: FolderIndex, source: PairSource) -> Transplanter | None:
        """Copy-paste among the fitted pairs; None where it is off."""
        step = self.jitter.transplant
        if not step.p:
            return None
        stems = stems_of(index.pairs)
        key = "augment.copy_paste"
        return Transplanter(step, index.pixels, self.palette, source.read, stems, key)

    def _oversampled(self, index: FolderIndex) -> npt.NDArray[np.float64] | None:
        """How often each pair stands in the pool that is drawn from; None for once each."""
        if not self.oversample:
            return None
        classes = class_ids(self.oversample, self.palette, "oversample_classes")
        holds = index.pixels[:, classes] > 0
        absent = [
            self.palette.names[c] for c, n in zip(classes, holds.sum(0), strict=True) if not n
        ]
        if absent:
            raise UserError(
                f"oversample_classes: {', '.join(absent)} never occurs in the pairs that are "
                f"fitted of {self.root / 'train'}. Leave it away, or choose another seed or "
                "inner_share if it is in the tiles held out."
            )
        return np.where(holds.any(1), self.oversample_factor, 1.0)


class MixedDataset(Dataset[Sample]):
    """Several datasets of pairs as one, row after row.

    Args:
        parts: Real pairs, then synthetic ones.
        gate: What each label becomes on synthetic pixels, shape (256,); None where all stay.
        marks: Whether items say if they are synthetic.
    """

    def __init__(
        self,
        parts: Sequence[PairDataset],
        gate: npt.NDArray[np.uint8] | None = None,
        *,
        marks: bool = False,
    ) -> None:
        """Keeps the parts."""
        self.parts = parts
        self.gate = gate
        self.marks = marks
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        """How many pairs there are in all parts."""
        return self.ends[-1]

    def __getitem__(self, draw: SampleIndex) -> Sample:
        """One item: image (K, S, S) in its stored dtype, label (S, S) uint8."""
        number = bisect_right(self.ends, draw.row)
        part = self.parts[number]
        sample = part[draw._replace(row=draw.row - self.ends[number] + len(part))]
        if self.gate is not None and number > 0:
            sample["label"] = torch.from_numpy(self.gate.take(sample["label"].numpy()))
        if self.marks:
            sample["synthetic"] = torch.tensor(number > 0)
        return sample


class RankWindows(Dataset[Sample]):
    """One process's share of windows: every `world_size`-th.

    Where the windows do not divide, the last item of some processes is all ignore (255), so that
    all have equally many and no pixel counts twice.

    Args:
        windows: What is shared.
        rank: This process.
        world_size: How many processes share it.
    """

    def __init__(self, windows: WindowDataset, rank: int, world_size: int) -> None:
        """Keeps the windows; nothing is read yet."""
        self.windows = windows
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """How many items each process has."""
        return math.ceil(len(self.windows) / self.world_size)

    def __getitem__(self, position: int) -> Sample:
        """One item: image (K, S, S) in its stored dtype, label (S, S) uint8."""
        window = position * self.world_size + self.rank
        if window < len(self.windows):
            return self.windows[window]
        sample = self.windows[len(self.windows) - 1]
        sample["label"].fill_(IGNORE)
        return sample


def _counted(pairs: Sequence[Pair]) -> str:
    groups = len(set(groups_of(pairs)))
    return f"{plural(len(pairs), 'pair')} of {plural(groups, 'group')}"
