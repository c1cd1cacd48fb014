"""What a generator's training saves after each epoch: `last.ckpt`, samples and networks."""

from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import torch
from torch.utils.data import default_collate

from geoseg_gan.data.batch import make_batch, regions_of
from geoseg_gan.data.dataset import WindowDataset
from geoseg_gan.models.checkpoints import NetworkKind, save_network
from geoseg_gan.models.generators.codes import OwnCodes
from geoseg_gan.models.registry import noise_for
from geoseg_gan.training.callbacks.checkpoint import LastCheckpoint
from geoseg_gan.training.gan import GAN
from geoseg_gan.utils.pictures import RGB, beside, evenly_spaced, write_picture


@dataclass(eq=False)
class RunExporter(LastCheckpoint):
    """Saves samples and networks when an epoch ends.

    `epoch###_i.jpg` shows mask, real and generated image of a fixed validation window, and where
    the generator takes style codes, the image that has those of the real one. `G_e###.pt` and
    `D_e###.pt` hold the networks. TensorBoard gets the same pictures.

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
        super().on_train_epoch_end(trainer, module)
        if trainer.is_global_zero:
            print(f"Epoch {trainer.current_epoch + 1}: saved samples and checkpoints.")

    def export(self, trainer: L.Trainer, module: L.LightningModule, epoch: int) -> None:
        """Writes samples and networks of an epoch, as far as they are missing."""
        assert isinstance(module, GAN)
        if not trainer.is_global_zero:
            return
        self._save_samples(trainer, module, epoch)
        networks = {"generator": module.inference_generator, "discriminator": module.discriminator}
        for kind, network in networks.items():
            path = self.out_dir / f"{kind[0].upper()}_e{epoch:03d}.pt"
            if not path.exists():
                save_network(path, cast(NetworkKind, kind), network, self.facts, epoch)
        self._remove_old_networks(epoch)

    def triples(self, module: GAN) -> list[RGB]:
        """Mask, real and generated images of every shown window, side by side."""
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
            looks: list[OwnCodes | None] = [None]
            if generator.styles is not None:
                table = generator.styles(batch.image, regions)
                looks.append(OwnCodes(table, torch.ones_like(table[:, 0, 0], dtype=torch.bool)))
            fakes = [
                generator(
                    batch.one_hot,
                    noise_for(generator, module.seed, shown, batch.label, regions, own),
                )
                for own in looks
            ]
        scaling, colors = module.scaling, self.facts.palette.color_table
        triples = []
        for label, *shown_images in zip(batch.label, batch.image, *fakes, strict=True):
            images = [scaling.to_rgb(scaling.to_stored(image)) for image in shown_images]
            triples.append(beside([colors[label.cpu().numpy()], *images]))
        return triples

    def _save_samples(self, trainer: L.Trainer, module: GAN, epoch: int) -> None:
        count = min(self.samples, len(self.dataset))
        paths = [self.out_dir / f"epoch{epoch:03d}_{number}.jpg" for number in range(count)]
        if all(path.exists() for path in paths):
            return
        triples = self.triples(module)
        for path, triple in zip(paths, triples, strict=True):
            write_picture(path, triple)
        if trainer.logger is not None:
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
