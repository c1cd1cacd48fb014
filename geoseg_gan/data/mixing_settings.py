"""How synthetic pairs are mixed into a segmenter's training."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.palette import IGNORE, Palette, class_ids
from geoseg_gan.errors import UserError, check_choice

Schedule = Literal["constant", "falling", "first"]
BATCH_NORMS = ("shared", "apart")


@dataclass
class MixingSettings:
    """How synthetic pairs are mixed into a segmenter's training.

    Attributes:
        schedule: When they are shown: "constant" for the same share in every epoch, "falling" for
            one that falls linearly, "first" for epochs of nothing else until their share is used
            up. Over the whole training all show as many.
        batch_norm: "shared", or "apart" for statistics of their own (Xie et al. 2020).
        classes: Names or IDs of the classes that count on synthetic pixels, the others being
            ignored there; None for all.
    """

    schedule: str = "constant"
    batch_norm: str = "shared"
    classes: list[Any] | None = None

    def check(self) -> None:
        """Refuses values that cannot be; whether the classes exist, `gate` says.

        Raises:
            UserError: Naming the key, its value and what is allowed.
        """
        check_choice("mixing.schedule", self.schedule, get_args(Schedule))
        check_choice("mixing.batch_norm", self.batch_norm, BATCH_NORMS)
        if self.classes is not None and not self.classes:
            raise UserError(
                "mixing.classes=[] would ignore every synthetic pixel. Name classes, or use null "
                "for all; synthetic_ratio=0 mixes nothing in."
            )

    def gate(self, palette: Palette) -> npt.NDArray[np.uint8] | None:
        """What each label becomes on synthetic pixels, shape (256,); None where all stay.

        Raises:
            UserError: If a class is not one of the palette.
        """
        if self.classes is None:
            return None
        table = np.full(256, IGNORE, np.uint8)
        kept = class_ids(self.classes, palette, "mixing.classes")
        table[kept] = kept
        return table


def draws_by_epoch(schedule: Schedule, each: int, total: int, epochs: int) -> list[int]:
    """How many draws of every epoch are synthetic: over all epochs `each * epochs`.

    Args:
        schedule: When they are shown.
        each: How many an epoch has on average.
        total: Draws of an epoch, real and synthetic.
        epochs: How many epochs there are.
    """
    if schedule == "constant" or epochs == 1:
        return [each] * epochs
    if schedule == "first":
        return [min(max(each * epochs - epoch * total, 0), total) for epoch in range(epochs)]
    high, low = min(total, 2 * each), max(0, 2 * each - total)
    # Sums up to an epoch are rounded, not epochs, so that no draw is lost.
    steps = 2 * (epochs - 1)
    sums = [e * high - (high - low) * e * (e - 1) // steps for e in range(epochs + 1)]
    return np.diff(sums).tolist()
