"""What every test may use: a small palette, tiny data folders, and a trained run."""

import copy
import functools
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from defaults import SCHEMAS, TINY
from hydra.core.hydra_config import HydraConfig

from geoseg_gan.config import compose, plain
from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.images import write_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.palette import IGNORE, Palette, PaletteClass
from geoseg_gan.data.settings import MaskFormat
from geoseg_gan.data.synthetic import GENERATION
from geoseg_gan.models.checkpoints import RunFacts, SegmenterEvaluation, save_network
from geoseg_gan.models.registry import build_generator
from geoseg_gan.models.segmenters import build_segmenter
from geoseg_gan.synthesis.generate import generate
from geoseg_gan.training.train import train
from geoseg_gan.utils.files import write_json

MakeFolder = Callable[..., Path]


def pytest_configure() -> None:
    """Has tests get the signals that a shell's background job, or nohup, ignores."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch) -> Path:
    """Keeps scan caches out of the home folder; worker and sub-processes inherit it."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_command(monkeypatch) -> None:
    """Forgets the command line of a command that an earlier test has run in this process."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def composed() -> Callable[..., Any]:
    """Composes a command's real configuration: `composed("train", "bs=2")`."""

    @functools.cache
    def once(name: str, *overrides: str) -> Any:
        return compose(SCHEMAS[name], overrides)

    return lambda *arguments: copy.deepcopy(once(*arguments))


@pytest.fixture
def run_command(tmp_path, monkeypatch) -> Callable[..., int]:
    """Runs a command in `tmp_path`; its exit code: `run_command(train_command, "bs=2")`."""

    def run(command: Callable[[], None], *arguments: str) -> Any:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["command.py", *arguments])
        try:
            command()
        except SystemExit as stop:
            return stop.code
        return 0

    return run


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory, make_folder, composed) -> Path:
    """The folder of `trained`, which is trained once and copied for each test."""
    folder = tmp_path_factory.mktemp("trained")
    root = make_folder(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        places = (f"data_root={root}", f"out_dir={folder / 'run'}")
        train(composed("train", *TINY, *places, "epochs=2"))
    return folder


@pytest.fixture
def trained(trained_once, tmp_path) -> tuple[Path, Path]:
    """A data folder and the folder of a run of two epochs on it."""
    for name in ("data", "run"):
        shutil.copytree(trained_once / name, tmp_path / name)
    return tmp_path / "data", tmp_path / "run"


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """Overrides that train tiny networks on `make_folder`'s data."""
    return TINY


@pytest.fixture
def tiny_segmenter() -> tuple[str, ...]:
    """Overrides that train a tiny segmenter on `make_folder`'s data."""
    return (
        TINY[0],
        "segmenter=unet_resnet34",
        "segmenter.encoder=mobilenet_v2",
        "+segmenter.options.encoder_depth=3",
        "+segmenter.options.decoder_channels=[8,8,8]",
        "augment=flips",
        "image_size=32",
        "bs=2",
        "inner_share=0.3",
        "data.num_workers=0",
        "trainer=cpu",
    )


@pytest.fixture
def make_generated(palette) -> Callable[..., Path]:
    """Writes a generated folder: `make_generated(folder, numbers_of_the_kept_pairs)`.

    The left half of every mask is class 1, the right half class 2.
    """

    def make(
        folder: Path,
        numbers: Sequence[int],
        *,
        size: int = 32,
        layout: str = "pairs",
        mask_format: MaskFormat = "rgb",
        gsd: float | None = None,
        bands: int = 3,
        dtype: str = "uint8",
    ) -> Path:
        facts = {
            "format": 1,
            "palette": palette.to_dict(),
            "mask_format": mask_format,
            "gsd": gsd,
            "image_size": size,
            "config": {"layout": layout, "data_root": "data"},
        }
        write_json(folder / GENERATION, facts)
        suffix = ".jpg" if dtype == "uint8" and bands in (1, 3) else ".tif"
        label = np.where(np.arange(size) < size // 2, 1, 2).astype(np.uint8)[None].repeat(size, 0)
        for number in numbers:
            stem = f"pair_{number:05d}"
            image, mask = f"{stem}_img{suffix}", f"{stem}_mask.png"
            if layout == "folders":
                image, mask = f"images/{stem}{suffix}", f"masks/{stem}.png"
            pixels = np.random.default_rng(number).integers(0, 255, (size, size, bands))
            write_image(folder / image, pixels.astype(dtype))
            MaskReader(palette, mask_format).write(folder / mask, label)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_config(composed) -> dict[str, Any]:
    """The configuration of a run of tiny networks, as checkpoints keep it."""
    return plain(composed("train", *TINY))


@pytest.fixture
def generator(tmp_path, tiny_config, palette) -> Callable[..., Path]:
    """Saves a tiny generator with random weights: `generator(data_root, gsd, palette, bands)`.

    Further arguments are settings of its data.
    """

    def save(
        root: Path,
        gsd: float | None = None,
        palette: Palette = palette,
        bands: int = 3,
        **settings: Any,
    ) -> Path:
        data = tiny_config["data"] | {"gsd": gsd} | settings
        config = tiny_config | {"data_root": str(root), "data": data}
        torch.manual_seed(0)
        network = build_generator(config["model"]["generator"], palette.num_classes, bands)
        facts = RunFacts(config, palette, ImageScaling([0] * bands, [255] * bands))
        save_network(tmp_path / "G_e001.pt", "generator", network, facts, 1)
        return tmp_path / "G_e001.pt"

    return save


@pytest.fixture
def segmenter(tmp_path, palette) -> Callable[..., Path]:
    """Saves a tiny segmenter with random weights: `segmenter(held_out)`."""
    settings = {
        "arch": "unet",
        "encoder": "mobilenet_v2",
        "encoder_weights": None,
        "options": {"encoder_depth": 3, "decoder_channels": [8, 8, 8]},
        "image_scale": 1.0,
    }

    def save(
        held_out: Sequence[float] = (0.5, 0.75),
        palette: Palette = palette,
        bands: int = 3,
        **config: Any,
    ) -> Path:
        torch.manual_seed(0)
        network = build_segmenter(settings, palette.num_classes, bands)
        config |= {"segmenter": settings, "image_size": 32}
        facts = RunFacts(config, palette, ImageScaling([0] * bands, [255] * bands))
        judged = SegmenterEvaluation(list(held_out), {"val/miou": 0.5})
        save_network(tmp_path / "segmenter.pt", "segmenter", network, facts, 1, judged)
        return tmp_path / "segmenter.pt"

    return save


@pytest.fixture(scope="session")
def generate_defaults(composed) -> Any:
    """The generate command's configuration, without jitter and workers."""
    return composed("generate", "gen_ckpt=G.pt", "num_workers=0", "jitter=none", "trainer=cpu")


@pytest.fixture
def run_generate(generate_defaults, tmp_path) -> Callable[..., Path]:
    """Calls generate and returns the folder: `run_generate(gen_ckpt, name, setting=value)`."""

    def call(gen_ckpt, name, **settings):
        places = {"gen_ckpt": str(gen_ckpt), "save_dir": str(tmp_path / name)}
        generate(replace(generate_defaults, **places, **settings))
        return tmp_path / name

    return call
