"""Knobs of reading, cutting, augmenting, mixing and packing image-mask pairs."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from geoseg_gan.config import command
from geoseg_gan.data.palette import IGNORE, Palette, PaletteClass, UnknownPolicy, class_ids
from geoseg_gan.utils.errors import UserError, check_choice

MaskFormat = Literal["rgb", "index"]
Fit = Literal["crop", "resize"]
Schedule = Literal["constant", "falling", "first"]
Remainder = Literal["drop", "shift"]
_LARGEST_CHUNK = 2047  # MB: LitData counts the bytes of a chunk in 32 bits


@dataclass
class DemoSettings:
    """Size and seed of the demo world; every tile is a location group of its own."""

    train_tiles: int
    val_tiles: int
    tile_size: int
    seed: int


@dataclass
class DataSettings:
    """What a data folder holds and how it is read.

    Raises:
        UserError: Naming the key, its value and what is allowed.
    """

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

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        check_choice("data.mask_format", self.mask_format, get_args(MaskFormat))
        check_choice("data.unknown", self.unknown, get_args(UnknownPolicy))
        check_choice("data.fit", self.fit, get_args(Fit))
        check_choice("data.format", self.format, ("folder", "stream"))
        check_choice("data.cache", self.cache, ("ram", "none"))
        if self.format == "stream" and self.cache == "ram":
            raise UserError(
                "data.cache=ram keeps all pairs in memory, which data.format=stream is not made "
                "for. Set data.cache=none."
            )
        if self.num_workers is not None and self.num_workers < 0:
            raise UserError(f"data.num_workers={self.num_workers}: use 0 or more, or null.")
        if self.gsd is not None and not 0 < self.gsd < math.inf:
            raise UserError(f"data.gsd={self.gsd}: metres a pixel must be positive, or null.")
        self.classes()
        if self.unknown == "ignore" and not self.ignore:
            raise UserError(
                "data.unknown=ignore needs a colour to write ignored pixels with; set e.g. "
                "'data.ignore=[[0,0,0]]'."
            )
        if self.unknown == "nearest" and self.mask_format == "index":
            raise UserError(
                "data.unknown=nearest compares colours, but data.mask_format=index masks hold IDs. "
                "Use data.unknown=ignore or data.unknown=error."
            )

    def classes(self) -> Palette:
        """The palette of classes and ignored colours.

        Raises:
            UserError: If two of its colours or names are the same.
        """
        return Palette(self.palette, self.ignore)


@dataclass
class TransplantStep:
    """Pastes a region of a rare class from another training pair with probability `p`.

    It acts on masks from which images are generated and, as copy-paste, on a segmenter's training
    pairs. The training of a generator skips it: images are not pasted there.
    """

    p: float
    classes: list[Any] | None
    max_share: float
    min_pixels: int
    tries: int

    def check(self, key: str) -> None:
        """Refuses values out of range.

        Args:
            key: What the step is called in the configuration.

        Raises:
            UserError: Naming the key, its value and the range.
        """
        _check_probability(key, self.p)
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
class ColorStep:
    """Changes light and colour with probability `p`."""

    p: float
    brightness: float
    contrast: float
    saturation: float
    gamma: float


@dataclass
class JitterSettings:
    """Geometric steps in the order in which they act; a step with p=0 is off.

    The transplant comes before all others and is not part of the warp (see `jitter.draw_warp`).

    Raises:
        UserError: Naming the key, its value and the range.
    """

    elastic: ElasticStep
    affine: AffineStep
    quarter_turn: QuarterTurnStep
    flip: FlipStep
    transplant: TransplantStep

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        _check_steps("jitter", self)


@dataclass
class AugmentSettings:
    """The steps in the order in which they act; a step with p=0 is off.

    Raises:
        UserError: Naming the key, its value and the range.
    """

    copy_paste: TransplantStep
    elastic: ElasticStep
    affine: AffineStep
    quarter_turn: QuarterTurnStep
    flip: FlipStep
    color: ColorStep

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        _check_steps("augment", self)

    def geometry(self) -> JitterSettings:
        """The steps that move pixels, with copy-paste as the transplant."""
        return JitterSettings(
            transplant=self.copy_paste,
            elastic=self.elastic,
            affine=self.affine,
            quarter_turn=self.quarter_turn,
            flip=self.flip,
        )


def _check_probability(key: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise UserError(f"{key}.p={p} is not a probability; use 0 to 1.")


def _check_steps(group: str, steps: JitterSettings | AugmentSettings) -> None:
    for name, step in vars(steps).items():
        key = f"{group}.{name}"
        _check_probability(key, step.p)
        match step:
            case TransplantStep():
                step.check(key)
            case AffineStep():
                scale = step.scale
                if len(scale) != 2 or not 0.1 <= scale[0] <= scale[1] <= 10:
                    raise UserError(
                        f"{key}.scale={scale} is not a smallest and a largest factor within 0.1 "
                        "to 10; use e.g. [0.8,1.25]."
                    )
                if not 0 <= step.degrees <= 180 or not 0 <= step.translate <= 1:
                    raise UserError(
                        f"{key}: degrees={step.degrees} must be within 0 to 180 and "
                        f"translate={step.translate} within 0 to 1."
                    )
            case ElasticStep():
                if not 0 <= step.amplitude < math.inf or not 2 <= step.wavelength < math.inf:
                    raise UserError(
                        f"{key}: amplitude={step.amplitude} must not be negative and "
                        f"wavelength={step.wavelength} not below 2 pixels."
                    )
            case ColorStep():
                for part in ("brightness", "contrast", "saturation"):
                    if not 0 <= (value := getattr(step, part)) < 1:
                        raise UserError(f"{key}.{part}={value}: use a number from 0 to below 1.")
                if not 0 <= step.gamma < math.inf:
                    raise UserError(f"{key}.gamma={step.gamma} must not be negative.")


@dataclass
class MixingSettings:
    """How synthetic pairs are mixed into a segmenter's training.

    Raises:
        UserError: Naming the key, its value and what is allowed.
    """

    schedule: str
    batch_norm: str
    classes: list[Any] | None

    def __post_init__(self) -> None:
        """Refuses values that no palette allows; `gate` checks the classes."""
        check_choice("mixing.schedule", self.schedule, get_args(Schedule))
        check_choice("mixing.batch_norm", self.batch_norm, ("shared", "apart"))
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


@dataclass
class TileSettings:
    """What scripts/tile.py cuts, how, and where to.

    Raises:
        UserError: Naming the key, its value and what to do.
    """

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

    def __post_init__(self) -> None:
        """Refuses values out of range."""
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
        check_choice("image_format", self.image_format, ("auto", "png", "jpg", "tif"))
        if self.val_regex is not None and self.val_groups is not None:
            raise UserError(
                "val_regex and val_groups both choose the validation groups. Give one of them."
            )


@dataclass
class PackSettings:
    """What scripts/pack.py packs, and where to.

    Raises:
        UserError: Naming the key, its value and what to do.
    """

    data_root: str
    out_dir: str
    chunk_mb: float
    data: DataSettings

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not 0 < self.chunk_mb <= _LARGEST_CHUNK:
            raise UserError(f"chunk_mb={self.chunk_mb:g}: use more than 0, up to {_LARGEST_CHUNK}.")
        if self.data.format != "folder":
            raise UserError("scripts/pack.py packs folders. Set data.format=folder.")


tile_command = command("tile", TileSettings, "geoseg_gan.data.tile:tile")
pack_command = command("pack", PackSettings, "geoseg_gan.data.pack:pack")
