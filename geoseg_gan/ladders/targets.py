"""Which rows of a ladder reach what one would have of a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geoseg_gan.ladders.results import Result

RULES = {
    "KID held-out": "KID on held-out tiles is above its floor by at most half of the base's excess",
    "KID validation": "the same on validation tiles",
    "agreement": "the segmenter's mIoU on painted images is 95 % or more of that on real ones",
    "diversity": "images of one mask differ by half or more of what real tiles of like classes do",
    "checkerboard": "the peaks of a grid stand out by at most 0.1 (log10) more than between two "
    "halves of the real images, a floor that itself scatters by some 0.07 with 400 windows",
}
"""The targets, each judged by the means over a row's seeds; the last three on validation tiles."""

_KID, _AGREEMENT, _DIVERSITY, _CHECKERBOARD = 0.5, 0.95, 0.5, 0.1


@dataclass(frozen=True)
class Target:
    """Whether a row reaches a target.

    Attributes:
        reached: Whether it does; None where that cannot be told.
        figure: What was compared; NaN where there is none.
    """

    reached: bool | None
    figure: float

    def __str__(self) -> str:
        """As a cell of a table."""
        if self.reached is None:
            return "-"
        return f"{'yes' if self.reached else 'no'} ({self.figure:.2f})"


def values(results: Sequence[Result], split: str, *keys: str) -> list[float]:
    """A figure of all seeds that have it.

    Args:
        results: Results of a row.
        split: Of which evaluation.
        keys: Where the figure stands in it.
    """
    found = []
    for result in results:
        value = result["splits"][split]
        for key in keys:
            value = None if value is None else value[key]
        if value is not None:
            found.append(float(value))
    return found


def excess(results: Sequence[Result], split: str) -> float:
    """How far KID is above what real images of the training ground reach, over the seeds."""
    return _mean(values(results, split, "kid")) - _mean(values(results, split, "kid_floor"))


def targets(results: Sequence[Result], base: Sequence[Result]) -> dict[str, Target]:
    """Compares a row with all of `RULES`.

    Args:
        results: Results of the row.
        base: Those of the first row; empty if there are none.
    """
    found = {}
    for name, split in (("KID held-out", "held_out"), ("KID validation", "val")):
        most = excess(base, split)
        # Where the base is as good as real images, there is nothing to halve.
        ratio = excess(results, split) / most if most > 0 and results is not base else np.nan
        found[name] = _target(ratio, ratio <= _KID)
    for name, key, least in (
        ("agreement", ("agreement", "{}", "miou"), _AGREEMENT),
        ("diversity", ("diversity", "{}"), _DIVERSITY),
    ):
        painted, real = (
            _mean(values(results, "val", *(part.format(kind) for part in key)))
            for kind in ("painted", "real")
        )
        ratio = painted / real if real > 0 else np.nan
        found[name] = _target(ratio, ratio >= least)
    painted, real = (
        _mean(values(results, "val", "spectrum", kind, "checkerboard"))
        for kind in ("painted", "real")
    )
    found["checkerboard"] = _target(painted - real, painted - real <= _CHECKERBOARD)
    return found


def _target(figure: float, reached: bool) -> Target:
    return Target(None if np.isnan(figure) else bool(reached), figure)


def _mean(numbers: Sequence[float]) -> float:
    return float(np.mean(numbers)) if numbers else float("nan")
