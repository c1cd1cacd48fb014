"""Generated folders: reading them for training, and keeping them out of real data."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch.utilities import rank_zero_warn

from geoseg_gan.data.image_files import IMAGE_SUFFIXES
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import DataError, Pair
from geoseg_gan.data.palette import IGNORE, PALETTE, Palette, index_map_ids
from geoseg_gan.data.settings import MaskFormat
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.reading import Number, check_content, parse_json, read_bytes, read_json, whole

GENERATION = "generation.json"
"""The file that identifies a generated folder."""

MANIFEST = "manifest.jsonl"
"""The file that lists the candidates of a generated folder, a line each."""

MANIFEST_ADVICE = "Restore it, or generate into a new folder."

Line = dict[str, Any]
"""A candidate as the manifest lists it. Only those with "kept" are trained on."""

_LINE = {"index": whole(0, 10**9), "kept": bool, "score?": Number(), "why?": str}
_LARGEST = 2**30  # bytes of a manifest, which are millions of lines

_GSD_TOLERANCE = 0.01  # relative
_PATTERNS = {
    "pairs": ("pair_*_img.*", "_img", "pair_*_mask.png", "_mask"),
    "folders": ("images/pair_*.*", "", "masks/pair_*.png", ""),
}
"""By layout: pattern and ending of image stems, pattern and ending of mask stems."""

_CONTENT = {
    "palette": PALETTE,
    "mask_format": set(get_args(MaskFormat)),
    "index_map?": (None, [[whole(-(2**31))]]),
    "image_size": whole(1, 2**15),
    "gsd": (None, Number(0, 1e6)),
    "config": {"layout": set(_PATTERNS), "data_root": str},
    "segmenter?": (None, {"sha256": str}),
}


@dataclass(frozen=True)
class SyntheticFolder:
    """What a generated folder holds."""

    folder: Path
    palette: Palette  # of its masks
    mask_format: MaskFormat
    index_map: tuple[tuple[int, int], ...] | None  # as of `MaskReader`
    layout: str  # "pairs" or "folders"
    image_size: int  # side of the images in pixels
    gsd: float | None  # metres a pixel; None if unknown
    data_root: str  # of the real pairs from whose masks its images were generated
    filter_digest: str | None  # SHA-256 of the segmenter that filtered its pairs; None if none did
    pairs: list[Pair]  # those that were kept, each a location group of its own

    def reader(self) -> MaskReader:
        """What reads its masks."""
        return MaskReader(self.palette, self.mask_format, index_map=self.index_map)


def read_synthetic(
    folder: Path, key: str = "synthetic", dropped_too: bool = False
) -> SyntheticFolder:
    """Reads a generated folder's generation.json, and lists its pairs.

    Args:
        folder: The folder.
        key: What it is called in the configuration.
        dropped_too: Whether pairs are listed, too, that were dropped by hand.

    Raises:
        UserError: If it is not a generated folder, holds no pair, or an image lacks its mask.
    """
    path = folder / GENERATION
    if not path.is_file():
        wrong = f"is not a folder of pairs: it holds no {GENERATION}"
        wrong = wrong if folder.is_dir() else "is not there"
        raise DataError(f"{key}={folder} {wrong}. Give one that scripts/generate.py wrote.")
    content = read_json(path, _CONTENT, "Generate the folder again.")
    try:
        palette = Palette.from_dict(content["palette"])
        index_map = content.get("index_map")
        if index_map is not None:
            named = {value: "ignore" if label == IGNORE else label for value, label in index_map}
            index_map = index_map_ids(named, palette)
    except UserError as error:
        raise DataError(f"{path}: {error} Generate the folder again.") from None
    layout = content["config"]["layout"]
    return SyntheticFolder(
        folder=folder,
        palette=palette,
        mask_format=content["mask_format"],
        index_map=index_map,
        layout=layout,
        image_size=content["image_size"],
        gsd=content["gsd"],
        data_root=content["config"]["data_root"],
        filter_digest=(content.get("segmenter") or {}).get("sha256"),
        pairs=_pairs(folder, layout, key, dropped_too),
    )


def check_synthetic(
    generated: SyntheticFolder, palette: Palette, gsd: float | None, key: str = "synthetic"
) -> None:
    """Refuses a generated folder of other classes than the real data's, and warns of another GSD.

    Colours of ignore may differ. The GSD is in metres a pixel; None if unknown. `key` is what the
    folder is called in the configuration.

    Raises:
        DataError: Naming the classes of both.
    """
    check_classes(palette, generated.palette, key, generated.folder)
    if gsd and generated.gsd and abs(generated.gsd / gsd - 1) > _GSD_TOLERANCE:
        rank_zero_warn(
            f"{key}={generated.folder} shows {generated.gsd:g} metres a pixel, but "
            f"data.gsd={gsd:g}: objects differ in size. Mix data of one resolution."
        )


def check_classes(palette: Palette, other: Palette, key: str, path: Path) -> None:
    """Refuses, with a DataError, pairs or a segmenter, at `path`, of other classes.

    Colours of ignore may differ. `key` is what the path is called in the configuration.
    """
    ours, theirs = ([p.describe(label) for label in range(p.num_classes)] for p in (palette, other))
    if ours != theirs:
        raise DataError(
            f"{key}={path} holds {len(theirs)} classes ({', '.join(theirs)}), but data.palette has "
            f"{len(ours)} ({', '.join(ours)}). Make it again by a training with this palette."
        )


def refuse_synthetic(root: Path) -> None:
    """Refuses generated pairs where real data is required.

    Raises:
        DataError: If `root`, its splits, or what their images and masks link to were generated.
    """
    splits = [root / "train", root / "val"]
    parts = [split / part for split in splits for part in ("images", "masks")]
    # In the layout of folders, images/ and masks/ are beside generation.json.
    suspects = [(path, path.resolve()) for path in (root, *splits, *parts)]
    suspects += [(path, path.resolve().parent) for path in parts]
    for path, folder in suspects:
        if (folder / GENERATION).is_file():
            raise DataError(
                f"data_root={root}: {path} holds generated pairs ({folder / GENERATION}). Training "
                "and validation pairs must be real: put them there, and give the folder of pairs "
                "as synthetic=... ."
            )


def pair_stem(index: int) -> str:
    """The name of a pair in a generated folder, by the number of its candidate."""
    return f"pair_{index:05d}"


def read_manifest(folder: Path) -> list[Line]:
    """The manifest's lines but for a last one that is cut off; none without a manifest.

    Raises:
        UserError: If it holds others than a generation writes.
    """
    return [json.loads(line) for line in manifest_lines(folder / MANIFEST).values()]


def manifest_lines(path: Path) -> dict[int, str]:
    """The whole lines of a manifest, or of a part of one, by the index of their candidate.

    Raises:
        UserError: If it holds others than a generation writes.
    """
    lines: dict[int, str] = {}
    number = 0
    try:
        text = read_bytes(path, _LARGEST).decode()
        for number, line in enumerate(text[: text.rfind("\n") + 1].split("\n")[:-1], 1):
            content = parse_json(line)
            check_content(f"{path}, line {number},", content, _LINE, MANIFEST_ADVICE)
            if content["index"] in lines:
                raise ValueError(f"pair {content['index']} stands twice")
            lines[content["index"]] = line
    except FileNotFoundError:
        return {}
    except ValueError as error:
        place = f"{path}, line {number}," if number else path
        raise UserError(f"{place} cannot be read ({error}). {MANIFEST_ADVICE}") from None
    return lines


def _pairs(folder: Path, layout: str, key: str, dropped_too: bool) -> list[Pair]:
    image_names, image_end, mask_names, mask_end = _PATTERNS[layout]
    images = {
        path.stem.removesuffix(image_end): path
        for path in folder.glob(image_names)
        if path.suffix.lower() in IMAGE_SUFFIXES
    }
    masks = {path.stem.removesuffix(mask_end): path for path in folder.glob(mask_names)}
    if single := sorted(images.keys() ^ masks.keys()):
        missing = "image" if single[0] in masks else "mask"
        raise DataError(
            f"{key}={folder}: {single[0]} has no {missing}. Repeat the command that generated "
            "the folder to complete it."
        )
    dropped: set[str] = set()
    if not dropped_too:  # their files stay, so that they can be taken back
        dropped = {pair_stem(line["index"]) for line in read_manifest(folder) if not line["kept"]}
    pairs = [
        Pair(stem, images[stem], masks[stem], stem) for stem in sorted(images.keys() - dropped)
    ]
    if not pairs:
        raise DataError(
            f"{key}={folder} holds no pairs: none was generated yet, the filter kept none, or all "
            f"were dropped by hand (see its {MANIFEST}). Generate with a lower tau, or drop the "
            "folder."
        )
    return pairs
