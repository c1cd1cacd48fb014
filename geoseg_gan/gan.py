"""The LightningModule of the GAN: the discriminator step and the generator step."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from geoseg_gan.data.batch import Batch, ImageScaling, Sample, make_batch, regions_of
from geoseg_gan.errors import UserError, check_choice
from geoseg_gan.losses.objective import Objective, Repaint
from geoseg_gan.models.discriminator import Discriminator
from geoseg_gan.models.noise import sample_noise
from geoseg_gan.models.registry import Generator

SCHEDULES = ("constant", "linear")
_AGAIN = 1 << 32  # apart from every seed: the noise of images that are painted once more


@dataclass
class OptimizerSettings:
    """How both networks are optimised.

    Attributes:
        betas: Adam's two decay rates.
        d_lr_ratio: The discriminator's learning rate over the generator's (Heusel et al. 2017);
            spectral norm slows the discriminator, which 4 makes up for.
        schedule: "linear" falls to 0 from `decay_from` on, "constant" does not.
        decay_from: Share of the training after which the rate falls.
        clip: Largest gradient norm of either network; 0 for none.
        ema: How much of the generator's moving average is kept from batch to batch; 0 for none.
            Early averages keep less, (1 + batches) / (10 + batches) at most.
    """

    betas: list[float] = field(default_factory=lambda: [0.5, 0.999])
    d_lr_ratio: float = 4.0
    schedule: str = "linear"
    decay_from: float = 0.5
    clip: float = 0.0
    ema: float = 0.999

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and the range.
        """
        check_choice("optimizer.schedule", self.schedule, SCHEDULES)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas={self.betas}: use two numbers in [0, 1).")
        if not 0 <= self.decay_from < 1:
            raise UserError(f"optimizer.decay_from={self.decay_from}: use a share in [0, 1).")
        if not 0 <= self.ema < 1:
            raise UserError(f"optimizer.ema={self.ema}: use a number in [0, 1); 0 for none.")
        if self.d_lr_ratio <= 0 or self.clip < 0:
            raise UserError(
                f"optimizer: d_lr_ratio={self.d_lr_ratio} must be positive and clip={self.clip} "
                "not negative."
            )


class GAN(L.LightningModule):
    """Trains a generator and a discriminator by turns, once each a batch.

    The two steps share one forward pass of the generator: the discriminator sees its images
    detached, and stands frozen while the generator learns, so that no step touches the other's
    gradients. `global_step` counts batches. What paints samples and is saved as the generator is
    its moving average.

    Args:
        generator: Paints images from one-hot label maps and noise.
        discriminator: Judges images beside their label maps.
        objective: What the two minimise; a module, since it remembers things.
        num_classes: C, channels of the one-hot label map.
        scaling: From stored image values to [-1, 1].
        lr: Learning rate of the generator.
        optimizer: How both are optimised.
        seed: Fixes the noise of every sample of the run.
        global_batch: Batch size over all processes.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        objective: Objective,
        *,
        num_classes: int,
        scaling: ImageScaling,
        lr: float,
        optimizer: OptimizerSettings,
        seed: int,
        global_batch: int,
    ) -> None:
        """Keeps the parts; optimisers come later, from `configure_optimizers`."""
        super().__init__()
        self.automatic_optimization = False
        self.generator = generator
        self.average = copy.deepcopy(generator).requires_grad_(False) if optimizer.ema else None
        self.discriminator = discriminator
        self.objective = objective
        self.num_classes = num_classes
        self.scaling = scaling
        self.lr = lr
        self.optimizer_settings = optimizer
        self.seed = seed
        self.global_batch = global_batch
        self.time_used = 0.0
        """Share of the time budget that is used up, in [0, 1]; a callback keeps it."""

    def training_step(self, sample: Sample, batch_idx: int) -> None:
        """Updates the discriminator, then the generator, on one batch."""
        d_optimizer, g_optimizer = cast(list[LightningOptimizer], self.optimizers())
        # Lightning counts every optimiser's steps; only the generator's shall count as one.
        d_optimizer._on_before_step = d_optimizer._on_after_step = _uncounted
        local = len(sample["label"])
        # Numbered over the whole run and all processes, so that a sample gets the same noise and
        # augmentation however many processes share the batch, and after a resume.
        first = self.global_step * self.global_batch + self.global_rank * local
        serials = range(first, first + local)
        batch = make_batch(sample, self.scaling, self.num_classes, serials)
        generator = cast(Generator, self.generator)
        discriminator = cast(Discriminator, self.discriminator)
        noise = self.noise_of(sample, serials, self.seed)
        fake = generator(batch.one_hot, noise)

        d_terms = self.objective.d_terms(discriminator, batch, fake.detach())
        self._update(d_optimizer, d_terms.total())

        self.discriminator.requires_grad_(False)
        g_terms = self.objective.g_terms(
            discriminator, batch, fake, self.repainting(sample, batch, noise)
        )
        self._update(g_optimizer, g_terms.total())
        self.discriminator.requires_grad_(True)
        self.follow()

        for schedule in cast(list[LambdaLR], self.lr_schedulers()):
            schedule.step()
        scalars = {f"d/{k}": v.detach() for k, v in {**d_terms, **d_terms.monitors}.items()}
        scalars |= {f"g/{k}": v.detach() for k, v in {**g_terms, **g_terms.monitors}.items()}
        self.log_dict(scalars)
        self.log_dict({"lr/d": _rate(d_optimizer), "lr/g": _rate(g_optimizer)})
        bar = {"d": d_terms.total().detach(), "g": g_terms.total().detach()}
        self.log_dict(bar, prog_bar=True, logger=False)

    @property
    def painter(self) -> nn.Module:
        """What paints samples and is saved: the generator's average, or itself without one."""
        return self.generator if self.average is None else self.average

    @contextmanager
    def painting(self) -> Iterator[Generator]:
        """The painter in evaluation mode, within a with statement."""
        self.painter.eval()
        yield cast(Generator, self.painter)
        self.painter.train()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clips gradients, which are unscaled here under every precision."""
        if self.optimizer_settings.clip:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.optimizer_settings.clip)

    def configure_optimizers(self) -> Any:
        """Adam for the discriminator and the generator, in this order, with their schedules."""
        settings = self.optimizer_settings
        first, second = settings.betas
        optimizers = [
            Adam(network.parameters(), rate, (first, second))
            for network, rate in (
                (self.discriminator, self.lr * settings.d_lr_ratio),
                (self.generator, self.lr),
            )
        ]
        return optimizers, [LambdaLR(optimizer, self._factor) for optimizer in optimizers]

    def _update(self, optimizer: LightningOptimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def noise_of(self, sample: Sample, serials: Sequence[int], seed: int) -> Tensor:
        """The generator's noise for a sample, on its device.

        Args:
            sample: Collated; B pairs.
            serials: Their numbers.
            seed: With a number it fixes the noise.

        Returns:
            Shape (B, Z, H, W).
        """
        spec, label = cast(Generator, self.generator).noise, sample["label"]
        regions = label  # anything of its size, where no region has noise
        if spec.region:
            regions = sample["regions"] if "regions" in sample else regions_of(label)
        return sample_noise(spec, seed, serials, regions, label.device)

    def repainting(self, sample: Sample, batch: Batch, noise: Tensor) -> Repaint:
        """What paints a batch once more, with other noise than it was painted with."""

        def repaint() -> tuple[Tensor, Tensor]:
            other = self.noise_of(sample, batch.serials, self.seed + _AGAIN)
            image = cast(Generator, self.generator)(batch.one_hot, other)
            return image, (noise - other).abs().mean((1, 2, 3))

        return repaint

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the average towards the generator: parameters by a step, buffers altogether."""
        if self.average is None:
            return
        batches = self.global_step
        keep = min(self.optimizer_settings.ema, (1 + batches) / (10 + batches))
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.generator.parameters()), 1 - keep
        )
        for mine, theirs in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            mine.copy_(theirs)

    def _factor(self, step: int) -> float:
        settings = self.optimizer_settings
        if settings.schedule == "constant":
            return 1.0
        total = self.trainer.estimated_stepping_batches
        progress = max(step / total, self.time_used)
        return max(0.0, min(1.0, (1 - progress) / (1 - settings.decay_from)))


def _rate(optimizer: LightningOptimizer) -> float:
    rate: float = optimizer.param_groups[0]["lr"]
    return rate


def _uncounted() -> None:
    """Stands in for Lightning's counting of optimiser steps."""
