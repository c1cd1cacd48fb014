"""The predict command: a segmenter's map of images of any size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress

from geoseg_gan.data.batch import to_device
from geoseg_gan.data.georeference import read_georeference
from geoseg_gan.data.image_files import IMAGE_SUFFIXES
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.palette import IGNORE, Palette
from geoseg_gan.data.scene import (
    Export,
    LineStore,
    Scene,
    check_same_settings,
    file_facts,
    little_memory,
)
from geoseg_gan.data.windows import (
    Floats,
    WindowGrid,
    blend,
    check_full_resolution,
    check_windows,
    default_overlap,
)
from geoseg_gan.evaluation.settings import PredictConfig
from geoseg_gan.models.loaded import LoadedSegmenter, load_segmenter, with_files
from geoseg_gan.models.segmenters import VIEWS, segmenter_stride, view_probabilities
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import check_apart, held, write_json
from geoseg_gan.utils.reading import read_json, whole
from geoseg_gan.utils.tables import console

RECORD = "predict.json"
"""Settings of the maps of a folder, and what they show."""

_OVERLAP = 0.25  # of a window, if none is given
_ROWS = 512  # of a map that are counted at once


def predict(config: PredictConfig) -> dict[str, float]:
    """Writes the classes and the confidence of an image, or of all images of a folder.

    Windows are blended by their probabilities (see `data.windows`). What is finished stays, and the
    same call goes on.

    Args:
        config: Which segmenter, which images, and where to.

    Returns:
        The share of each class in all pixels that have data, by name.

    Raises:
        UserError: If configuration, segmenter, images or folder are not as they must be.
    """
    config.trainer.check()
    config = with_files(config)
    files, out_dir = _files(Path(config.image_path)), Path(config.out_dir)
    root = files[0].parent
    check_apart("out_dir", out_dir, root, ())
    segmenter = load_segmenter(Path(config.segmenter_ckpt), config.trainer.device())
    windows = _windows(config, segmenter)
    settings = {
        "format": 1,
        "segmenter": {"sha256": segmenter.digest},
        "palette": segmenter.facts.palette.to_dict(),
        "folder": str(root),
        "image_size": windows.side,
        "overlap": windows.overlap,
        "tta": config.tta,
    }
    with held(out_dir), little_memory():
        maps = [_Map(path, out_dir) for path in files]
        _begin(maps, out_dir, settings)
        todo = [entry for entry in maps if not entry.is_made()]  # of these very images, see _begin
        where = "the GPU" if config.trainer.on_gpu() else "the CPU"
        print(
            f"Predicting {plural(len(files), 'image')} of {root} on {where}, in windows of "
            f"{windows.side}x{windows.side} px that overlap by {windows.overlap}, into {out_dir}."
            if todo
            else f"Nothing to predict: the maps of {root} are in {out_dir}."
        )
        if todo and (len(todo) < len(maps) or any(entry.part.exists() for entry in maps)):
            print(f"Going on: {len(maps) - len(todo)} of {plural(len(maps), 'map')} made already.")
        with Progress() as bar:
            task = bar.add_task("Predicting images", total=len(maps), visible=len(maps) > 1)
            for entry in maps:
                _predict_one(entry, segmenter, windows, settings, bar)
                bar.advance(task)
        _say_unplaced(todo)
        return _report(maps, segmenter.facts.palette, settings, out_dir, len(todo))


@dataclass(frozen=True)
class _Windows:
    """How images are cut and seen; on a CPU `batch` is 1, as the last bits depend on it."""

    side: int
    overlap: int
    views: tuple[tuple[int, bool], ...]
    batch: int
    device: torch.device


@dataclass(frozen=True)
class _Map:
    """An image, and the files of its map."""

    image: Path
    folder: Path

    @property
    def classes(self) -> Path:
        return self.folder / f"{self.image.stem}_classes.tif"

    @property
    def confidence(self) -> Path:
        return self.folder / f"{self.image.stem}_confidence.tif"

    @property
    def part(self) -> Path:
        """What a killed call leaves behind."""
        return self.folder / f"{self.image.stem}.part"

    def is_made(self) -> bool:
        """Whether an earlier call has finished the map."""
        files = (self.classes, self.confidence)
        return not self.part.exists() and all(file.is_file() for file in files)


def _files(path: Path) -> list[Path]:
    """The image, or the images of a folder."""
    if path.is_dir():
        names = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        files = [p for p in names if p.is_file() and not p.name.startswith(".")]
    elif path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        files = [path]
    else:
        raise UserError(
            f"image_path={path} is neither a folder nor an image ({', '.join(IMAGE_SUFFIXES)})."
        )
    if not files:
        raise UserError(f"image_path={path} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    stems: dict[str, Path] = {}
    for file in files:
        if (other := stems.setdefault(file.stem, file)) != file:
            raise UserError(
                f"{file} and {other.name} have one stem, by which maps are named. Rename one."
            )
    return files


def _windows(config: PredictConfig, segmenter: LoadedSegmenter) -> _Windows:
    trained = segmenter.facts.config
    check_full_resolution(config.segmenter_ckpt, trained.get("data", {}).get("fit", "crop"))
    stride = segmenter_stride(segmenter.network)
    side = config.image_size or trained["image_size"]
    if side % stride:
        raise UserError(f"image_size={side}: this segmenter takes multiples of {stride} px.")
    overlap = config.overlap
    if overlap is None:
        overlap = default_overlap(side, 1, _OVERLAP)
    check_windows(side, overlap, 1)
    device = config.trainer.device()
    batch = 1 if device.type == "cpu" else config.bs
    return _Windows(side, overlap, VIEWS[config.tta], batch, device)


def _begin(maps: list[_Map], out_dir: Path, settings: dict[str, Any]) -> None:
    """Writes settings and images, or sees that maps in the folder are of the same ones."""
    record = out_dir / RECORD
    known = _recorded(out_dir)
    if known is not None:
        check_same_settings(record, known, settings)
    images = {} if known is None else known["images"]
    for entry in maps:
        stored = images.setdefault(entry.image.name, {})
        for path in (entry.classes, entry.confidence):
            if path.exists() and stored.get("file") != file_facts(entry.image):
                what = "exists already" if not stored else f"is of {entry.image} as it was before"
                raise UserError(f"{path} {what}. Choose another out_dir, or remove it.")
        stored["file"] = file_facts(entry.image)
    write_json(record, settings | {"shares": (known or {}).get("shares"), "images": images})


def _recorded(out_dir: Path) -> dict[str, Any] | None:
    """What the record of a folder says; None without one."""
    shape = {"format": whole(), "images": {"*": {"pixels?": [whole()]}}}
    path = out_dir / RECORD
    return read_json(path, shape, "Choose another out_dir.") if path.is_file() else None


def _predict_one(
    entry: _Map,
    segmenter: LoadedSegmenter,
    windows: _Windows,
    settings: dict[str, Any],
    bar: Progress,
) -> None:
    """Makes the map of an image, unless it is there already."""
    if entry.is_made():
        return
    nodata = segmenter.facts.config.get("data", {}).get("nodata")
    image, scaling = Scene(entry.image, nodata=nodata), segmenter.facts.scaling
    found, known = f"{image.bands}-band {image.dtype}", f"{len(scaling.low)}-band {scaling.dtype}"
    if found != known:
        raise UserError(
            f"{entry.image} is {found}, but the segmenter was trained on {known} images. Give "
            "images of the same kind, or a segmenter of theirs."
        )
    grid = WindowGrid(image.height, image.width, windows.side, windows.overlap)
    shape = (2, image.height, image.width)
    store = LineStore(entry.part, shape, "uint8", settings | {"image": image.facts()})
    palette = segmenter.facts.palette
    if store.done < image.height:
        task = bar.add_task(entry.image.name, total=grid.count)
        bar.advance(task, grid.first_needed(store.done) * len(grid.lefts))

        def results(number: int) -> Iterator[tuple[int, Floats]]:
            pixels = grid.read(image.rows, number)
            for first in range(0, len(grid.lefts), windows.batch):
                lefts = grid.lefts[first : first + windows.batch]
                parts = np.stack([pixels[:, left : left + windows.side] for left in lefts])
                yield from zip(lefts, _probabilities(segmenter, parts, windows), strict=True)
                bar.advance(task, len(lefts))

        for first, shares in blend(grid, palette.num_classes, results, store.done):
            _, missing = image.masked_rows(first, first + shares.shape[1])
            percent = np.rint(100 * shares.max(0)).clip(0, 100)
            lines = np.stack([shares.argmax(0), percent]).astype(np.uint8)
            if missing is not None:
                lines[:, missing] = IGNORE
            store.append(lines)
        bar.remove_task(task)
    names = {f"CLASS_{label}": name for label, name in enumerate(palette.names)}
    confidence = {"UNIT": "probability of the class in percent"}
    store.finish(
        [
            Export(entry.confidence, [2], image.place, nodata=IGNORE, tags=confidence),
            Export(
                entry.classes, [1], image.place,
                nodata=IGNORE, colors=palette.color_table, tags=names,
            ),
        ]
    )  # fmt: skip
    store.remove()


def _probabilities(
    segmenter: LoadedSegmenter, pixels: npt.NDArray[Any], windows: _Windows
) -> Floats:
    """Probabilities (B, C, S, S) of the classes in images (B, S, S, K) of stored values."""
    stored = to_device(np.ascontiguousarray(np.moveaxis(pixels, -1, 1)), windows.device)
    images = segmenter.facts.scaling.to_network(stored)
    shares: Floats = view_probabilities(segmenter.network, images, windows.views).cpu().numpy()
    return shares


def _say_unplaced(maps: list[_Map]) -> None:
    """Says of which images the maps do not say where they lie."""
    names = [entry.image.name for entry in maps if read_georeference(entry.classes) is None]
    if len(names) == 1:
        print(f"{names[0]} has no georeference: its maps have none.")
    elif names:
        more = plural(len(names) - 1, "more image")
        print(f"{names[0]} and {more} have no georeference: their maps have none.")


def _report(
    maps: list[_Map], palette: Palette, settings: dict[str, Any], out_dir: Path, made: int
) -> dict[str, float]:
    """Counts what the maps show, beside those that the folder had, and writes and prints it."""
    images = (_recorded(out_dir) or {})["images"]
    for entry in maps:
        classes = Scene(entry.classes, MaskReader(palette, "index"))
        confidence = Scene(entry.confidence)
        pixels, percent = np.zeros(256, np.int64), np.zeros(256, np.int64)
        for first in range(0, classes.height, _ROWS):
            last = min(first + _ROWS, classes.height)
            pixels += np.bincount(classes.rows(first, last).ravel(), minlength=256)
            percent += np.bincount(confidence.rows(first, last).ravel(), minlength=256)
        known = percent[:IGNORE]
        mean = float(known @ np.arange(IGNORE) / known.sum()) if known.any() else None
        images[entry.image.name] |= {
            "pixels": pixels[: palette.num_classes].tolist(),
            "shares": _shares(pixels, palette),
            "confidence": mean,
        }
    total = np.sum([image["pixels"] for image in images.values() if "pixels" in image], axis=0)
    shares = _shares(total, palette)
    write_json(out_dir / RECORD, settings | {"shares": shares, "images": images})
    shown = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    wrote = f"Wrote {plural(made, 'map')} into {out_dir}" if made else f"In {out_dir}"
    console(soft_wrap=True).print(f"{wrote}, {int(total.sum()):,} px: {shown}.")
    return shares


def _shares(pixels: npt.NDArray[np.int64], palette: Palette) -> dict[str, float]:
    """Each class's share of the pixels that have data."""
    known = pixels[: palette.num_classes]
    shares = (known / max(1, int(known.sum()))).tolist()
    return dict(zip(palette.names, shares, strict=True))
