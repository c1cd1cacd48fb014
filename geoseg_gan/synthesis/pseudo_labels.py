"""Pairs from unlabelled images: what a segmenter is sure of becomes their masks.

Self-training with class-wise thresholds on the confidence (as Zou et al. 2018, arXiv:1810.07911,
who take them from the unlabelled images; here they come from held-out labelled tiles).
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from geoseg_gan.config import plain
from geoseg_gan.data.datamodule import start_worker
from geoseg_gan.data.dataset import AllWindows, PairSource, WindowDataset
from geoseg_gan.data.images import Head, picture_head
from geoseg_gan.data.masks import MaskReader, stored_mask_reader
from geoseg_gan.data.pairs import Pair, list_images
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.scan import FolderIndex, check_sizes, scan
from geoseg_gan.data.scene import Scene, little_memory
from geoseg_gan.data.split import check_unlabelled, split_pairs
from geoseg_gan.data.synthetic import GENERATION, read_manifest
from geoseg_gan.models.loaded import LoadedSegmenter, load_segmenter
from geoseg_gan.models.segmenters import VIEWS, view_probabilities
from geoseg_gan.synthesis.candidates import UnlabelledWindow
from geoseg_gan.synthesis.filter import AUTO, Decision, GeneratedPair
from geoseg_gan.synthesis.report import SHEET, realised_shares, write_contact_sheet
from geoseg_gan.synthesis.settings import UNLABELLED, GenerateConfig
from geoseg_gan.synthesis.writer import Layout, PairFiles, PairWriter, merge_manifest, stored_facts
from geoseg_gan.utils.distributed import share_of, where_in_words
from geoseg_gan.utils.errors import UserError, check_choice, check_range, plural
from geoseg_gan.utils.files import check_apart, write_json
from geoseg_gan.utils.tables import print_table

ACCURACY = 0.9
"""Share of a class's held-out pixels above its threshold that are right, with confidence=auto."""

_TRAINED = "the segmenter was trained on"
_LEAST = 0.5  # share of a class's predicted held-out pixels that stay, whatever the accuracy
_LIKELIER = 0.5  # what a label is at least: likelier than all other classes together
_SURE = 0.1  # share of a window that must get a label
_ONE_CLASS = 0.95  # share of the labelled pixels above which labels of one class teach little
_RARE = 1 / 3  # of the share on held-out tiles, below which a class may have been overlooked
_KEPT = ("num_samples", "true_masks", "confidence", "tta", "layout", "seed")
_STEPS = 1000  # in which confidences are counted


def label_images(config: GenerateConfig, fabric: Fabric) -> dict[str, float]:
    """Labels windows of unlabelled images, in the folder that `generate` writes.

    A pixel gets the class that the segmenter thinks likeliest, or ignore where its probability does
    not reach the threshold of that class. Windows of which less than a tenth gets a class are
    dropped. The same call goes on where an interrupted one stopped.

    Returns:
        How many windows the folder lists, as "generated", and how many are kept, as "pairs".

    Raises:
        UserError: If segmenter, images or folder are not as they must be.
    """
    inputs = _open(config, fabric)
    folder = Path(config.save_dir)
    facts = _facts_of(config, inputs)
    files = PairFiles(folder, cast(Layout, config.layout), inputs.reader, inputs.scaling)
    leads = fabric.is_global_zero
    if leads:
        if stored_facts(folder, facts) is None:
            write_json(folder / GENERATION, facts | _thresholds(config, inputs))
        merge_manifest(folder)
    fabric.barrier()
    stored = stored_facts(folder, facts) or {}
    thresholds = stored["thresholds"]
    limits = np.array(thresholds["confidence"], np.float32)
    listed = {line["index"] for line in read_manifest(folder)}
    todo = sorted(set(range(len(inputs.windows))) - listed)
    if leads:
        print(
            f"Labelling {plural(len(todo), 'window')} of {inputs.side}x{inputs.side} px of "
            f"{plural(len(inputs.windows.pairs), 'image')} of {inputs.folder} on "
            f"{where_in_words(fabric)}, into {folder}."
            if todo
            else f"Nothing to label: {folder} lists {plural(len(listed), 'window')} already."
        )
    share = share_of(fabric, len(todo), 1)
    mine = [todo[number] for number in share]
    pairs: Iterable[GeneratedPair] = _labelled(config, inputs, limits, mine)
    if leads and mine:
        pairs = track(pairs, "Labelling images", total=len(mine))
    with little_memory(), PairWriter(files, fabric.global_rank) as writer:
        for pair in pairs:
            writer.add([pair])
    fabric.barrier()
    if not leads:
        return {}
    merge_manifest(folder)
    return _report(config, inputs, files, thresholds)


def check(config: GenerateConfig) -> None:
    """Refuses, with a UserError, settings that unlabelled images cannot be labelled with."""
    for key in ("gen_ckpt", "mask_path", "keep", "alpha", "class_map"):
        if (value := getattr(config, key)) is not None:
            raise UserError(
                f"{key}={value} is of generated images, but source={UNLABELLED} labels images that "
                "are there. Leave it out."
            )
    if config.segmenter_ckpt is None or not config.segmenter_ckpt.endswith(".pt"):
        raise UserError(
            f"segmenter_ckpt={config.segmenter_ckpt}: unlabelled images are labelled by a "
            "segmenter.pt that train_segmenter wrote."
        )
    if config.confidence != AUTO:
        is_number = isinstance(config.confidence, int | float)
        if not is_number or isinstance(config.confidence, bool):
            raise UserError(f"confidence={config.confidence}: use a number from 0 to 1, or auto.")
        check_range("confidence", config.confidence, 0, 1)
    check_choice("tta", config.tta, tuple(VIEWS))


def check_labels(reader: MaskReader, fit: str) -> None:
    """Refuses, with a UserError, data settings with which no image could be labelled.

    Args:
        reader: How masks of the labels are written.
        fit: How the segmenter sees tiles, "crop" or "resize".
    """
    if fit == "resize":
        raise UserError(
            "unlabelled images are labelled at full resolution, but with data.fit=resize the "
            "segmenter sees whole tiles resized to one size, so that the length of a pixel on the "
            "ground is not known. Train with data.fit=crop."
        )
    if not reader.can_write_ignore:
        raise UserError(
            "labels of unlabelled images are ignore where the segmenter is not sure, but the masks "
            "have no value for that. Train with data.ignore set, or ignore in data.index_map."
        )


def check_images(
    folder: Path,
    root: Path,
    side: int,
    bands: int,
    dtype: str,
    held_out: Sequence[Pair] = (),
    like: str = "the labelled images are",
) -> dict[Path, Head]:
    """The images of a folder that are to be labelled, sorted by stem, with their heads.

    A warning says which of them are held-out tiles.

    Args:
        folder: Where they are.
        root: The data folder.
        side: What their shorter side must have, in pixels.
        bands: How many bands the labelled images have.
        dtype: NumPy's name of the type of these.
        held_out: Training pairs by which choices are made.
        like: Says what is of these bands and this type.

    Raises:
        UserError: If there is no such folder, no image in it, one is smaller than `side` pixels,
            one has other bands or another type than the labelled ones, or one is validated on.
    """
    if not folder.is_dir():
        raise UserError(
            f"unlabelled={folder} is not a folder. Give one of images, or put them there."
        )
    images = {path: picture_head(path) for path in list_images(folder)}
    small = [path for path, head in images.items() if min(head[:2]) < side]
    if small:
        height, width, _ = images[small[0]]
        more = f" (and {plural(len(small) - 1, 'more image')})" * (len(small) > 1)
        raise UserError(
            f"{small[0]} is {width}x{height}, smaller than image_size={side}{more}. Set a smaller "
            "image_size, or remove it."
        )
    for path in {head.storage: path for path, head in images.items()}.values():
        _check_type(Scene(path), bands, dtype, like)
    check_unlabelled(list(images), root, held_out)
    return images


def _check_type(image: Scene, bands: int, dtype: str, like: str) -> None:
    if (image.bands, image.dtype) != (bands, dtype):
        raise UserError(
            f"{image.path} is {image.bands}-band {image.dtype}, but {like} {bands}-band {dtype}. "
            "Convert it, or remove it."
        )


@dataclass(frozen=True)
class _Inputs:
    """The segmenter, the images, and how masks are written."""

    segmenter: LoadedSegmenter
    folder: Path
    root: Path
    windows: "_Windows"
    reader: MaskReader
    side: int
    device: torch.device

    @property
    def scaling(self) -> Any:
        return self.segmenter.facts.scaling

    @cached_property
    def held_out(self) -> FolderIndex | None:
        """The labelled tiles that the segmenter was not fitted to; None where there are none."""
        pairs = split_pairs(self.root, self.segmenter.facts.config)[1]
        return scan(pairs, self.reader) if pairs else None


_Rows = tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None, npt.NDArray[np.uint8] | None]
"""Rows of an image, where they have no data, and their true mask if known."""


class _Item(NamedTuple):
    """A window, its pixels (S, S, K), where it has no data (S, S), and its true mask if known."""

    window: UnlabelledWindow
    pixels: npt.NDArray[Any]
    blank: npt.NDArray[np.bool_]
    truth: npt.NDArray[np.uint8] | None


class _Windows(Dataset[_Item]):
    """The windows of images, all or so many drawn by a seed."""

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path | None]],
        sizes: npt.NDArray[np.int64],
        reader: MaskReader,
        side: int,
        most: int,
        seed: int,
        kind: tuple[int, str],
    ) -> None:
        self.pairs, self._reader, self._kind = list(pairs), reader, kind
        grid = AllWindows(sizes, side)
        chosen = np.random.default_rng(seed).permutation(len(grid))[:most]
        self._windows = [grid[number] for number in sorted(chosen.tolist())]
        # The windows of an image follow one another, row by row.
        self._scenes: tuple[int, Scene, Scene | None] | None = None
        self._last: tuple[tuple[int, int], _Rows] | None = None

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> _Item:
        row, (top, left, side) = self._windows[index]
        pixels, missing, truth = self._rows(row, top, side)
        columns = slice(left, left + side)
        return _Item(
            UnlabelledWindow(index, self.pairs[row][0].name, (top, left, side)),
            pixels[:, columns],
            np.zeros((side, side), bool) if missing is None else missing[:, columns],
            None if truth is None else truth[:, columns],
        )

    def _rows(self, row: int, top: int, side: int) -> _Rows:
        if self._scenes is None or self._scenes[0] != row:
            self._scenes = row, *self._opened(*self.pairs[row])
        if self._last is None or self._last[0] != (row, top):
            _, image, mask = self._scenes
            truth = None if mask is None else mask.rows(top, top + side)
            self._last = (row, top), (*image.masked_rows(top, top + side), truth)
        return self._last[1]

    def _opened(self, path: Path, mask_path: Path | None) -> tuple[Scene, Scene | None]:
        image = Scene(path, nodata=self._reader.nodata)
        # Again: a band can be of transparency by its values.
        _check_type(image, *self._kind, _TRAINED)
        mask = None if mask_path is None else Scene(mask_path, self._reader)
        if mask and (mask.height, mask.width) != (image.height, image.width):
            raise UserError(
                f"{path} and {mask_path} differ in size. Export both from the same window."
            )
        return image, mask


def _open(config: GenerateConfig, fabric: Fabric) -> _Inputs:
    segmenter = load_segmenter(Path(config.segmenter_ckpt or ""), fabric.device)
    facts = segmenter.facts
    trained = facts.config
    root = Path(config.data_root or trained["data_root"])
    folder = Path(config.unlabelled) if config.unlabelled else root / UNLABELLED
    check_apart("save_dir", Path(config.save_dir), folder)
    reader = stored_mask_reader(facts.palette, trained["data"])
    check_labels(reader, trained["data"]["fit"])
    kind = len(facts.scaling.low), facts.scaling.dtype
    held_out: list[Pair] = []
    with suppress(UserError):  # only confidence=auto needs the labelled tiles
        held_out = split_pairs(root, trained)[1]
    least = config.image_size or trained["image_size"]
    images = check_images(folder, root, least, *kind, held_out, _TRAINED)
    masks: Sequence[Path | None] = [None] * len(images)
    if config.true_masks is not None:
        known = {path.stem: path for path in list_images(Path(config.true_masks))}
        masks = [known.get(path.stem) for path in images]
        if None in masks:
            lacking = list(images)[masks.index(None)]
            raise UserError(f"true_masks={config.true_masks} holds no mask of {lacking}.")
    paths = list(zip(images, masks, strict=True))
    sizes = np.array([head[:2] for head in images.values()], np.int64)
    side = config.image_size or _side(trained["image_size"], sizes)
    windows = _Windows(paths, sizes, reader, side, config.num_samples, config.seed, kind)
    return _Inputs(segmenter, folder, root, windows, reader, side, fabric.device)


def _side(trained: int, sizes: npt.NDArray[np.int64]) -> int:
    """Twice the segmenter's size where all images have it: augmentation needs surroundings."""
    return 2 * trained if sizes.min() >= 2 * trained else trained


def _facts_of(config: GenerateConfig, inputs: _Inputs) -> dict[str, Any]:
    """What `generation.json` says; a rerun in the same folder must agree with it."""
    used = plain(config)
    segmenter, data = inputs.segmenter, inputs.segmenter.facts.config["data"]
    index_map = inputs.reader.to_dict()["index_map"]
    paths = [path for pair in inputs.windows.pairs for path in pair if path is not None]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, paths))
    files = "".join(f"{path.name}\0{digest}\0" for path, digest in zip(paths, digests, strict=True))
    return {
        "format": 1,
        "source": config.source,
        "segmenter": {"sha256": segmenter.digest},
        "images": hashlib.sha256(files.encode(errors="surrogateescape")).hexdigest(),
        "palette": segmenter.facts.palette.to_dict(),
        "mask_format": data["mask_format"],
        **({} if index_map is None else {"index_map": index_map}),
        "gsd": data["gsd"],
        "image_size": inputs.side,
        "config": {
            **{key: used[key] for key in _KEPT},
            "data_root": str(inputs.root),
        },
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _thresholds(config: GenerateConfig, inputs: _Inputs) -> dict[str, Any]:
    """The least confidence of each class, and what it gives on the held-out tiles."""
    classes = inputs.reader.palette.num_classes
    if config.true_masks is not None or config.confidence != AUTO:
        limit = 0.0 if config.true_masks is not None else float(config.confidence)
        return {"thresholds": {"confidence": [limit] * classes}}
    held_out = inputs.held_out
    if held_out is None:
        raise UserError(
            f"confidence=auto looks at labelled tiles held out of the training of "
            f"{config.segmenter_ckpt}, of which there are none. Train it with inner_share above 0, "
            "or give a number, as in confidence=0.7."
        )
    side, trained = inputs.side, inputs.segmenter.facts.config["image_size"]
    if held_out.sizes.min() < side:  # labelled tiles may be smaller than unlabelled images
        side = trained
    check_sizes(held_out, side, "Set data_root to the data that the segmenter was trained on.")
    counts = np.zeros((classes, 2, _STEPS + 1), np.int64)
    source = PairSource(held_out.pairs, inputs.reader)
    windows = WindowDataset(source, held_out.sizes, side, "crop", once=True)
    for position in track(range(len(windows)), "Choosing thresholds on held-out tiles"):
        sample = windows[position]
        shares = _probabilities(config, inputs, sample["image"][None])[0]
        label, known = sample["label"].numpy(), sample["label"].numpy() != IGNORE
        predicted, confidence = shares.argmax(0)[known], shares.max(0)[known]
        steps = np.floor(confidence * _STEPS).astype(np.int64).clip(0, _STEPS)
        np.add.at(counts, (predicted, (predicted == label[known]).astype(int), steps), 1)
    found = [choose_threshold(counts[label]) for label in range(classes)]
    thresholds, accuracies = zip(*found, strict=True)
    known = {"held_out_accuracy": accuracies, "held_out_share": held_out.class_shares().tolist()}
    return {"thresholds": {"confidence": thresholds, **known}}


def choose_threshold(counts: npt.NDArray[np.int64]) -> tuple[float, float | None]:
    """The least confidence from which on nine tenths of a class's held-out pixels are right.

    At least half of the pixels stay above it, so that a class that is hard to tell does not
    vanish from the pairs; but none is below 0.5, since new ground is harder than held-out tiles.

    Args:
        counts: Of the pixels predicted as the class, wrong and right ones by confidence in equal
            steps from 0 to 1: shape (2, steps + 1).

    Returns:
        The threshold, and the accuracy above it; None where no pixel is.
    """
    steps = counts.shape[1] - 1
    wrong, right = counts[:, ::-1].cumsum(1)[:, ::-1]
    total = wrong + right
    fitting = (total >= max(1, _LEAST * total[0])).nonzero()[0]
    reached = fitting[right[fitting] >= ACCURACY * total[fitting]]
    place = max([round(_LIKELIER * steps), *reached[:1], *([] if len(reached) else fitting[-1:])])
    accuracy = float(right[place] / total[place]) if total[place] else None
    return float(place) / steps, accuracy


def pseudo_label(
    shares: npt.NDArray[np.float32], limits: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """The likeliest class of every pixel, or ignore (255) below the class's limit.

    Args:
        shares: Probabilities, shape (C, H, W).
        limits: The least probability of each class, shape (C,).

    Returns:
        Shape (H, W), uint8.
    """
    label = shares.argmax(0)
    return np.where(shares.max(0) >= limits[label], label, IGNORE).astype(np.uint8)


def _probabilities(
    config: GenerateConfig, inputs: _Inputs, pixels: torch.Tensor
) -> npt.NDArray[np.float32]:
    images = inputs.scaling.to_network(pixels.to(inputs.device))
    found = view_probabilities(inputs.segmenter.network, images, VIEWS[config.tta])
    return cast(npt.NDArray[np.float32], found.cpu().numpy())


def _labelled(
    config: GenerateConfig, inputs: _Inputs, limits: npt.NDArray[np.float32], todo: list[int]
) -> Iterator[GeneratedPair]:
    """The windows of these numbers, with their labels, in order."""
    loader: DataLoader[Any] = DataLoader(
        inputs.windows,
        batch_size=1 if inputs.device.type == "cpu" else config.bs,
        sampler=todo,
        num_workers=min(1 if config.num_workers is None else config.num_workers, len(todo)),
        collate_fn=list,
        worker_init_fn=start_worker,
    )
    for batch in loader:
        labels = [item.truth for item in batch]
        if config.true_masks is None:
            stored = np.stack([np.moveaxis(item.pixels, -1, 0) for item in batch])
            shares = _probabilities(config, inputs, torch.from_numpy(stored))
            labels = [pseudo_label(found, limits) for found in shares]
        for item, label in zip(batch, labels, strict=True):
            label = np.where(item.blank, np.uint8(IGNORE), label)
            sure = float((label != IGNORE).mean())
            why = None if sure >= _SURE else f"only {sure:.0%} of it is sure enough"
            yield GeneratedPair(item.window, item.pixels, Decision(label, why, sure))


def _report(
    config: GenerateConfig, inputs: _Inputs, files: PairFiles, thresholds: dict[str, Any]
) -> dict[str, float]:
    """Shows what the folder holds now; returns the main figures."""
    manifest = read_manifest(files.folder)
    kept = [line["index"] for line in manifest if line["kept"]]
    write_contact_sheet(files, kept, 1)
    names = inputs.reader.palette.names
    accuracies = thresholds.get("held_out_accuracy", [None] * len(names))
    usual = thresholds.get("held_out_share", [None] * len(names))
    shares = realised_shares(files, kept)
    rows = zip(names, thresholds["confidence"], accuracies, usual, shares, strict=True)

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    print_table(
        (
            (name, f"{limit:.2f}", shown(right), shown(labelled), shown(share))
            for name, limit, right, labelled, share in rows
        ),
        ("class", "confidence", "held-out accuracy", "held-out share", "share"),
    )
    wrong = [
        f"{name} ({accuracy:.0%})"
        for name, accuracy in zip(names, accuracies, strict=True)
        if accuracy is not None and accuracy < ACCURACY
    ]
    if wrong:
        print(
            f"Right on less than {ACCURACY:.0%} of the held-out pixels that reach the confidence: "
            f"{', '.join(wrong)}. Train the segmenter longer, or label these by hand."
        )
    rare = [
        f"{name} ({share:.1%} for {labelled:.1%})"
        for name, labelled, share in zip(names, usual, shares, strict=True)
        if labelled is not None and share < _RARE * labelled
    ]
    if rare and kept:
        print(
            f"Much rarer here than on held-out tiles: {', '.join(rare)}. If these images show more "
            f"of them (see {files.folder / SHEET}), training on such labels loses these classes."
        )
    if config.true_masks is None and shares.max() > _ONE_CLASS:
        warnings.warn(
            f"{names[int(shares.argmax())]} has {shares.max():.1%} of all labelled pixels of "
            f"{files.folder}: such labels hardly tell classes apart. Unless the images show little "
            f"else (see {files.folder / SHEET}), train the segmenter longer, or label some of them "
            "by hand.",
            stacklevel=2,
        )
    sure = np.mean([line["score"] for line in manifest]) if manifest else 0.0
    print(
        f"Labelled {plural(len(manifest), 'window')}, kept {len(kept)}; {sure:.0%} of the pixels "
        "have a class. "
        + (f"See {files.folder / SHEET}" if kept else "Lower confidence, or train longer.")
    )
    return {"generated": float(len(manifest)), "pairs": float(len(kept))}
