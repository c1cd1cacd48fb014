"""Knobs of reading, cutting, changing and mixing image-mask pairs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from geoseg_gan.config import command
from geoseg_gan.data.palette import IGNORE, Palette, PaletteClass, UnknownPolicy, class_ids
from geoseg_gan.utils.errors import UserError, check_choice


@dataclass
class DemoSettings:
    """Size and seed of the world; every tile is ground of its own."""

    train_tiles: int
    val_tiles: int
    tile_size: int
    seed: int


FORMATS = ("folder", "stream")


@dataclass
class DataSettings:
    """What a data folder holds and how it is read."""

    palette: list[PaletteClass]
    ignore: list[list[int]]
    mask_format: str
    unknown: str
    group_regex: str | None
    split_file: str | None
    gsd: float | None
    fit: str
    format: str
    cache: str
    num_workers: int | None
    demo: DemoSettings | None

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and what is allowed.
        """
        check_choice("data.mask_format", self.mask_format, ("rgb", "index"))
        check_choice("data.unknown", self.unknown, get_args(UnknownPolicy))
        check_choice("data.fit", self.fit, ("crop", "resize"))
        check_choice("data.format", self.format, FORMATS)
        check_choice("data.cache", self.cache, ("ram", "none"))
        if self.format == "stream" and self.cache == "ram":
            raise UserError(
                "data.cache=ram keeps all pairs in memory, which data.format=stream is not made "
                "for. Set data.cache=none."
            )
        if self.num_workers is not None and self.num_workers < 0:
            raise UserError(f"data.num_workers={self.num_workers}: use 0 or more, or null.")
        if self.gsd is not None and self.gsd <= 0:
            raise UserError(f"data.gsd={self.gsd}: metres a pixel must be positive, or null.")
        self.classes()

    def classes(self) -> Palette:
        """The palette of classes and ignored colours.

        Raises:
            UserError: If two of its colours or names are the same.
        """
        return Palette(self.palette, self.ignore)


@dataclass
class TransplantStep:
    """Pastes a region of a rare class from another training pair with probability `p`.

    It acts on masks that are to be painted and, as copy-paste, on a segmenter's training pairs.
    The training of a generator leaves it out: an image would have no counterpart.
    """

    p: float
    classes: list[Any] | None
    max_share: float
    min_pixels: int
    tries: int

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


@dataclass
class FlipStep:
    """Mirrors left and right with probability `p`."""

    p: float


@dataclass
class QuarterTurnStep:
    """Turns by 90, 180 or 270 degrees with probability `p`."""

    p: float


@dataclass
class AffineStep:
    """Rotates, scales, shears and shifts about the centre with probability `p`."""

    p: float
    degrees: float
    scale: list[float]
    translate: float


@dataclass
class ElasticStep:
    """Bends outlines by a smooth random displacement (Simard et al. 2003) with probability `p`."""

    p: float
    amplitude: float
    wavelength: float


@dataclass
class JitterSettings:
    """The steps in the order in which they act; a step with p=0 is off.

    The last one comes before all others and is no geometry: `draw_warp` leaves it alone.
    """

    elastic: ElasticStep
    affine: AffineStep
    quarter_turn: QuarterTurnStep
    flip: FlipStep
    transplant: TransplantStep

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and the range.
        """
        for name in ("elastic", "affine", "quarter_turn", "flip"):
            p = getattr(self, name).p
            if not 0 <= p <= 1:
                raise UserError(f"jitter.{name}.p={p} is not a probability; use 0 to 1.")
        self.transplant.check()
        scale = self.affine.scale
        if len(scale) != 2 or not 0.1 <= scale[0] <= scale[1] <= 10:
            raise UserError(
                f"jitter.affine.scale={scale} is not a smallest and a largest factor within "
                "0.1 to 10; use e.g. [0.8,1.25]."
            )
        if not 0 <= self.affine.degrees <= 180 or not 0 <= self.affine.translate <= 1:
            raise UserError(
                f"jitter.affine: degrees={self.affine.degrees} must be within 0 to 180 and "
                f"translate={self.affine.translate} within 0 to 1."
            )
        if self.elastic.amplitude < 0 or self.elastic.wavelength < 2:
            raise UserError(
                f"jitter.elastic: amplitude={self.elastic.amplitude} must not be negative and "
                f"wavelength={self.elastic.wavelength} not below 2 pixels."
            )


@dataclass
class ColorStep:
    """Changes light and colour with probability `p`."""

    p: float
    brightness: float
    contrast: float
    saturation: float
    gamma: float


@dataclass
class AugmentSettings:
    """The steps in the order in which they act; a step with p=0 is off."""

    copy_paste: TransplantStep
    elastic: ElasticStep
    affine: AffineStep
    quarter_turn: QuarterTurnStep
    flip: FlipStep
    color: ColorStep

    def geometry(self) -> JitterSettings:
        """The steps that move pixels."""
        return JitterSettings(
            transplant=self.copy_paste,
            elastic=self.elastic,
            affine=self.affine,
            quarter_turn=self.quarter_turn,
            flip=self.flip,
        )

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and the range.
        """
        try:
            self.geometry().check()
        except UserError as error:
            # The steps are the jitter's, under the names they have here.
            text = str(error).replace("jitter.transplant", "augment.copy_paste")
            raise UserError(text.replace("jitter.", "augment.")) from None
        if not 0 <= self.color.p <= 1:
            raise UserError(
                f"augment.color.p={self.color.p} is not a probability; use a number from 0 to 1."
            )
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self.color, name)
            if not 0 <= value < 1:
                raise UserError(f"augment.color.{name}={value}: use a number from 0 to below 1.")
        if self.color.gamma < 0:
            raise UserError(f"augment.color.gamma={self.color.gamma} must not be negative.")


Schedule = Literal["constant", "falling", "first"]


BATCH_NORMS = ("shared", "apart")


@dataclass
class MixingSettings:
    """How synthetic pairs are mixed into a segmenter's training."""

    schedule: str
    batch_norm: str
    classes: list[Any] | None

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


Remainder = Literal["drop", "shift"]


_IMAGE_FORMATS = ("auto", "png", "jpg", "tif")


@dataclass
class TileSettings:
    """What scripts/tile.py cuts, how, and where to."""

    source: str
    data_root: str
    tile_size: int
    overlap: int
    remainder: str
    group_regex: str | None
    val_regex: str | None
    val_groups: list[str] | None
    val_share: float
    seed: int
    max_ignore: float
    image_format: str
    data: DataSettings

    def check(self) -> None:
        """Refuses settings before anything is read, and a data_root that holds something.

        Raises:
            UserError: Naming the key, its value and what to do.
        """
        if self.tile_size < 1:
            raise UserError(f"tile_size={self.tile_size} must be positive.")
        if not 0 <= self.overlap < self.tile_size:
            raise UserError(
                f"overlap={self.overlap}: use 0 to {self.tile_size - 1}, less than a tile."
            )
        if not 0 < self.val_share < 1:
            raise UserError(f"val_share={self.val_share}: use a share between 0 and 1.")
        if not 0 <= self.max_ignore <= 1:
            raise UserError(f"max_ignore={self.max_ignore}: use a share from 0 to 1.")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must be 0 or more.")
        check_choice("remainder", self.remainder, get_args(Remainder))
        check_choice("image_format", self.image_format, _IMAGE_FORMATS)
        if self.val_regex is not None and self.val_groups is not None:
            raise UserError("val_regex and val_groups both say what validates. Give one of them.")
        self.data.check()
        root = Path(self.data_root)
        if root.exists() and not (root.is_dir() and not any(root.iterdir())):
            raise UserError(
                f"data_root={root} exists already. Choose a new folder, or remove this one."
            )


_LARGEST = 2047  # MB: LitData counts the bytes of a chunk in 32 bits


@dataclass
class PackSettings:
    """What scripts/pack.py packs, and where to."""

    data_root: str
    out_dir: str
    chunk_mb: float
    data: DataSettings

    def check(self) -> None:
        """Refuses settings before anything is read, and an out_dir that holds something.

        Raises:
            UserError: Naming the key, its value and what to do.
        """
        if not 0 < self.chunk_mb <= _LARGEST:
            raise UserError(f"chunk_mb={self.chunk_mb:g}: use more than 0, up to {_LARGEST}.")
        self.data.check()
        if self.data.format != "folder":
            raise UserError("scripts/pack.py packs folders. Set data.format=folder.")
        out = Path(self.out_dir)
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(
                f"out_dir={out} exists already. Choose a new folder, or remove this one."
            )


tile_command = command("tile", TileSettings, "geoseg_gan.data.tile:tile")


pack_command = command("pack", PackSettings, "geoseg_gan.data.pack:pack")
