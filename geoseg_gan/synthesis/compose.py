"""Composed images: real tiles of which only some regions are generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geoseg_gan.data.batch import to_device
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.styles import Style, match_styles
from geoseg_gan.data.transplant import Label, Mask, feather, region_map
from geoseg_gan.synthesis.settings import ComposeSettings


@dataclass(frozen=True, eq=False)
class Composition:
    """Where a candidate's image is generated, and what it shows elsewhere.

    Attributes:
        generated: Where it is generated, shape (H, W).
        real: The source tile's image under the candidate's geometry, shape (H, W, K), in the
            stored dtype; None where nothing is generated although something should be.
    """

    generated: Mask
    real: npt.NDArray[Any] | None

    @property
    def share(self) -> float:
        """Share of the generated pixels."""
        return float(self.generated.mean())


def draw_generated(
    settings: ComposeSettings, rng: np.random.Generator, label: Label, grafted: Mask
) -> Mask:
    """Draws where a candidate's image is generated, shape (H, W).

    What was transplanted (`grafted`, also of shape (H, W)) always is, since the real image shows
    something else there.
    """
    if settings.generate in ("grafts", "none"):
        return grafted
    regions = region_map(label)
    chosen = rng.random(int(regions.max()) + 1) < settings.share
    generated: Mask = grafted | (chosen[regions] & (label != IGNORE))
    return generated


class Blend(NamedTuple):
    """What a batch of generated images is combined with, on the device.

    Attributes:
        real: The real images in their stored dtype, shape (B, H, W, K); None if nothing of them is
            shown.
        weight: Share of the generated image in every pixel, shape (B, H, W), float32; None
            likewise.
        styles: Mean and standard deviation that classes are moved to, shape (B, 2, C, K), float32,
            NaN where a class stays as it is; None where all do.
        match: How far they are moved.
        all_real: Whether the real images are all there is to show.
    """

    real: Tensor | None
    weight: Tensor | None
    styles: Tensor | None
    match: float
    all_real: bool

    @classmethod
    def of(
        cls,
        compositions: Sequence[Composition | None],
        styles: Sequence[Style | None],
        match: float,
        device: torch.device,
    ) -> Self | None:
        """That of a batch's candidates, all of one run; None if images stay as they are.

        An edge passes from the generated to the real image over about two pixels.
        """
        real = [own.real for own in compositions if own is not None and own.real is not None]
        edges = [feather(own.generated) for own in compositions if own is not None]
        found = [own for own in styles if own is not None]
        if not edges and not found:
            return None
        return cls(
            to_device(np.stack(real), device) if real else None,
            to_device(np.stack(edges), device) if edges else None,
            to_device(np.stack(found), device) if found else None,
            match,
            all_real=bool(real) and all(own is not None and not own.share for own in compositions),
        )

    def with_styles(self, images: Tensor, labels: Tensor) -> Tensor:
        """Generated images (B, K, H, W) in [-1, 1] moved towards the styles; labels (B, H, W)."""
        if self.styles is None:
            return images
        shown = labels if self.weight is None else labels.where(self.weight > 0, IGNORE)
        return match_styles(images.float(), shown, self.styles, self.match)

    def over_real(self, values: Tensor) -> Tensor:
        """Generated images (B, K, H, W) in stored units laid over the real ones."""
        if self.real is None or self.weight is None:
            return values
        # Exact where the weight is 0 or 1.
        return torch.lerp(
            self.real.permute(0, 3, 1, 2).float(), values, self.weight[:, None].expand_as(values)
        )
