"""What a run leaves behind after each epoch: sample pictures, networks, and a point to resume."""

from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch.utils.data import default_collate

from geoseg_gan.data.batch import make_batch, regions_of
from geoseg_gan.data.dataset import WindowDataset
from geoseg_gan.models.checkpoints import RunFacts, save_network
from geoseg_gan.models.generators.noise import sample_noise
from geoseg_gan.training.callbacks.timing import Resumable
from geoseg_gan.training.gan import GAN
from geoseg_gan.utils.pictures import RGB, beside, write_picture


class RunExporter(Resumable):
    """Saves samples and checkpoints when an epoch ends.

    `epoch###_i.jpg` shows mask, real and generated image of a fixed validation window;
    `G_e###.pt` and `D_e###.pt` hold the networks, `last.ckpt` all that resuming needs. TensorBoard
    gets the same pictures.

    Args:
        out_dir: Where to.
        facts: What checkpoints carry beside the weights.
        dataset: Where the shown windows come from.
        samples: How many are shown.
        keep: How many epochs' networks stay, the newest; None for all.
    """

    def __init__(
        self, out_dir: Path, facts: RunFacts, dataset: WindowDataset, samples: int, keep: int | None
    ) -> None:
        """Chooses the windows, evenly spread over the dataset."""
        super().__init__(out_dir, facts)
        self.dataset = dataset
        count = min(samples, len(dataset))
        self.shown = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
        self.keep = keep

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Saves everything, and says so."""
        assert isinstance(module, GAN)
        epoch = trainer.current_epoch + 1
        if trainer.is_global_zero:
            pictures = self.paint(module)
            for number, picture in enumerate(pictures):
                write_picture(self.out_dir / f"epoch{epoch:03d}_{number}.jpg", picture)
            if pictures:
                self._log(trainer, pictures)
            for kind, network in (
                ("generator", module.painter),
                ("discriminator", module.discriminator),
            ):
                path = self.out_dir / f"{kind[0].upper()}_e{epoch:03d}.pt"
                save_network(path, cast(Any, kind), network, self.facts, epoch)
        self.save_last(trainer)
        if trainer.is_global_zero:
            self._thin(epoch)
            print(f"Epoch {epoch}: saved samples and checkpoints.")

    def paint(self, module: GAN) -> list[RGB]:
        """Mask, real and generated image of every shown window, side by side."""
        if not self.shown:
            return []
        sample = default_collate([self.dataset[i] for i in self.shown])
        sample["image"], sample["label"] = (
            sample[key].to(module.device) for key in ("image", "label")
        )
        batch = make_batch(sample, module.scaling, module.num_classes)
        with torch.no_grad(), module.painting() as generator:
            regions = regions_of(batch.label)
            noise = sample_noise(generator.noise, module.seed, self.shown, regions.cpu())
            fakes = generator(batch.one_hot, noise.to(module.device))
        scaling = module.scaling
        return [
            beside(
                [
                    self.facts.palette.color_table[label.cpu().numpy()],
                    scaling.to_rgb(scaling.to_stored(real)),
                    scaling.to_rgb(scaling.to_stored(fake)),
                ]
            )
            for label, real, fake in zip(batch.label, batch.image, fakes, strict=True)
        ]

    def _log(self, trainer: L.Trainer, pictures: list[RGB]) -> None:
        if trainer.logger is not None:
            board = cast(Any, trainer.logger).experiment
            grid = beside(pictures, columns=1)
            board.add_image("samples", grid, trainer.global_step, dataformats="HWC")

    def _thin(self, epoch: int) -> None:
        if self.keep is None:
            return
        for name in ("G", "D"):
            for path in self.out_dir.glob(f"{name}_e*.pt"):
                if path.stem.split("_e")[1].isdigit():
                    number = int(path.stem.split("_e")[1])
                    if number <= epoch - self.keep:
                        path.unlink()
