"""Knobs of reading, cutting, augmenting, mixing and packing image-mask pairs."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from geoseg_gan.config import command
from geoseg_gan.data.palette import (
    IGNORE,
    Palette,
    PaletteClass,
    UnknownPolicy,
    class_ids,
    index_map_ids,
)
from geoseg_gan.data.published import PUBLISHED
from geoseg_gan.utils.errors import LARGEST_SEED, UserError, check_choice, check_range

MaskFormat = Literal["rgb", "index"]
Fit = Literal["crop", "resize"]
Schedule = Literal["constant", "falling", "first"]
Remainder = Literal["drop", "shift"]
LARGEST_SIDE = 32_768
"""The largest side of a tile or an image in pixels."""

_LARGEST_CHUNK = 2047  # MB: LitData counts the bytes of a chunk in 32 bits


@dataclass
class DemoSettings:
    """Size and seed of the demo world; every tile is a location group of its own."""

    train_tiles: int
    val_tiles: int
    tile_size: int
    seed: int

    def __post_init__(self) -> None:
        """Refuses values out of range: a UserError that names key, value and range."""
        for key in ("train_tiles", "val_tiles"):
            check_range(f"data.demo.{key}", getattr(self, key), 1, 1_000_000)
        check_range("data.demo.tile_size", self.tile_size, 16, 4096)
        check_range("data.demo.seed", self.seed, 0, LARGEST_SEED)


@dataclass
class DataSettings:
    """What a data folder holds and how it is read."""

    palette: list[PaletteClass]
    ignore: list[list[int]]
    mask_format: str
    index_map: Any  # a dict or null; OmegaConf cannot override a null by a dict if told so
    unknown: str
    group_regex: str | None
    split_file: str | None
    gsd: float | None
    nodata: float | None
    fit: str
    format: str
    cache: str
    num_workers: int | None
    demo: DemoSettings | None
    published: str | None

    def __post_init__(self) -> None:
        """Refuses values out of range: a UserError that names key, value and range."""
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
        if self.published is not None:
            check_choice("data.published", self.published, tuple(PUBLISHED))
        check_range("data.num_workers", self.num_workers, 0, 1024)
        check_range("data.gsd", self.gsd, 0, 1e6, "(]")
        check_range("data.nodata", self.nodata, -3.5e38, 3.5e38)
        palette = self.classes()
        if self.index_map is not None:
            if self.mask_format != "index":
                raise UserError(
                    "data.index_map says what values of index masks mean, but "
                    f"data.mask_format={self.mask_format}. Set data.mask_format=index."
                )
            index_map_ids(self.index_map, palette)
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
        """The palette of classes and ignored colours; a UserError if it is not one-to-one."""
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
        """Refuses values out of range; `key` is what the step is called in the configuration."""
        check_range(f"{key}.p", self.p, 0, 1)
        if self.classes is not None and not self.classes:
            raise UserError(f"{key}.classes=[] names no class; name some, or null for rare ones.")
        check_range(f"{key}.max_share", self.max_share, 0, 1, "(]")
        check_range(f"{key}.min_pixels", self.min_pixels, 1)
        check_range(f"{key}.tries", self.tries, 1, 10_000)


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
class MatchStep:
    """Moves colours of real tiles, class by class, to those of synthetic pairs, with `p`."""

    p: float
    amount: float


@dataclass
class JitterSettings:
    """Geometric steps in the order in which they act; a step with p=0 is off.

    The transplant comes before all others and is not part of the warp (see `jitter.draw_warp`).
    """

    elastic: ElasticStep
    affine: AffineStep
    quarter_turn: QuarterTurnStep
    flip: FlipStep
    transplant: TransplantStep

    def __post_init__(self) -> None:
        """Refuses values out of range: a UserError that names key, value and range."""
        _check_steps("jitter", self)


@dataclass
class AugmentSettings:
    """The steps in the order in which they act; a step with p=0 is off."""

    copy_paste: TransplantStep
    elastic: ElasticStep
    affine: AffineStep
    quarter_turn: QuarterTurnStep
    flip: FlipStep
    match_colors: MatchStep
    color: ColorStep

    def __post_init__(self) -> None:
        """Refuses values out of range: a UserError that names key, value and range."""
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


def _check_steps(group: str, steps: JitterSettings | AugmentSettings) -> None:
    for name, step in vars(steps).items():
        key = f"{group}.{name}"
        check_range(f"{key}.p", step.p, 0, 1)
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
                check_range(f"{key}.degrees", step.degrees, 0, 180)
                check_range(f"{key}.translate", step.translate, 0, 1)
            case ElasticStep():
                check_range(f"{key}.amplitude", step.amplitude, 0, 10_000)
                check_range(f"{key}.wavelength", step.wavelength, 2, 1e6)
            case MatchStep():
                check_range(f"{key}.amount", step.amount, 0, 1)
            case ColorStep():
                for part in ("brightness", "contrast", "saturation"):
                    check_range(f"{key}.{part}", getattr(step, part), 0, 1, "[)")
                check_range(f"{key}.gamma", step.gamma, 0, 10)


@dataclass
class MixingSettings:
    """How synthetic pairs are mixed into a segmenter's training."""

    schedule: str
    classes: list[Any] | None

    def __post_init__(self) -> None:
        """Refuses values that no palette allows; `gate` checks the classes."""
        check_choice("mixing.schedule", self.schedule, get_args(Schedule))
        if self.classes is not None and not self.classes:
            raise UserError(
                "mixing.classes=[] would ignore every synthetic pixel. Name classes, or use null "
                "for all; synthetic_ratio=0 mixes nothing in."
            )

    def gate(self, palette: Palette) -> npt.NDArray[np.uint8] | None:
        """What each label becomes on synthetic pixels, shape (256,); None where all stay."""
        if self.classes is None:
            return None
        table = np.full(256, IGNORE, np.uint8)
        kept = class_ids(self.classes, palette, "mixing.classes")
        table[kept] = kept
        return table


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
    split: str
    block_size: int | None
    gap: int
    join_overlaps: bool
    align: bool
    masks: str | None
    class_field: str | None
    layer: str | None
    background: str
    data: DataSettings

    def __post_init__(self) -> None:
        """Refuses values out of range: a UserError that names key, value and range."""
        check_choice("split", self.split, ("groups", "spatial"))
        check_range("gap", self.gap, 0, LARGEST_SIDE)
        check_range("block_size", self.block_size, self.tile_size, 2**31)
        check_range("tile_size", self.tile_size, 1, LARGEST_SIDE)
        check_range("overlap", self.overlap, 0, self.tile_size - 1)
        check_range("val_share", self.val_share, 0, 1, "()")
        check_range("max_ignore", self.max_ignore, 0, 1)
        check_range("seed", self.seed, 0, LARGEST_SEED)
        check_choice("remainder", self.remainder, get_args(Remainder))
        if "://" in self.data_root:
            raise UserError(f"data_root={self.data_root}: tiles go to a folder, not to an address.")
        if self.val_regex is not None and self.val_groups is not None:
            raise UserError(
                "val_regex and val_groups both choose the validation groups. Give one of them."
            )


@dataclass
class PrepareSettings:
    """Which published data set scripts/prepare.py makes a data folder of, how, and where to."""

    source: str | None
    data_root: str
    tile_size: int | None
    remainder: str
    max_ignore: float
    split: str
    val_share: float
    seed: int
    download: bool
    data: DataSettings

    def __post_init__(self) -> None:
        """Refuses values out of range: a UserError that names key, value and range."""
        check_range("tile_size", self.tile_size, 1, LARGEST_SIDE)
        check_choice("remainder", self.remainder, get_args(Remainder))
        check_range("max_ignore", self.max_ignore, 0, 1)
        check_choice("split", self.split, ("published", "groups"))
        check_range("val_share", self.val_share, 0, 1, "()")
        check_range("seed", self.seed, 0, LARGEST_SEED)


@dataclass
class PackSettings:
    """What scripts/pack.py packs, and where to."""

    data_root: str
    out_dir: str
    chunk_mb: float
    data: DataSettings

    def __post_init__(self) -> None:
        """Refuses values out of range: a UserError that names key, value and range."""
        check_range("chunk_mb", self.chunk_mb, 0, _LARGEST_CHUNK, "(]")
        if self.data.format != "folder":
            raise UserError("scripts/pack.py packs folders. Set data.format=folder.")


@dataclass
class CheckDataSettings:
    """What scripts/check_data.py checks, and where its report goes."""

    data_root: str
    out_dir: str
    image_size: int
    propose: str
    examples: int
    data: DataSettings

    def __post_init__(self) -> None:
        """Refuses values out of range: a UserError that names key, value and range."""
        check_range("image_size", self.image_size, 1, LARGEST_SIDE)
        check_choice("propose", self.propose, ("auto", "always", "never"))
        check_range("examples", self.examples, 0, 100)
        if self.data.format != "folder":
            raise UserError("scripts/check_data.py reads folders. Set data.format=folder.")


tile_command = command("tile", TileSettings, "geoseg_gan.data.tile:tile")
prepare_command = command("prepare", PrepareSettings, "geoseg_gan.data.prepare:prepare")
pack_command = command("pack", PackSettings, "geoseg_gan.data.pack:pack")
check_data_command = command(
    "check_data", CheckDataSettings, "geoseg_gan.data.audit.check:check_data"
)
