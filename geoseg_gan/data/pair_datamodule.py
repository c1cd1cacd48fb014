"""The part that LightningDataModules of mask-image pairs share."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import cv2
import lightning as L
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from geoseg_gan.data.batch import ImageScaling, Sample
from geoseg_gan.data.dataset import Fit, PairSource, WindowDataset
from geoseg_gan.data.images import MaskReader
from geoseg_gan.data.jitter import JitterSettings
from geoseg_gan.data.leaks import shared_ground
from geoseg_gan.data.pairs import DataError, Pair, Split, find_pairs, some_pairs
from geoseg_gan.data.palette import Palette
from geoseg_gan.data.sampler import EpochSampler, batches_per_epoch
from geoseg_gan.data.scan import FolderIndex, check_sizes, scan
from geoseg_gan.data.settings import DataSettings
from geoseg_gan.data.split import split_rows
from geoseg_gan.data.stream import open_stream, read_facts
from geoseg_gan.data.world import write_world
from geoseg_gan.errors import plural


class PairDataModule(L.LightningDataModule):
    """What data modules of `root/{train,val}/{images,masks}` share: opening and loading pairs.

    Args:
        root: The data folder.
        settings: What it holds and how it is read.
        image_size: Side of the items in pixels.
        batch_size: Global batch size, divided over the processes.
        jitter: Geometry of training items.
        seed: Fixes order and augmentation.
        on_gpu: Whether batches go to a GPU (memory is then pinned, and more workers load).
        inner_share: Share of the training pairs to hold out, at most half; 0 for none.
        epoch_steps: Global batches an epoch; None for as many as the fitted pairs fill.

    Attributes:
        inner_dataset: Windows of the held-out tiles; None where none are held out.

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
        on_gpu: bool = False,
        inner_share: float = 0.0,
        epoch_steps: int | None = None,
    ) -> None:
        """Keeps the settings; nothing is read yet."""
        super().__init__()
        self.root = root
        self.settings = settings
        self.image_size = image_size
        self.batch_size = batch_size
        self.jitter = jitter
        self.seed = seed
        self.on_gpu = on_gpu
        self.inner_share = inner_share
        self.epoch_steps = epoch_steps
        self.inner_dataset: WindowDataset | None = None
        self.reader = settings.reader()
        self.fit: Fit = cast(Fit, settings.fit)
        self.index: FolderIndex | None = None

    @property
    def palette(self) -> Palette:
        """The classes."""
        return self.reader.palette

    @property
    def train_index(self) -> FolderIndex:
        """What the scan saw of the pairs that are trained on; available after `setup`."""
        assert self.index is not None, "setup() comes first"
        return self.index

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch, with or without synthetic pairs; available after `setup`."""
        return self.epoch_steps or batches_per_epoch(len(self.train_index.pairs), self.batch_size)

    def scaling(self) -> ImageScaling:
        """The scaling that fits the images that are trained on; available after `setup`."""
        return ImageScaling.fit(self.train_index)

    def prepare_data(self) -> None:
        """Draws the demo world where the settings name one."""
        if self.settings.demo is not None and self.settings.format == "folder":
            write_world(self.root, self.palette, self.settings.demo)

    def _open_split(
        self, split: Split, choose: Callable[[Sequence[Pair]], list[int]] | None = None
    ) -> tuple[FolderIndex, PairSource]:
        """A split's pairs, or those of them that are chosen, in the order asked for."""
        where = self.root / split
        if self.settings.format == "folder":
            pairs: Sequence[Pair] = find_pairs(self.root, split, self.settings.group_regex)
            return self._open(
                pairs if choose is None else some_pairs(pairs, choose(pairs)), self.reader, where
            )
        index, source = open_stream(self.root, split, self.reader)
        if choose is not None:
            rows = choose(index.pairs)
            index, source = index.rows(rows), source.rows(rows)
        self._check(index, where)
        return index, source

    def _open_train(self) -> tuple[FolderIndex, PairSource]:
        """The training pairs that are fitted; windows of the others become `inner_dataset`."""
        count = 0

        def fitted_first(pairs: Sequence[Pair]) -> list[int]:
            nonlocal count
            settings = self.settings
            parts = split_rows(pairs, settings.split_file, self.inner_share, self.seed)
            count = len(parts[0])
            return [*parts[0], *parts[1]]

        index, source = self._open_split("train", fitted_first)
        fitted, held_out = range(count), range(count, len(index.pairs))
        if held_out:
            self.inner_dataset = self._windows(index.rows(held_out), source.rows(held_out))
        return index.rows(fitted), source.rows(fitted).for_all()

    def _windows(self, index: FolderIndex, source: PairSource) -> WindowDataset:
        return WindowDataset(source, index.sizes, self.image_size, self.fit, once=True)

    def _open_val(self, train: FolderIndex) -> tuple[FolderIndex, PairSource] | None:
        """The validation split; None where there is none."""
        if not self._has_val():
            return None
        index, source = self._open_split("val")
        check_same_type(train, index)
        held_out = self.inner_dataset.source.pairs if self.inner_dataset else []
        if warning := shared_ground(train.pairs, index.pairs, held_out):
            rank_zero_warn(warning)
        return index, source

    def _has_val(self) -> bool:
        if self.settings.format == "stream":
            return "val" in read_facts(self.root).splits
        return (self.root / "val").is_dir()

    def _open(
        self, pairs: Sequence[Pair], reader: MaskReader, where: Path
    ) -> tuple[FolderIndex, PairSource]:
        """Scans and checks pairs, and decodes them where the settings keep them in memory."""
        index = scan(pairs, reader)
        self._check(index, where)
        source = PairSource(pairs, reader)
        if self.settings.cache == "ram":
            source = source.in_memory(index)
        return index, source

    def _check(self, index: FolderIndex, where: Path) -> None:
        """Refuses what is too small, and warns of pixels outside the palette."""
        if self.fit == "crop":
            check_sizes(index, self.image_size)
        if strays := int(index.unknown.sum()):
            files = int((index.unknown > 0).sum())
            rank_zero_warn(
                f"{where}: {plural(strays, 'pixel')} in {plural(files, 'mask')} are outside the "
                f"palette; read as {self.settings.unknown} by data.unknown."
            )

    def _warn_of_classes(self, index: FolderIndex, loss: str) -> None:
        """Warns of classes without a pixel, and of what is lost by it."""
        pixels = index.pixels[:, :-1].sum(0)
        absent = [n for n, seen in zip(self.palette.names, pixels, strict=True) if not seen]
        if absent:
            rank_zero_warn(
                f"{self.root / 'train'}: never occurs in the masks: {', '.join(absent)}. {loss}"
            )

    def _place(self) -> tuple[int, int]:
        """This process's rank, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _load(
        self, dataset: Dataset[Sample], sampler: EpochSampler | None = None
    ) -> DataLoader[Sample]:
        """Batches of `batch_size / processes` items, in order where there is no sampler."""
        _, world = self._place()
        workers = self._workers()
        return DataLoader(
            dataset,
            batch_size=self.batch_size // world,
            sampler=sampler,
            num_workers=workers,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            pin_memory=self.on_gpu,
        )

    def _workers(self) -> int:
        if self.settings.num_workers is not None:
            return self.settings.num_workers
        # One worker keeps a CPU run fed; a GPU takes as many as its share of its machine's cores.
        here = self.trainer.num_devices if self.trainer else 1
        return max(1, min(8, (os.cpu_count() or 1) // here - 1)) if self.on_gpu else 1


def check_same_type(train: FolderIndex, other: FolderIndex) -> None:
    """Refuses images of other bands or another dtype than the training images.

    Raises:
        DataError: Naming an image of each.
    """
    if (train.bands, train.dtype) != (other.bands, other.dtype):
        raise DataError(
            f"{other.pairs[0].image} has {plural(other.bands, 'band')} of {other.dtype}, but "
            f"{train.pairs[0].image} has {plural(train.bands, 'band')} of {train.dtype}. Convert "
            "all to the same bands and type."
        )


def _start_worker(worker: int) -> None:
    """Seeds a loader process, and keeps it to one core: OpenCV would take all from the training."""
    pl_worker_init_function(worker)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
