"""Writes the demo world as a data folder in the normal layout."""

import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.progress import track

from geoseg_gan.data.demo.tile import draw_tile
from geoseg_gan.data.images import write_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import SPLITS
from geoseg_gan.data.palette import Palette
from geoseg_gan.data.settings import DemoSettings
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_folder, sweep_beside, write_json
from geoseg_gan.utils.processes import end_with_parent
from geoseg_gan.utils.reading import read_json
from geoseg_gan.utils.signals import outlive_signals

MARKER = "demo_world.json"


def write_world(root: Path, palette: Palette, settings: DemoSettings) -> None:
    """Draws the world into `root`, unless the same world stands there already.

    The folder appears whole or not at all, even if several processes draw it at once.

    Raises:
        UserError: If `root` holds anything else.
    """
    if is_drawn(root, settings):
        sweep_beside(root)
        return
    jobs = [("train", i) for i in range(settings.train_tiles)]
    jobs += [("val", i) for i in range(settings.val_tiles)]
    try:
        with atomic_folder(root, "data_root", wait=True) as folder:
            for split in SPLITS:
                for part in ("images", "masks"):
                    (folder / split / part).mkdir(parents=True)
            draw = partial(_draw, folder, MaskReader(palette), settings)
            # Spawned, not forked: this process may hold threads by now.
            context = get_context("spawn")
            with ProcessPoolExecutor(os.cpu_count(), context, _start_drawing) as pool:
                bar = track(pool.map(draw, jobs, chunksize=4), "Drawing the demo world", len(jobs))
                for _ in bar:
                    pass
            write_json(folder / MARKER, asdict(settings))
    except (OSError, UserError):
        if not is_drawn(root, settings):  # else another process was first with the same world
            raise


def is_drawn(root: Path, settings: DemoSettings) -> bool:
    """Whether `root` holds this world.

    Raises:
        UserError: If `root` holds something else, which drawing would overwrite.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / MARKER
    if marker.is_file():
        with suppress(UserError):  # not a marker that was written here
            if read_json(marker, dict, "") == asdict(settings):
                return True
    held = "another demo world" if marker.is_file() else "other files"
    raise UserError(
        f"data=demo would draw its world into {root}, which holds {held}. Set data_root to a new "
        "folder" + (", or remove this one." if marker.is_file() else ".")
    )


def _start_drawing() -> None:
    end_with_parent()
    outlive_signals()


def _draw(folder: Path, reader: MaskReader, settings: DemoSettings, job: tuple[str, int]) -> None:
    split, number = job
    rng = np.random.default_rng((settings.seed, split == "val", number))
    image, label = draw_tile(rng, settings.tile_size)
    stem = f"{split}_{number:05d}"
    write_image(folder / split / "images" / f"{stem}.jpg", image)
    reader.write(folder / split / "masks" / f"{stem}.png", label)
