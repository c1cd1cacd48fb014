"""What every discriminator is and returns."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

OutputKind = Literal["realness", "classes", "both"]
"""What a discriminator's logits mean.

- "realness": scales (B, 1, h, w), above 0 where the image looks real.
- "classes": one tensor (B, C + 1, H, W), channel 0 for generated and c + 1 for class c.
- "both": the tensor of classes, followed by scales of realness.
"""


@dataclass(frozen=True)
class DiscriminatorOutput:
    """A discriminator's output for a batch.

    Attributes:
        logits: As the discriminator's `output_kind` says.
        features: For each tensor of logits, the activations of its layers from first to last, each
            (B, c, h, w), without the logits.
    """

    logits: list[Tensor]
    features: list[list[Tensor]]

    def halves(self) -> "tuple[DiscriminatorOutput, DiscriminatorOutput]":
        """Splits the output for real images followed by as many generated ones."""
        real, fake = (
            DiscriminatorOutput(
                [t.chunk(2)[half] for t in self.logits],
                [[t.chunk(2)[half] for t in scale] for scale in self.features],
            )
            for half in (0, 1)
        )
        return real, fake

    def classes(self) -> "DiscriminatorOutput":
        """The classes of an output of kind "both"."""
        return DiscriminatorOutput(self.logits[:1], self.features[:1])

    def realness(self) -> "DiscriminatorOutput":
        """The realness of an output of kind "both"."""
        return DiscriminatorOutput(self.logits[1:], self.features[1:])


class Discriminator(Protocol):
    """What objectives need of a discriminator, which is a `torch.nn.Module` too.

    Attributes:
        minimum_size: Smallest height and width in pixels.
        output_kind: What its logits mean.
    """

    minimum_size: int
    output_kind: OutputKind

    def __call__(self, image: Tensor, one_hot: Tensor) -> DiscriminatorOutput:
        """Takes images (B, K, H, W) in [-1, 1] and their one-hot label maps (B, C, H, W)."""
