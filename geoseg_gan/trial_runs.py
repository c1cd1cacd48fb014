"""The runs of a trial: for every seed a split, a generator, its pairs, and a segmenter an arm."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from geoseg_gan.checkpoints import load_segmenter
from geoseg_gan.data.dataset import Fit, PairSource, WindowDataset
from geoseg_gan.data.images import MaskReader
from geoseg_gan.data.pairs import Pair, find_pairs
from geoseg_gan.data.palette import class_ids
from geoseg_gan.data.scan import FolderIndex, scan
from geoseg_gan.data.settings import DataSettings
from geoseg_gan.data.split import split_rows, write_split
from geoseg_gan.data.synthetic import FACTS
from geoseg_gan.data.transplant import rare
from geoseg_gan.files import write_json
from geoseg_gan.generate import generate
from geoseg_gan.metrics.tiles import TileConfusions
from geoseg_gan.resume import LAST
from geoseg_gan.schemas import GenerateConfig, TrainConfig, TrainSegmenterConfig, TrialConfig
from geoseg_gan.train import train
from geoseg_gan.train_segmenter import RESULT, TILES, train_segmenter
from geoseg_gan.trials.results import (
    ONLY,
    REAL,
    RunResult,
    ratio_of,
    result_path,
    synthetic_arm,
    write_result,
)

OVERSAMPLE, COPY_PASTE = "oversample", "copy_paste"
EXAMPLES = 8
"""Validation windows whose predictions are kept."""

_SUBSET_STREAM = 0x71135  # keeps the draw of tiles apart from other draws of the same seed


def all_arms(config: TrialConfig) -> list[str]:
    """The arms of a trial in the order in which they are computed."""
    mixed = [synthetic_arm(ratio) for ratio in config.ratios]
    return [REAL, OVERSAMPLE, COPY_PASTE, *mixed, ONLY]


class TrialRuns:
    """Computes the results of a trial, one arm and seed after another.

    All that a seed's arms choose by - generator, filter, tau - sees that seed's training tiles
    only; validation tiles are read once by each segmenter, at its end. A segmenter of arm real is
    its seed's filter. What was finished before is not computed again.

    Args:
        config: The trial.
    """

    def __init__(self, config: TrialConfig) -> None:
        """Keeps the configuration; nothing is read yet."""
        self.config = config
        self.folder = Path(config.out_dir)
        self.root = Path(config.data_root)

    def compute(self, arm: str, seed: int) -> RunResult:
        """Computes and stores one result.

        Raises:
            UserError: If the data do not allow for it.
        """
        facts: dict[str, Any] = {"kept": None, "painted": None, "tau": None}
        trained = arm
        if arm not in (REAL, OVERSAMPLE, COPY_PASTE):
            facts = self._synthesise(seed)
            # Without a pair to mix in there are real ones only: the same run as without mixing.
            trained = arm if facts["kept"] else REAL
        started = time.monotonic()
        run = self._segmenter(trained, seed)
        facts["seconds"] = round(time.monotonic() - started, 1)
        with np.load(run / TILES, allow_pickle=False) as arrays:
            val = TileConfusions.from_arrays(arrays, "val")
            inner = TileConfusions.from_arrays(arrays, "inner")
        result = RunResult(
            arm, seed, val, inner, self._predict(run), facts | {"support": self._support(seed)}
        )
        if not result_path(self.folder, arm, seed).is_file():
            write_result(self.folder, result)
        return result

    def can_compute(self, arm: str, seed: int) -> bool:
        """Whether an arm has a result with a seed: synthetic only needs pairs that were kept."""
        return arm != ONLY or self._synthesise(seed)["kept"] > 0

    @cached_property
    def train_index(self) -> FolderIndex:
        """What is known of all training tiles."""
        pairs = find_pairs(self.root, "train", self.config.data.group_regex)
        return scan(pairs, self._reader)

    @cached_property
    def examples(self) -> WindowDataset:
        """The validation windows whose predictions are kept, evenly spread."""
        pairs = find_pairs(self.root, "val", self.config.data.group_regex)
        index = scan(pairs, self._reader)
        fit: Fit = "resize" if self.config.data.fit == "resize" else "crop"
        source = PairSource(pairs, self._reader)
        windows = WindowDataset(source, index.sizes, self.config.image_size, fit)
        count = min(EXAMPLES, len(windows))
        shown = np.linspace(0, len(windows) - 1, count).round().astype(int)
        windows.windows = [windows.windows[i] for i in shown]
        return windows

    @property
    def _reader(self) -> MaskReader:
        return self.config.data.reader()

    def _split(self, seed: int) -> tuple[list[Pair], Path]:
        """The tiles that a seed fits, and the file that says so; it is written on first use."""
        config = self.config
        seed = self._gan_seed(seed)
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
        chosen = {pair.stem for pair in self._split(seed)[0]}
        pairs = self.train_index.pairs
        return self.train_index.rows([i for i, pair in enumerate(pairs) if pair.stem in chosen])

    def _support(self, seed: int) -> dict[str, Any]:
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

    def _generator(self, seed: int) -> Path:
        """The seed's generator, trained where it is not there yet."""
        config, folder = self.config, self._seed_folder(seed) / "gan"
        checkpoint = folder / f"G_e{config.epochs:03d}.pt"
        if not checkpoint.is_file():
            resume = (folder / LAST).is_file()
            # Networks without a state to go on from are of a first epoch that was cut off.
            for path in () if resume else (*folder.glob("G_e*.pt"), *folder.glob("D_e*.pt")):
                path.unlink()
            with _logged(folder / "log.txt"):
                train(
                    TrainConfig(
                        data_root=config.data_root,
                        out_dir=str(folder),
                        epochs=config.epochs,
                        epoch_steps=config.epoch_steps,
                        bs=config.bs,
                        lr=config.lr,
                        image_size=config.image_size,
                        crops=config.crops,
                        seed=seed,
                        resume=resume,
                        keep_checkpoints="1",
                        precision=config.precision,
                        model=config.model,
                        data=self._data(seed),
                        loss=config.loss,
                        jitter=config.jitter,
                        trainer=config.trainer,
                        optimizer=config.optimizer,
                    )
                )
        for path in [folder / LAST, *folder.glob("D_e*.pt")]:
            path.unlink(missing_ok=True)
        return checkpoint

    def _synthesise(self, seed: int) -> dict[str, Any]:
        """Paints and filters the seed's pairs; how many were painted and kept, with which tau."""
        config = self.config
        seed = self._gan_seed(seed)
        folder = self._seed_folder(seed)
        facts_path = folder / "synthetic.json"
        if facts_path.is_file():
            facts: dict[str, Any] = json.loads(facts_path.read_text())
            return facts
        recognizer = self._segmenter(REAL, seed) / RESULT
        started = time.monotonic()
        checkpoint = self._generator(seed)
        pairs = folder / "synthetic"
        with _logged(folder / "generate.txt"):
            counts = generate(
                GenerateConfig(
                    gen_ckpt=str(checkpoint),
                    save_dir=str(pairs),
                    num_samples=config.num_samples,
                    variants=config.variants,
                    segmenter_ckpt=str(recognizer),
                    tau=config.tau,
                    alpha=config.alpha,
                    sampling=config.sampling,
                    bs=config.bs,
                    seed=seed,
                    jitter=config.jitter,
                    trainer=config.trainer,
                )
            )
        tau = json.loads((pairs / FACTS).read_text())["tau"]
        facts = {"painted": int(counts["painted"]), "kept": int(counts["pairs"]), "tau": tau}
        facts["synthesis_seconds"] = round(time.monotonic() - started, 1)
        write_json(facts_path, facts)
        return facts

    def _segmenter(self, arm: str, seed: int) -> Path:
        """The folder of an arm's segmenter, trained where it is not there yet."""
        config, folder = self.config, self._seed_folder(seed) / arm
        if not (folder / RESULT).is_file():
            augment, synthetic = config.augment, None
            oversampled: list[int] = []
            if arm == COPY_PASTE:
                augment = replace(augment, copy_paste=config.copy_paste)
            if arm == OVERSAMPLE:
                oversampled = self._oversampled(seed)
            ratio = 1.0 if arm == ONLY else ratio_of(arm)
            if ratio is not None:
                synthetic = str(self._seed_folder(self._gan_seed(seed)) / "synthetic")
            with _logged(folder / "log.txt"):
                train_segmenter(
                    TrainSegmenterConfig(
                        data_root=config.data_root,
                        out_dir=str(folder),
                        epochs=config.segmenter_epochs,
                        epoch_steps=config.segmenter_epoch_steps,
                        bs=config.segmenter_bs,
                        lr=config.segmenter_lr,
                        image_size=config.image_size,
                        seed=seed,
                        resume=(folder / LAST).is_file(),
                        select="last",
                        synthetic=synthetic,
                        synthetic_ratio=ratio or 0.0,
                        oversample_classes=oversampled,
                        oversample_factor=config.oversample_factor,
                        precision=config.precision,
                        segmenter=config.segmenter,
                        data=self._data(seed),
                        augment=augment,
                        loss=config.segmenter_loss,
                        trainer=config.trainer,
                        optimizer=config.segmenter_optimizer,
                    )
                )
        (folder / LAST).unlink(missing_ok=True)
        return folder

    def _oversampled(self, seed: int) -> list[int]:
        """The classes to oversample: those asked for that the seed's tiles hold, or rare ones."""
        pixels = self._fitted_index(seed).pixels
        asked = class_ids(
            self.config.oversample_classes, self._reader.palette, "oversample_classes"
        )
        # Few tiles may lack a class, which is no reason to end a long trial.
        return [c for c in asked if pixels[:, c].any()] if asked else rare(pixels)

    def _gan_seed(self, seed: int) -> int:
        """The seed whose tiles, generator and pairs a seed uses."""
        return 0 if self.config.share_gan else seed

    def _data(self, seed: int) -> DataSettings:
        return replace(self.config.data, split_file=str(self._split(seed)[1]))

    def _seed_folder(self, seed: int) -> Path:
        return self.folder / f"seed_{seed:03d}"

    @torch.inference_mode()
    def _predict(self, run: Path) -> np.ndarray:
        """Classes that a run's segmenter sees on the examples, shape (E, S, S), uint8."""
        device = self.config.trainer.device()
        segmenter = load_segmenter(run / RESULT, device)
        images = default_collate([self.examples[i]["image"] for i in range(len(self.examples))])
        inputs = segmenter.facts.scaling.to_network(images.to(device))
        guesses: np.ndarray = segmenter.network(inputs).argmax(1).byte().cpu().numpy()
        return guesses


def tile_count(config: TrialConfig, available: int) -> int | None:
    """How many training tiles a trial uses; None for all."""
    if config.train_fraction is not None:
        return max(2, round(config.train_fraction * available))
    return config.train_tiles


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Sends what a run prints to a file: a trial has too many runs to show them all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1) as log, contextlib.redirect_stdout(log):
        yield
