"""Where a command runs: devices and precision."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from geoseg_gan.utils.errors import UserError, check_choice

if TYPE_CHECKING:
    import torch

ACCELERATORS = ("auto", "cpu", "gpu")


PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


AUTO = "auto"

"""The precision that is measured: see `MeasuredPrecision`."""


_SHORT_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


@dataclass
class TrainerSettings:
    """Where a command runs.

    Attributes:
        accelerator: "auto", "cpu" or "gpu".
        strategy: Lightning's name of a strategy; "auto" fits it to the number of devices.
        num_nodes: How many machines, each with `devices` devices, share a batch.
    """

    accelerator: str
    strategy: str
    num_nodes: int

    def check(self, devices: int = 1, precision: str = "32-true") -> None:
        """Refuses devices and precisions that are not there.

        Args:
            devices: How many devices a machine is to use.
            precision: Lightning's name for it, or its short form.

        Raises:
            UserError: Naming the key, its value and what is there.
        """
        check_choice("trainer.accelerator", self.accelerator, ACCELERATORS)
        check_choice("precision", full_precision(precision), PRECISIONS)
        import torch

        gpus = torch.cuda.device_count()
        if self.accelerator == "gpu" and not gpus:
            raise UserError("trainer=gpu: no GPU is visible. Use trainer=auto or trainer=cpu.")
        if devices < 1 or (self.on_gpu() and devices > gpus):
            raise UserError(f"devices={devices}: use 1 to {gpus or 'the number of processes'}.")
        if self.num_nodes < 1:
            raise UserError(f"trainer.num_nodes={self.num_nodes}: use 1 or more.")
        if full_precision(precision) == "16-mixed" and not self.on_gpu():
            raise UserError("precision=16-mixed needs a GPU. Use bf16-mixed or 32-true.")

    def on_gpu(self) -> bool:
        """Whether the work will run on a GPU."""
        import torch  # not above: --help loads no torch

        return self.accelerator != "cpu" and torch.cuda.is_available()

    def device(self) -> "torch.device":
        """The device of a command that needs no Trainer."""
        import torch

        return torch.device("cuda" if self.on_gpu() else "cpu")


def full_precision(name: str) -> str:
    """Lightning's full name for a precision's short one, as in 32 for 32-true."""
    return _SHORT_PRECISIONS.get(name, name)
