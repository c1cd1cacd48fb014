"""What a generator's training saves after each epoch: samples, networks, and `last.ckpt`."""

from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import torch
from torch.utils.data import default_collate

from geoseg_gan.data.batch import make_batch, regions_of
from geoseg_gan.data.dataset import WindowDataset
from geoseg_gan.models.checkpoints import save_network
from geoseg_gan.models.generators.noise import sample_noise
from geoseg_gan.training.callbacks.checkpoint import LastCheckpoint
from geoseg_gan.training.gan import GAN
from geoseg_gan.utils.pictures import RGB, beside, evenly_spaced, write_picture


@dataclass(eq=False)
class RunExporter(LastCheckpoint):
    """Saves samples and networks when an epoch ends.

    `epoch###_i.jpg` shows mask, real and generated image of a fixed validation window;
    `G_e###.pt` and `D_e###.pt` hold the networks, `last.ckpt` everything that resuming needs.
    TensorBoard gets the same pictures.

    Attributes:
        dataset: Where the shown windows come from.
        samples: How many are shown.
        kept_epochs: How many epochs' networks stay, the newest; None for all.
    """

    dataset: WindowDataset
    samples: int
    kept_epochs: int | None

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Saves everything, and says so."""
        assert isinstance(module, GAN)
        epoch = trainer.current_epoch + 1
        if trainer.is_global_zero:
            self._save_samples(trainer, module, epoch)
            generator, path = module.inference_generator, self.out_dir / f"G_e{epoch:03d}.pt"
            save_network(path, "generator", generator, self.facts, epoch)
            path = self.out_dir / f"D_e{epoch:03d}.pt"
            save_network(path, "discriminator", module.discriminator, self.facts, epoch)
        self.save_last(trainer)
        if trainer.is_global_zero:
            self._remove_old_networks(epoch)
            print(f"Epoch {epoch}: saved samples and checkpoints.")

    def triples(self, module: GAN) -> list[RGB]:
        """Mask, real and generated image of every shown window, side by side."""
        shown = evenly_spaced(len(self.dataset), min(self.samples, len(self.dataset)))
        if not shown:
            return []
        sample = default_collate([self.dataset[i] for i in shown])
        sample["image"], sample["label"] = (
            sample[key].to(module.device) for key in ("image", "label")
        )
        batch = make_batch(sample, module.scaling, module.num_classes)
        with torch.no_grad(), module.evaluating() as generator:
            regions = regions_of(batch.label)
            noise = sample_noise(generator.noise, module.seed, shown, regions.cpu())
            fakes = generator(batch.one_hot, noise.to(module.device))
        scaling, colors = module.scaling, self.facts.palette.color_table
        triples = []
        for label, *pair in zip(batch.label, batch.image, fakes, strict=True):
            images = [scaling.to_rgb(scaling.to_stored(image)) for image in pair]
            triples.append(beside([colors[label.cpu().numpy()], *images]))
        return triples

    def _save_samples(self, trainer: L.Trainer, module: GAN, epoch: int) -> None:
        triples = self.triples(module)
        for number, triple in enumerate(triples):
            write_picture(self.out_dir / f"epoch{epoch:03d}_{number}.jpg", triple)
        if triples and trainer.logger is not None:
            board = cast(Any, trainer.logger).experiment
            grid = beside(triples, columns=1)
            board.add_image("samples", grid, trainer.global_step, dataformats="HWC")

    def _remove_old_networks(self, epoch: int) -> None:
        if self.kept_epochs is None:
            return
        for path in self.out_dir.glob("[GD]_e*.pt"):
            number = path.stem[3:]
            if number.isdigit() and int(number) <= epoch - self.kept_epochs:
                path.unlink()
