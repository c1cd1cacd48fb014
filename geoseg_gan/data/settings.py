"""What a data folder holds and how it is read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, get_args

from geoseg_gan.data.dataset import Fit
from geoseg_gan.data.images import MaskFormat, MaskReader
from geoseg_gan.data.palette import Palette, PaletteClass, UnknownPolicy
from geoseg_gan.data.stream import check_stream
from geoseg_gan.data.world import DemoSettings, is_drawn
from geoseg_gan.errors import UserError, check_choice

FORMATS = ("folder", "stream")


@dataclass
class DataSettings:
    """What a data folder holds and how it is read.

    Attributes:
        palette: Classes in ID order.
        ignore: Colours read as ignore; 255 is written as the first of them.
        mask_format: "rgb" for palette colours, "index" for one channel of class IDs.
        unknown: Colours outside the palette: "error", "ignore" or "nearest".
        group_regex: What part of a stem names the ground it shows; None if each is its own.
        split_file: A CSV of stem and part ("fit" or "inner") that says which training pairs are
            fitted and which held out; others are left out. None to use all and let `inner_share`
            choose.
        gsd: Ground sampling distance in metres a pixel, recorded in checkpoints; None if unknown.
        fit: "crop" or "resize" to image_size.
        format: "folder" for files in train/ and val/, "stream" for what scripts/pack.py wrote.
        cache: "ram" keeps decoded pairs in memory, "none" reads files each time.
        num_workers: Loader processes; None chooses by the machine's cores.
        demo: The world to draw into data_root, if it is not there yet.
    """

    palette: list[PaletteClass] = field(default_factory=list)
    ignore: list[list[int]] = field(default_factory=list)
    mask_format: str = "rgb"
    unknown: str = "error"
    group_regex: str | None = None
    split_file: str | None = None
    gsd: float | None = None
    fit: str = "crop"
    format: str = "folder"
    cache: str = "none"
    num_workers: int | None = None
    demo: DemoSettings | None = None

    def check(self) -> None:
        """Refuses values out of range.

        Raises:
            UserError: Naming the key, its value and what is allowed.
        """
        check_choice("data.mask_format", self.mask_format, get_args(MaskFormat))
        check_choice("data.unknown", self.unknown, get_args(UnknownPolicy))
        check_choice("data.fit", self.fit, get_args(Fit))
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
        self.reader()

    def check_root(self, root: Path) -> None:
        """Refuses a data folder or a stream that is not there, or not as these settings say.

        A demo world need not be there yet.

        Raises:
            UserError: Naming the folder and what to do.
        """
        if self.format == "stream":
            check_stream(root, self.reader(), self.group_regex)
        elif self.demo is not None:
            is_drawn(root, self.demo)
        elif not root.is_dir():
            raise UserError(
                f"data_root={root} is not a folder. Point it at one that holds train/images and "
                "train/masks, or try data=demo."
            )

    def reader(self) -> MaskReader:
        """The mask reader these settings describe.

        Raises:
            UserError: If palette and policies do not fit together.
        """
        palette = Palette(self.palette, self.ignore)
        return MaskReader(
            palette, cast(MaskFormat, self.mask_format), cast(UnknownPolicy, self.unknown)
        )
