"""The LightningDataModules that serve mask-image pairs: what they share, and the generator's."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, get_args

import cv2
import lightning as L
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from geoseg_gan.data.batch import ImageScaling, Sample
from geoseg_gan.data.dataset import Fit, PairDataset, PairSource, WindowDataset
from geoseg_gan.data.images import MaskFormat, MaskReader
from geoseg_gan.data.jitter import JitterSettings
from geoseg_gan.data.leaks import shared_ground
from geoseg_gan.data.pairs import DataError, Pair, Split, find_pairs
from geoseg_gan.data.palette import Palette, PaletteClass, UnknownPolicy
from geoseg_gan.data.sampler import EpochSampler, batches_per_epoch
from geoseg_gan.data.scan import FolderIndex, check_sizes, scan
from geoseg_gan.data.split import split_rows
from geoseg_gan.data.world import DemoSettings, is_drawn, write_world
from geoseg_gan.errors import UserError, check_choice, plural


@dataclass
class DataSettings:
    """What a data folder holds and how it is read.

    Attributes:
        palette: Classes in ID order.
        ignore: Colours read as ignore; 255 is written as the first of them.
        mask_format: "rgb" for palette colours, "index" for one channel of class IDs.
        unknown: Colours outside the palette: "error", "ignore" or "nearest".
        group_regex: What part of a stem names the ground it shows; None if each is its own.
        split_file: A CSV of stem and part ("fit" or "inner") that says which training pairs are
            fitted and which held out; others are left out. None to use all and let `inner_share`
            choose.
        gsd: Ground sampling distance in metres a pixel, recorded in checkpoints; None if unknown.
        fit: "crop" or "resize" to image_size.
        cache: "ram" keeps decoded pairs in memory, "none" reads files each time.
        num_workers: Loader processes; None chooses by the machine's cores.
        demo: The world to draw into data_root, if it is not there yet.
    """

    palette: list[PaletteClass] = field(default_factory=list)
    ignore: list[list[int]] = field(default_factory=list)
    mask_format: str = "rgb"
    unknown: str = "error"
    group_regex: str | None = None
    split_file: str | None = None
    gsd: float | None = None
    fit: str = "crop"
    cache: str = "none"
    num_workers: int | None = None
    demo: DemoSettings | None = None

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and what is allowed.
        """
        check_choice("data.mask_format", self.mask_format, get_args(MaskFormat))
        check_choice("data.unknown", self.unknown, get_args(UnknownPolicy))
        check_choice("data.fit", self.fit, get_args(Fit))
        check_choice("data.cache", self.cache, ("ram", "none"))
        if self.num_workers is not None and self.num_workers < 0:
            raise UserError(f"data.num_workers={self.num_workers}: use 0 or more, or null.")
        if self.gsd is not None and self.gsd <= 0:
            raise UserError(f"data.gsd={self.gsd}: metres a pixel must be positive, or null.")
        self.reader()

    def check_root(self, root: Path) -> None:
        """Refuses a data folder that is not there, unless a demo world is to be drawn there.

        Raises:
            UserError: Naming the folder and what to do.
        """
        if self.demo is not None:
            is_drawn(root, self.demo)
        elif not root.is_dir():
            raise UserError(
                f"data_root={root} is not a folder. Point it at one that holds train/images and "
                "train/masks, or try data=demo."
            )

    def reader(self) -> MaskReader:
        """The mask reader these settings describe.

        Raises:
            UserError: If palette and policies do not fit together.
        """
        palette = Palette(self.palette, self.ignore)
        return MaskReader(
            palette, cast(MaskFormat, self.mask_format), cast(UnknownPolicy, self.unknown)
        )


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
        if self.settings.demo is not None:
            write_world(self.root, self.palette, self.settings.demo)

    def _open_split(self, split: Split) -> tuple[FolderIndex, PairSource]:
        pairs = find_pairs(self.root, split, self.settings.group_regex)
        return self._open(pairs, self.reader, self.root / split)

    def _open_train(self) -> tuple[FolderIndex, PairSource]:
        """The training pairs that are fitted; windows of the others become `inner_dataset`."""
        pairs = find_pairs(self.root, "train", self.settings.group_regex)
        parts = split_rows(pairs, self.settings.split_file, self.inner_share, self.seed)
        fitted, held_out = ([pairs[row] for row in rows] for rows in parts)
        index, source = self._open([*fitted, *held_out], self.reader, self.root / "train")
        ends = range(len(fitted)), range(len(fitted), len(index.pairs))
        if held_out:
            self.inner_dataset = self._windows(index.rows(ends[1]), source.rows(ends[1]))
        return index.rows(ends[0]), source.rows(ends[0])

    def _windows(self, index: FolderIndex, source: PairSource) -> WindowDataset:
        return WindowDataset(source, index.sizes, self.image_size, self.fit, once=True)

    def _open_val(self, train: FolderIndex) -> tuple[FolderIndex, PairSource] | None:
        """The validation split; None where there is none."""
        if not (self.root / "val").is_dir():
            return None
        index, source = self._open_split("val")
        check_same_type(train, index)
        held_out = self.inner_dataset.source.pairs if self.inner_dataset else []
        if warning := shared_ground([*train.pairs, *held_out], index.pairs):
            rank_zero_warn(warning)
        return index, source

    def _open(
        self, pairs: list[Pair], reader: MaskReader, where: Path
    ) -> tuple[FolderIndex, PairSource]:
        """Scans and checks pairs, and decodes them where the settings keep them in memory."""
        index = scan(pairs, reader)
        if self.fit == "crop":
            check_sizes(index, self.image_size)
        if strays := int(index.unknown.sum()):
            files = int((index.unknown > 0).sum())
            rank_zero_warn(
                f"{where}: {plural(strays, 'pixel')} in {plural(files, 'mask')} are outside the "
                f"palette; read as {self.settings.unknown} by data.unknown."
            )
        source = PairSource(pairs, reader)
        if self.settings.cache == "ram":
            source = source.in_memory(index)
        return index, source

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
        workers = self._workers(world)
        return DataLoader(
            dataset,
            batch_size=self.batch_size // world,
            sampler=sampler,
            num_workers=workers,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            pin_memory=self.on_gpu,
        )

    def _workers(self, world: int) -> int:
        if self.settings.num_workers is not None:
            return self.settings.num_workers
        # One worker keeps a CPU run fed; a GPU takes as many as its share of the cores.
        return max(1, min(8, (os.cpu_count() or 1) // world - 1)) if self.on_gpu else 1


class SegmentationDataModule(PairDataModule):
    """Serves a generator's training.

    Training batches are random and the same for every number of workers and processes; validation
    shows every picture in full. Without a validation split, training pictures stand in for it.
    """

    _train: PairDataset | None = None
    _val: WindowDataset | None = None

    def setup(self, stage: str | None = None) -> None:
        """Finds, scans and checks both splits; the second call does nothing."""
        if self.index is not None:
            return
        index, train_source = self._open_train()
        self._warn_of_classes(index, "The generator cannot learn to paint it.")
        opened = self._open_val(index)
        if opened is None:
            rank_zero_warn(
                f"{self.root / 'val'} is missing: sample pictures show training pairs instead."
            )
        val_index, val_source = opened or (index, train_source)
        self._train = PairDataset(train_source, self.image_size, self.fit, self.jitter, self.seed)
        self._val = WindowDataset(val_source, val_index.sizes, self.image_size, self.fit)
        self.index = index

    @property
    def val_dataset(self) -> WindowDataset:
        """Full validation pictures in windows; available after `setup`."""
        assert self._val is not None, "setup() comes first"
        return self._val

    def train_windows(self) -> WindowDataset:
        """Full training pictures in windows, as they are without jitter; after `setup`."""
        return self._windows(self.train_index, self.train_dataset.source)

    @property
    def train_dataset(self) -> PairDataset:
        """Training pairs; available after `setup`."""
        assert self._train is not None, "setup() comes first"
        return self._train

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled training batches of `batch_size / processes` items."""
        rank, world = self._place()
        length = len(self.train_dataset)
        batches = self.steps_per_epoch
        sampler = EpochSampler(length, self.batch_size, self.seed, rank, world, batches=batches)
        return self._load(self.train_dataset, sampler)


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
