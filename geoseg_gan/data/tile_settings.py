"""What the tile command cuts, how, and which ground validates."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from geoseg_gan.data.settings import DataSettings
from geoseg_gan.errors import UserError, check_choice, plural

Remainder = Literal["drop", "shift"]
_IMAGE_FORMATS = ("auto", "png", "jpg", "tif")


@dataclass
class TileSettings:
    """What scripts/tile.py cuts, how, and where to."""

    source: str = field(
        default="???", metadata={"help": "the folder to cut, with images/ and masks/"}
    )
    data_root: str = field(default="data", metadata={"help": "new folder for the tiles"})
    tile_size: int = field(default=256, metadata={"help": "side of a tile in pixels"})
    overlap: int = field(default=0, metadata={"help": "how far neighbours overlap, in pixels"})
    remainder: str = field(
        default="drop",
        metadata={"help": "strips too narrow for a tile: drop, or shift the last tile inwards"},
    )
    group_regex: str | None = field(
        default=None,
        metadata={"help": "part of a stem that names its ground; null: each picture is its own"},
    )
    val_regex: str | None = field(
        default=None,
        metadata={"help": "grounds to validate on; quote as in \"val_regex='part_[78]'\""},
    )
    val_groups: list[str] | None = field(
        default=None, metadata={"help": "the same as a list, as in val_groups=[north,south]"}
    )
    val_share: float = field(
        default=0.2, metadata={"help": "share of the grounds to validate on, if neither is given"}
    )
    seed: int = field(default=0, metadata={"help": "which grounds val_share draws"})
    max_ignore: float = field(
        default=0.75, metadata={"help": "tiles with a greater share of ignored pixels are dropped"}
    )
    image_format: str = field(
        default="auto",
        metadata={"help": "png, jpg, tif; auto: png where it can hold the bands, else tif"},
    )
    data: DataSettings = field(default_factory=DataSettings)

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


def choose_groups(groups: set[str], settings: TileSettings) -> set[str]:
    """The groups that validate: those that val_regex or val_groups name, else a random share.

    Args:
        groups: All groups.
        settings: Which of them validate.

    Raises:
        UserError: If that would be none of the groups or all of them.
    """
    names = sorted(groups)
    if len(names) == 1:
        raise UserError(
            f"all pictures belong to the group '{names[0]}': no other ground is left to validate "
            "on. Add pictures, or make groups smaller with group_regex."
        )
    known = f"The {plural(len(names), 'group')}: {', '.join(names[:5])}{' ...' * (len(names) > 5)}"
    if settings.val_regex is not None:
        told = f"val_regex={settings.val_regex!r}"
        try:
            chosen = {name for name in names if re.search(settings.val_regex, name)}
        except re.error as error:
            raise UserError(f"{told} is not a regular expression: {error}.") from None
    elif settings.val_groups is not None:
        told = f"val_groups={settings.val_groups}"
        chosen = set(settings.val_groups)
        if strays := sorted(chosen - groups):
            raise UserError(f"{told}: '{strays[0]}' is not a group. {known}")
    else:
        told = f"val_share={settings.val_share}"
        count = min(max(1, round(settings.val_share * len(names))), len(names) - 1)
        order = np.random.default_rng(settings.seed).permutation(len(names))
        chosen = {names[i] for i in order[:count]}
    if not chosen:
        raise UserError(f"{told} leaves nothing to validate on. {known}")
    if chosen == groups:
        raise UserError(f"{told} leaves nothing to train on. {known}")
    return chosen
