"""What is done for speed and memory, none of which changes what is optimised."""

import time
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from geoseg_gan.errors import check_choice
from geoseg_gan.models.recompute import Blocks, recompute_blocks

NETWORKS = ("generator", "discriminator")


@dataclass
class SpeedSettings:
    """Switches for speed and memory.

    Attributes:
        channels_last: Keeps the channels of a pixel together, as tensor cores and CPUs read them.
        fused: One kernel for all of an Adam step.
        compile: Networks that torch.compile makes faster code of: minutes at the start, and again
            for every image size.
        recompute: Networks whose activations are computed again in the backward pass, for a batch
            or an image that does not fit otherwise.
    """

    channels_last: bool = True
    fused: bool = True
    compile: list[str] = field(default_factory=list)
    recompute: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Refuses networks that are none.

        Raises:
            UserError: Naming the key, its value and the choices.
        """
        for key in ("compile", "recompute"):
            for name in getattr(self, key):
                check_choice(f"speed.{key}", name, NETWORKS)

    def apply(self, generator: nn.Module, discriminator: nn.Module) -> None:
        """Sets two networks up; the keys of their state stay."""
        kind = torch.channels_last if self.channels_last else torch.contiguous_format
        for name, network in zip(NETWORKS, (generator, discriminator), strict=True):
            network.to(memory_format=kind)
            if name in self.recompute:
                recompute_blocks(cast(Blocks, network).blocks())
            if name in self.compile:
                network.compile()


class MeasuredPrecision(MixedPrecision):
    """Autocast to bfloat16 where that has been measured to be faster, else float32.

    Until it is measured, and where nothing measures it, it is float32.

    Args:
        device: "cuda" or "cpu".

    Attributes:
        chosen: Lightning's name of the precision that is used; None before it is measured.
    """

    def __init__(self, device: str) -> None:
        """Starts undecided."""
        super().__init__("bf16-mixed", device)
        self.chosen: str | None = None

    def autocast_context_manager(self) -> torch.autocast:
        """Autocast, switched off where float32 is used."""
        return torch.autocast(
            self.device,
            dtype=torch.bfloat16,
            enabled=self.chosen == "bf16-mixed",
            cache_enabled=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """What was chosen, so that a run that is resumed goes on with it."""
        return {"chosen": self.chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what was chosen."""
        self.chosen = state_dict["chosen"]


def backward(loss: Tensor) -> None:
    """Adds a loss's gradients up, as `GAN.step` wants it where no Trainer does it."""
    loss.backward()  # type: ignore[no-untyped-call]


def now(device: torch.device) -> float:
    """The time in seconds once a device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
