"""The LightningDataModule that serves a generator's training."""

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from geoseg_gan.data.batch import Sample
from geoseg_gan.data.crops import Focus, crop_focus
from geoseg_gan.data.dataset import PairDataset, WindowDataset
from geoseg_gan.data.jitter import JitterSettings
from geoseg_gan.data.pair_datamodule import PairDataModule
from geoseg_gan.data.sampler import EpochSampler
from geoseg_gan.data.settings import DataSettings


class SegmentationDataModule(PairDataModule):
    """Serves a generator's training.

    Training batches are random and the same for every number of workers and processes; validation
    shows every picture in full. Without a validation split, training pictures stand in for it.

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
        crops: How training crops are placed: "uniform", "balanced" or "rare".
        regions: Whether training items hold the connected regions of their label maps.

    Attributes:
        focus: Which training crops show which classes, known after `setup`; None for uniform ones.

    Raises:
        UserError: On `setup`, for a folder that is not as the settings say.
    """

    _train: PairDataset | None = None
    _val: WindowDataset | None = None

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
        crops: str = "uniform",
        regions: bool = False,
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
        self.crops = crops
        self.regions = regions
        self.focus: Focus | None = None

    def setup(self, stage: str | None = None) -> None:
        """Finds, scans and checks both splits; the second call does nothing."""
        if self.index is not None:
            return
        index, train_source = self._open_train()
        self._warn_of_classes(index, "The generator cannot learn to paint it.")
        self.focus = crop_focus(self.crops, index.pixels)
        opened = self._open_val(index)
        if opened is None:
            rank_zero_warn(
                f"{self.root / 'val'} is missing: sample pictures show training pairs instead."
            )
        val_index, val_source = opened or (index, train_source)
        self._train = PairDataset(
            train_source,
            self.image_size,
            self.fit,
            self.jitter,
            self.seed,
            regions=self.regions,
        )
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

    def inner_crops(self) -> PairDataset | None:
        """Held-out tiles under the jitter of training; None where none are held out."""
        if self.inner_dataset is None:
            return None
        source = self.inner_dataset.source
        return PairDataset(source, self.image_size, self.fit, self.jitter, self.seed)

    @property
    def train_dataset(self) -> PairDataset:
        """Training pairs; available after `setup`."""
        assert self._train is not None, "setup() comes first"
        return self._train

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled training batches of `batch_size / processes` items."""
        rank, world = self._place()
        length = len(self.train_dataset)
        sampler = EpochSampler(
            length,
            self.batch_size,
            self.seed,
            rank,
            world,
            batches=self.steps_per_epoch,
            parts=self.train_dataset.source.parts(),
            focus=self.focus,
        )
        return self._load(self.train_dataset, sampler)
