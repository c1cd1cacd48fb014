"""The runs of a trial: for every seed a split, a generator, its pairs, and a segmenter an arm."""

import contextlib
import hashlib
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

from geoseg_gan.config import plain
from geoseg_gan.data.dataset import PairSource, WindowDataset
from geoseg_gan.data.images import MaskReader, mask_reader
from geoseg_gan.data.pairs import Pair, find_pairs
from geoseg_gan.data.palette import class_ids
from geoseg_gan.data.scan import FolderIndex, scan
from geoseg_gan.data.settings import DataSettings, Fit
from geoseg_gan.data.split import split_rows, write_split
from geoseg_gan.data.synthetic import GENERATION
from geoseg_gan.data.transplant import rare_classes
from geoseg_gan.losses.settings import ObjectiveSettings
from geoseg_gan.models.checkpoints import load_segmenter
from geoseg_gan.models.settings import ModelSettings
from geoseg_gan.synthesis.generate import generate
from geoseg_gan.synthesis.settings import GenerateConfig
from geoseg_gan.training.runs import LAST, read_outcome
from geoseg_gan.training.settings import TrainConfig, TrainSegmenterConfig
from geoseg_gan.training.train import train
from geoseg_gan.training.train_segmenter import SEGMENTER, TILES, train_segmenter
from geoseg_gan.trials.results import (
    ONLY,
    PLAIN,
    REAL,
    Mix,
    RunResult,
    mix_of,
    recipe_of,
    result_path,
    write_result,
)
from geoseg_gan.trials.schedule import Kind, Task
from geoseg_gan.trials.settings import RecipeSettings, TrialConfig
from geoseg_gan.utils.confusion import TileConfusions, mean_iou
from geoseg_gan.utils.files import write_json

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
        return mask_reader(self.config.data)

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
        return [c for c in asked if pixels[:, c].any()] if asked else rare_classes(pixels)

    def gan_seed(self, seed: int) -> int:
        """The seed whose tiles, generator and pairs a seed uses."""
        return 0 if self.config.share_gan else seed


_GAN = "gan"

"""Folder of a seed's generator."""


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
        self.data = TrialData(config)

    def run(self, task: Task) -> str | None:
        """Does a task, if it is not done yet.

        Returns:
            A line that tells a result; None where the task leaves something else.

        Raises:
            UserError: If the data do not allow for it.
        """
        arm, seed = task.arm, task.seed
        if task.kind == Kind.RESULT:
            if not self.can_compute(arm, seed):
                return f"{task}: left out, since the filter kept no pair."
            result = self.compute(arm, seed)
            reached = mean_iou(torch.from_numpy(result.val.counts.sum(0)))
            return f"{task}: mIoU {100 * reached:.1f} ({result.facts['seconds']:.0f} s)"
        if task.kind == Kind.GENERATOR:
            self._generator(seed, task.arm or None)
        elif task.kind == Kind.FILTER:
            self._segmenter(REAL, seed)
        else:
            self._synthesise(arm, seed)
        return None

    def compute(self, arm: str, seed: int) -> RunResult:
        """Computes and stores one result.

        Raises:
            UserError: If the data do not allow for it.
        """
        facts: dict[str, Any] = {"kept": None, "painted": None, "tau": None}
        trained = arm
        recipe = recipe_of(arm)
        if recipe is not None:
            facts = self._synthesise(pairs_folder(self.config, recipe), seed)
            # Without a pair to mix in there are real ones only: the same run as without mixing.
            trained = arm if facts["kept"] else REAL
        started = time.monotonic()
        run = self._segmenter(trained, seed)
        facts["seconds"] = round(time.monotonic() - started, 1)
        with np.load(run / TILES, allow_pickle=False) as arrays:
            val = TileConfusions.from_arrays(arrays, "val")
            inner = TileConfusions.from_arrays(arrays, "inner")
        result = RunResult(
            arm, seed, val, inner, self._predict(run), facts | {"support": self.data.support(seed)}
        )
        if not result_path(self.folder, arm, seed).is_file():
            write_result(self.folder, result)
        return result

    def can_compute(self, arm: str, seed: int) -> bool:
        """Whether an arm has a result with a seed: synthetic only needs pairs that were kept."""
        return arm != ONLY or self._synthesise(pairs_folder(self.config, PLAIN), seed)["kept"] > 0

    def _generator(self, seed: int, refined: str | None = None) -> Path:
        """The seed's generator, or the one in the folder `refined`, trained where it is missing."""
        config = self.config
        if refined is None:
            return self._trained(_GAN, seed, config.epochs, config.model, config.loss)
        refine = next(
            recipe.refine
            for name, recipe in config.recipes.items()
            if refined_folder(config, name) == refined and recipe.refine is not None
        )
        return self._trained(
            refined,
            seed,
            refine.epochs,
            ModelSettings(config.model.generator, refine.discriminator),
            refine.loss,
            d_lr_ratio=refine.d_lr_ratio,
            init_from=str(self._generator(seed)),
        )

    def _trained(
        self,
        name: str,
        seed: int,
        epochs: int,
        model: ModelSettings,
        loss: ObjectiveSettings,
        *,
        d_lr_ratio: float | None = None,
        init_from: str | None = None,
    ) -> Path:
        """The generator in one of the seed's folders, trained where it is missing."""
        config, folder = self.config, self._seed_folder(seed) / name
        optimizer = config.optimizer
        if d_lr_ratio is not None:
            optimizer = replace(optimizer, d_lr_ratio=d_lr_ratio)
        checkpoint = folder / f"G_e{epochs:03d}.pt"
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
                        epochs=epochs,
                        epoch_steps=config.epoch_steps,
                        bs=config.bs,
                        lr=config.lr,
                        init_from=init_from,
                        image_size=config.image_size,
                        crops=config.crops,
                        seed=seed,
                        resume=resume,
                        keep_checkpoints="1",
                        precision=config.gan_precision,
                        model=model,
                        data=self._data_settings(seed),
                        loss=loss,
                        jitter=config.jitter,
                        trainer=config.trainer,
                        optimizer=optimizer,
                    )
                )
        # A first training's discriminator stays, for recipes that refine, later ones too.
        for path in [folder / LAST, *(folder.glob("D_e*.pt") if init_from else ())]:
            path.unlink(missing_ok=True)
        return checkpoint

    def _synthesise(self, name: str, seed: int) -> dict[str, Any]:
        """Paints and filters the seed's pairs of one folder.

        Returns:
            How many were painted and kept, with which tau, and where they lie.
        """
        config = self.config
        seed = self.data.gan_seed(seed)
        folder = self._seed_folder(seed)
        known = folder / f"{name}.json"  # written last, once all pairs are there
        if known.is_file():
            found: dict[str, Any] = json.loads(known.read_text())
            return found
        recipe = next(r for r in config.recipes if pairs_folder(config, r) == name)
        recognizer = self._segmenter(REAL, seed) / SEGMENTER
        refined = refined_folder(config, recipe)
        checkpoint = self._generator(seed, refined)
        started = time.monotonic()
        with _logged(folder / "generate.txt"):
            counts = generate(
                GenerateConfig(
                    gen_ckpt=str(checkpoint),
                    save_dir=str(folder / name),
                    num_samples=config.num_samples,
                    segmenter_ckpt=str(recognizer),
                    bs=config.bs,
                    seed=seed,
                    trainer=config.trainer,
                    **generation(config, recipe),
                )
            )
        tau = json.loads((folder / name / GENERATION).read_text())["tau"]
        facts: dict[str, Any] = {
            "painted": int(counts["painted"]),
            "kept": int(counts["pairs"]),
            "tau": tau,
            "pairs": name,
            "gan_seed": seed,
            "synthesis_seconds": round(time.monotonic() - started, 1),
            "generator_seconds": {
                name: (read_outcome(folder / name) or {}).get("seconds", 0.0)
                for name in filter(None, (_GAN, refined))
            },
        }
        write_json(known, facts)
        return facts

    def _segmenter(self, arm: str, seed: int) -> Path:
        """The folder of an arm's segmenter, trained where it is not there yet."""
        config, folder = self.config, self._seed_folder(seed) / arm
        if not (folder / SEGMENTER).is_file():
            augment, synthetic = config.augment, None
            oversampled: list[int] = []
            ratio = 0.0
            name, mix = recipe_of(arm), mix_of(arm)
            recipe = RecipeSettings() if name is None else config.recipes[name]
            if arm == COPY_PASTE or recipe.copy_paste:
                augment = replace(augment, copy_paste=config.copy_paste)
            if arm == OVERSAMPLE:
                oversampled = self.data.oversampled(seed)
            if name is not None:
                source = self._seed_folder(self.data.gan_seed(seed))
                synthetic = str(source / pairs_folder(config, name))
                ratio = 1.0 if mix is None else mix.ratio
            mixing = recipe.mixing
            if ratio == 1:  # where there is nothing to be kept apart from
                mixing = replace(mixing, batch_norm="shared")
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
                        validate_every=config.segmenter_epochs,  # the end is all that counts
                        synthetic=synthetic,
                        synthetic_ratio=ratio,
                        mixing=mixing,
                        oversample_classes=oversampled,
                        oversample_factor=config.oversample_factor,
                        precision=config.precision,
                        segmenter=config.segmenter,
                        data=self._data_settings(seed),
                        augment=augment,
                        loss=config.segmenter_loss,
                        trainer=config.trainer,
                        optimizer=config.segmenter_optimizer,
                    )
                )
        (folder / LAST).unlink(missing_ok=True)
        return folder

    def _data_settings(self, seed: int) -> DataSettings:
        return replace(self.config.data, split_file=str(self.data.split(seed)[1]))

    def _seed_folder(self, seed: int) -> Path:
        return self.folder / f"seed_{seed:03d}"

    @torch.inference_mode()
    def _predict(self, run: Path) -> np.ndarray:
        """Classes that a run's segmenter sees on the examples, shape (E, S, S), uint8."""
        device = self.config.trainer.device()
        segmenter = load_segmenter(run / SEGMENTER, device)
        examples = self.data.examples
        images = default_collate([examples[i]["image"] for i in range(len(examples))])
        inputs = segmenter.facts.scaling.to_network(images.to(device))
        guesses: np.ndarray = segmenter.network(inputs).argmax(1).byte().cpu().numpy()
        return guesses


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Sends what a run prints to a file: a trial has too many runs to show them all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1) as log, contextlib.redirect_stdout(log):
        yield
