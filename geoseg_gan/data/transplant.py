"""Regions of rare classes, cut out of one picture and pasted into another.

For masks it is a new layout; for images with their masks it is the copy-paste augmentation of
Ghiasi et al. 2021, "Simple Copy-Paste", here for regions of ground and with a place that suits
them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from geoseg_gan.data.images import MaskReader
from geoseg_gan.data.pairs import stems_of
from geoseg_gan.data.palette import IGNORE, Palette, class_ids
from geoseg_gan.data.regions import (
    MARGIN,
    Box,
    Label,
    Mask,
    cut,
    draw_place,
    draw_region,
    slices,
    turned,
)
from geoseg_gan.data.scan import FolderIndex
from geoseg_gan.errors import UserError

ReadPair = Callable[[int], tuple[npt.NDArray[Any] | None, Label]]
"""Reads image (H, W, K) and label map (H, W) of a row; the image is None where only masks serve."""

_DONORS = 8  # pictures that are looked through for a region with a place
_FEATHER = 0.75  # pixels of standard deviation: an edge as soft as a resampled picture's


@dataclass
class TransplantStep:
    """Pastes a region of a rare class from another training pair with probability `p`.

    It acts on masks that are to be painted and, as copy-paste, on a segmenter's training pairs.
    The training of a generator leaves it out: an image would have no counterpart.

    Attributes:
        p: Probability.
        classes: Names or IDs of the classes to transplant; None for those with less than half of an
            even share of the training pixels or, if there are none, with less than an even share.
        max_share: Largest share of the frame that a region may take.
        min_pixels: Smallest size of a region, in pixels of its class.
        tries: Random places that are compared for each region.
    """

    p: float = 0.0
    classes: list[Any] | None = None
    max_share: float = 0.25
    min_pixels: int = 32
    tries: int = 32

    def check(self, key: str = "jitter.transplant") -> None:
        """Refuses values out of range.

        Args:
            key: What the step is called in the configuration.

        Raises:
            UserError: Naming the key, its value and the range.
        """
        if not 0 <= self.p <= 1:
            raise UserError(f"{key}.p={self.p} is not a probability; use 0 to 1.")
        if self.classes is not None and not self.classes:
            raise UserError(f"{key}.classes=[] names no class; name some, or null for rare ones.")
        if not 0 < self.max_share <= 1:
            raise UserError(f"{key}.max_share={self.max_share} must be above 0 and at most 1.")
        if self.min_pixels < 1 or self.tries < 1:
            raise UserError(
                f"{key}: min_pixels={self.min_pixels} and tries={self.tries} must be 1 or more."
            )


@dataclass(frozen=True, eq=False)
class Graft:
    """A region on its way into another picture.

    Attributes:
        donor: Stem of the pair it comes from.
        class_name: Its class.
        pixels: How many pixels of that class it has.
        source: Where it lies in the donor.
        quarter_turns: Quarter turns counter-clockwise, 0 to 3.
        flip: Whether left and right are mirrored, after the turn.
        box: Where it goes.
        label: The box with a margin of 3 pixels around it, uint8; 255 leaves the ground as it is.
        image: The donor's image of the same place, (h, w, K); None where only masks serve.
    """

    donor: str
    class_name: str
    pixels: int
    source: Box
    quarter_turns: int
    flip: bool
    box: Box
    label: Label = field(repr=False)
    image: npt.NDArray[Any] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """How it came about, as manifests keep it."""
        return {
            "donor": self.donor,
            "class": self.class_name,
            "pixels": self.pixels,
            "from": list(self.source),
            "to": list(self.box),
            "quarter_turn": self.quarter_turns,
            "flip": self.flip,
        }

    def apply(self, label: Label) -> Label:
        """A copy of a label map (H, W) with the region in it."""
        grafted = label.copy()
        np.copyto(grafted[slices(self.box, MARGIN)], self.label, where=self.label != IGNORE)
        return grafted

    def apply_pair(self, image: npt.NDArray[Any], label: Label) -> tuple[npt.NDArray[Any], Label]:
        """Copies of an image (H, W, K) and its label map (H, W) with the region in both.

        The image passes into the donor's over about two pixels, half of them on either side.
        """
        assert self.image is not None, "a region of a mask alone has no image"
        weight = feather(self.label != IGNORE)[..., None]
        ground = image[slices(self.box, MARGIN)].astype(np.float32)
        mixed = ground + weight * (self.image - ground)
        grafted = image.copy()
        if np.issubdtype(image.dtype, np.integer):
            mixed = np.rint(mixed)
        grafted[slices(self.box, MARGIN)] = mixed.astype(image.dtype)
        return grafted, self.apply(label)


def feather(covered: Mask) -> npt.NDArray[np.float32]:
    """How much of what covers a picture shows, in [0, 1]: shape (H, W), soft at the edges."""
    weight = cv2.GaussianBlur(covered.astype(np.float32), (2 * MARGIN - 1,) * 2, _FEATHER)
    return weight.astype(np.float32, copy=False)


class Transplanter:
    """Draws grafts from training pairs.

    A region is a connected area of a class together with what it encloses (see `draw_region`). It
    is flipped and turned at random and goes where its margin lies mostly on the class that
    surrounds it in the donor, never onto ignored pixels.

    Args:
        step: The settings.
        pixels: Pixels of every class and, last, of ignore in each row: shape (N, C + 1), int64.
        palette: The classes.
        read: Reads a row; must be picklable where loader processes are spawned.
        stems: The rows' stems.
        key: What the step is called in the configuration, for messages.

    Raises:
        UserError: If the settings name no class that is there, or no row holds enough of one.
    """

    def __init__(
        self,
        step: TransplantStep,
        pixels: npt.NDArray[np.int64],
        palette: Palette,
        read: ReadPair,
        stems: Sequence[str],
        key: str = "jitter.transplant",
    ) -> None:
        """Lists every class's donors; nothing is read yet."""
        self.step = step
        self.palette = palette
        self.read = read
        self.stems = stems
        named = step.classes is not None
        asked = class_ids(step.classes or [], palette, f"{key}.classes") if named else rare(pixels)
        donors = {c: np.flatnonzero(pixels[:, c] >= step.min_pixels) for c in asked}
        self.donors = {c: rows for c, rows in donors.items() if len(rows)}
        if not self.donors:
            names = ", ".join(palette.names[c] for c in asked) or "any class"
            raise UserError(
                f"{key}: no training mask holds min_pixels={step.min_pixels} of {names}. Lower "
                f"it, choose other {key}.classes, or set {key}.p=0."
            )

    @classmethod
    def of_masks(
        cls,
        step: TransplantStep,
        index: FolderIndex,
        reader: MaskReader,
        key: str = "jitter.transplant",
    ) -> "Transplanter":
        """One that reads masks alone: its grafts apply to label maps, not to images."""
        stems = stems_of(index.pairs)
        read = partial(_read_mask, index, reader)
        return cls(step, index.pixels, reader.palette, read, stems, key)

    def draw(self, rng: np.random.Generator, label: Label, view: Box | None = None) -> Graft | None:
        """Draws one graft for a label map; all chance comes from `rng`.

        Args:
            rng: The source of chance.
            label: Where the graft is to go, (H, W) uint8, 255 = ignore.
            view: The part of it that will be seen; None for all. The graft lies in it and
                `max_share` is a share of it.

        Returns:
            The graft; None with probability 1 - p, or where no region finds a place.
        """
        if rng.random() >= self.step.p:
            return None
        view = view or (0, 0, *label.shape)
        largest = self.step.max_share * view[2] * view[3]
        classes = list(self.donors)
        for _ in range(_DONORS):
            class_id = classes[int(rng.integers(len(classes)))]
            row = int(rng.choice(self.donors[class_id]))
            image, donor = self.read(row)
            region = draw_region(donor, class_id, self.step.min_pixels, largest, rng)
            turns, flip = int(rng.integers(4)), bool(rng.integers(2))
            if region is None:
                continue
            filled = turned(region.filled, turns, flip)
            place = draw_place(label, view, filled, region.ground, self.step.tries, rng)
            if place is None:
                continue
            patch = np.where(region.filled, cut(donor, region.box), np.uint8(IGNORE))
            return Graft(
                self.stems[row],
                self.palette.names[class_id],
                region.pixels,
                region.box,
                turns,
                flip,
                (*place, filled.shape[0] - 2 * MARGIN, filled.shape[1] - 2 * MARGIN),
                turned(patch, turns, flip),
                None if image is None else turned(cut(image, region.box), turns, flip),
            )
        return None


def rare(pixels: npt.NDArray[np.int64]) -> list[int]:
    """The classes under half of an even share of the labelled pixels, or else under an even share.

    Args:
        pixels: Pixels of every class and, last, of ignore in each row: shape (N, C + 1), int64.

    Returns:
        IDs of classes that occur; all of those where none has less than an even share.
    """
    totals = pixels[:, :-1].sum(0)
    occurring = np.flatnonzero(totals).tolist()
    for share in (0.5, 1.0):
        if under := [c for c in occurring if totals[c] < share * totals.mean()]:
            return under
    return occurring


def shown(maps: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], label: Label) -> Box:
    """The part of a label map that lies between the outermost source coordinates.

    Args:
        maps: Source columns and rows, as `Warp.source_map` gives them.
        label: The label map (H, W) they point into.
    """
    height, width = label.shape
    (left, right), (top, bottom) = (
        np.clip([int(axis.min()), int(axis.max()) + 1], 0, end).tolist()
        for axis, end in zip(maps, (width, height), strict=True)
    )
    return top, left, bottom - top, right - left


def _read_mask(index: FolderIndex, reader: MaskReader, row: int) -> tuple[None, Label]:
    return None, reader.read(index.pairs[row].mask)[0]
