"""Processes that each compute some of the seeds, on a device of their own.

This module does not import torch, so that a process chooses its GPU before CUDA starts.
"""

import os
import warnings
from collections.abc import Sequence

from joblib import cpu_count

from geoseg_gan.trials.settings import TrialConfig
from geoseg_gan.utils.processes import side_by_side


def compute_side_by_side(config: TrialConfig, seeds: Sequence[int], arms: Sequence[str]) -> None:
    """Computes the missing results of seeds in `config.devices` processes.

    Each process has its share of the cores' threads, or OMP_NUM_THREADS threads.

    Args:
        config: The trial.
        seeds: The seeds, handed out in turn.
        arms: The arms to compute for each.

    Raises:
        UserError: If a run met a user's mistake, or a process ended unexpectedly.
        Stopped: If a signal asked for the end; trainings have saved where they are.
    """
    count = min(config.devices, len(seeds))
    gpus = _gpus(config.devices) if config.trainer.on_gpu() else [None] * count
    work = [(config, seeds[number::count], arms, gpus[number]) for number in range(count)]
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cpu_count() // count))
    for text, category in (w for found in side_by_side(_compute, work, threads) for w in found):
        warnings.warn(text, category, stacklevel=2)


def _gpus(count: int) -> list[str]:
    """The names of the visible GPUs, as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return [name.strip() for name in visible.split(",")]


def _compute(
    config: TrialConfig, seeds: Sequence[int], arms: Sequence[str], gpu: str | None
) -> list[tuple[str, type[Warning]]]:
    """Computes seeds in a worker process, and returns the warnings that it raised."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    from geoseg_gan.trials.runs import compute_seeds

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for category in (FutureWarning, DeprecationWarning):  # of libraries, about each other
            warnings.simplefilter("ignore", category)
        compute_seeds(config, seeds, arms)
    return [(str(warning.message), warning.category) for warning in caught]
