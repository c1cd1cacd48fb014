"""The noise maps that generators take, made outside of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class NoiseSpec:
    """What a generator's noise map (B, Z, H, W) is made of.

    Style channels hold one standard normal draw an image, broadcast over space: they choose how the
    image looks as a whole. Texture channel k holds white noise at 1/2^k of the resolution: without
    it a convolutional network has nothing inside a broad region from which texture could grow, and
    paints it flat or repeats itself.

    Attributes:
        style: Broadcast channels.
        texture: Octaves of spatial noise, from single pixels upwards.
    """

    style: int
    texture: int

    @property
    def channels(self) -> int:
        """Z; 0 makes the generator deterministic."""
        return self.style + self.texture

    def sample(self, batch: int, height: int, width: int, rng: torch.Generator) -> Tensor:
        """Draws noise on the device of `rng`.

        Returns:
            Shape (B, Z, H, W), float32, every channel of unit variance; the same state of `rng`
            gives the same map.
        """
        device = rng.device
        style = torch.randn(batch, self.style, 1, 1, generator=rng, device=device)
        parts = [style.expand(-1, -1, height, width)]
        for octave in range(self.texture):
            side = 2**octave
            shape = (batch, 1, -(-height // side), -(-width // side))
            coarse = torch.randn(shape, generator=rng, device=device)
            if octave:
                coarse = F.interpolate(coarse, scale_factor=side, mode="bilinear")
                # Bilinear interpolation averages: the mean of its squared weights is near 4/9.
                coarse = coarse[..., :height, :width] * 1.5
            parts.append(coarse)
        return torch.cat(parts, 1)


def sample_noise(
    spec: NoiseSpec,
    seed: int,
    indices: Sequence[int],
    size: tuple[int, int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws one noise map for every index, the same whatever else is in the batch.

    Args:
        spec: What the map is made of.
        seed: The run's seed.
        indices: Number of each pair, or of each training sample counted over the whole run.
        size: Height and width in pixels.
        device: Where it is drawn; draws differ between kinds of devices.

    Returns:
        Shape (len(indices), Z, H, W), float32.
    """
    rng = torch.Generator(device)
    maps = []
    for index in indices:
        rng.manual_seed(_mix(seed, index))
        maps.append(spec.sample(1, *size, rng))
    return torch.cat(maps)


def _mix(seed: int, index: int) -> int:
    """One 63-bit seed from two numbers (the splitmix64 finaliser)."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + index + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & mask
    return (value ^ value >> 31) >> 1
