"""Measures loading, training and generation on this machine, as ratios to their limits.

Use: python scripts/dev/benchmark.py [--seconds 2] [--rounds 5] [--json FILE] [setting=value ...]
     python scripts/dev/benchmark.py --against FOLDER [--rounds 5] [--json FILE] [setting=value ...]

The settings are those of the train command, as in model=unet_light data=demo image_size=128. What
is compared takes turns, so that a noisy machine disturbs all alike; the median over the rounds
counts. Ratios are of images per second.

The second form measures training steps on a CPU only: how much less processor time they take than
those of the version checked out in FOLDER, and what share of them each kind of operation has.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, repeat
from pathlib import Path
from subprocess import PIPE
from typing import Any, cast

import cv2
import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import LambdaCallback
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from geoseg_gan.config import compose, plain
from geoseg_gan.data.batch import Sample, make_batch
from geoseg_gan.data.datamodule import GanDataModule
from geoseg_gan.data.sampler import SampleIndex
from geoseg_gan.models.checkpoints import RunFacts, save_network
from geoseg_gan.synthesis.generate import generate
from geoseg_gan.synthesis.settings import GenerateConfig
from geoseg_gan.training.gan import GAN
from geoseg_gan.training.settings import TrainConfig
from geoseg_gan.training.train import build_gan, open_data
from geoseg_gan.training.trainer import build_trainer
from geoseg_gan.utils.device import AUTO, now
from geoseg_gan.utils.files import write_json
from geoseg_gan.utils.tables import markdown_table

WARM_UP = 2
"""Batches before the clock starts."""

KINDS = {
    "convolutions": ("conv", "mm"),
    "copies": ("copy_", "contiguous", "clone"),
    "optimisers and averages": ("adam", "Adam", "lerp"),
    "spectral norms": ("mv", "dot", "_Divide"),
}
"""Operations whose share is shown, by parts of their names."""

Table = dict[str, float]


@dataclass(frozen=True)
class Subject:
    """What is measured: a configuration of train, its data, and one batch on the device."""

    config: TrainConfig
    data: GanDataModule
    facts: RunFacts
    sample: Sample
    device: torch.device
    steps: int

    def module(self, **speed: bool) -> GAN:
        """Networks with random weights, always the same."""
        torch.manual_seed(0)
        switches = replace(self.config.speed, **speed)  # type: ignore[arg-type]
        return build_gan(replace(self.config, speed=switches), self.data, self.facts)


def plain_loop(
    subject: Subject, precision: str, loads: bool = False, **speed: bool
) -> Callable[[], float]:
    """Training steps without Lightning, on loaded batches or always the same: images per second."""
    module, device = subject.module(**speed).to(subject.device), subject.device
    optimizers, _ = module.configure_optimizers()
    steps, bs, half = subject.steps, subject.config.bs, precision == "bf16-mixed"

    def run() -> float:
        loader = subject.data.train_dataloader()
        batches = chain.from_iterable(repeat(loader)) if loads else repeat(subject.sample)
        for number in range(WARM_UP + steps):
            if number == WARM_UP:
                started = now(device)
            sample = move_data_to_device(next(batches), device)
            serials = range(number * bs, (number + 1) * bs)
            with torch.autocast(device.type, torch.bfloat16, half, cache_enabled=False):
                module.step(sample, serials, optimizers, torch.autograd.backward)
        return steps * bs / (now(device) - started)

    return run


def under_lightning(subject: Subject, precision: str) -> float:
    """Images per second of a Trainer, with all that happens between its batches."""
    ends = WARM_UP, WARM_UP + subject.steps
    times: list[float] = []

    def tick(trainer: L.Trainer, *_: Any) -> None:
        times.append(now(subject.device) if len(times) + 1 in ends else 0.0)
        trainer.should_stop = len(times) == ends[1]

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = replace(subject.config, out_dir=folder, epochs=10**6, precision=precision)
        callbacks = [LambdaCallback(on_train_batch_end=tick)]
        trainer = build_trainer(config, subject.steps, callbacks)
        trainer.fit(subject.module(), train_dataloaders=subject.data.train_dataloader())
    return subject.steps * subject.config.bs / (times[-1] - times[WARM_UP - 1])


def serve(subject: Subject, precision: str) -> None:
    """Takes a training step for each line of stdin and prints its processor time in seconds.

    The first line gets the shares of `operators` instead, as JSON.
    """
    module = subject.module()
    optimizers, _ = module.configure_optimizers()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, precision == "bf16-mixed", cache_enabled=False):
            module.step(subject.sample, range(subject.config.bs), optimizers, backward)

    backward = torch.autograd.backward
    step()
    sys.stdin.readline()
    print(json.dumps(operators(step)), flush=True)
    for _ in sys.stdin:
        started = time.process_time()
        step()
        print(time.process_time() - started, flush=True)


def operators(step: Callable[[], None]) -> Table:
    """Shares of the time of a step, by kind of operation: of each the shorter time of two steps."""
    steps = []
    for _ in range(2):
        with profile(activities=[ProfilerActivity.CPU]) as found:
            step()
        steps.append([(event.name, event.self_cpu_time_total) for event in found.events()])
    times = dict.fromkeys([*KINDS, "others"], 0.0)
    for (name, first), (_, second) in zip(*steps, strict=True):
        fits = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
        times[next(fits, "others")] += min(first, second)
    return {name: value / sum(times.values()) for name, value in times.items()}


def measure_against(folder: Path, overrides: Sequence[str], rounds: int) -> Table:
    """Training steps of this version and of that in a folder, in turns, one process each."""
    roots = {"before": folder.resolve(), "now": Path(__file__).resolve().parents[2]}
    command = [sys.executable, __file__, "--serve", *overrides]
    servers = {
        name: subprocess.Popen(
            command, stdin=PIPE, stdout=PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
        )
        for name, root in roots.items()
    }

    def ask(server: "subprocess.Popen[str]") -> Any:
        print(file=server.stdin, flush=True)
        return json.loads(cast(Any, server.stdout).readline())

    shares = {name: ask(server) for name, server in servers.items()}
    times = in_turns({n: partial(ask, server) for n, server in servers.items()}, rounds)
    for server in servers.values():
        server.communicate()
    figures = {"speed-up of a step": ratio(times, "before", "now")}
    for name, table in shares.items():
        figures |= {f"{kind}, share {name}": value for kind, value in table.items()}
    return figures


def measure_training(subject: Subject, precision: str, rounds: int) -> Table:
    """Training with and without Lightning and loading, and how near it is to the matrix rate."""
    rates = in_turns(
        {
            "lightning": lambda: under_lightning(subject, precision),
            "plain": plain_loop(subject, precision, loads=True),
            "fixed": plain_loop(subject, precision),
            "items": lambda: loaded_items(subject),
            "matrices": lambda: matrix_rate(subject.device, precision),
        },
        rounds,
    )
    with FlopCounterMode(display=False) as counter:
        subject.module().to(subject.device).backward_only(subject.sample)
    per_image = counter.get_total_flops() / subject.config.bs / 1e12
    return {
        "training, images/s": statistics.median(rates["lightning"]),
        "Lightning / plain loop": ratio(rates, "lightning", "plain"),
        "plain loop / one batch repeated": ratio(rates, "plain", "fixed"),
        "items loaded by one core / trained": ratio(rates, "items", "fixed"),
        "TFLOP/s of large matrix products": statistics.median(rates["matrices"]),
        "training step / matrix products": per_image * ratio(rates, "fixed", "matrices"),
    }


def measure_switches(subject: Subject, precision: str, rounds: int) -> Table:
    """What each switch for speed brings by itself, and all of them together."""
    loops = {
        "off": plain_loop(subject, "32-true", channels_last=False, fused=False),
        "channels_last": plain_loop(subject, "32-true", channels_last=True, fused=False),
        "fused": plain_loop(subject, "32-true", channels_last=False, fused=True),
        "bf16-mixed": plain_loop(subject, "bf16-mixed", channels_last=False, fused=False),
        f"all, {precision}": plain_loop(subject, precision),
    }
    rates = in_turns(loops, rounds)
    return {f"{name} / off": ratio(rates, name, "off") for name in loops if name != "off"}


def measure_generation(subject: Subject, seconds: float, rounds: int) -> Table:
    """The generate command without its start, and the generator's forward pass alone."""
    module, own = subject.module().to(subject.device), subject.config
    batch = own.bs if subject.device.type == "cuda" else 1  # as generate takes them
    part = cast(Sample, {k: v[:batch] for k, v in subject.sample.items()})  # type: ignore[index]
    one_hot = make_batch(part, module.scaling, module.num_classes).one_hot
    noise = module.draw_noise(part, range(batch), 0)

    @torch.inference_mode()
    def forward() -> float:
        with module.evaluating() as generator:
            return batch * rate(lambda: generator(one_hot, noise), seconds, subject.device)

    pairs = max(16, round(seconds * forward()))

    def saved() -> float:
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
            folder, network = Path(name), module.inference_generator
            save_network(folder / "G_e001.pt", "generator", network, subject.facts, 1)
            asked = [f"gen_ckpt={folder / 'G_e001.pt'}", f"save_dir={folder / 'pairs'}"]
            asked += [f"num_samples={pairs}", f"bs={own.bs}"]
            config = compose(GenerateConfig, asked)
            generate(replace(config, jitter=own.jitter, trainer=own.trainer))
            written = [p.stat().st_mtime for p in (folder / "pairs").glob("*_mask.png")]
        return (len(written) - 1) / (max(written) - min(written))

    rates = in_turns({"saved": saved, "forward": forward}, rounds)
    return {
        "generation, pairs/s saved": statistics.median(rates["saved"]),
        "pairs saved / forward pass": ratio(rates, "saved", "forward"),
    }


def loaded_items(subject: Subject) -> float:
    """Training items per second on one core: reading, jitter, crop."""
    cv2.setNumThreads(1)
    dataset, numbers = subject.data.train_dataset, count()
    items = (dataset[SampleIndex(n * 7919 % len(dataset), n)] for n in numbers)
    return rate(lambda: next(items), 0.5, torch.device("cpu"))


def matrix_rate(device: torch.device, precision: str) -> float:
    """TFLOP/s of large matrix products, which convolutions cannot beat by much."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / 1e12 * rate(lambda: a @ a, 0.5, device)


def rate(work: Callable[[], object], seconds: float, device: torch.device) -> float:
    """How many times per second some work is done."""
    work()
    started, done = now(device), 0
    while (passed := now(device) - started) < seconds:
        work()
        done += 1
    return done / passed


def in_turns(parts: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each part measures in every round; every other round runs backwards."""
    found: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(rounds):
        for name in list(parts)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(parts[name]())
    return found


def ratio(rates: Mapping[str, Sequence[float]], name: str, to: str) -> float:
    """The median over the rounds of one part's rate over another's."""
    return statistics.median(a / b for a, b in zip(rates[name], rates[to], strict=True))


def benchmark(arguments: Sequence[str]) -> Table:
    """Measures everything, prints a Markdown table, and returns the figures by name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="of all measurements, in turns")
    parser.add_argument("--json", type=Path, help="file that also gets the figures")
    parser.add_argument("--against", type=Path, help="checkout of a version to compare with")
    parser.add_argument("--serve", action="store_true", help="take steps for --against")
    options, overrides = parser.parse_known_args(arguments)
    config = compose(TrainConfig, [*overrides, "optimizer.schedule=constant"])
    precision = config.trainer.full_precision(
        None if config.precision == AUTO else config.precision
    )
    data, device = open_data(config), config.trainer.device()
    sample = move_data_to_device(next(iter(data.train_dataloader())), device)
    facts = RunFacts(plain(config), data.palette, data.scaling())
    subject = Subject(config, data, facts, sample, device, steps=2)
    if options.serve:
        serve(subject, precision)
        return {}
    if options.against:
        figures = measure_against(options.against, overrides, options.rounds)
    else:
        images = options.seconds * plain_loop(subject, precision)()
        subject = replace(subject, steps=max(2, round(images / config.bs)))
        figures = measure_training(subject, precision, options.rounds)
        figures |= measure_switches(subject, precision, options.rounds)
        figures |= measure_generation(subject, options.seconds, options.rounds)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    machine += f", {torch.get_num_threads()} threads, torch {torch.__version__}, {precision}"
    rows = [(name, f"{value:.3g}") for name, value in figures.items()]
    print("\n".join([f"{machine}; {' '.join(overrides)}\n", *markdown_table(("", ""), rows)]))
    if options.json:
        write_json(options.json, {"machine": machine, "overrides": overrides, "figures": figures})
    return figures


if __name__ == "__main__":
    benchmark(sys.argv[1:])
