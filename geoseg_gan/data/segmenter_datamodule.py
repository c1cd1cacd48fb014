"""The data module that a segmenter is trained with: real and synthetic pairs, held-out tiles."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from geoseg_gan.data.batch import ImageScaling, Sample
from geoseg_gan.data.datamodule import LoadingOptions, PairDataModule
from geoseg_gan.data.dataset import PairSource, WindowDataset
from geoseg_gan.data.pairs import Pair, groups_of, stems_of
from geoseg_gan.data.palette import IGNORE, class_ids
from geoseg_gan.data.scan import FolderIndex
from geoseg_gan.data.settings import DataSettings, MatchStep, MixingSettings, Schedule
from geoseg_gan.data.styles import StyleMatcher, Styles
from geoseg_gan.data.synthetic import refuse_synthetic
from geoseg_gan.data.transplant import Transplanter
from geoseg_gan.utils.errors import UserError, plural


class SegmenterDataModule(PairDataModule):
    """Loads the data that a segmenter is trained on.

    Some location groups of the training split, chosen by the seed, are held out: all choices are
    made on them. Only the other pairs are fitted. Each epoch mixes in a share of synthetic pairs
    without changing its number of steps. Held-out and validation tiles are real, are covered in
    full, and count every pixel once over all windows and processes.

    Args:
        root: The data folder.
        settings: What it holds and how it is read.
        mixing: How synthetic pairs are mixed in.
        epochs: How many epochs the training has, over which the synthetic pairs are scheduled.
        oversample: Classes, by name or ID, whose real pairs are drawn more often.
        oversample_factor: How many times as often, 1 or more.
        match: How real pairs take on the colours of classes in synthetic ones.
        options: See `LoadingOptions`; the jitter's transplant step is copy-paste between real
            pairs.

    Attributes:
        val_dataset: Windows of the validation tiles; None where there are none.
    """

    def __init__(
        self,
        root: Path,
        settings: DataSettings,
        *,
        mixing: MixingSettings,
        epochs: int = 1,
        oversample: Sequence[str | int] = (),
        oversample_factor: float = 1.0,
        match: MatchStep | None = None,
        **options: Unpack[LoadingOptions],
    ) -> None:
        """Stores the settings; nothing is read yet."""
        super().__init__(root, settings, **options)
        self.mixing = mixing
        self.epochs = epochs
        self.gate = mixing.gate(self.palette)
        self.oversample = oversample
        self.oversample_factor = oversample_factor
        self.match = match
        self.val_dataset: WindowDataset | None = None
        self._repeats: npt.NDArray[np.float64] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Finds, scans and checks all pairs; the second call does nothing."""
        if self.index is not None:
            return
        refuse_synthetic(self.root)
        index, real = self._open_train()
        self._warn_of_absent_classes(index, "The segmenter cannot learn it.")
        self._repeats = self._oversampled(index)
        own = replace(self._pair_dataset(real), transplanter=self._transplanter(index, real))
        folders = self._open_synthetic(index)
        if self.match is not None and self.match.p and folders:
            scaling = ImageScaling.fit(index)
            styles = [Styles.of_tiles(f.pairs, f.reader(), scaling) for f in folders]
            own = replace(
                own, matcher=StyleMatcher(self.match, Styles.joined(styles), scaling, self.seed)
            )
        self._real = own
        if opened := self._open_val(index):
            self.val_dataset = self._windows(*opened)
        else:
            rank_zero_warn(f"{self.root / 'val'} is missing: there will be no validation scores.")
        self.index = index

    def split_summary(self) -> str:
        """How many pairs of how many groups are fitted and held out; available after `setup`."""
        held_out = self.inner_dataset.source.pairs if self.inner_dataset else []
        return f"{_count(self.train_index.pairs)} fitted, {_count(held_out)} held out"

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled training batches of `batch_size / processes` samples, some of them synthetic."""
        return self._load_mixed(
            schedule=cast(Schedule, self.mixing.schedule),
            epochs=self.epochs,
            repeats=self._repeats,
        )

    def val_dataloader(self) -> DataLoader[Sample] | list[Any]:
        """This process's share of the held-out tiles; an empty list where there are none."""
        if self.inner_dataset is None:
            # Lightning would warn of an empty list.
            warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
            return []
        return self._load(RankDataset(self.inner_dataset, *self._rank_and_world_size()))

    def _transplanter(self, index: FolderIndex, source: PairSource) -> Transplanter | None:
        """Copy-paste among the fitted pairs; None where it is off."""
        step, stems = self.jitter.transplant, stems_of(index.pairs)
        if not step.p:
            return None
        key = "augment.copy_paste"
        return Transplanter(step, index.pixels, self.palette, source.read, stems, key)

    def _oversampled(self, index: FolderIndex) -> npt.NDArray[np.float64] | None:
        """How often each pair is in the pool to draw from; None for once each."""
        if not self.oversample:
            return None
        classes = class_ids(self.oversample, self.palette, "oversample_classes")
        holds = index.pixels[:, classes] > 0
        if absent := [self.palette.names[c] for c in classes if not index.pixels[:, c].any()]:
            raise UserError(
                f"oversample_classes: {', '.join(absent)} never occurs in the fitted pairs "
                f"of {self.root / 'train'}. Drop it, or choose another seed or inner_share if "
                "it is in the held-out tiles."
            )
        return np.where(holds.any(1), self.oversample_factor, 1.0)


@dataclass(eq=False)
class RankDataset(Dataset[Sample]):
    """One process's share of windows: every `world_size`-th.

    Where the windows do not divide evenly, the last sample of some processes is all ignore (255),
    so that all have equally many and no pixel counts twice.
    """

    windows: WindowDataset
    rank: int
    world_size: int

    def __len__(self) -> int:
        """How many samples each process has."""
        return math.ceil(len(self.windows) / self.world_size)

    def __getitem__(self, position: int) -> Sample:
        """One sample: image (K, S, S) in its stored dtype, label (S, S) uint8."""
        window = position * self.world_size + self.rank
        if window < len(self.windows):
            return self.windows[window]
        sample = self.windows[len(self.windows) - 1]
        sample["label"].fill_(IGNORE)
        return sample


def _count(pairs: Sequence[Pair]) -> str:
    groups = len(set(groups_of(pairs)))
    return f"{plural(len(pairs), 'pair')} of {plural(groups, 'group')}"
