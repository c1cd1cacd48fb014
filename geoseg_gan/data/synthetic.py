"""Generated folders: reading them as training data, and keeping them out of real data."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from lightning.pytorch.utilities import rank_zero_warn

from geoseg_gan.data.images import IMAGE_SUFFIXES, MaskReader
from geoseg_gan.data.pairs import DataError, Pair
from geoseg_gan.data.palette import Palette
from geoseg_gan.data.settings import MaskFormat

GENERATION = "generation.json"
"""The file by which a generated folder is known."""

_GSD_TOLERANCE = 0.01


@dataclass(frozen=True)
class SyntheticFolder:
    """What a generated folder holds.

    Attributes:
        folder: Where it is.
        palette: Classes and colours of its masks.
        mask_format: "rgb" or "index".
        layout: "pairs" or "folders".
        image_size: Side of the images in pixels.
        gsd: Ground sampling distance in metres a pixel; None if unknown.
        data_root: Where the real pairs are whose masks were painted.
        filter_digest: SHA-256 of the segmenter that its pairs were filtered with; None if none was.
        pairs: The pairs that were kept, each ground of its own.
    """

    folder: Path
    palette: Palette
    mask_format: MaskFormat
    layout: str
    image_size: int
    gsd: float | None
    data_root: str
    filter_digest: str | None
    pairs: list[Pair]

    def reader(self) -> MaskReader:
        """Reads the folder's masks."""
        return MaskReader(self.palette, self.mask_format)


def read_synthetic(folder: Path) -> SyntheticFolder:
    """Reads what a generated folder says of itself, and lists its pairs.

    Raises:
        DataError: If it is not a generated folder, holds no pair, or an image lacks its mask.
    """
    path = folder / GENERATION
    if not path.is_file():
        raise DataError(
            f"synthetic={folder} is not a generated folder: it holds no {GENERATION}. Give the "
            "save_dir of scripts/generate.py."
        )
    try:
        facts = json.loads(path.read_text())
        layout, mask_format = facts["config"]["layout"], facts["mask_format"]
        if layout not in _NAMES or mask_format not in get_args(MaskFormat):
            raise ValueError(layout, mask_format)
        return SyntheticFolder(
            folder=folder,
            palette=Palette.from_dict(facts["palette"]),
            mask_format=cast(MaskFormat, mask_format),
            layout=layout,
            image_size=int(facts["image_size"]),
            gsd=None if facts["gsd"] is None else float(facts["gsd"]),
            data_root=str(facts["config"]["data_root"]),
            filter_digest=(facts.get("segmenter") or {}).get("sha256"),
            pairs=_pairs(folder, layout),
        )
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{path} is not as this version of scripts/generate.py writes it. Generate the folder "
            "again."
        ) from None


def check_synthetic(facts: SyntheticFolder, palette: Palette, gsd: float | None) -> None:
    """Refuses a generated folder of other classes, and warns of another resolution.

    Args:
        facts: The folder.
        palette: The real data's classes; colours of ignore may differ.
        gsd: The real data's ground sampling distance in metres a pixel; None if unknown.

    Raises:
        DataError: Naming the classes of both.
    """
    ours, theirs = _classes(palette), _classes(facts.palette)
    if ours != theirs:
        raise DataError(
            f"synthetic={facts.folder} holds {len(theirs)} classes ({', '.join(theirs)}), but "
            f"data.palette has {len(ours)} ({', '.join(ours)}). Generate it with a generator that "
            "was trained with this palette."
        )
    if gsd and facts.gsd and abs(facts.gsd / gsd - 1) > _GSD_TOLERANCE:
        rank_zero_warn(
            f"synthetic={facts.folder} shows {facts.gsd:g} metres a pixel, but data.gsd={gsd:g}: "
            "objects differ in size. Mix data of one resolution."
        )


def refuse_synthetic(root: Path) -> None:
    """Refuses generated pairs where real data must stand.

    Raises:
        DataError: If `root`, its splits, or what their images and masks link to were generated.
    """
    splits = [root / "train", root / "val"]
    parts = [split / part for split in splits for part in ("images", "masks")]
    # In the layout of folders, images/ and masks/ stand beside the file that tells.
    suspects = [(path, path.resolve()) for path in (root, *splits, *parts)]
    suspects += [(path, path.resolve().parent) for path in parts]
    for path, folder in suspects:
        if (folder / GENERATION).is_file():
            raise DataError(
                f"data_root={root}: {path} holds generated pairs ({folder / GENERATION}). Training "
                "and validation pairs must be real: put them there, and give the generated folder as "
                "synthetic=... ."
            )


_NAMES = {
    "pairs": ("pair_*_img.*", "_img", "pair_*_mask.png", "_mask"),
    "folders": ("images/pair_*.*", "", "masks/pair_*.png", ""),
}
"""Patterns and endings of images and of masks by layout."""


def _pairs(folder: Path, layout: str) -> list[Pair]:
    image_names, image_end, mask_names, mask_end = _NAMES[layout]
    images = {
        path.stem.removesuffix(image_end): path
        for path in folder.glob(image_names)
        if path.suffix.lower() in IMAGE_SUFFIXES
    }
    masks = {path.stem.removesuffix(mask_end): path for path in folder.glob(mask_names)}
    if not images and not masks:
        raise DataError(
            f"synthetic={folder} holds no pairs: none was painted yet, or the filter kept none, "
            "for which see its manifest.jsonl. Generate with a lower tau, or leave it away."
        )
    if lonely := sorted(images.keys() ^ masks.keys()):
        missing = "image" if lonely[0] in masks else "mask"
        raise DataError(
            f"synthetic={folder}: {lonely[0]} has no {missing}. Repeat the command that generated "
            "the folder to complete it."
        )
    return [Pair(stem, images[stem], masks[stem], stem) for stem in sorted(images)]


def _classes(palette: Palette) -> list[str]:
    return [palette.describe(label) for label in range(palette.num_classes)]
