"""Lightning data modules: what all share, and the one that a generator is trained with."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack, cast

import cv2
import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from geoseg_gan.data.batch import ImageScaling, Sample
from geoseg_gan.data.dataset import MixedDataset, PairDataset, PairSource, WindowDataset
from geoseg_gan.data.demo.world import write_world
from geoseg_gan.data.fingerprint import Fingerprints, fingerprint
from geoseg_gan.data.masks import MaskReader, mask_reader
from geoseg_gan.data.pairs import Pair, Split, find_pairs, some_pairs
from geoseg_gan.data.palette import Palette
from geoseg_gan.data.sampler import EpochSampler, Focus, batches_per_epoch, crop_focus
from geoseg_gan.data.scan import (
    SMALLER,
    FolderIndex,
    check_same_type,
    check_sizes,
    refuse_binary_masks,
    scan,
)
from geoseg_gan.data.settings import DataSettings, Fit, JitterSettings
from geoseg_gan.data.split import shared_groups, split_rows
from geoseg_gan.data.stream import open_stream, read_info
from geoseg_gan.data.synthetic import SyntheticFolder, check_synthetic, read_synthetic
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.processes import end_with_parent
from geoseg_gan.utils.signals import outlive_signals


class LoadingOptions(TypedDict):
    """Keyword arguments that all data modules take.

    Keys:
        image_size: Side of the samples in pixels.
        stride: What the network wants it to be a multiple of, for advice; 1 by default.
        batch_size: Global batch size, divided over the processes.
        jitter: Geometry of training samples.
        seed: Fixes order, augmentation and which groups are held out.
        on_gpu: Whether batches go to a GPU (memory is then pinned, and more workers load).
        inner_share: Share of the training pairs to hold out, at most half; 0 (default) for none.
        epoch_steps: Global batches an epoch; by default as many as the fitted real pairs fill.
        synthetic: Generated folders.
        synthetic_ratio: Share of all samples that are synthetic, in [0, 1].
    """

    image_size: int
    stride: NotRequired[int]
    batch_size: int
    jitter: JitterSettings
    seed: int
    on_gpu: NotRequired[bool]
    inner_share: NotRequired[float]
    epoch_steps: NotRequired[int | None]
    synthetic: NotRequired[Sequence[Path]]
    synthetic_ratio: NotRequired[float]


class PairDataModule(L.LightningDataModule):
    """What data modules of `root/{train,val}/{images,masks}` share: opening and loading pairs.

    `setup` raises a `UserError` for a folder that is not as the settings say.

    Attributes:
        inner_dataset: Windows of the held-out tiles; None where none are held out.
        begin: The epoch that training begins with, from 0, and how many of its batches are done:
            where a run that is resumed was. Lightning tells samplers of it when workers have asked
            for their first batches.
        synthetic_folders: The generated folders, once they are read.
        gate: What each label becomes on synthetic pixels, shape (256,); None where all stay.
        fingerprints: Those of all that is read; available after `setup`.
    """

    def __init__(
        self, root: Path, settings: DataSettings, **options: Unpack[LoadingOptions]
    ) -> None:
        """Stores the settings; nothing is read yet."""
        super().__init__()
        self.root = root
        self.settings = settings
        self.image_size = options["image_size"]
        self.stride = options.get("stride", 1)
        self.batch_size = options["batch_size"]
        self.jitter = options["jitter"]
        self.seed = options["seed"]
        self.on_gpu = options.get("on_gpu", False)
        self.inner_share = options.get("inner_share", 0.0)
        self.epoch_steps = options.get("epoch_steps")
        self.synthetic = options.get("synthetic", ())
        self.synthetic_ratio = options.get("synthetic_ratio", 0.0)
        self.inner_dataset: WindowDataset | None = None
        self.reader = mask_reader(settings)
        self.fit: Fit = cast(Fit, settings.fit)
        self.index: FolderIndex | None = None
        self.begin = (0, 0)
        self.synthetic_folders: list[SyntheticFolder] = []
        self.gate: npt.NDArray[np.uint8] | None = None
        self._real: PairDataset | None = None
        self._synthetic: list[PairDataset] = []
        self.fingerprints: Fingerprints = {}

    @property
    def palette(self) -> Palette:
        """The classes."""
        return self.reader.palette

    @property
    def train_index(self) -> FolderIndex:
        """Index of the pairs that are trained on; available after `setup`."""
        assert self.index is not None, "setup() comes first"
        return self.index

    @property
    def train_dataset(self) -> MixedDataset:
        """The fitted pairs, real ones first; available after `setup`."""
        assert self._real is not None, "setup() comes first"
        return MixedDataset([self._real, *self._synthetic], self.gate)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch, with or without synthetic pairs; available after `setup`."""
        return self.epoch_steps or batches_per_epoch(len(self.train_index.pairs), self.batch_size)

    def scaling(self) -> ImageScaling:
        """The scaling of the images that are trained on; available after `setup`."""
        return ImageScaling.fit(self.train_index)

    def prepare_data(self) -> None:
        """Draws the demo world where the settings name one."""
        if self.settings.demo is not None and self.settings.format == "folder":
            write_world(self.root, self.palette, self.settings.demo)

    def _open_split(
        self, split: Split, choose: Callable[[Sequence[Pair]], list[int]] | None = None
    ) -> tuple[FolderIndex, PairSource]:
        """A split's pairs, or the rows that `choose` returns, in that order."""
        where = self.root / split
        if self.settings.format == "folder":
            pairs: Sequence[Pair] = find_pairs(self.root, split, self.settings.group_regex)
            some = pairs if choose is None else some_pairs(pairs, choose(pairs))
            index, source = self._open(some, self.reader, where)
        else:
            index, source = open_stream(self.root, split, self.reader)
            if choose is not None:
                rows = choose(index.pairs)
                index, source = index.rows(rows), source.rows(rows)
            self._check(index, where)
        self.fingerprints[split] = fingerprint(index)
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
        refuse_binary_masks(index.pixels, self.reader, self.root / "train")
        if not index.pixels[:, :-1].any():
            raise UserError(
                f"{self.root / 'train'}: all pixels of the masks are ignore. Correct data.palette "
                "or data.ignore."
            )
        fitted, held_out = range(count), range(count, len(index.pairs))
        if held_out:
            self.inner_dataset = self._windows(index.rows(held_out), source.rows(held_out))
        return index.rows(fitted), source.rows(fitted).repeated()

    def _open_synthetic(self, index: FolderIndex) -> list[SyntheticFolder]:
        """Reads the generated folders, whose images are to be like the real ones of `index`."""
        self._synthetic, self.synthetic_folders = [], []
        for folder in self.synthetic:
            generated = read_synthetic(folder)
            check_synthetic(generated, self.palette, self.settings.gsd)
            advice = f"Generate with image_size={self.image_size} or more"
            advice += ", or train with image_size={}."
            its_index, source = self._open(generated.pairs, generated.reader(), folder, advice)
            check_same_type(index, its_index)
            key = f"synthetic={folder.name}"
            while key in self.fingerprints:  # of another folder of this name
                key += "+"
            self.fingerprints[key] = fingerprint(its_index)
            self._synthetic.append(self._pair_dataset(source))
            self.synthetic_folders.append(generated)
        return self.synthetic_folders

    def _pair_dataset(self, source: PairSource) -> PairDataset:
        return PairDataset(source, self.image_size, self.fit, self.jitter, self.seed)

    def _windows(self, index: FolderIndex, source: PairSource) -> WindowDataset:
        return WindowDataset(source, index.sizes, self.image_size, self.fit, once=True)

    def _open_val(self, train: FolderIndex) -> tuple[FolderIndex, PairSource] | None:
        """The validation split; None where there is none."""
        if self.settings.format == "stream":
            exists = "val" in read_info(self.root).splits
        else:
            exists = (self.root / "val").is_dir()
        if not exists:
            return None
        index, source = self._open_split("val")
        check_same_type(train, index)
        held_out = self.inner_dataset.source.pairs if self.inner_dataset else []
        if warning := shared_groups(train.pairs, index.pairs, held_out):
            rank_zero_warn(warning)
        return index, source

    def _open(
        self, pairs: Sequence[Pair], reader: MaskReader, where: Path, advice: str = SMALLER
    ) -> tuple[FolderIndex, PairSource]:
        """Scans and checks pairs, and decodes them if the settings cache them in memory."""
        index = scan(pairs, reader)
        self._check(index, where, advice)
        source = PairSource(pairs, reader)
        if self.settings.cache == "ram":
            source = source.in_memory(index)
        return index, source

    def _check(self, index: FolderIndex, where: Path, advice: str = SMALLER) -> None:
        """Refuses images that are too small, and warns of pixels outside the palette.

        `advice` is that of `check_sizes`.
        """
        if self.fit == "crop":
            check_sizes(index, self.image_size, advice, self.stride)
        if unknown := int(index.unknown.sum()):
            files = int((index.unknown > 0).sum())
            rank_zero_warn(
                f"{where}: {plural(unknown, 'pixel')} in {plural(files, 'mask')} are outside the "
                f"palette; read as {self.settings.unknown} by data.unknown."
            )

    def _warn_of_absent_classes(self, index: FolderIndex, consequence: str) -> None:
        pixels = index.pixels[:, :-1].sum(0)
        absent = [n for n, count in zip(self.palette.names, pixels, strict=True) if not count]
        if absent:
            rank_zero_warn(
                f"{self.root / 'train'}: never occurs in the masks: {', '.join(absent)}. "
                + consequence
            )

    def _rank_and_world_size(self) -> tuple[int, int]:
        """This process's rank, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _load_mixed(self, **order: Any) -> DataLoader[Sample]:
        """Training batches, some of them synthetic, in an order of `EpochSampler`."""
        dataset = self.train_dataset
        real = len(dataset.parts[0])
        sampler = EpochSampler(
            real,
            self.batch_size,
            self.seed,
            *self._rank_and_world_size(),
            batches=self.steps_per_epoch,
            epoch=self.begin[0],
            done=self.begin[1],
            synthetic=len(dataset) - real,
            ratio=self.synthetic_ratio,
            parts=dataset.parts[0].source.parts(),
            **order,
        )
        return self._load(dataset, sampler)

    def _load(
        self, dataset: Dataset[Sample], sampler: EpochSampler | None = None
    ) -> DataLoader[Sample]:
        """Batches of `batch_size / processes` items, in order where there is no sampler."""
        _, world = self._rank_and_world_size()
        workers = self._workers()
        return DataLoader(
            dataset,
            batch_size=self.batch_size // world,
            sampler=sampler,
            num_workers=workers,
            worker_init_fn=start_worker,
            persistent_workers=workers > 0,
            pin_memory=self.on_gpu,
        )

    def _workers(self) -> int:
        if self.settings.num_workers is not None:
            return self.settings.num_workers
        # One worker keeps a CPU run fed; a GPU takes as many as its share of its machine's cores.
        here = self.trainer.num_devices if self.trainer else 1
        return max(1, min(8, (os.cpu_count() or 1) // here - 1)) if self.on_gpu else 1


def start_worker(worker: int) -> None:
    """Prepares a loader process: seeded, on one core, and ending with the one it loads for."""
    end_with_parent()
    outlive_signals()
    pl_worker_init_function(worker)
    cv2.setNumThreads(0)  # OpenCV would use all cores
    torch.set_num_threads(1)


class GanDataModule(PairDataModule):
    """Loads the data that a generator is trained on.

    Training batches are random and the same for every number of workers and processes; validation
    covers every image in full. Without a validation split, training images stand in for it.

    Args:
        root: The data folder.
        settings: What it holds and how it is read.
        crops: How training crops are placed: "uniform", "balanced" or "rare".
        regions: Whether training samples include the connected regions of their label maps.
        options: See `LoadingOptions`.

    Attributes:
        val_dataset: Full validation images in windows; available after `setup`.
        focus: Which training crops show which classes, known after `setup`; None for uniform ones.
    """

    val_dataset: WindowDataset

    def __init__(
        self,
        root: Path,
        settings: DataSettings,
        *,
        crops: str = "uniform",
        regions: bool = False,
        **options: Unpack[LoadingOptions],
    ) -> None:
        """Stores the settings; nothing is read yet."""
        super().__init__(root, settings, **options)
        self.crops = crops
        self.regions = regions
        self.focus: Focus | None = None

    def setup(self, stage: str | None = None) -> None:
        """Finds, scans and checks both splits; the second call does nothing."""
        if self.index is not None:
            return
        index, train_source = self._open_train()
        self._warn_of_absent_classes(index, "The generator cannot learn it.")
        self.focus = crop_focus(self.crops, index.pixels)
        opened = self._open_val(index)
        if opened is None:
            rank_zero_warn(
                f"{self.root / 'val'} is missing: sample pictures show training pairs instead."
            )
        val_index, val_source = opened or (index, train_source)
        self._real = self._pair_dataset(train_source)
        self._open_synthetic(index)
        self.val_dataset = WindowDataset(val_source, val_index.sizes, self.image_size, self.fit)
        self.index = index

    def train_windows(self) -> WindowDataset:
        """Full training images in windows, without jitter; available after `setup`."""
        return self._windows(self.train_index, self.train_dataset.parts[0].source)

    def inner_crops(self) -> PairDataset | None:
        """Held-out tiles under the jitter of training; None where none are held out."""
        if self.inner_dataset is None:
            return None
        return super()._pair_dataset(self.inner_dataset.source)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled training batches of `batch_size / processes` samples, some of them synthetic."""
        return self._load_mixed(focus=self.focus)

    def _pair_dataset(self, source: PairSource) -> PairDataset:
        return replace(super()._pair_dataset(source), regions=self.regions)
