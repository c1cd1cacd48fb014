"""The LightningModule of the GAN: the discriminator step and the generator step."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from geoseg_gan.data.batch import Batch, ImageScaling, Sample, make_batch, regions_of
from geoseg_gan.losses.objective import Objective, Regenerate
from geoseg_gan.losses.terms import Terms
from geoseg_gan.models.discriminators.output import Discriminator
from geoseg_gan.models.generators.noise import sample_noise
from geoseg_gan.models.layers import HasBlocks, recompute_blocks, update_spectral_norms
from geoseg_gan.models.registry import Generator
from geoseg_gan.training.settings import NETWORKS, OptimizerSettings, SpeedSettings

_AGAIN = 1 << 32  # apart from every seed: the noise of images that are painted once more


class AnyOptimizer(Protocol):
    """What a step asks of an optimiser, Lightning's or torch's."""

    def zero_grad(self) -> None:
        """Forgets gradients."""

    def step(self) -> Any:
        """Learns from them."""


@dataclass(frozen=True)
class _Part:
    """Pairs that are worked on at once, with the noise that they are painted with."""

    sample: Sample
    batch: Batch
    noise: Tensor


class GAN(L.LightningModule):
    """Trains a generator and a discriminator by turns, once each a batch.

    The two steps share one forward pass of the generator: the discriminator sees its images
    detached, and stands frozen while the generator learns, so that no step touches the other's
    gradients. `global_step` counts batches. What paints samples and is saved as the generator is
    its moving average.

    However many processes and parts a batch is divided into, its gradients are those of the whole;
    but batch normalisation sees one part at a time, of all processes.

    Args:
        generator: Paints images from one-hot label maps and noise.
        discriminator: Tells real from generated images beside their label maps.
        objective: What the two minimise; a module, since it remembers things.
        num_classes: C, channels of the one-hot label map.
        scaling: From stored image values to [-1, 1].
        lr: Learning rate of the generator.
        optimizer: How both are optimised.
        seed: Fixes the noise of every sample of the run.
        global_batch: Batch size over all processes.
        accumulate: Parts that each process works on its share of a batch in, one after another.
        speed: What is done for speed or memory.
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
        speed: SpeedSettings,
        accumulate: int = 1,
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
        self.accumulate = accumulate
        self.speed = speed
        prepare_networks(self.speed, generator, discriminator)
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
        d_terms, g_terms = self.step(
            sample, range(first, first + local), (d_optimizer, g_optimizer), self.manual_backward
        )
        for schedule in cast(list[LambdaLR], self.lr_schedulers()):
            schedule.step()
        every = cast(Any, self.trainer).log_every_n_steps
        if self.global_step == 1 or self.global_step % every == 0:
            rates = {"lr/d": _rate(d_optimizer), "lr/g": _rate(g_optimizer)}
            self._log(d_terms, g_terms, rates)

    def step(
        self,
        sample: Sample,
        serials: Sequence[int],
        optimizers: tuple[AnyOptimizer, AnyOptimizer],
        backward: Callable[[Tensor], Any],
    ) -> tuple[Terms, Terms]:
        """The discriminator's step and the generator's, in plain torch.

        Args:
            sample: This process's share of the batch, on the device.
            serials: The numbers of its pairs.
            optimizers: Of the discriminator and the generator.
            backward: Adds a loss's gradients up.

        Returns:
            What both minimised, on average over the parts of the share.
        """
        d_optimizer, g_optimizer = optimizers
        generator = cast(Generator, self.generator)
        discriminator = cast(Discriminator, self.discriminator)
        parts = self._parts(sample, serials)
        alone = len(parts) == 1
        views = self.objective.views([part.batch for part in parts])
        update_spectral_norms(self.discriminator)
        update_spectral_norms(self.generator)

        d_optimizer.zero_grad()
        d_terms = []
        for part, view in zip(parts, views, strict=True):
            # One image serves both steps, unless that means to hold the activations of all parts.
            with torch.set_grad_enabled(alone):
                fake = generator(part.batch.one_hot, part.noise)
            with self._gathering(part is parts[-1]), self._same_weights():
                d_terms.append(self.objective.d_terms(discriminator, view, fake.detach()))
                backward(d_terms[-1].total() / len(parts))
        d_optimizer.step()
        # Half-precision copies of weights that were made without gradients would have none.
        torch.clear_autocast_cache()

        self.discriminator.requires_grad_(False)
        g_optimizer.zero_grad()
        g_terms = []
        for part, view in zip(parts, views, strict=True):
            if not alone:
                fake = generator(part.batch.one_hot, part.noise)
            repaint = self._repainting(part)
            with self._gathering(part is parts[-1]), self._same_weights():
                g_terms.append(self.objective.g_terms(discriminator, view, fake, repaint))
                backward(g_terms[-1].total() / len(parts))
        g_optimizer.step()
        self.discriminator.requires_grad_(True)
        self.objective.stepped()
        self._follow()
        return Terms.mean(d_terms), Terms.mean(g_terms)

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
        # A fused step would clip gradients that a gradient scaler has not yet unscaled.
        fused = self.speed.fused and not settings.clip
        optimizers = [
            Adam(network.parameters(), rate, (first, second), fused=fused)
            for network, rate in (
                (self.discriminator, self.lr * settings.d_lr_ratio),
                (self.generator, self.lr),
            )
        ]
        return optimizers, [LambdaLR(optimizer, self._factor) for optimizer in optimizers]

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

    def _parts(self, sample: Sample, serials: Sequence[int]) -> list[_Part]:
        """A sample in as many parts as gradients are accumulated over."""
        size = len(serials) // self.accumulate
        parts = []
        for start in range(0, len(serials), size):
            rows = slice(start, start + size)
            own = {key: value[rows] for key, value in sample.items()}  # type: ignore[index]
            numbers = serials[rows]
            batch = make_batch(cast(Sample, own), self.scaling, self.num_classes, numbers)
            noise = self.noise_of(cast(Sample, own), numbers, self.seed)
            parts.append(_Part(cast(Sample, own), batch, noise))
        return parts

    def _repainting(self, part: _Part) -> Regenerate:
        """What paints a part once more, with other noise than it was painted with."""

        def repaint() -> tuple[Tensor, Tensor]:
            other = self.noise_of(part.sample, part.batch.serials, self.seed + _AGAIN)
            image = cast(Generator, self.generator)(part.batch.one_hot, other)
            return image, (part.noise - other).abs().mean((1, 2, 3))

        return repaint

    def _gathering(self, last: bool) -> AbstractContextManager[Any]:
        """Lets processes add up gradients after the last part only."""
        strategy = self._trainer.strategy if self._trainer is not None else None
        if last or not isinstance(strategy, ParallelStrategy):
            return nullcontext()
        return cast(AbstractContextManager[Any], strategy.block_backward_sync())

    def _same_weights(self) -> AbstractContextManager[Any]:
        """Lets passes of one step share the weights that spectral norms give."""
        # Compiled code works them out itself, and what is recomputed has to.
        return nullcontext() if self.speed.compile or self.speed.recompute else parametrize.cached()

    def _log(self, d_terms: Terms, g_terms: Terms, rates: dict[str, float]) -> None:
        """Logs means over all processes, gathered at once."""
        named = {f"d/{k}": v for k, v in {**d_terms, **d_terms.monitors}.items()}
        named |= {f"g/{k}": v for k, v in {**g_terms, **g_terms.monitors}.items()}
        named |= {"d": d_terms.total(), "g": g_terms.total()}
        values = torch.stack([value.detach().float() for value in named.values()])
        means = cast(Tensor, self.trainer.strategy.reduce(values, reduce_op="mean")).unbind()
        scalars = dict(zip(named, means, strict=True))
        bar = {name: scalars.pop(name) for name in ("d", "g")}
        self.log_dict({**scalars, **rates})
        self.log_dict(bar, prog_bar=True, logger=False)

    @torch.no_grad()
    def _follow(self) -> None:
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


def prepare_networks(speed: SpeedSettings, generator: nn.Module, discriminator: nn.Module) -> None:
    """Sets two networks up for speed; the keys of their state stay."""
    kind = torch.channels_last if speed.channels_last else torch.contiguous_format
    for name, network in zip(NETWORKS, (generator, discriminator), strict=True):
        network.to(memory_format=kind)
        if name in speed.recompute:
            recompute_blocks(cast(HasBlocks, network).blocks())
        if name in speed.compile:
            network.compile()
