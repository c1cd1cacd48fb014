"""Which files of a folder are images and masks, and which belong together."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from geoseg_gan.data.audit.findings import Findings
from geoseg_gan.data.image_files import IMAGE_SUFFIXES, MASK_SUFFIXES
from geoseg_gan.data.pairs import SPLITS, STREAM, UNLABELLED, DataError, normal
from geoseg_gan.utils.errors import plural

WHOLE = "all"
"""What the only part of a folder is called that is not split for training and validation."""

Place = tuple[str, Path, Path]
"""A split, its folder of images and its folder of masks."""

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MASK_WORDS = (
    r"masks?|labels?|lbls?|gts?|gt_?masks?|annotations?|ann_?dir|segmentations?|targets?|"
    r"ground_?truth"
)
_IS_MASK = re.compile(rf"(?i)(?:^|[^a-z])(?:{_MASK_WORDS})(?:[^a-z]|$)")
_ROLE = re.compile(rf"[ _.-]+(?:sat|images?|imgs?|rgb|irrg|{_MASK_WORDS}|noboundary)(?=[ _.-]|$)")
"""What tells an image's name from that of its mask, as in `7_sat.jpg` and `7_mask.png`."""

_SIDECARS = (".xml", ".tfw", ".pgw", ".jgw", ".prj", ".ovr", ".txt", ".md", ".csv", ".json", ".db")
_DEEPEST = 4  # folders below the data folder that are searched
_MOST_FOLDERS = 2_000


@dataclass(frozen=True)
class Entry:
    """An image with its mask; one of them is None where the other has no partner."""

    split: str
    stem: str
    image: Path | None
    mask: Path | None

    @property
    def name(self) -> str:
        """How reports name it."""
        path = self.image or self.mask
        assert path is not None, "an entry has a file"
        return f"{self.split}/{path.name}"

    @property
    def mask_name(self) -> str:
        """How reports name its mask."""
        return self.name if self.mask is None else f"{self.split}/{self.mask.name}"


@dataclass(frozen=True)
class Folder:
    """What a data folder holds.

    Attributes:
        entries: Images and masks, by split and stem.
        can_train: Whether training reads the folder as it is laid out.
        can_tile: Whether scripts/tile.py does.
        findings: What is wrong with names and folders.
    """

    entries: list[Entry]
    can_train: bool
    can_tile: bool
    findings: Findings

    @property
    def splits(self) -> list[str]:
        """The splits that there are: "train" and "val", those that were guessed, or `WHOLE`."""
        return list(dict.fromkeys(entry.split for entry in self.entries))

    def pairs(self) -> list[Entry]:
        """The entries with both files."""
        return [entry for entry in self.entries if entry.image and entry.mask]


def find_entries(root: Path) -> Folder:
    """Finds images and masks in `root/{train,val}/{images,masks}`, or wherever they seem to be.

    Raises:
        DataError: If it is no folder, a stream, or holds no image.
    """
    if not root.is_dir():
        raise DataError(f"data_root={root} is not a folder. Give the folder of the data.")
    if (root / STREAM).is_file():
        raise DataError(
            f"data_root={root} is a stream that scripts/pack.py wrote. Check the folder that it "
            "was packed from."
        )
    parts = ("images", "masks")
    findings, entries = Findings(), list[Entry]()
    splits = [s for s in SPLITS if any((root / s / part).is_dir() for part in parts)]
    places: list[Place] = [(split, root / split / "images", root / split / "masks")
                           for split in splits]  # fmt: skip
    if not splits and any((root / part).is_dir() for part in parts):
        places = [(WHOLE, root / "images", root / "masks")]
    for place in places or _guess(root, findings):
        entries += _paired(*place, findings)
    if not entries:
        raise DataError(
            f"data_root={root} holds no images ({', '.join(IMAGE_SUFFIXES)}) in train/ and val/, "
            "images/ and masks/, or any other folders. Correct data_root."
        )
    _find_lonely(entries, findings)
    can_tile = not splits and all((root / part).is_dir() for part in parts)
    advice = "Split the tiles by location group, as scripts/tile.py does."
    if not splits and can_tile:
        text = "The folder is not split for training and validation"
        findings.add("warning", "not_split", 1, text, "Cut and split it, by the command below.")
    elif not splits and any(entry.mask for entry in entries):
        text = "Training does not find these files as they are laid out"
        advice = "Move or link them to images/ and masks/ of one folder, and split that by tile.py."
        findings.add("warning", "not_split", 1, text, advice)
    elif splits and "train" not in splits:
        findings.add("error", "no_training_split", 1, f"There is no {root / 'train'}", advice)
    elif splits and "val" not in splits:
        text = f"There is no {root / 'val'}: nothing is left to measure results on"
        findings.add("warning", "no_validation_split", 1, text, advice)
    return Folder(entries, bool(splits), can_tile, findings)


def unlabelled_entries(root: Path, findings: Findings) -> list[Entry]:
    """The images in `root/unlabelled`, which have no masks; none where there is no such folder."""
    folder = root / UNLABELLED
    found = _by_stem(folder, IMAGE_SUFFIXES, findings) if folder.is_dir() else {}
    return [Entry(UNLABELLED, stem, path, None) for stem, path in found.items()]


def _paired(split: str, images: Path, masks: Path, findings: Findings) -> list[Entry]:
    """The entries of one split; what is wrong with the names of its files is added."""
    found = _by_stem(images, IMAGE_SUFFIXES, findings)
    found_masks = found if masks == images else _by_stem(masks, MASK_SUFFIXES, findings)
    if masks == images:
        found, found_masks = (
            {stem: path for stem, path in found.items() if bool(_IS_MASK.search(stem)) == is_mask}
            for is_mask in (False, True)
        )
    if not found.keys() & found_masks.keys():
        found, found_masks = (
            {_core(stem): path for stem, path in part.items()} for part in (found, found_masks)
        )
    stems = sorted(found.keys() | found_masks.keys())
    return [Entry(split, stem, found.get(stem), found_masks.get(stem)) for stem in stems]


def _by_stem(folder: Path, suffixes: Sequence[str], findings: Findings) -> dict[str, Path]:
    found: dict[str, Path] = {}
    twice, others = [], []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix.lower() not in suffixes:
            others += [path] * (path.suffix.lower() not in _SIDECARS)
        elif found.setdefault(normal(path.stem), path) != path:
            twice.append(path.name)
    text = f"{plural(len(twice), 'file')} in {folder} with the stem of another one"
    advice = "Images and masks are paired by stem: rename or remove one of each."
    findings.add("error", "same_stem", twice, text, advice)
    kinds = ", ".join(sorted({path.suffix or path.name for path in others})[:5])
    text = f"{plural(len(others), 'file')} in {folder} of types that are not read ({kinds})"
    advice = f"Convert what belongs to the data; read are {', '.join(suffixes)}."
    findings.add("note", "other_files", [path.name for path in others], text, advice)
    return found


def _find_lonely(entries: Sequence[Entry], findings: Findings) -> None:
    """Adds findings on files without a partner."""
    for split in dict.fromkeys(entry.split for entry in entries):
        mine = [entry for entry in entries if entry.split == split]
        images = [entry for entry in mine if entry.mask is None]
        masks = [entry for entry in mine if entry.image is None]
        if len(images) == len(mine):
            text = f"None of the {plural(len(images), 'image')} in {split} has a mask"
            advice = (
                "Unlabelled images belong into data_root/unlabelled/. To train, add a mask of the "
                "same stem for each image."
            )
            findings.add("error", "no_masks", len(images), text, advice)
            continue
        if len(masks) == len(mine):
            text = f"None of the {plural(len(masks), 'mask')} in {split} has an image"
            findings.add("error", "no_images", len(masks), text, "Add the images.")
            continue
        known = {entry.stem.casefold(): entry.name for entry in masks}
        alike = [f"{e.name} and {known[s]}" for e in images if (s := e.stem.casefold()) in known]
        text = f"{plural(len(alike), 'image')} in {split} with a mask that differs in upper case"
        advice = "Rename one of each two, so that their stems are equal."
        findings.add("error", "alike_names", alike, text, advice)
        for what, partner, lonely in (("image", "mask", images), ("mask", "image", masks)):
            a = "an" if partner == "image" else "a"
            text = f"{plural(len(lonely), what)} in {split} without {a} {partner} of the same stem"
            advice, names = f"Add each {partner}, or remove the {what}.", [e.name for e in lonely]
            findings.add("error", f"{what}_without_{partner}", names, text, advice)


def _guess(root: Path, findings: Findings) -> list[Place]:
    """Places of images and masks in folders of other names."""
    stems = _folders(root)
    masks = [folder for folder in stems if _IS_MASK.search(str(folder.relative_to(root)))]
    images = [folder for folder in stems if folder not in masks]
    if not masks and len(images) == 2 and set(stems[images[0]]) == set(stems[images[1]]):
        masks = [min(images, key=_file_size)]  # masks compress better
        images.remove(masks[0])
    places: list[Place] = []
    for folder in masks:
        cores = {_core(stem) for stem in stems[folder]}
        shared = {image: len(cores & {*map(_core, stems[image])}) for image in images}
        best = max(
            images, key=lambda i: (shared[i], len(os.path.commonpath((i, folder)))), default=None
        )
        if best is not None and shared[best]:
            places.append((_split_name(root, best), best, folder))
    if not places:
        mixed = [
            f for f in stems if 0 < sum(map(bool, map(_IS_MASK.search, stems[f]))) < len(stems[f])
        ]
        places = [(_split_name(root, folder), folder, folder) for folder in mixed]
    is_paired = bool(places)
    places = places or [(_split_name(root, f), f, f / "masks") for f in images]
    counts = Counter(split for split, *_ in places)
    places = [(s if counts[s] == 1 else f"{s} {i.name}", i, m) for s, i, m in places]
    if is_paired:
        named = "; ".join(
            f"{split}: images in {i.relative_to(root)}/, masks in {m.relative_to(root)}/"
            for split, i, m in places
        )
        text = f"Taken for pairs, by the names of folders and files: {named}"
        advice = "See the pictures below for whether that is right."
        findings.add("note", "guessed_folders", len(places), text, advice)
    return places


def _folders(root: Path) -> dict[Path, list[str]]:
    """The folders in `root` that hold images, with the stems of these."""
    found = {}
    for place, folders, names in islice(os.walk(root), _MOST_FOLDERS):
        depth = len(Path(place).relative_to(root).parts)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if depth < _DEEPEST else []
        stems = [
            os.path.splitext(name)[0]  # noqa: PTH122
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
        if stems:
            found[Path(place)] = stems
    return found


def _file_size(folder: Path) -> float:
    sizes = [path.stat().st_size for path in islice(folder.iterdir(), 50) if path.is_file()]
    return sum(sizes) / max(1, len(sizes))


def _core(stem: str) -> str:
    return _ROLE.sub("", stem.lower()) or stem.lower()


def _split_name(root: Path, images: Path) -> str:
    words = re.split(r"[\W_]+", str(images.relative_to(root)).lower())
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), WHOLE)
