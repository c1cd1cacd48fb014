"""The benchmark command: remapping, loading, training and generation against their limits.

Parts that are compared take turns within one run, so that a noisy machine disturbs both alike; the
median ratio over the rounds counts.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import cv2
import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.markdown import Markdown

from geoseg_gan.checkpoints import LoadedGenerator, RunFacts
from geoseg_gan.config import command, plain
from geoseg_gan.data.batch import Sample, make_batch
from geoseg_gan.data.datamodule import SegmentationDataModule
from geoseg_gan.data.palette import IGNORE, Palette
from geoseg_gan.data.sampler import Draw
from geoseg_gan.errors import UserError
from geoseg_gan.files import atomic_path, write_json
from geoseg_gan.gan import GAN
from geoseg_gan.losses.objective import Objective
from geoseg_gan.models.discriminator import Discriminator
from geoseg_gan.models.registry import Generator, build_discriminator, build_generator
from geoseg_gan.schemas import BenchmarkConfig
from geoseg_gan.synthesis.judge import Verdict
from geoseg_gan.synthesis.masks import CandidateMasks
from geoseg_gan.synthesis.paint import paint_candidates
from geoseg_gan.synthesis.writer import Manifest, PairWriter
from geoseg_gan.trainer import build_trainer, full_precision

_WARM_UP = 3
"""Batches before the clock starts."""


def benchmark(config: BenchmarkConfig) -> dict[str, float]:
    """Measures everything and writes `benchmark.json` and `benchmark.md`.

    Args:
        config: Networks, data and how long to measure.

    Returns:
        The measured figures by name.

    Raises:
        UserError: If the configuration is not as it must be.
    """
    if min(config.seconds, config.rounds, config.bs) <= 0:
        raise UserError(
            f"seconds={config.seconds}, rounds={config.rounds} and bs={config.bs} must be positive."
        )
    config.trainer.check(precision=config.precision)
    config.data.check()
    config.jitter.check()
    L.seed_everything(0, workers=True, verbose=False)
    data = SegmentationDataModule(
        Path(config.data_root),
        config.data,
        image_size=config.image_size,
        batch_size=config.bs,
        jitter=config.jitter,
        seed=0,
        on_gpu=config.trainer.on_gpu(),
        regions=plain(config.model)["generator"]["region_channels"] > 0,
    )
    data.prepare_data()
    data.setup()
    figures: dict[str, float] = {}
    for part in (_remap, _loading, _training, _generation):
        print(f"Measuring {part.__name__.strip('_')} ...", flush=True)
        figures |= part(config, data)
    facts = {
        "command": f"python scripts/benchmark.py (image_size={config.image_size}, bs={config.bs}, "
        f"precision={config.precision}, seconds={config.seconds:g}, rounds={config.rounds})",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, "
        + (torch.cuda.get_device_name() if config.trainer.on_gpu() else "no GPU"),
        "torch": torch.__version__,
        "figures": figures,
        "config": plain(config),
    }
    out_dir = Path(config.out_dir)
    write_json(out_dir / "benchmark.json", facts)
    table = _table(facts)
    with atomic_path(out_dir / "benchmark.md") as scratch:
        scratch.write_text(table)
    Console().print(Markdown(table))
    return figures


main = command(BenchmarkConfig)(benchmark)


def _remap(config: BenchmarkConfig, data: SegmentationDataModule) -> dict[str, float]:
    """Colour to class ID on one core: the look-up table against a loop over classes."""
    label, _ = data.reader.read(data.train_index.pairs[0].mask)
    rgb = data.palette.decode(label)
    cv2.setNumThreads(1)

    def loop() -> npt.NDArray[np.uint8]:
        return _loop_over_classes(rgb, data.palette)

    if not np.array_equal(loop(), data.palette.encode(rgb)[0]):
        raise AssertionError("the look-up and the loop over classes disagree")
    seconds = config.seconds / 10
    rounds = [
        (_rate(lambda: data.palette.encode(rgb), seconds), _rate(loop, seconds))
        for _ in range(config.rounds)
    ]
    return {
        "remap_mb_per_s": statistics.median(table for table, _ in rounds) * rgb.nbytes / 1e6,
        "remap_over_loop": statistics.median(table / looped for table, looped in rounds),
    }


def _loop_over_classes(rgb: npt.NDArray[np.uint8], palette: Palette) -> npt.NDArray[np.uint8]:
    """What remapping usually is: one comparison of all pixels for each colour."""
    label = np.full(rgb.shape[:2], IGNORE, np.uint8)
    for number, entry in enumerate(palette.classes):
        label[(rgb == np.array(entry.color)).all(-1)] = number
    return label


def _loading(config: BenchmarkConfig, data: SegmentationDataModule) -> dict[str, float]:
    """Training items a second on one core: reading or cache, jitter, crop."""
    cv2.setNumThreads(1)
    dataset, serial = data.train_dataset, count()

    def item() -> None:
        number = next(serial)
        dataset[Draw(number % len(dataset), number)]

    return {"load_images_per_s_per_core": _rate(item, config.seconds)}


def _training(config: BenchmarkConfig, data: SegmentationDataModule) -> dict[str, float]:
    """Training images a second: Lightning against a bare loop over the same networks and data."""
    probe = _bare_training(config, data, _WARM_UP + 5)
    steps = max(10, round(config.seconds * probe / config.bs)) + _WARM_UP
    rounds = [
        (_lightning_training(config, data, steps), _bare_training(config, data, steps))
        for _ in range(config.rounds)
    ]
    return {
        "train_images_per_s": statistics.median(lightning for lightning, _ in rounds),
        "train_bare_images_per_s": statistics.median(bare for _, bare in rounds),
        "lightning_over_bare": statistics.median(lightning / bare for lightning, bare in rounds),
    }


def _module(config: BenchmarkConfig, data: SegmentationDataModule) -> GAN:
    torch.manual_seed(0)
    classes, bands = data.palette.num_classes, data.train_index.bands
    settings = plain(config.model)
    return GAN(
        build_generator(settings["generator"], classes, bands),
        build_discriminator(settings["discriminator"], classes, bands),
        Objective(config.loss, bands, 0),
        num_classes=classes,
        scaling=data.scaling(),
        lr=config.lr,
        optimizer=replace(config.optimizer, schedule="constant"),
        seed=0,
        global_batch=config.bs,
    )


class _Clock(L.Callback):
    """Times the batches after the first few, all that lies between them included."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.batches = 0
        self.started = 0.0
        self.ended = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Reads the clock, and ends training when there are enough batches."""
        self.batches += 1
        self.ended = _now()
        if self.batches == _WARM_UP:
            self.started = self.ended
        trainer.should_stop = self.batches >= self.steps


def _lightning_training(config: BenchmarkConfig, data: SegmentationDataModule, steps: int) -> float:
    clock = _Clock(steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            config.trainer,
            out_dir=Path(folder),
            epochs=10**6,
            devices=1,
            precision=config.precision,
            steps=steps,
            callbacks=[clock],
        )
        trainer.fit(_module(config, data), train_dataloaders=data.train_dataloader())
    return (clock.batches - _WARM_UP) * config.bs / (clock.ended - clock.started)


def _bare_training(config: BenchmarkConfig, data: SegmentationDataModule, steps: int) -> float:
    """The same two steps a batch as `GAN.training_step`, without Lightning."""
    module, device = _module(config, data).to(config.trainer.device()), config.trainer.device()
    generator = cast(Generator, module.generator)
    discriminator = cast(Discriminator, module.discriminator)
    (d_optimizer, g_optimizer), _ = module.configure_optimizers()
    dtype = torch.bfloat16 if full_precision(config.precision) == "bf16-mixed" else None
    started = 0.0
    for step, sample in zip(range(steps), _endless(data), strict=False):
        if step == _WARM_UP:
            started = _now()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            on_device = {k: v.to(device) for k, v in sample.items() if isinstance(v, torch.Tensor)}
            numbers = range(step * config.bs, (step + 1) * config.bs)
            moved = cast(Sample, on_device)
            batch = make_batch(moved, module.scaling, module.num_classes, numbers)
            noise = module.noise_of(moved, numbers, 0)
            fake = generator(batch.one_hot, noise)
            loss = module.objective.d_terms(discriminator, batch, fake.detach()).total()
        d_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        d_optimizer.step()
        module.discriminator.requires_grad_(False)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            again = module.repainting(moved, batch, noise)
            loss = module.objective.g_terms(discriminator, batch, fake, again).total()
        g_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        g_optimizer.step()
        module.discriminator.requires_grad_(True)
        module.follow()
    return (steps - _WARM_UP) * config.bs / (_now() - started)


def _endless(data: SegmentationDataModule) -> Iterator[Sample]:
    loader = data.train_dataloader()
    while True:
        yield from loader


def _generation(config: BenchmarkConfig, data: SegmentationDataModule) -> dict[str, float]:
    """Pairs a second, with and without saving them."""
    device = config.trainer.device()
    module = _module(config, data)
    module.generator.to(device).eval().requires_grad_(False)
    facts = RunFacts({}, data.palette, data.scaling())
    generator = LoadedGenerator(cast(Generator, module.generator), facts, 0, "")

    def pairs_per_second(number: int, save: bool) -> float:
        candidates = CandidateMasks(
            data.train_index.pairs,
            data.reader,
            image_size=config.image_size,
            fit=data.fit,
            jitter=config.jitter,
            seed=0,
            start=0,
            stop=number,
        )
        painted = paint_candidates(
            generator, candidates, batch_size=config.bs, num_workers=1, device=device
        )
        with tempfile.TemporaryDirectory() as folder:
            started = _now()
            place = (Path(folder), "pairs", data.reader, facts.scaling)
            with Manifest(Path(folder)) as manifest, PairWriter(*place, manifest.add) as writer:
                for candidate, image in painted:
                    if save:
                        writer.add(candidate, image, Verdict(candidate.label))
            return number / (_now() - started)

    number = max(16, round(config.seconds * pairs_per_second(64, save=False)))
    rounds = [
        (pairs_per_second(number, save=True), pairs_per_second(number, save=False))
        for _ in range(config.rounds)
    ]
    return {
        "generate_pairs_per_s": statistics.median(saved for saved, _ in rounds),
        "generate_unsaved_pairs_per_s": statistics.median(unsaved for _, unsaved in rounds),
        "saving_over_not": statistics.median(saved / unsaved for saved, unsaved in rounds),
    }


def _rate(work: Callable[[], Any], seconds: float) -> float:
    """How often a second `work` is done."""
    work()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work()
        done += 1
    return done / (time.perf_counter() - started)


def _now() -> float:
    """The time once the device has done all that was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


_MEANINGS = {
    "remap_mb_per_s": "RGB mask to class IDs on one core, MB/s",
    "remap_over_loop": "the same over a loop over classes",
    "load_images_per_s_per_core": "training items on one core, images/s",
    "train_images_per_s": "training under Lightning, images/s",
    "train_bare_images_per_s": "training in a bare loop, images/s",
    "lightning_over_bare": "Lightning over bare loop",
    "generate_pairs_per_s": "generation with saving, pairs/s",
    "generate_unsaved_pairs_per_s": "generation without saving, pairs/s",
    "saving_over_not": "with saving over without",
}


def _table(facts: dict[str, Any]) -> str:
    lines = [f"{facts['machine']}, torch {facts['torch']}.", f"`{facts['command']}`", ""]
    lines += ["| what | figure |", "|---|---|"]
    for name, value in facts["figures"].items():
        shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        lines.append(f"| {_MEANINGS[name]} | {shown} |")
    return "\n".join([*lines, ""])
