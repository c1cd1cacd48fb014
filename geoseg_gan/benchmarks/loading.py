"""Masks and images: remapping, decoding, jitter, and the start with more and more tiles."""

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from geoseg_gan.benchmarks.clock import CPU, peak_megabytes, rate, start_peak
from geoseg_gan.data.datamodule import SegmentationDataModule
from geoseg_gan.data.palette import IGNORE, Palette
from geoseg_gan.data.sampler import Draw


def remapping(data: SegmentationDataModule, seconds: float) -> dict[str, Callable[[], float]]:
    """Colour to class ID on one core, in MB/s: the look-up table, and a loop over the classes."""
    label, _ = data.reader.read(data.train_index.pairs[0].mask)
    rgb = data.palette.decode(label)

    def loop() -> npt.NDArray[np.uint8]:
        return _loop_over_classes(rgb, data.palette)

    if not np.array_equal(loop(), data.palette.encode(rgb)[0]):
        raise AssertionError("the look-up and the loop over classes disagree")
    size = rgb.nbytes / 1e6
    return {
        "table": lambda: size * rate(lambda: data.palette.encode(rgb), seconds),
        "loop": lambda: size * rate(loop, seconds),
    }


def _loop_over_classes(rgb: npt.NDArray[np.uint8], palette: Palette) -> npt.NDArray[np.uint8]:
    """What remapping usually is: one comparison of all pixels for each colour."""
    label = np.full(rgb.shape[:2], IGNORE, np.uint8)
    for number, entry in enumerate(palette.classes):
        label[(rgb == np.array(entry.color)).all(-1)] = number
    return label


def items(data: SegmentationDataModule, seconds: float) -> float:
    """Training items a second on one core: reading, jitter, crop."""
    cv2.setNumThreads(1)
    dataset, serial = data.train_dataset, count()

    def item() -> None:
        number = next(serial)
        dataset[Draw(number * 7919 % len(dataset), number)]

    return rate(item, seconds)


def opened(data: SegmentationDataModule, **changes: object) -> SegmentationDataModule:
    """A data module of the same data with other settings, set up."""
    again = SegmentationDataModule(
        data.root,
        replace(data.settings, **changes),  # type: ignore[arg-type]
        image_size=data.image_size,
        batch_size=data.batch_size,
        jitter=data.jitter,
        seed=data.seed,
        on_gpu=data.on_gpu,
        regions=data.regions,
    )
    again.setup()
    return again


def start_with(data: SegmentationDataModule, tiles: int, seconds: float) -> dict[str, float]:
    """Opens a folder of many tiles, which are links to those there are.

    Args:
        data: Whose training tiles are linked.
        tiles: How many links there are to be.
        seconds: For how long items are read.

    Returns:
        Seconds of the first start, which reads all pairs, and of the second one, MB that the
        second one takes, and items a second.
    """
    pairs = data.train_index.pairs
    with tempfile.TemporaryDirectory(dir=data.root.parent) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no validation split
        root = Path(folder)
        for part in ("images", "masks"):
            (root / "train" / part).mkdir(parents=True)
        for number in range(tiles):
            pair = pairs[number % len(pairs)]
            for part, path in (("images", pair.image), ("masks", pair.mask)):
                os.link(path, root / "train" / part / f"{number:07d}{path.suffix}")
        many = SegmentationDataModule(
            root,
            replace(data.settings, group_regex=None, cache="none", demo=None),
            image_size=data.image_size,
            batch_size=data.batch_size,
            jitter=data.jitter,
            seed=data.seed,
        )
        found = {"first": _seconds(many.setup)}
        many = opened(many)
        start_peak(CPU)
        before = peak_megabytes(CPU)
        found["second"] = _seconds(lambda: opened(many))
        found["megabytes"] = peak_megabytes(CPU) - before
        found["items"] = items(many, seconds)
    return found


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
