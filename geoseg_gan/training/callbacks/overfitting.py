"""How far the discriminator overfits, measured while it trains."""

from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import default_collate

from geoseg_gan.data.batch import Batch, Sample, make_batch
from geoseg_gan.data.dataset import PairDataset
from geoseg_gan.data.sampler import SampleIndex
from geoseg_gan.models.discriminators.output import Discriminator
from geoseg_gan.training.gan import GAN

_KEPT = 64
"""Held-out crops that are kept in memory to draw from."""


class Overfitting(Callback):
    """Compares how real training and held-out images look to the discriminator.

    Every few batches the discriminator scores the real images of the batch, as many held-out ones,
    and generated images of the batch's masks, all without augmentation. TensorBoard gets the three
    means as `overfitting/train`, `held_out` and `fake`, the gap (see `AdaptiveStrength`) as
    `overfitting/gap`, and the probability of augmentation, which may follow it, as
    `overfitting/augment_p`. A gap that climbs towards 1 means that the discriminator knows its
    training images by heart.

    Args:
        held_out: Tiles that are not trained on, under the same jitter as the training tiles, so
            that the effect of jitter cannot tell them apart.
        every: Batches from one measurement to the next.
    """

    def __init__(self, held_out: PairDataset, every: int = 16) -> None:
        """Reads the crops, of as many tiles as there are."""
        self.every = every
        draws = [SampleIndex(number % len(held_out), number) for number in range(_KEPT)]
        self.kept = [held_out[draw] for draw in draws]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, sample: Any, index: int
    ) -> None:
        """Measures after every few batches."""
        assert isinstance(module, GAN)
        if trainer.global_step % self.every:
            return
        rng = np.random.default_rng((module.seed, trainer.global_step, trainer.global_rank))
        drawn = rng.choice(len(self.kept), len(sample["label"]))
        held_out = default_collate([self.kept[row] for row in drawn.tolist()])
        means = self._realness(trainer, module, sample, held_out)
        # All processes must arrive at the same strength.
        train, unseen, fake = cast(
            Tensor, trainer.strategy.reduce(means, reduce_op="mean")
        ).tolist()
        strength = module.objective.strength
        strength.update(train, unseen, fake, self.every * module.global_batch)
        figures = {"train": train, "held_out": unseen, "fake": fake, "gap": strength.gap or 0.0}
        figures["augment_p"] = strength.p
        named = {f"overfitting/{name}": value for name, value in figures.items()}
        # Directly: module.log would drop what is pending when an epoch ends.
        for logger in trainer.loggers:
            logger.log_metrics(named, trainer.global_step)

    @torch.no_grad()
    def _realness(
        self, trainer: L.Trainer, module: GAN, sample: Sample, held_out: Sample
    ) -> Tensor:
        """Mean realness of training, held-out and generated images, shape (3,)."""

        def to_batch(sample: Sample) -> Batch:
            moved = sample.copy()
            for key in ("image", "label"):
                moved[key] = moved[key].to(module.device)
            return make_batch(moved, module.scaling, module.num_classes)

        discriminator = cast(Discriminator, module.discriminator)
        batch, unseen = to_batch(sample), to_batch(held_out)
        # Evaluation mode, so that neither statistics nor power iterations move.
        module.discriminator.eval()
        with trainer.precision_plugin.forward_context(), module.evaluating() as generator:
            noise = module.draw_noise(sample, range(len(batch.label)), module.seed)
            fakes = generator(batch.one_hot, noise)
            shown = [(batch.image, batch), (unseen.image, unseen), (fakes, batch)]
            means = [module.objective.realness(discriminator, *pair) for pair in shown]
        module.discriminator.train()
        return torch.stack(means).float()
