"""What a trial's runs are given: for every seed its tiles, and what is known of them."""

import hashlib
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from geoseg_gan.config import plain
from geoseg_gan.data.dataset import Fit, PairSource, WindowDataset
from geoseg_gan.data.images import MaskReader
from geoseg_gan.data.pairs import Pair, find_pairs
from geoseg_gan.data.palette import class_ids
from geoseg_gan.data.scan import FolderIndex, scan
from geoseg_gan.data.split import split_rows, write_split
from geoseg_gan.data.transplant import rare
from geoseg_gan.recipes import RecipeSettings
from geoseg_gan.schemas import GenerateConfig, TrialConfig
from geoseg_gan.trials.results import ONLY, PLAIN, REAL, Mix

OVERSAMPLE, COPY_PASTE = "oversample", "copy_paste"
EXAMPLES = 8
"""Validation windows whose predictions are kept."""

_SUBSET_STREAM = 0x71135  # keeps the draw of tiles apart from other draws of the same seed


def all_arms(config: TrialConfig) -> list[str]:
    """The arms of a trial in the order in which they are computed."""
    mixed = [Mix(recipe, ratio).arm for recipe in config.recipes for ratio in config.ratios]
    return [REAL, OVERSAMPLE, COPY_PASTE, *mixed, *([ONLY] if PLAIN in config.recipes else [])]


def tile_count(config: TrialConfig, available: int) -> int | None:
    """How many training tiles a trial uses; None for all."""
    if config.train_fraction is not None:
        return max(2, round(config.train_fraction * available))
    return config.train_tiles


def generation(config: TrialConfig, recipe: str) -> dict[str, Any]:
    """What `generate` is told of a recipe: its own settings, and the trial's for the others."""
    own = config.recipes[recipe]
    keys = ("sampling", "tau", "alpha", "variants", "jitter")
    told = {key: getattr(own, key) for key in keys if getattr(own, key) is not None}
    alone = {"compose": own.compose, "image_size": own.image_size}
    return {key: getattr(config, key) for key in keys} | told | alone


def pairs_folder(config: TrialConfig, recipe: str) -> str:
    """The name of the folder of a recipe's pairs; recipes that paint alike share one."""

    def told(of: TrialConfig, name: str) -> dict[str, Any]:
        painter = refined_folder(of, name)
        own = plain(GenerateConfig("", **generation(of, name)))
        return own if painter is None else own | {"painter": painter}

    mine = told(config, recipe)
    if mine == told(replace(config, recipes={PLAIN: RecipeSettings()}), PLAIN):
        return PLAIN
    return f"{PLAIN}-{_digest(mine)}"


def refined_folder(config: TrialConfig, recipe: str) -> str | None:
    """The name of the folder of a recipe's refined generator; None where it is not refined."""
    refine = config.recipes[recipe].refine
    return None if refine is None else f"refined-{_digest(plain(refine))}"


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


class TrialData:
    """The tiles of a trial, read on first use.

    Args:
        config: The trial.
    """

    def __init__(self, config: TrialConfig) -> None:
        """Keeps the configuration."""
        self.config = config
        self.folder = Path(config.out_dir)
        self.root = Path(config.data_root)

    @property
    def reader(self) -> MaskReader:
        """Reads masks as the trial's data settings say."""
        return self.config.data.reader()

    @cached_property
    def train_index(self) -> FolderIndex:
        """What is known of all training tiles."""
        pairs = find_pairs(self.root, "train", self.config.data.group_regex)
        return scan(pairs, self.reader)

    @cached_property
    def examples(self) -> WindowDataset:
        """The validation windows whose predictions are kept, evenly spread."""
        pairs = find_pairs(self.root, "val", self.config.data.group_regex)
        index = scan(pairs, self.reader)
        fit: Fit = "resize" if self.config.data.fit == "resize" else "crop"
        source = PairSource(pairs, self.reader)
        windows = WindowDataset(source, index.sizes, self.config.image_size, fit)
        count = min(EXAMPLES, len(windows))
        shown = np.linspace(0, len(windows) - 1, count).round().astype(int)
        windows.windows = [windows.windows[i] for i in shown]
        return windows

    def split(self, seed: int) -> tuple[list[Pair], Path]:
        """The tiles that a seed fits, and the file that says so; it is written on first use."""
        config = self.config
        seed = self.gan_seed(seed)
        pairs = self.train_index.pairs
        drawn = list(range(len(pairs)))
        if count := tile_count(config, len(pairs)):
            rng = np.random.default_rng((_SUBSET_STREAM, seed))
            drawn = sorted(rng.permutation(len(pairs))[:count].tolist())
        some = [pairs[row] for row in drawn]
        fitted, held_out = split_rows(some, config.data.split_file, config.inner_share, seed)
        path = self.folder / f"seed_{seed:03d}" / "split.csv"
        if not path.is_file():
            write_split(path, [some[i] for i in fitted], [some[i] for i in held_out])
        return [some[i] for i in fitted], path

    def _fitted_index(self, seed: int) -> FolderIndex:
        chosen = {pair.stem for pair in self.split(seed)[0]}
        pairs = self.train_index.pairs
        return self.train_index.rows([i for i, pair in enumerate(pairs) if pair.stem in chosen])

    def support(self, seed: int) -> dict[str, Any]:
        """Pixels, tiles and groups of every class among the tiles that a seed fits."""
        index = self._fitted_index(seed)
        holds = index.pixels[:, :-1] > 0
        groups = np.array([pair.group for pair in index.pairs])
        return {
            "pixels": index.pixels[:, :-1].sum(0).tolist(),
            "tiles": holds.sum(0).tolist(),
            "groups": [len(set(groups[column])) for column in holds.T],
            "total_tiles": len(index.pairs),
        }

    def oversampled(self, seed: int) -> list[int]:
        """The classes to oversample: those asked for that the seed's tiles hold, or rare ones."""
        pixels = self._fitted_index(seed).pixels
        asked = class_ids(self.config.oversample_classes, self.reader.palette, "oversample_classes")
        # Few tiles may lack a class, which is no reason to end a long trial.
        return [c for c in asked if pixels[:, c].any()] if asked else rare(pixels)

    def gan_seed(self, seed: int) -> int:
        """The seed whose tiles, generator and pairs a seed uses."""
        return 0 if self.config.share_gan else seed
