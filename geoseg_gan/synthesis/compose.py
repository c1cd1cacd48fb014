"""Composed images: real tiles in which only some regions are painted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geoseg_gan.data.batch import to_device
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.regions import Label, Mask, region_map
from geoseg_gan.data.transplant import feather
from geoseg_gan.errors import UserError, check_choice
from geoseg_gan.synthesis.styles import Style, match_styles


@dataclass
class ComposeSettings:
    """What of an image is painted, the rest being the source tile's real image.

    Attributes:
        paint: "all" paints everything; "grafts" what jitter.transplant pasted into the mask;
            "regions" besides that some of the mask's connected regions; "none" nothing: real pairs
            packed as generated ones are a placebo, whose effect is that of mixing alone.
        share: Probability with which a region is painted, for "regions".
        match: How far mean and standard deviation of every band of a painted class are moved
            towards those of the class in another training tile, 0 to 1.
    """

    paint: str = "all"
    share: float = 0.5
    match: float = 0.0

    def check(self, transplant: float, key: str = "compose") -> None:
        """Refuses values out of range, and to paint grafts where there are none.

        Args:
            transplant: Probability of jitter.transplant.
            key: What the group is called in the configuration.

        Raises:
            UserError: Naming the key, its value and what to do.
        """
        check_choice(f"{key}.paint", self.paint, ("all", "grafts", "regions", "none"))
        if not 0 < self.share <= 1:
            raise UserError(f"{key}.share={self.share} must be above 0 and at most 1.")
        if not 0 <= self.match <= 1:
            raise UserError(f"{key}.match={self.match} must be within 0 to 1.")
        if self.paint == "grafts" and transplant == 0:
            raise UserError(
                f"{key}.paint=grafts paints only what is transplanted into masks, and "
                "jitter.transplant.p=0 transplants nothing. Set it above 0, as jitter=transplant "
                "does."
            )
        if self.paint == "none" and transplant > 0:
            raise UserError(
                f"{key}.paint=none keeps the real image, which does not show what "
                f"jitter.transplant.p={transplant} pastes into its mask. Set that to 0."
            )


@dataclass(frozen=True, eq=False)
class Composition:
    """What of a candidate is painted, and what shows elsewhere.

    Attributes:
        painted: Where it is painted, shape (H, W).
        real: The source tile's image under the candidate's geometry, shape (H, W, K), in the
            stored dtype; None where nothing is painted.
    """

    painted: Mask
    real: npt.NDArray[Any] | None

    @property
    def share(self) -> float:
        """Share of the painted pixels."""
        return float(self.painted.mean())


def draw_painted(
    settings: ComposeSettings, rng: np.random.Generator, label: Label, grafted: Mask
) -> Mask:
    """Draws where a candidate is painted, shape (H, W).

    What was transplanted always is, since the real image shows something else there.

    Args:
        settings: What is to be painted.
        rng: The source of chance.
        label: The candidate's mask (H, W).
        grafted: Where it shows what was transplanted, shape (H, W).
    """
    if settings.paint in ("grafts", "none"):
        return grafted
    regions = region_map(label)
    chosen = rng.random(int(regions.max()) + 1) < settings.share
    painted: Mask = grafted | (chosen[regions] & (label != IGNORE))
    return painted


class Blend(NamedTuple):
    """What a batch of painted images is mixed with, on the device.

    Attributes:
        real: The real images in their stored dtype, shape (B, H, W, K); None if all is painted.
        weight: Share of the painted image in every pixel, shape (B, H, W), float32; None likewise.
        styles: Mean and standard deviation that classes are moved to, shape (B, 2, C, K), float32,
            NaN where a class stays as it is; None where all do.
        match: How far they are moved.
        nothing: Whether nothing is painted, so that the real images are all there is.
    """

    real: Tensor | None
    weight: Tensor | None
    styles: Tensor | None
    match: float
    nothing: bool

    @classmethod
    def of(
        cls,
        compositions: Sequence[Composition | None],
        styles: Sequence[Style | None],
        match: float,
        device: torch.device,
    ) -> Self | None:
        """That of a batch's candidates, all of one run; None if images stay as they are painted.

        An edge passes from the painted to the real image over about two pixels.
        """
        real = [own.real for own in compositions if own is not None and own.real is not None]
        edges = [feather(own.painted) for own in compositions if own is not None]
        found = [own for own in styles if own is not None]
        if not edges and not found:
            return None
        return cls(
            to_device(np.stack(real), device) if real else None,
            to_device(np.stack(edges), device) if edges else None,
            to_device(np.stack(found), device) if found else None,
            match,
            nothing=bool(real) and all(own is not None and not own.share for own in compositions),
        )

    def match_painted(self, images: Tensor, labels: Tensor) -> Tensor:
        """Moves what is painted towards the styles: (B, K, H, W) in [-1, 1]; labels (B, H, W)."""
        if self.styles is None:
            return images
        seen = labels if self.weight is None else labels.where(self.weight > 0, IGNORE)
        return match_styles(images.float(), seen, self.styles, self.match)

    def over_real(self, values: Tensor) -> Tensor:
        """Lays what is painted, (B, K, H, W) in stored units, over the real images."""
        if self.real is None or self.weight is None:
            return values
        # Exact where the weight is 0 or 1.
        return torch.lerp(
            self.real.permute(0, 3, 1, 2).float(), values, self.weight[:, None].expand_as(values)
        )
