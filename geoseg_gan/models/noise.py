"""The noise maps that generators take, made outside of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

REGIONS = 256
"""Regions of one image that can have a vector of their own; further ones share theirs."""


@dataclass(frozen=True)
class NoiseSpec:
    """What a generator's noise map (B, Z, H, W) is made of.

    Style channels hold one standard normal draw an image, broadcast over space: they choose how the
    image looks as a whole. Region channels hold one draw for each connected region of the label
    map, so that two fields of one class can look different. Texture channel k holds white noise at
    1/2^k of the resolution: without it a convolutional network has nothing inside a broad region
    from which texture could grow, and paints it flat or repeats itself.

    Attributes:
        style: Channels of one draw an image.
        region: Channels of one draw a region.
        texture: Octaves of spatial noise, from single pixels upwards.
    """

    style: int
    region: int
    texture: int

    def __post_init__(self) -> None:
        """Refuses negative numbers.

        Raises:
            ValueError: Naming the generator's settings that they come from.
        """
        if min(self.style, self.region, self.texture) < 0:
            raise ValueError(
                f"style_channels={self.style}, region_channels={self.region} and "
                f"texture_octaves={self.texture} must be 0 or more"
            )

    @property
    def channels(self) -> int:
        """Z; 0 makes the generator deterministic."""
        return self.style + self.region + self.texture

    def sample(self, regions: Tensor, rng: torch.Generator) -> Tensor:
        """Draws the noise of one image on the device of `rng`.

        Args:
            regions: Number of the region of every pixel, shape (H, W), an integer dtype, on the
                same device.
            rng: The source of chance.

        Returns:
            Shape (1, Z, H, W), float32, every channel of unit variance; the same state of `rng` and
            the same regions give the same map.
        """
        height, width = regions.shape
        device = rng.device
        style = torch.randn(1, self.style, 1, 1, generator=rng, device=device)
        parts = [style.expand(-1, -1, height, width)]
        for octave in range(self.texture):
            side = 2**octave
            shape = (1, 1, -(-height // side), -(-width // side))
            coarse = torch.randn(shape, generator=rng, device=device)
            if octave:
                coarse = F.interpolate(coarse, scale_factor=side, mode="bilinear")
                # Bilinear interpolation averages: the mean of its squared weights is near 4/9.
                coarse = coarse[..., :height, :width] * 1.5
            parts.append(coarse)
        if self.region:
            # A table of fixed size: to count the regions would make a GPU wait.
            vectors = torch.randn(self.region, REGIONS, generator=rng, device=device)
            parts.append(vectors[:, regions.long() % REGIONS].unsqueeze(0))
        return torch.cat(parts, 1)


def sample_noise(
    spec: NoiseSpec,
    seed: int,
    indices: Sequence[int],
    regions: Tensor,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws one noise map for every index, the same whatever else is in the batch.

    Args:
        spec: What the map is made of.
        seed: The run's seed.
        indices: Number of each pair, or of each training sample counted over the whole run.
        regions: Number of the region of every pixel, shape (len(indices), H, W), an integer dtype,
            as `data.regions.region_map` counts them.
        device: Where it is drawn; draws differ between kinds of devices.

    Returns:
        Shape (len(indices), Z, H, W), float32.
    """
    rng = torch.Generator(device)
    regions = regions.to(device)
    maps = []
    for index, own in zip(indices, regions, strict=True):
        rng.manual_seed(_mix(seed, index))
        maps.append(spec.sample(own, rng))
    return torch.cat(maps)


def _mix(seed: int, index: int) -> int:
    """One 63-bit seed from two numbers (the splitmix64 finaliser)."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + index + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & mask
    return (value ^ value >> 31) >> 1
