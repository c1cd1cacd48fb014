"""What every discriminator is and returns."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Judges = Literal["realness", "classes", "both"]

"""What logits mean: one channel that is above 0 for real, N + 1 classes of which 0 is fake, or
first the latter and then scales of the former."""


@dataclass(frozen=True)
class DiscriminatorOutput:
    """What a discriminator says of a batch.

    Attributes:
        logits: One tensor a scale, shape (B, 1, h, w), above 0 speaking for real; or, of one that
            tells classes, a single one (B, N + 1, H, W), channel 0 for fake and c + 1 for class c;
            or the latter followed by the former.
        features: For every scale the activations of its layers, logits left out, each (B, c, h, w).
    """

    logits: list[Tensor]
    features: list[list[Tensor]]

    def halves(self) -> "tuple[DiscriminatorOutput, DiscriminatorOutput]":
        """Splits the output for a batch of real and fake images, concatenated in this order."""
        logits = [t.chunk(2) for t in self.logits]
        features = [[t.chunk(2) for t in scale] for scale in self.features]
        real, fake = (
            DiscriminatorOutput(
                [pair[half] for pair in logits], [[pair[half] for pair in s] for s in features]
            )
            for half in (0, 1)
        )
        return real, fake

    def classes(self) -> "DiscriminatorOutput":
        """Of one that does both: what it says of classes."""
        return DiscriminatorOutput(self.logits[:1], self.features[:1])

    def realness(self) -> "DiscriminatorOutput":
        """Of one that does both: what it says of how real an image is."""
        return DiscriminatorOutput(self.logits[1:], self.features[1:])


class Discriminator(Protocol):
    """What objectives need of a discriminator, which is a `torch.nn.Module` besides.

    Attributes:
        minimum_size: Smallest height and width in pixels.
        judges: What its logits mean.
    """

    minimum_size: int
    judges: Judges

    def __call__(self, image: Tensor, one_hot: Tensor) -> DiscriminatorOutput:
        """Judges images (B, K, H, W) in [-1, 1] that belong to one-hot maps (B, C, H, W)."""
