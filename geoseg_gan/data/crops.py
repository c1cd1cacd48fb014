"""Training crops that are placed on a pixel of a class, so that rare classes are seen often."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.jitter import Warp, Window, draw_window
from geoseg_gan.data.transplant import rare
from geoseg_gan.errors import UserError, check_choice

CROPS = ("uniform", "balanced", "rare")
"""How crops are placed: anywhere, on all classes alike, or every other one on a rare class."""

_TRIES = 32  # pixels of a class, the first of which to lie in the frame is shown


@dataclass(frozen=True, eq=False)
class Focus:
    """Which of an epoch's crops show which classes.

    Attributes:
        share: Share of the crops that are placed on a class, above 0 and at most 1.
        classes: IDs of K classes that take turns.
        pixels: Pixels of each of them in every row, at least one in all: shape (N, K), int64.
    """

    share: float
    classes: list[int]
    pixels: npt.NDArray[np.int64]

    def draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Draws a class for each crop, and a row in proportion to its pixels of that class.

        Every class is drawn equally often, give or take one, in a random order.

        Args:
            count: How many crops there are.
            rng: The source of chance.

        Returns:
            Rows and class IDs, each of shape (count,), int64.
        """
        kinds = len(self.classes)
        rounds = np.tile(np.arange(kinds), (math.ceil(count / kinds), 1))
        order = rng.permuted(rounds, axis=1).ravel()[:count]
        rows = np.empty(count, np.int64)
        for kind in range(kinds):
            mine = order == kind
            upto = self.pixels[:, kind].cumsum()
            pixels = rng.integers(upto[-1], size=int(mine.sum()))
            rows[mine] = upto.searchsorted(pixels, side="right")
        return rows, np.array(self.classes)[order]


def crop_focus(crops: str, pixels: npt.NDArray[np.int64]) -> Focus | None:
    """Which crops are placed on which classes.

    - "uniform": none; a tile is drawn, and a window of it.
    - "balanced": all, on one of the classes that occur, all alike, and then on one of its pixels.
    - "rare": half of them, on classes that are rare (see `transplant.rare`) in the same way.

    Args:
        crops: One of `CROPS`.
        pixels: Pixels of every class and, last, of ignore in each row: shape (N, C + 1), int64.

    Returns:
        The classes and their share; None for "uniform".

    Raises:
        UserError: If `crops` is unknown, or no class occurs.
    """
    check_choice("crops", crops, CROPS)
    if crops == "uniform":
        return None
    occurring = np.flatnonzero(pixels[:, :-1].any(0)).tolist()
    if not occurring:
        raise UserError(
            f"crops={crops}: no training mask holds a pixel of any class. Check data_root and "
            "data.palette, or set crops=uniform."
        )
    classes = rare(pixels) if crops == "rare" else occurring
    return Focus(0.5 if crops == "rare" else 1.0, classes, pixels[:, classes])


def draw_focused(
    label: npt.NDArray[np.uint8], class_id: int, warp: Warp, side: int, rng: np.random.Generator
) -> Window:
    """Draws the place of a crop that shows a pixel of a class, anywhere in it.

    A pixel which the warp moves out of the frame cannot be shown, so another one is drawn; where
    none of 32 is left, the crop lies as near to the first as the frame allows.

    Args:
        label: The label map (H, W) before the warp, which holds the class.
        class_id: The class.
        warp: The warp under which the crop is taken.
        side: Side of the crop in pixels.
        rng: The source of chance.
    """
    height, width = label.shape
    places = np.flatnonzero(label == class_id)
    y, x = np.divmod(places[rng.integers(len(places), size=_TRIES)], width)
    columns, rows = warp.frame_points(height, width, x, y)
    points = np.rint(np.stack([rows, columns], axis=1)).astype(np.int64)
    frame = np.array(warp.shape(height, width))
    is_inside = ((points >= 0) & (points < frame)).all(1)
    row, column = points[is_inside.argmax()].clip(0, frame - 1).tolist()
    return draw_window(*warp.shape(height, width), side, rng, (row, column))
