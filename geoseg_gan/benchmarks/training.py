"""Training steps: under Lightning, in a bare loop, without loading, and with switches off."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from geoseg_gan.benchmarks.clock import peak_megabytes, start_peak
from geoseg_gan.callbacks.precision import PrecisionChoice
from geoseg_gan.data.batch import Sample
from geoseg_gan.data.datamodule import SegmentationDataModule
from geoseg_gan.gan import GAN
from geoseg_gan.losses.objective import Objective
from geoseg_gan.losses.settings import ObjectiveSettings
from geoseg_gan.models.registry import build_discriminator, build_generator
from geoseg_gan.optimizer import OptimizerSettings
from geoseg_gan.speed import SpeedSettings, backward, now
from geoseg_gan.trainer import AUTO, TrainerSettings, build_trainer

WARM_UP = 2
"""Batches before the clock starts."""


@dataclass(frozen=True)
class Subject:
    """What is trained, and where.

    Attributes:
        model: Settings of generator and discriminator, plain types.
        loss: The recipe.
        data: Set up; its loader gives the batches.
        optimizer: How both networks are optimised.
        trainer: Where.
        lr: Learning rate.
        bs: Batch size.
        steps: Batches that are timed.
    """

    model: dict[str, Any]
    loss: ObjectiveSettings
    data: SegmentationDataModule
    optimizer: OptimizerSettings
    trainer: TrainerSettings
    lr: float
    bs: int
    steps: int

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.trainer.device()

    def module(self, speed: SpeedSettings | None = None) -> GAN:
        """Both networks with random weights, always the same."""
        torch.manual_seed(0)
        classes, bands = self.data.palette.num_classes, self.data.train_index.bands
        module = GAN(
            build_generator(self.model["generator"], classes, bands),
            build_discriminator(self.model["discriminator"], classes, bands),
            Objective(self.loss, bands, 0),
            num_classes=classes,
            scaling=self.data.scaling(),
            lr=self.lr,
            optimizer=replace(self.optimizer, schedule="constant"),
            seed=0,
            global_batch=self.bs,
            speed=speed,
        )
        for network in (getattr(module.discriminator, "backbone", None), module.objective.backbone):
            if network is not None:
                network.load()
        return module

    def fixed_batch(self) -> Sample:
        """One batch on the device."""
        return _moved(next(iter(self.data.train_dataloader())), self.device)


class Loop:
    """A loop over the module's steps without Lightning.

    Args:
        subject: What is trained.
        precision: "32-true" or "bf16-mixed".
        speed: Switches.
        batches: Where batches come from: None for the data loader, else one that is repeated.

    Attributes:
        waited: Share of its time that each call waited for batches.
    """

    def __init__(
        self,
        subject: Subject,
        precision: str,
        speed: SpeedSettings | None = None,
        batches: Sample | None = None,
    ) -> None:
        """Builds networks and optimisers."""
        self.subject = subject
        self.half = precision == "bf16-mixed"
        self.fixed = batches
        self.waited: list[float] = []
        self.module = subject.module(speed).to(subject.device)
        (self.d_optimizer, self.g_optimizer), _ = self.module.configure_optimizers()

    def __call__(self) -> float:
        """Images a second over the subject's steps."""
        steps, bs = self.subject.steps, self.subject.bs
        batches, waited = self._batches(), 0.0
        for number in range(WARM_UP + steps):
            if number == WARM_UP:
                started, waited = now(self.subject.device), 0.0
            asked = time.perf_counter()
            sample = next(batches)
            waited += time.perf_counter() - asked
            self.step(sample, number)
        seconds = now(self.subject.device) - started
        self.waited.append(waited / seconds)
        return steps * bs / seconds

    def step(self, sample: Sample, number: int) -> None:
        """One step on a batch on the device."""
        bs = self.subject.bs
        with self._autocast():
            self.module.step(
                sample,
                range(number * bs, (number + 1) * bs),
                (self.d_optimizer, self.g_optimizer),
                backward,
            )

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            self.subject.device.type, torch.bfloat16, enabled=self.half, cache_enabled=False
        )

    def _batches(self) -> Iterator[Sample]:
        while self.fixed is not None:
            yield self.fixed
        loader = self.subject.data.train_dataloader()
        while True:
            for sample in loader:
                yield _moved(sample, self.subject.device)


def under_lightning(subject: Subject, precision: str) -> float:
    """Images a second of a Trainer, all that lies between its batches included."""
    clock = _Clock(subject)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            subject.trainer,
            out_dir=Path(folder),
            epochs=10**6,
            devices=1,
            precision=precision,
            steps=subject.steps,
            callbacks=[clock],
        )
        trainer.fit(subject.module(), train_dataloaders=subject.data.train_dataloader())
    return subject.steps * subject.bs / (clock.ended - clock.started)


def measured_precision(subject: Subject) -> str:
    """The precision that training would choose here."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            subject.trainer,
            out_dir=Path(folder),
            epochs=1,
            devices=1,
            precision=AUTO,
            steps=1,
            callbacks=[PrecisionChoice(), _Stop()],
        )
        trainer.fit(subject.module(), train_dataloaders=subject.data.train_dataloader())
        return cast(str, cast(Any, trainer.precision_plugin).chosen)


def peak_of_training(subject: Subject, precision: str, speed: SpeedSettings | None) -> float:
    """The most memory that two steps take beyond what was held before, in MB."""
    start_peak(subject.device)
    before = peak_megabytes(subject.device)
    loop = Loop(subject, precision, speed, subject.fixed_batch())
    for number in range(2):
        loop.step(cast(Sample, loop.fixed), number)
    return peak_megabytes(subject.device) - before


def step_operations(subject: Subject) -> float:
    """Floating-point operations of one step, counted in its convolutions and products."""
    loop = Loop(subject, "32-true", batches=subject.fixed_batch())
    with FlopCounterMode(display=False) as counter:
        loop.step(cast(Sample, loop.fixed), 0)
    return float(counter.get_total_flops())


def profiled(subject: Subject, precision: str, rows: int, trace: Path) -> list[tuple[str, float]]:
    """Where the time of a step goes, by torch's profiler.

    Args:
        subject: What is trained.
        precision: In which it is.
        rows: How many kinds of operations are listed.
        trace: Where the trace goes, which chrome://tracing and Perfetto show.

    Returns:
        The operations that take most and their share of the time, the rest last.
    """
    loop = Loop(subject, precision, batches=subject.fixed_batch())
    sample = cast(Sample, loop.fixed)
    for number in range(WARM_UP):
        loop.step(sample, number)
    on_gpu = subject.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as profiler:
        loop.step(sample, WARM_UP)
        now(subject.device)
    profiler.export_chrome_trace(str(trace))
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda e: -float(getattr(e, key)))
    total = sum(float(getattr(e, key)) for e in events)
    shares = [(str(e.key), float(getattr(e, key)) / total) for e in events[:rows]]
    return [*shares, ("all else", 1 - sum(share for _, share in shares))]


class _Clock(L.Callback):
    """Times the batches after the first few, all that lies between them included."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.batches = 0
        self.started = 0.0
        self.ended = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Reads the clock, and ends training when there are enough batches."""
        self.batches += 1
        if self.batches == WARM_UP:
            self.started = now(self.subject.device)
        if self.batches == WARM_UP + self.subject.steps:
            self.ended = now(self.subject.device)
            trainer.should_stop = True


class _Stop(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = True


def _moved(sample: Sample, device: torch.device) -> Sample:
    moved = {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in sample.items()
    }
    return cast(Sample, moved)
