"""The LightningModule of the GAN: the discriminator step and the generator step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from geoseg_gan.data.batch import Batch, ImageScaling, Sample, make_batch, regions_of, to_device
from geoseg_gan.losses.objective import Objective, Regenerate
from geoseg_gan.losses.terms import Terms
from geoseg_gan.models.discriminators.output import Discriminator
from geoseg_gan.models.generators.codes import OwnCodes
from geoseg_gan.models.generators.noise import sample_noise
from geoseg_gan.models.layers import HasBlocks, recompute_blocks, update_spectral_norms
from geoseg_gan.models.registry import Generator, code_maps
from geoseg_gan.training.average import move_average, start_average
from geoseg_gan.training.settings import NETWORKS, OptimizerSettings, SpeedSettings

_SECOND_NOISE = 1 << 32
"""Seed offset of the second noise draw of the diversity loss."""


@dataclass(frozen=True)
class _MicroBatch:
    """The pairs of one forward pass, the noise of their generated images, and their own codes."""

    sample: Sample
    batch: Batch
    noise: Tensor
    own: OwnCodes | None


class GAN(L.LightningModule):
    """Trains a generator and a discriminator in turn, one step of each a batch.

    The two steps share one forward pass of the generator: the discriminator gets its images
    detached, and is frozen during the generator's step, so that neither step touches the other's
    gradients. `global_step` counts batches. Samples and saved generators are the moving average of
    the weights.

    However many processes and micro-batches share a batch, its gradients are those of the whole;
    but batch normalisation sees one micro-batch at a time, of all processes.

    Args:
        generator: Images from one-hot label maps and noise.
        discriminator: Scores images beside their label maps.
        objective: The losses of both; a module, since it has state.
        num_classes: C, channels of the one-hot label map.
        scaling: From stored image values to [-1, 1].
        lr: Learning rate of the generator.
        optimizer: How both are optimised.
        seed: Fixes the noise of every sample of the run.
        global_batch: Batch size over all processes.
        accumulate: Micro-batches that each process divides its share of a batch into.
        speed: Switches for speed and memory.

    Attributes:
        time_used: Share of the time budget that is used up, in [0, 1]; `TimeBudget` sets it.
        last_loss: Sum of both losses in the last step, a scalar.
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
        """Keeps the parts; `configure_optimizers` makes the optimisers."""
        super().__init__()
        self.automatic_optimization = False
        self.generator = generator
        self.average = start_average(generator, optimizer.ema)
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
        self.time_used = 0.0
        self.last_loss = torch.zeros(())
        self._prepare_networks()

    def training_step(self, sample: Sample, batch_idx: int) -> None:
        """Updates the discriminator, then the generator, on one batch."""
        d_optimizer, g_optimizer = cast(list[LightningOptimizer], self.optimizers())
        # Lightning counts the steps of every optimiser; only the generator's are to count.
        d_optimizer._on_before_step = d_optimizer._on_after_step = lambda: None
        local = len(sample["label"])
        # Numbered over the whole run and all processes, so that a sample gets the same noise and
        # augmentation however many processes share the batch, and after a resume.
        first = self.global_step * self.global_batch + self.global_rank * local
        d_terms, g_terms = self.step(
            sample, range(first, first + local), (d_optimizer, g_optimizer), self.manual_backward
        )
        self.last_loss = (d_terms.total() + g_terms.total()).detach()
        for schedule in cast(list[LambdaLR], self.lr_schedulers()):
            schedule.step()
        every = cast(Any, self.trainer).log_every_n_steps
        if self.global_step == 1 or self.global_step % every == 0:
            rates = (own.param_groups[0]["lr"] for own in (d_optimizer, g_optimizer))
            self._log(d_terms, g_terms, dict(zip(("lr/d", "lr/g"), rates, strict=True)))

    def step(
        self,
        sample: Sample,
        serials: Sequence[int],
        optimizers: tuple[Any, Any],
        backward: Callable[[Tensor], Any],
    ) -> tuple[Terms, Terms]:
        """The discriminator's step and the generator's, in plain torch.

        Args:
            sample: This process's share of the batch, on the device.
            serials: The numbers of its pairs.
            optimizers: Of the discriminator and the generator: Lightning's or torch's.
            backward: Accumulates a loss's gradients.

        Returns:
            The loss terms of both, on average over the micro-batches.
        """
        d_optimizer, g_optimizer = optimizers
        generator = cast(Generator, self.generator)
        discriminator = cast(Discriminator, self.discriminator)
        parts = self._micro_batches(sample, serials)
        single = len(parts) == 1
        views = self.objective.views([part.batch for part in parts])
        update_spectral_norms(self.discriminator)
        update_spectral_norms(self.generator)

        d_optimizer.zero_grad()
        d_terms = []
        for part, view in zip(parts, views, strict=True):
            # One forward pass serves both steps, unless that would hold the activations of several.
            with torch.set_grad_enabled(single):
                fake = generator(part.batch.one_hot, part.noise)
            with self._gradient_sync(part is parts[-1]), self._cached_spectral_norms():
                d_terms.append(self.objective.d_terms(discriminator, view, fake.detach()))
                backward(d_terms[-1].total() / len(parts))
        d_optimizer.step()
        # Half-precision copies of weights that were made without gradients would have none.
        torch.clear_autocast_cache()

        self.discriminator.requires_grad_(False)
        g_optimizer.zero_grad()
        g_terms = []
        for part, view in zip(parts, views, strict=True):
            if not single:
                fake = generator(part.batch.one_hot, part.noise)
            second = self._second_draw(part)
            with self._gradient_sync(part is parts[-1]), self._cached_spectral_norms():
                g_terms.append(self.objective.g_terms(discriminator, view, fake, second))
                backward(g_terms[-1].total() / len(parts))
        g_optimizer.step()
        self.discriminator.requires_grad_(True)
        self.objective.stepped()
        self._remember_codes(parts)
        if self.average is not None:
            ema, batches = self.optimizer_settings.ema, self.global_step
            move_average(self.average, self.generator, ema, batches)
        return Terms.mean(d_terms), Terms.mean(g_terms)

    def backward_only(self, sample: Sample) -> None:
        """Computes all gradients of a step on a batch, and updates no weight."""
        idle = SimpleNamespace(zero_grad=lambda: None, step=lambda: None)
        self.step(sample, range(len(sample["label"])), (idle, idle), torch.autograd.backward)

    @property
    def inference_generator(self) -> nn.Module:
        """The generator that is sampled and saved: the moving average, where one is kept."""
        return self.generator if self.average is None else self.average

    @contextmanager
    def evaluating(self) -> Iterator[Generator]:
        """Within it `inference_generator` is in evaluation mode."""
        self.inference_generator.eval()
        yield cast(Generator, self.inference_generator)
        self.inference_generator.train()

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
        rated = [(self.discriminator, self.lr * settings.d_lr_ratio), (self.generator, self.lr)]
        optimizers = [
            Adam(network.parameters(), rate, (first, second), fused=fused)
            for network, rate in rated
        ]
        return optimizers, [LambdaLR(optimizer, self._lr_factor) for optimizer in optimizers]

    def draw_noise(
        self, sample: Sample, serials: Sequence[int], seed: int, own: OwnCodes | None = None
    ) -> Tensor:
        """The generator's noise for B pairs, shape (B, Z, H, W), on their device.

        Seed and serial number fix the noise of a pair, and which style codes it takes from the
        bank where it has none of its own.
        """
        generator, label = cast(Generator, self.generator), sample["label"]
        # Any map of its size, where no region has noise.
        regions = self._regions(sample) if generator.noise.by_region else label
        codes = code_maps(generator, label, regions.to(label.device), own)
        return sample_noise(generator.noise, seed, serials, regions, label.device, codes)

    def _prepare_networks(self) -> None:
        """Applies the switches for speed and memory; state-dict keys stay as they are."""
        layout = torch.channels_last if self.speed.channels_last else torch.contiguous_format
        for name in NETWORKS:
            network = getattr(self, name)
            network.to(memory_format=layout)
            if name in self.speed.recompute:
                recompute_blocks(cast(HasBlocks, network).blocks())
            if name in self.speed.compile:
                network.compile()

    def _micro_batches(self, sample: Sample, serials: Sequence[int]) -> list[_MicroBatch]:
        size = len(serials) // self.accumulate
        parts = []
        for start in range(0, len(serials), size):
            rows = slice(start, start + size)
            own = cast(Sample, {key: value[rows] for key, value in sample.items()})  # type: ignore[index]
            batch = make_batch(own, self.scaling, self.num_classes, serials[rows])
            codes = self._own_codes(own, batch)
            if codes is not None:
                share = codes.used / (1 - self.objective.settings.foreign_codes or 1)
                batch = replace(batch, paired=share)
            noise = self.draw_noise(own, serials[rows], self.seed, codes)
            parts.append(_MicroBatch(own, batch, noise, codes))
        return parts

    def _regions(self, sample: Sample) -> Tensor:
        return sample["regions"] if "regions" in sample else regions_of(sample["label"])

    def _own_codes(self, sample: Sample, batch: Batch) -> OwnCodes | None:
        """The style codes of real images, and which pairs use them; None without codes."""
        styles = cast(Generator, self.generator).styles
        if styles is None:
            return None
        share = self.objective.settings.foreign_codes
        # As evenly spread as whole numbers allow, and the same however the batch is divided.
        used = np.array([int((n + 1) * share) == int(n * share) for n in batch.serials])
        table = styles(batch.image, self._regions(sample))
        return OwnCodes(table, to_device(used, table.device))

    def _remember_codes(self, parts: Sequence[_MicroBatch]) -> None:
        """Adds the batch to the bank, with codes by the encoder that is saved."""
        styles = cast(Generator, self.generator).styles
        encoder = cast(Generator, self.inference_generator).styles
        if styles is None or encoder is None:
            return
        found = [
            encoder.entries(part.batch.image, part.batch.label, self._regions(part.sample))
            for part in parts
        ]
        entries = torch.cat(found)
        if dist.is_initialized():
            ranks = [torch.empty_like(entries) for _ in range(dist.get_world_size())]
            dist.all_gather(ranks, entries.contiguous())
            entries = torch.cat(ranks)
        styles.remember(entries)

    def _second_draw(self, part: _MicroBatch) -> Regenerate:
        """Generates a micro-batch again, with other noise, where the diversity loss asks for it."""

        def generate() -> tuple[Tensor, Tensor]:
            seed = self.seed + _SECOND_NOISE
            other = self.draw_noise(part.sample, part.batch.serials, seed, part.own)
            image = cast(Generator, self.generator)(part.batch.one_hot, other)
            return image, (part.noise - other).abs().mean((1, 2, 3))

        return generate

    def _gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Lets processes reduce gradients after the last micro-batch only."""
        strategy = self._trainer.strategy if self._trainer is not None else None
        if last or not isinstance(strategy, ParallelStrategy):
            return nullcontext()
        return cast(AbstractContextManager[Any], strategy.block_backward_sync())

    def _cached_spectral_norms(self) -> AbstractContextManager[Any]:
        """Computes weights under spectral normalisation once for all passes of a step."""
        # Compiled code computes them itself, and recomputed activations need them again.
        return nullcontext() if self.speed.compile or self.speed.recompute else parametrize.cached()

    def _log(self, d_terms: Terms, g_terms: Terms, rates: dict[str, float]) -> None:
        """Logs means over all processes, reduced at once."""
        named = {f"d/{k}": v for k, v in {**d_terms, **d_terms.monitors}.items()}
        named |= {f"g/{k}": v for k, v in {**g_terms, **g_terms.monitors}.items()}
        named |= {"d": d_terms.total(), "g": g_terms.total()}
        values = torch.stack([value.detach().float() for value in named.values()])
        means = cast(Tensor, self.trainer.strategy.reduce(values, reduce_op="mean")).unbind()
        scalars = dict(zip(named, means, strict=True))
        bar = {name: scalars.pop(name) for name in ("d", "g")}
        self.log_dict({**scalars, **rates})
        self.log_dict(bar, prog_bar=True, logger=False)

    def _lr_factor(self, step: int) -> float:
        settings = self.optimizer_settings
        if settings.schedule == "constant":
            return 1.0
        total = self.trainer.estimated_stepping_batches
        progress = max(step / total, self.time_used)
        return max(0.0, min(1.0, (1 - progress) / (1 - settings.decay_from)))
