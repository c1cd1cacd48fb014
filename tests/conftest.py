"""What every test may use: a small palette, tiny data folders, and a trained run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from geoseg_gan.config import SCHEMAS, register, typed
from geoseg_gan.data.images import MaskFormat, MaskReader, write_image
from geoseg_gan.data.palette import IGNORE, Palette, PaletteClass
from geoseg_gan.train import train

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch) -> Path:
    """Keeps scan caches out of the home folder; worker and sub-processes inherit it."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def palette() -> Palette:
    """Three classes, black to ignore."""
    return Palette(
        [
            PaletteClass("Background", [250, 62, 119]),
            PaletteClass("Forest land", [168, 232, 84]),
            PaletteClass("Settlement", [255, 214, 33]),
        ],
        [[0, 0, 0]],
    )


@pytest.fixture
def make_folder(palette) -> MakeFolder:
    """Writes a data folder and returns its root: `make_folder(root, train=6, val=2, size=64)`.

    Every mask holds all three classes in blobs and a stripe of ignore; every image repeats its
    mask's classes in its colours, with noise. `val=0` leaves the validation split out.
    """

    def make(
        root: Path,
        train: int = 6,
        val: int = 2,
        size: int | tuple[int, int] = 64,
        *,
        bands: int = 3,
        dtype: str = "uint8",
        image_suffix: str | None = None,
        mask_format: MaskFormat = "rgb",
        seed: int = 0,
    ) -> Path:
        height, width = (size, size) if isinstance(size, int) else size
        plain = dtype == "uint8" and bands in (1, 3)
        suffix = image_suffix or (".png" if plain else ".tif")
        reader = MaskReader(palette, mask_format)
        for split, count in (("train", train), ("val", val)):
            for number in range(count):
                rng = np.random.default_rng((seed, split == "val", number))
                label = _blobs(rng, height, width)
                image = _painted(rng, label, bands, dtype)
                stem = f"{split}_{number:03d}"
                write_image(root / split / "images" / f"{stem}{suffix}", image)
                reader.write(root / split / "masks" / f"{stem}.png", label)
        return root

    return make


def _blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    label = np.zeros((height, width), np.uint8)
    for kind in (1, 2, 1, 2):
        row, column = rng.uniform(0.2, 0.8, 2) * (height, width)
        radius = rng.uniform(0.1, 0.25) * min(height, width)
        label[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = kind
    label[0, : width // 4] = np.arange(width // 4) % 2 + 1
    label[-1, : width // 4] = IGNORE
    return label


def _painted(rng: np.random.Generator, label: np.ndarray, bands: int, dtype: str) -> np.ndarray:
    levels = np.array([[60, 70, 80], [40, 140, 50], [200, 90, 70]], np.float64)
    shares = levels[np.where(label == IGNORE, 0, label)][..., np.arange(bands) % 3] / 255
    shares = (shares + rng.normal(0, 0.03, shares.shape)).clip(0, 1)
    scale = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1.0
    return (shares * scale).astype(dtype)


@pytest.fixture
def composed() -> Callable[..., Any]:
    """Composes a command's real configuration: `composed("train", "bs=2")`."""

    def compose_typed(name: str, *overrides: str) -> Any:
        register()
        with initialize_config_module("geoseg_gan.configs", version_base="1.3"):
            return typed(compose(name, overrides=list(overrides)), SCHEMAS[name])

    return compose_typed


TINY = (
    "data.palette=[{name:Background,color:[250,62,119]},{name:Forest land,color:[168,232,84]},"
    "{name:Settlement,color:[255,214,33]}]",
    "model.generator.width=4",
    "model.generator.depth=2",
    "model.generator.max_width=8",
    "model.discriminator.width=4",
    "model.discriminator.layers=2",
    "model.discriminator.scales=1",
    "image_size=32",
    "bs=2",
    "data.num_workers=0",
    "trainer=cpu",
)
"""Overrides that train tiny networks on `make_folder`'s data."""


@pytest.fixture
def trained(tmp_path, make_folder, composed) -> tuple[Path, Path]:
    """A data folder and the folder of a run of two epochs on it."""
    root, out_dir = make_folder(tmp_path / "data"), tmp_path / "run"
    train(composed("train", *TINY, f"data_root={root}", f"out_dir={out_dir}", "epochs=2"))
    return root, out_dir


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """Overrides that train tiny networks on `make_folder`'s data."""
    return TINY
