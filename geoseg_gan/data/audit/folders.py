"""Which files of a folder are images and masks, and which belong together."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from geoseg_gan.data.audit.findings import Finding, some
from geoseg_gan.data.images import IMAGE_SUFFIXES, MASK_SUFFIXES
from geoseg_gan.data.pairs import SPLITS, STREAM, DataError, normal
from geoseg_gan.utils.errors import plural

WHOLE = "all"
"""What the only part of a folder is called that is not split for training and validation."""

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MASK_WORDS = (
    r"masks?|labels?|lbls?|gts?|gt_?masks?|annotations?|ann_?dir|segmentations?|targets?|"
    r"ground_?truth"
)
_IS_MASK = re.compile(rf"(?:^|[^a-z])(?:{_MASK_WORDS})(?:[^a-z]|$)")
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
        splits: The splits that there are: "train" and "val", those that were guessed, or `WHOLE`.
        is_ready: Whether training reads the folder as it is laid out.
        findings: What is wrong with names and folders.
    """

    entries: list[Entry]
    splits: list[str]
    is_ready: bool
    findings: list[Finding]

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
    splits = [s for s in SPLITS if any((root / s / part).is_dir() for part in ("images", "masks"))]
    findings: list[Finding] = []
    places: list[tuple[str, Path, Path]]
    if splits:
        places = [(split, root / split / "images", root / split / "masks") for split in splits]
        findings += _missing_splits(root, splits)
    elif (root / "images").is_dir() or (root / "masks").is_dir():
        places = [(WHOLE, root / "images", root / "masks")]
    else:
        places, findings = _guess(root)
    entries: list[Entry] = []
    for split, images, masks in places:
        found, problems = _paired(split, images, masks)
        entries += found
        findings += problems
    if not any(entry.image or entry.mask for entry in entries):
        raise DataError(
            f"data_root={root} holds no images ({', '.join(IMAGE_SUFFIXES)}) in train/ and val/, "
            "images/ and masks/, or any other folders. Correct data_root."
        )
    findings += _lonely(entries)
    if not splits and any(entry.mask for entry in entries):
        findings.append(_not_split(root, [split for split, *_ in places]))
    names = list(dict.fromkeys(entry.split for entry in entries))
    return Folder(entries, names, bool(splits), findings)


def _missing_splits(root: Path, splits: Sequence[str]) -> list[Finding]:
    if "train" not in splits:
        advice = "Split the tiles by location group, as scripts/tile.py does."
        text = f"There is no {root / 'train'} to train on"
        return [Finding("error", "no_training_split", text, advice)]
    if "val" not in splits:
        advice = "Split by location group, as scripts/tile.py does."
        text = f"There is no {root / 'val'}: nothing is left to measure results on"
        return [Finding("warning", "no_validation_split", text, advice)]
    return []


def _not_split(root: Path, splits: Sequence[str]) -> Finding:
    if splits == [WHOLE] and (root / "images").is_dir() and (root / "masks").is_dir():
        text = "The folder is not split for training and validation"
        advice = f"Cut and split it: python scripts/tile.py source={root} data_root=..."
    else:
        text = "Training does not find these files as they are laid out"
        advice = "Move or link them to images/ and masks/ of one folder, and split that by tile.py."
    return Finding("warning", "not_split", text, advice)


def _paired(split: str, images: Path, masks: Path) -> tuple[list[Entry], list[Finding]]:
    """The entries of one split, and what is wrong with the names of its files."""
    same_folder = images == masks
    found_images, findings = _by_stem(split, images, IMAGE_SUFFIXES)
    found_masks, more = _by_stem(split, masks, MASK_SUFFIXES)
    findings += more
    if same_folder or not found_images.keys() & found_masks.keys():
        if same_folder:
            found_images = {s: p for s, p in found_images.items() if not _is_mask(s)}
            found_masks = {s: p for s, p in found_masks.items() if _is_mask(s)}
        found_images = {_core(stem): path for stem, path in found_images.items()}
        found_masks = {_core(stem): path for stem, path in found_masks.items()}
    stems = sorted(found_images.keys() | found_masks.keys())
    return [Entry(split, s, found_images.get(s), found_masks.get(s)) for s in stems], findings


def _by_stem(
    split: str, folder: Path, suffixes: Sequence[str]
) -> tuple[dict[str, Path], list[Finding]]:
    found: dict[str, Path] = {}
    twice, others = [], []
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:  # noqa: PTH208
        path = folder / name
        if name.startswith(".") or path.is_dir():
            continue
        if path.suffix.lower() not in suffixes:
            others.append(path)
        elif (stem := normal(path.stem)) in found:
            twice.append(path)
        else:
            found[stem] = path
    findings = []
    if twice:
        text = f"{plural(len(twice), 'file')} in {folder} with the stem of another one"
        advice = "Images and masks are paired by stem: rename or remove one of each."
        examples = some(path.name for path in twice)
        findings.append(Finding("error", "same_stem", text, advice, len(twice), examples))
    if others := [path for path in others if path.suffix.lower() not in _SIDECARS]:
        kinds = ", ".join(sorted({path.suffix or path.name for path in others})[:5])
        text = f"{plural(len(others), 'file')} in {folder} of types that are not read ({kinds})"
        advice = f"Convert what belongs to the data; read are {', '.join(suffixes)}."
        examples = some(path.name for path in others)
        findings.append(Finding("note", "other_files", text, advice, len(others), examples))
    return found, findings


def _lonely(entries: Sequence[Entry]) -> list[Finding]:
    """Findings on files without a partner."""
    findings = []
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
            findings.append(Finding("error", "no_masks", text, advice, len(images)))
            continue
        if len(masks) == len(mine):
            text = f"None of the {plural(len(masks), 'mask')} in {split} has an image"
            findings.append(Finding("error", "no_images", text, "Add the images.", len(masks)))
            continue
        findings += _alike_names(split, images, masks)
        for what, partner, lonely in (("image", "mask", images), ("mask", "image", masks)):
            if lonely:
                text = (
                    f"{plural(len(lonely), what)} in {split} without a {partner} of the same stem"
                )
                advice = f"Add each {partner}, or remove the {what}."
                examples = some(entry.name for entry in lonely)
                kind = f"{what}_without_{partner}"
                findings.append(Finding("error", kind, text, advice, len(lonely), examples))
    return findings


def _alike_names(split: str, images: Sequence[Entry], masks: Sequence[Entry]) -> list[Finding]:
    """A finding on partners whose names differ in the case of letters alone."""
    known = {entry.stem.casefold(): entry for entry in masks}
    alike = [entry for entry in images if entry.stem.casefold() in known]
    if not alike:
        return []
    text = f"{plural(len(alike), 'image')} in {split} with a mask whose name differs in upper case"
    advice = "Rename one of each two, so that their stems are equal."
    examples = some(f"{e.name} and {known[e.stem.casefold()].name}" for e in alike)
    return [Finding("error", "alike_names", text, advice, len(alike), examples)]


def _guess(root: Path) -> tuple[list[tuple[str, Path, Path]], list[Finding]]:
    """Places of images and masks in folders of other names: split, images and masks."""
    stems = dict(islice(_folders(root), _MOST_FOLDERS))
    masks = [folder for folder in stems if _is_mask(str(folder.relative_to(root)))]
    if not masks and len(stems) > 1:
        masks = _smaller_twins(stems)
    places: list[tuple[str, Path, Path]] = []
    images = [folder for folder in stems if folder not in masks]
    for folder in masks:
        cores = {_core(stem) for stem in stems[folder]}
        shared = {image: len(cores & {_core(stem) for stem in stems[image]}) for image in images}
        best = max(images, key=lambda i: (shared[i], _common(i, folder)), default=None)
        if best is not None and shared[best]:
            places.append((_split_name(root, best), best, folder))
    if not places:
        mixed = [f for f in stems if 0 < sum(map(_is_mask, stems[f])) < len(stems[f])]
        places = [(_split_name(root, folder), folder, folder) for folder in mixed]
    if not places:  # images alone
        places = [(_split_name(root, f), f, f / "masks") for f in images if f not in masks]
        return _renamed(places), []
    places = _renamed(places)
    named = "; ".join(
        f"{split}: images in {_shown(root, i)}, masks in {_shown(root, m)}"
        for split, i, m in places
    )
    text = f"Taken for pairs, by the names of folders and files: {named}"
    advice = "See the pictures below for whether that is right."
    return places, [Finding("note", "guessed_folders", text, advice, len(places))]


def _renamed(places: list[tuple[str, Path, Path]]) -> list[tuple[str, Path, Path]]:
    """The places with a split's name for each, so that none stands twice."""
    counts = Counter(split for split, *_ in places)
    return [
        (split if counts[split] == 1 else f"{split} {images.name}", images, masks)
        for split, images, masks in places
    ]


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folders in `root` that hold images, with the stems of these."""
    for place, folders, names in os.walk(root):
        depth = len(Path(place).relative_to(root).parts)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if depth < _DEEPEST else []
        stems = [
            os.path.splitext(name)[0]  # noqa: PTH122
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
        if stems:
            yield Path(place), stems


def _smaller_twins(stems: dict[Path, list[str]]) -> list[Path]:
    """Of two folders with the same stems, that with the smaller files: masks compress better."""
    found = []
    folders = list(stems)
    for number, one in enumerate(folders):
        for other in folders[number + 1 :]:
            shared = set(stems[one]) & set(stems[other])
            if 2 * len(shared) > min(len(stems[one]), len(stems[other])):
                found.append(min((one, other), key=_size))
    return found


def _size(folder: Path) -> float:
    sizes = [path.stat().st_size for path in islice(folder.iterdir(), 50) if path.is_file()]
    return sum(sizes) / max(1, len(sizes))


def _is_mask(name: str) -> bool:
    return _IS_MASK.search(name.lower()) is not None


def _core(stem: str) -> str:
    return _ROLE.sub("", stem.lower()) or stem.lower()


def _common(one: Path, other: Path) -> int:
    return len(os.path.commonpath((one, other)))


def _split_name(root: Path, images: Path) -> str:
    parts = [part.lower() for part in images.relative_to(root).parts]
    words = [_SPLIT_WORDS[word] for part in parts for word in re.split(r"[\W_]+", part)
             if word in _SPLIT_WORDS]  # fmt: skip
    return words[0] if words else WHOLE


def _shown(root: Path, folder: Path) -> str:
    return f"{folder.relative_to(root)}/" if folder != root else "the folder itself"
