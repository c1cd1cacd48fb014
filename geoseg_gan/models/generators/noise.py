"""The noise maps that generators take; they are made outside the networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from geoseg_gan.models.generators.codes import draws_of_codes
from geoseg_gan.models.layers import check_minimum

REGIONS = 256
"""Regions of an image that can have a vector of their own; further ones share them."""

CodeMaps = Callable[[Tensor], Tensor]
"""Makes style codes (B, S, H, W) from random numbers, as `StyleCodes.maps` does."""


@dataclass(frozen=True)
class NoiseSpec:
    """The channels of a generator's noise map (B, Z, H, W).

    Style channels hold one standard normal draw per image, broadcast over space: the look of the
    image as a whole. Region channels hold one draw per connected region of the label map, so that
    two fields of one class can look different. Texture channel k holds white noise at 1/2^k of the
    resolution: without it a convolutional network has nothing inside a large region to make texture
    from, and the region comes out flat or repeats itself. Codes are of regions of real images (see
    `StyleCodes`), and not noise but for the draw.

    Attributes:
        style: Channels with one draw per image.
        region: Channels with one draw per region.
        texture: Octaves of spatial noise, from single pixels upwards.
        codes: Channels of style codes.
    """

    style: int
    region: int
    texture: int
    codes: int = 0

    def __post_init__(self) -> None:
        """Refuses negative numbers with a ValueError that names the generator's setting."""
        check_minimum(0, style_channels=self.style, region_channels=self.region)
        check_minimum(0, texture_octaves=self.texture, style_codes=self.codes)

    @property
    def channels(self) -> int:
        """Z; 0 makes the generator deterministic."""
        return self.style + self.region + self.texture + self.codes

    @property
    def by_region(self) -> bool:
        """Whether regions must be known."""
        return self.region + self.codes > 0


def sample_noise(
    spec: NoiseSpec,
    seed: int,
    indices: Sequence[int],
    regions: Tensor,
    device: torch.device | str = "cpu",
    codes: CodeMaps | None = None,
) -> Tensor:
    """Draws a noise map for every index, independent of the rest of the batch.

    Args:
        spec: The map's channels.
        seed: Of the run.
        indices: Number of each pair, or of each training sample counted over the whole run.
        regions: Number of every pixel's region, shape (len(indices), H, W), an integer dtype, as
            `region_map` gives them.
        device: Where to draw; draws differ between kinds of devices.
        codes: Makes the style codes, where the map has them.

    Returns:
        Shape (len(indices), Z, H, W), float32, every channel of unit variance at every pixel.

    Raises:
        ValueError: If there are more or fewer region maps than indices.
    """
    if len(regions) != len(indices):
        raise ValueError(f"{len(indices)} indices need as many region maps, not {len(regions)}")
    drawn = draw_noise(spec, seed, indices, regions.shape[-2:], device)
    return noise_maps(spec, drawn, regions.to(device), codes)


def draw_noise(
    spec: NoiseSpec,
    seed: int,
    indices: Sequence[int],
    size: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """The random numbers of noise maps, which are far fewer than their pixels.

    Arguments are those of `sample_noise`, with the maps' height and width in place of regions.

    Returns:
        Shape (len(indices), M), float32.
    """
    sizes = _draws(spec, size)
    rng = torch.Generator(device)
    drawn = torch.empty(len(indices), sum(sizes), device=device)
    for row, index in zip(drawn, indices, strict=True):
        rng.manual_seed(_mix(seed, index))
        row.normal_(generator=rng)
    return drawn


def noise_maps(
    spec: NoiseSpec, drawn: Tensor, regions: Tensor, codes: CodeMaps | None = None
) -> Tensor:
    """Makes the noise maps (B, Z, H, W) of `sample_noise` from the numbers (B, M) of `draw_noise`.

    The region numbers (B, H, W) must be on the device of the numbers.
    """
    height, width = regions.shape[-2:]
    shapes, sizes = _octaves(spec, (height, width)), _draws(spec, (height, width))
    style, *octaves, table, coded = torch.split(drawn, sizes, 1)
    parts = [style.view(*style.shape, 1, 1).expand(-1, -1, height, width)]
    for octave, ((rows, columns), draw) in enumerate(zip(shapes, octaves, strict=True)):
        coarse = draw.view(-1, 1, rows, columns)
        if octave:
            fine = F.interpolate(coarse, scale_factor=2**octave, mode="bilinear")
            vertical, horizontal = (_spread(n, octave, drawn.device) for n in (rows, columns))
            coarse = (fine / (vertical[:, None] * horizontal))[..., :height, :width]
        parts.append(coarse)
    if spec.region:
        vectors = table.view(-1, spec.region, REGIONS)
        rows_of = (regions.long() % REGIONS).flatten(1).unsqueeze(1)
        found = vectors.gather(2, rows_of.expand(-1, spec.region, -1))
        parts.append(found.view(-1, spec.region, height, width))
    if spec.codes:
        assert codes is not None, "a generator with style codes makes their maps"
        parts.append(codes(coded))
    return torch.cat(parts, 1)


def _octaves(spec: NoiseSpec, size: Sequence[int]) -> list[tuple[int, int]]:
    """Rows and columns of random numbers in every octave of texture."""
    height, width = size
    return [(-(-height // 2**k), -(-width // 2**k)) for k in range(spec.texture)]


def _draws(spec: NoiseSpec, size: Sequence[int]) -> list[int]:
    """How many random numbers style, each octave, regions and codes take."""
    octaves = [rows * columns for rows, columns in _octaves(spec, size)]
    # A table of fixed size for regions: counting them would make the host wait for a GPU.
    return [spec.style, *octaves, spec.region * REGIONS, draws_of_codes(spec.codes)]


@lru_cache(maxsize=64)
def _spread(length: int, octave: int, device: torch.device | str) -> Tensor:
    """Standard deviation at each place of white noise after linear enlargement by 2^octave.

    Interpolated values vary less than those they lie between. Divided by this, every pixel has unit
    variance, and no grid shows in generated images.
    """
    weights = F.interpolate(
        torch.eye(length, device=device).unsqueeze(0), scale_factor=2**octave, mode="linear"
    )
    return weights[0].square().sum(0).sqrt()


def _mix(seed: int, index: int) -> int:
    """One 63-bit seed from two numbers (the splitmix64 finaliser)."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + index + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & mask
    return (value ^ value >> 31) >> 1
