"""The benchmark command: loading, training and generation against their limits.

Parts that are compared take turns within one run, so that a noisy machine disturbs all alike; the
median ratio over the rounds counts.
"""

import os
import platform
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import torch
from rich.console import Console
from rich.markdown import Markdown

from geoseg_gan.benchmarks.clock import in_turns, matrix_rate, middle, ratio
from geoseg_gan.benchmarks.generation import Painting
from geoseg_gan.benchmarks.loading import items, opened, remapping, start_with
from geoseg_gan.benchmarks.results import Results
from geoseg_gan.benchmarks.training import (
    Loop,
    Subject,
    measured_precision,
    peak_of_training,
    profiled,
    step_operations,
    under_lightning,
)
from geoseg_gan.config import command, compose_model, plain
from geoseg_gan.data.datamodule import SegmentationDataModule
from geoseg_gan.errors import UserError, check_choice
from geoseg_gan.files import atomic_path, write_json
from geoseg_gan.losses.settings import ObjectiveSettings
from geoseg_gan.models.segmenters import build_segmenter
from geoseg_gan.schemas import BenchmarkConfig
from geoseg_gan.speed import NETWORKS, SpeedSettings
from geoseg_gan.synthesis.recognizer import Recognizer
from geoseg_gan.trainer import AUTO, full_precision

PARTS = ("data", "training", "switches", "generation")
_OPERATIONS = 12  # kinds of operations that a profile lists


def benchmark(config: BenchmarkConfig) -> dict[str, float]:
    """Measures all parts and writes `benchmark.json` and `benchmark.md`.

    Args:
        config: Networks, data and how long to measure.

    Returns:
        The measured figures by name.

    Raises:
        UserError: If the configuration is not as it must be.
    """
    check(config)
    out_dir = Path(config.out_dir)
    L.seed_everything(0, workers=True, verbose=False)
    cv2.setNumThreads(1)
    models = _models(config)
    data = _open_data(config)
    results = Results()
    device = config.trainer.device()
    limit = {
        name: matrix_rate(device, dtype, min(config.seconds, 2.0))
        for name, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16))
    }
    results.add("Matrix products, TFLOP/s", {"machine": limit})
    for part in config.parts:
        if part == "data":
            _measure_data(config, data, results)
        elif part == "training":
            _measure_training(config, data, models, limit, results)
        elif part == "switches":
            _measure_switches(config, data, models, results)
        else:
            _measure_generation(config, data, models, results)
    facts = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, "
        + (torch.cuda.get_device_name() if config.trainer.on_gpu() else "no GPU"),
        "torch": torch.__version__,
        "figures": results.figures,
        "config": plain(config),
    }
    write_json(out_dir / "benchmark.json", facts)
    setting = f"image_size={config.image_size} bs={config.bs} rounds={config.rounds}"
    head = f"{facts['machine']}, torch {facts['torch']}; {setting} seconds={config.seconds:g}.\n"
    text = "\n".join([head, *results.tables])
    with atomic_path(out_dir / "benchmark.md") as scratch:
        scratch.write_text(text)
    Console().print(Markdown(text))
    return results.figures


main = command(BenchmarkConfig)(benchmark)


def check(config: BenchmarkConfig) -> None:
    """Refuses a configuration before anything slow starts or anything is written.

    Raises:
        UserError: Naming the key, its value and what to do.
    """
    if min(config.seconds, config.rounds, config.bs) <= 0:
        raise UserError(
            f"seconds={config.seconds}, rounds={config.rounds} and bs={config.bs} must be positive."
        )
    if config.tiles and min(config.tiles) < 1:
        raise UserError(f"tiles={config.tiles}: use numbers from 1 up.")
    for part in config.parts:
        check_choice("parts", part, PARTS)
    if config.precision == AUTO:
        config.trainer.check()
    else:
        config.trainer.check(precision=config.precision)
    config.data.check()
    config.data.check_root(Path(config.data_root))
    config.jitter.check()


def _models(config: BenchmarkConfig) -> dict[str, tuple[dict[str, Any], ObjectiveSettings]]:
    """Settings of the networks and the loss of every model by name."""
    if not config.models:
        return {"model": (plain(config.model), config.loss)}
    found = {name: compose_model(name) for name in config.models}
    return {name: (plain(own.model), own.loss) for name, own in found.items()}


def _open_data(config: BenchmarkConfig) -> SegmentationDataModule:
    data = SegmentationDataModule(
        Path(config.data_root),
        config.data,
        image_size=config.image_size,
        batch_size=config.bs,
        jitter=config.jitter,
        seed=0,
        on_gpu=config.trainer.on_gpu(),
        regions=True,
    )
    data.prepare_data()
    data.setup()
    return data


def _measure_data(config: BenchmarkConfig, data: SegmentationDataModule, results: Results) -> None:
    _say("masks and images")
    rates = in_turns(remapping(data, config.seconds / 10), config.rounds)
    remapped = {"MB/s": middle(rates["table"]), "over a loop": ratio(rates, "table", "loop")}
    results.add("RGB masks to class IDs, one core", {"remapping": remapped})
    if config.data.format == "folder":
        sources = {cache: opened(data, cache=cache) for cache in ("none", "ram")}
    else:
        sources = {"stream": data}
    rates = in_turns(
        {name: partial(items, own, config.seconds) for name, own in sources.items()},
        config.rounds,
    )
    rows = {f"loading, cache={name}": {"images/s": middle(own)} for name, own in rates.items()}
    results.add("Training items (decoded, warped, cropped) on one core", rows)
    if config.tiles:
        starts = {}
        for tiles in config.tiles:
            _say(f"the start with {tiles:,} tiles")
            found = start_with(data, tiles, config.seconds)
            starts[f"{tiles:,} tiles"] = {
                "first start, s": found["first"],
                "later starts, s": found["second"],
                "memory, MB": found["megabytes"],
                "images/s on one core": found["items"],
            }
        results.add("Start and cost with the number of tiles", starts)


def _measure_training(
    config: BenchmarkConfig,
    data: SegmentationDataModule,
    models: dict[str, tuple[dict[str, Any], ObjectiveSettings]],
    limit: dict[str, float],
    results: Results,
) -> None:
    rates = {}
    profiles: dict[str, dict[str, float]] = {}
    out_dir = Path(config.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, (model, loss) in models.items():
        _say(f"training of {name}")
        subject, precision = _subject(config, data, model, loss)
        fixed = subject.fixed_batch()
        bare = Loop(subject, precision)
        found = in_turns(
            {
                "lightning": partial(under_lightning, subject, precision),
                "bare": bare,
                "fixed": Loop(subject, precision, batches=fixed),
            },
            config.rounds,
        )
        operations = step_operations(subject) / config.bs
        reached = operations * middle(found["fixed"]) / 1e12
        rates[name] = {
            "images/s": middle(found["lightning"]),
            "Lightning / bare loop": ratio(found, "lightning", "bare"),
            "bare loop / fixed batch": ratio(found, "bare", "fixed"),
            "waits for data": middle(bare.waited),
            "TFLOP/s": reached,
            "of the matrix rate": reached / limit[precision],
        }
        trace = out_dir / f"trace_{name}.json"
        for operation, share in profiled(subject, precision, _OPERATIONS, trace):
            profiles.setdefault(f"`{operation}`", {})[name] = share
    results.add("Training", rates)
    results.add("Where a step's time goes (share of the profiled time)", profiles)


def _subject(
    config: BenchmarkConfig,
    data: SegmentationDataModule,
    model: dict[str, Any],
    loss: ObjectiveSettings,
) -> tuple[Subject, str]:
    """What is trained, in as many steps as fill the time that is given, and in which precision."""
    subject = Subject(model, loss, data, config.optimizer, config.trainer, config.lr, config.bs, 2)
    precision = full_precision(config.precision)
    if precision == AUTO:
        precision = measured_precision(subject)
    rate = Loop(subject, precision)()
    return replace(subject, steps=max(2, round(config.seconds * rate / config.bs))), precision


def _measure_switches(
    config: BenchmarkConfig,
    data: SegmentationDataModule,
    models: dict[str, tuple[dict[str, Any], ObjectiveSettings]],
    results: Results,
) -> None:
    """What each switch brings by itself, and all of them together."""
    nchw = SpeedSettings(channels_last=False, fused=False)
    rows = {}
    for name, (model, loss) in models.items():
        _say(f"switches of {name}")
        subject, precision = _subject(config, data, model, loss)
        fixed = subject.fixed_batch()
        loops = {
            "off": Loop(subject, "32-true", nchw, fixed),
            "channels_last": Loop(subject, "32-true", SpeedSettings(fused=False), fixed),
            "fused": Loop(subject, "32-true", SpeedSettings(channels_last=False), fixed),
            "bf16": Loop(subject, "bf16-mixed", nchw, fixed),
            "all": Loop(subject, precision, None, fixed),
        }
        if config.compile:
            both = SpeedSettings(compile=list(NETWORKS))
            loops["all, compiled"] = Loop(subject, precision, both, fixed)
        rates = in_turns(loops, config.rounds)
        found = {name: ratio(rates, name, "off") for name in rates if name != "off"}
        found["images/s, all"] = middle(rates["all"])
        found["MB"] = peak_of_training(subject, precision, None)
        less = SpeedSettings(recompute=list(NETWORKS))
        found["MB, recompute"] = peak_of_training(subject, precision, less)
        rows[name] = found
    results.add("Switches: images/s over all of them off; peak memory of two steps in MB", rows)


def _measure_generation(
    config: BenchmarkConfig,
    data: SegmentationDataModule,
    models: dict[str, tuple[dict[str, Any], ObjectiveSettings]],
    results: Results,
) -> None:
    device = config.trainer.device()
    rows = {}
    for name, (model, _) in models.items():
        _say(f"generation with {name}")
        painting = Painting(
            model["generator"],
            data,
            config.jitter,
            _untrained(config, data, device),
            bs=config.bs,
            pairs=16,
            device=device,
        )
        painting.pairs = max(16, round(config.seconds * painting.forward()))
        rates = in_turns(painting.parts(), config.rounds)
        rows[name] = {
            "pairs/s, saved": middle(rates["saved"]),
            "unsaved / forward": ratio(rates, "unsaved", "forward"),
            "saved / forward": ratio(rates, "saved", "forward"),
            "filtered and saved / forward": ratio(rates, "filtered", "forward"),
        }
    results.add("Generation", rows)


def _untrained(
    config: BenchmarkConfig, data: SegmentationDataModule, device: torch.device
) -> Recognizer:
    """A segmenter with random weights, which takes as long as a trained one."""
    classes, scaling = data.palette.num_classes, data.scaling()
    network = build_segmenter(
        plain(config.segmenter), classes, data.train_index.bands, pretrained=False
    )
    network.to(device).eval().requires_grad_(False)
    return Recognizer(
        digest="",
        class_losses=None,
        held_out=None,
        predict=lambda images: network(scaling.to_network(images)),
        channels=range(classes),
        singly=device.type == "cpu",
    )


def _say(what: str) -> None:
    print(f"Measuring {what} ...", flush=True)
