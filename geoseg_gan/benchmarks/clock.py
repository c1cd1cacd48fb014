"""Time, memory and the limits of a machine."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from geoseg_gan.speed import now

Rates = dict[str, list[float]]
"""What was measured by name, a figure a round."""

CPU = torch.device("cpu")

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def rate(work: Callable[[], Any], seconds: float) -> float:
    """How often a second `work` is done on the CPU."""
    work()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        work()
        done += 1
    return done / (time.perf_counter() - started)


def in_turns(parts: Mapping[str, Callable[[], float]], rounds: int) -> Rates:
    """Lets parts take turns, so that a noisy machine disturbs all alike.

    Args:
        parts: What each measures.
        rounds: How often.
    """
    found: Rates = {name: [] for name in parts}
    for number in range(rounds):
        # Every other round backwards: what comes last is not always the same.
        for name in list(parts)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(parts[name]())
    return found


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def ratio(rates: Rates, name: str, to: str) -> float:
    """The median over the rounds of one part's rate over another's."""
    return middle([a / b for a, b in zip(rates[name], rates[to], strict=True)])


def start_peak(device: torch.device) -> None:
    """Starts watching for the most memory that is held."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.is_file():
        # What was freed earlier and is still held would hide what is taken now.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")  # Linux: the peak becomes what is held now


def peak_megabytes(device: torch.device) -> float:
    """The most memory held since `start_peak`, in MB; NaN where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if not _STATUS.is_file():
        return float("nan")
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024 / 1e6


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """The rate of large matrix products in TFLOP/s, which convolutions cannot beat by much."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    started, done = now(device), 0
    while now(device) - started < seconds:
        for _ in range(10):
            a @ b
        done += 10
    return done * 2 * side**3 / (now(device) - started) / 1e12
