"""Where a command runs: devices, precision and memory."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from geoseg_gan.utils.errors import UserError, check_choice, check_range, one_line

if TYPE_CHECKING:
    import torch

ACCELERATORS = ("auto", "cpu", "gpu")
AUTO = "auto"
"""The precision that a training run measures: see `MeasuredPrecision`."""

REQUEUE_SIGNAL = signal.SIGUSR1
"""By it SLURM says that a job's time is almost up, with `sbatch --signal=USR1@90`."""

_PROCESSES = 16  # more of them only where there are as many cores
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", AUTO)
_SHORT_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass
class TrainerSettings:
    """Where a command runs.

    Attributes:
        accelerator: "auto", "cpu" or "gpu".
        strategy: Lightning's name of a strategy; "auto" fits it to the number of devices.
        num_nodes: How many machines, each with `devices` devices, share a batch.
        requeue: Whether a training saves at SLURM's signal, and puts its job into the queue again.
    """

    accelerator: str
    strategy: str
    num_nodes: int
    requeue: bool

    def check(self, devices: int = 1, precision: str | None = None) -> None:
        """Refuses, with a UserError, devices and precisions that this machine does not have.

        Args:
            devices: How many devices of a machine to use.
            precision: Lightning's name of it or its short form, AUTO, or None for the default.
        """
        check_choice("trainer.accelerator", self.accelerator, ACCELERATORS)
        full = self.full_precision(precision)
        check_choice("precision", full, _PRECISIONS)
        import torch

        gpus = torch.cuda.device_count()
        if self.accelerator == "gpu" and not gpus:
            raise UserError("trainer=gpu: no GPU is visible. Use trainer=auto or trainer=cpu.")
        most = gpus if self.on_gpu() else max(_PROCESSES, os.cpu_count() or 1)
        check_range("devices", devices, 1, most)
        check_range("trainer.num_nodes", self.num_nodes, 1, 10_000)
        if full == "16-mixed" and not self.on_gpu():
            raise UserError("precision=16-mixed needs a GPU. Use bf16-mixed or 32-true.")

    def full_precision(self, name: str | None) -> str:
        """Lightning's full name of a precision.

        Args:
            name: The full name or its short form, as in "32"; None for the default, which is
                "bf16-mixed" on a GPU that computes in bfloat16 and "32-true" elsewhere.
        """
        if name is not None:
            return _SHORT_PRECISIONS.get(name, name)
        import torch

        half = self.on_gpu() and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if half else "32-true"

    def on_gpu(self) -> bool:
        """Whether the work will run on a GPU."""
        import torch  # not above: --help loads no torch

        return self.accelerator != "cpu" and torch.cuda.is_available()

    def device(self) -> "torch.device":
        """The device of a command that needs no Trainer."""
        import torch

        return torch.device("cuda" if self.on_gpu() else "cpu")


def named_device(name: "torch.device | str") -> "torch.device":
    """The device of a name that torch knows, as "cuda" or "cuda:1".

    Raises:
        UserError: If this machine has no such device.
    """
    import torch

    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:  # the first where torch was built for CPUs
        why = one_line(str(error)).partition(". ")[0].rstrip(".")
        raise UserError(f"device={name}: {why}. Use device=cpu, or leave it out.") from None


def now(device: "torch.device") -> float:
    """The time in seconds, once a device has finished all work it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still allocate, within the machine and its control groups."""
    free = int(psutil.virtual_memory().available)
    try:
        group = (root / "proc/self/cgroup").read_text().rpartition("::/")[2].strip()
    except OSError:
        return free  # not Linux
    own = root / "sys/fs/cgroup" / group
    # The limit may be an outer group's; in a container the path may lead nowhere.
    for folder in (own, *own.parents):
        try:
            limit, used = (int((folder / f"memory.{n}").read_text()) for n in ("max", "current"))
            rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = int(dict(rows)["inactive_file"])  # counts as used, but can be reclaimed
        except (OSError, ValueError):
            continue  # no such group, or its limit is "max"
        free = min(free, max(0, limit - used + cached))
    return free
