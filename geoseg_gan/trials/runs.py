"""The runs of a trial: for each seed a split, a generator, its pairs, and a segmenter per arm."""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from geoseg_gan.config import plain
from geoseg_gan.data.dataset import PairSource, WindowDataset
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.palette import class_ids
from geoseg_gan.data.sampler import batches_per_epoch
from geoseg_gan.data.scan import FolderIndex, scan
from geoseg_gan.data.settings import Fit
from geoseg_gan.data.split import split_rows, write_split
from geoseg_gan.data.synthetic import GENERATION
from geoseg_gan.data.transplant import rare_classes
from geoseg_gan.models.loaded import load_segmenter
from geoseg_gan.synthesis.generate import generate
from geoseg_gan.synthesis.settings import GenerateConfig
from geoseg_gan.training.runs import LAST, OUTCOME, flat, read_outcome, write_outcome
from geoseg_gan.training.settings import TrainConfig, TrainSegmenterConfig
from geoseg_gan.training.train import train
from geoseg_gan.training.train_segmenter import SEGMENTER, TILES, train_segmenter
from geoseg_gan.trials.arms import (
    ALL_LABELS,
    COPY_PASTE,
    HALF,
    ONLY,
    OVERSAMPLE,
    PLAIN,
    REAL,
    mix_of,
    recipe_of,
)
from geoseg_gan.trials.results import PAIR_FACTS, RunResult, result_path, write_result
from geoseg_gan.trials.settings import TrialConfig
from geoseg_gan.utils.confusion import TileConfusions
from geoseg_gan.utils.files import open_append, write_json
from geoseg_gan.utils.pictures import evenly_spaced
from geoseg_gan.utils.reading import Number, read_arrays, read_json

EXAMPLES = 8
"""Validation windows whose predictions are kept."""

LOG = "log.txt"
"""The file in a run's folder with what it prints."""

_GAN = "gan"
_SUBSET_STREAM = 0x71135  # keeps the draw of tiles apart from other draws of the same seed


def compute_seeds(config: TrialConfig, seeds: Iterable[int], arms: Sequence[str]) -> None:
    """Computes and stores the results of seeds that are missing, one seed after the other.

    A seed's generator, filter and tau see only that seed's training tiles; each segmenter reads the
    validation tiles once, at its end. Finished results and finished parts are not computed again.

    Args:
        config: The trial.
        seeds: The seeds.
        arms: The arms to compute for each.

    Raises:
        UserError: If the data do not allow for it.
    """
    data = TrialData(config)
    for seed in seeds:
        missing = [arm for arm in arms if not result_path(data.folder, arm, seed).is_file()]
        if not missing:
            continue
        runs = SeedRuns(data, seed)
        pairs = compute_pairs(data, seed, missing)
        for arm in missing:
            recipe = recipe_of(arm)
            if recipe is None or (recipe in pairs and (arm != ONLY or pairs[recipe]["kept"])):
                runs.compute(arm, pairs.get(recipe or "", {}))


def compute_pairs(data: "TrialData", seed: int, arms: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Generates the pairs that arms of a seed mix in; returns their facts by recipe.

    Recipes that use the pairs of another one, of which the filter kept none, are left out.
    """
    recipes = dict.fromkeys(recipe for arm in arms if (recipe := recipe_of(arm)) is not None)
    if not recipes:
        return {}
    source = SeedRuns(data, data.source_seed(seed))
    recognizer = source.train_segmenter(REAL) / SEGMENTER
    return {
        recipe: source.generate(recipe, recognizer)
        for recipe in recipes
        if all(
            source.generate(other, recognizer)["kept"]
            for other in data.config.recipes[recipe].uses()
        )
    }


def pairs_folder(config: TrialConfig, recipe: str) -> str:
    """The name of the folder of a recipe's pairs; recipes that generate alike share one."""
    changes = _changes(config.generate, config.generation(recipe))
    root = Path(config.out_dir)
    for key, value in changes.items():  # paths within the trial's folder, which may move
        if isinstance(value, str) and Path(value).is_relative_to(root):
            changes[key] = Path(value).relative_to(root).as_posix()
    refined = refined_folder(config, recipe)
    if not changes and refined is None:
        return PLAIN
    if (look := config.recipes[recipe].style_from) is not None:
        changes["style_from"] = pairs_folder(config, look)
    return f"{PLAIN}-{_digest(changes | {'refined': refined})}"


def refined_folder(config: TrialConfig, recipe: str) -> str | None:
    """The name of the folder of a recipe's refined generator; None where it is not refined."""
    training = config.refinement(recipe)
    if training is None:
        return None
    changes = _changes(config.train, training)
    if (other := config.recipes[recipe].learn_from) is not None:
        changes["learn_from"] = pairs_folder(config, other)
    return f"refined-{_digest(changes)}"


def _changes(part: Any, changed: Any) -> dict[str, Any]:
    before, after = flat(plain(part)), flat(plain(changed))
    return {key: value for key, value in after.items() if before.get(key) != value}


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


class TrialData:
    """The tiles of a trial, read on first use."""

    def __init__(self, config: TrialConfig) -> None:
        """Keeps the configuration."""
        self.config = config
        self.reader = mask_reader(config.data)
        self.folder = Path(config.out_dir)
        self.root = Path(config.data_root)

    def source_seed(self, seed: int) -> int:
        """The seed whose tiles, generator and pairs a seed uses."""
        return 0 if self.config.share_gan else seed

    @cached_property
    def train_index(self) -> FolderIndex:
        """The index of all training tiles."""
        return scan(find_pairs(self.root, "train", self.config.data.group_regex), self.reader)

    @cached_property
    def examples(self) -> WindowDataset:
        """The validation windows whose predictions are kept, evenly spread."""
        pairs = find_pairs(self.root, "val", self.config.data.group_regex)
        fit: Fit = "resize" if self.config.data.fit == "resize" else "crop"
        source, sizes = PairSource(pairs, self.reader), scan(pairs, self.reader).sizes
        windows = WindowDataset(source, sizes, self.config.image_size, fit)
        windows.windows = [windows.windows[i] for i in evenly_spaced(len(windows), EXAMPLES)]
        return windows

    @cached_property
    def example_images(self) -> torch.Tensor:
        """The images of `examples`, shape (E, K, S, S)."""
        return torch.stack([self.examples[i]["image"] for i in range(len(self.examples))])


class SeedRuns:
    """The runs of one seed, each in its own folder; finished ones are not computed again."""

    def __init__(self, data: TrialData, seed: int) -> None:
        """Names the folder and reads nothing."""
        self.data, self.config, self.seed = data, data.config, seed
        self.folder = data.folder / f"seed_{seed:03d}"

    @cached_property
    def split(self) -> tuple[FolderIndex, Path]:
        """The index of the tiles that this seed fits, and the file that names its split."""
        config, index = self.config, self.data.train_index
        source = self.data.source_seed(self.seed)
        pairs = index.pairs
        drawn = list(range(len(pairs)))
        if count := config.train_tiles:
            rng = np.random.default_rng((_SUBSET_STREAM, source))
            drawn = sorted(rng.permutation(len(pairs))[:count].tolist())
        some = [pairs[row] for row in drawn]
        fitted, held_out = split_rows(some, config.data.split_file, config.inner_share, source)
        path = self.data.folder / f"seed_{source:03d}" / "split.csv"
        if not path.is_file():
            write_split(path, [some[i] for i in fitted], [some[i] for i in held_out])
        return index.rows([drawn[i] for i in fitted]), path

    @cached_property
    def all_labels(self) -> Path:
        """The split file of all tiles, but those of groups that this seed holds out."""
        index, (_, split) = self.data.train_index, self.split
        parts = split_rows(index.pairs, str(split), 0.0, 0)
        held_out = {index.pairs[row].group for row in parts[1]}
        others = [pair for pair in index.pairs if pair.group not in held_out]
        path = split.with_name("split_all_labels.csv")
        if not path.is_file():
            write_split(path, others, [index.pairs[row] for row in parts[1]])
        return path

    def _steps(self, settings: TrainSegmenterConfig) -> int:
        """Steps an epoch of real only, which all arms have."""
        return settings.epoch_steps or batches_per_epoch(len(self.split[0].pairs), settings.bs)

    def support(self) -> dict[str, Any]:
        """Pixels, tiles and location groups of every class among the fitted tiles."""
        pixels = self.split[0].pixels[:, :-1]
        groups = np.array([pair.group for pair in self.split[0].pairs])
        return {
            "pixels": pixels.sum(0).tolist(),
            "tiles": (pixels > 0).sum(0).tolist(),
            "groups": [len(set(groups[column])) for column in (pixels > 0).T],
            "total_tiles": len(groups),
        }

    def oversampled(self) -> list[int]:
        """The classes to oversample: those given that the fitted tiles hold, or the rare ones."""
        pixels = self.split[0].pixels
        given, palette = self.config.oversample_classes, self.data.reader.palette
        classes = class_ids(given, palette, "oversample_classes")
        # Few tiles may lack a class, which is no reason to end a long trial.
        return [c for c in classes if pixels[:, c].any()] if classes else rare_classes(pixels)

    def train_generator(
        self, recipe: str | None = None, start: Path | None = None, synthetic: str | None = None
    ) -> Path:
        """The checkpoint of the seed's generator, or of a recipe's, refined from `start`.

        The pairs in the folder `synthetic` are mixed into the training.
        """
        config = self.config
        settings = config.train if recipe is None else config.refinement(recipe)
        name = _GAN if recipe is None else refined_folder(config, recipe)
        assert settings is not None and name is not None, "only recipes that refine train again"
        folder = self.folder / name
        checkpoint = folder / f"G_e{settings.epochs:03d}.pt"
        if not (folder / OUTCOME).is_file():
            with _logged(folder / LOG):
                training = self.generator_settings(settings, folder, start)
                train(replace(training, synthetic=synthetic))
        # The first training's discriminator stays, for recipes that refine.
        for path in [folder / LAST, *(folder.glob("D_e*.pt") if recipe else ())]:
            path.unlink(missing_ok=True)
        return checkpoint

    def generator_settings(
        self, settings: TrainConfig, folder: Path, start: Path | None = None
    ) -> TrainConfig:
        """`train` for this seed."""
        return replace(
            settings,
            out_dir=str(folder),
            seed=self.seed,
            resume=True,  # where a call before has begun it
            init_from=None if start is None else str(start),
            data=replace(settings.data, split_file=str(self.split[1])),
        )

    def generate(self, recipe: str, recognizer: Path) -> dict[str, Any]:
        """Generates and filters a recipe's pairs; returns what `RunResult.facts` holds of them."""
        config, name = self.config, pairs_folder(self.config, recipe)
        known = self.folder / f"{name}.json"  # written last, once all pairs are there
        if known.is_file():
            return dict(read_json(known, PAIR_FACTS, "Remove it, and run trial again."))
        look, learn_from = config.recipes[recipe].style_from, config.recipes[recipe].learn_from
        style_from = None if look is None else self.pairs_of(look, recognizer)
        synthetic = None if learn_from is None else self.pairs_of(learn_from, recognizer)
        refined, generator = refined_folder(config, recipe), None
        if config.generation(recipe).needs_generator:
            generator = self.train_generator()
            if refined is not None:
                generator = self.train_generator(recipe, generator, synthetic)
        started = time.monotonic()
        folder = self.folder / name
        with _logged(self.folder / f"{name}.txt"):
            counts = generate(
                replace(
                    self.generation_settings(
                        config.generation(recipe), folder, generator, recognizer
                    ),
                    style_from=style_from,
                )
            )
        shape = {"tau?": Number()}  # images that are labelled have none
        facts: dict[str, Any] = {
            "generated": int(counts["generated"]),
            "kept": int(counts["pairs"]),
            "tau": read_json(folder / GENERATION, shape, "Remove its folder.").get("tau", 0.0),
            "pairs": name,
            "gan_seed": self.seed,
            "synthesis_seconds": round(time.monotonic() - started, 1),
            "generator_seconds": {
                name: (read_outcome(self.folder / name) or {}).get("seconds", 0.0)
                for name in filter(None, (None if generator is None else _GAN, refined))
            },
        }
        write_json(known, facts)
        return facts

    def pairs_of(self, recipe: str, recognizer: Path) -> str:
        """The folder of another recipe's pairs, generated where they are missing."""
        self.generate(recipe, recognizer)
        return str(self.folder / pairs_folder(self.config, recipe))

    def generation_settings(
        self, settings: GenerateConfig, folder: Path, generator: Path | None, recognizer: Path
    ) -> GenerateConfig:
        """`generate` for this seed."""
        return replace(
            settings,
            gen_ckpt=None if generator is None else str(generator),
            segmenter_ckpt=str(recognizer),
            save_dir=str(folder),
            seed=self.seed,
        )

    def train_segmenter(self, arm: str) -> Path:
        """The folder of an arm's segmenter, trained where it is missing."""
        folder = self.folder / arm
        if not (folder / OUTCOME).is_file():
            started = time.monotonic()
            with _logged(folder / LOG):
                figures = train_segmenter(self.segmenter_settings(arm, folder))
            write_outcome(folder, figures, seconds=round(time.monotonic() - started, 1))
        (folder / LAST).unlink(missing_ok=True)
        return folder

    def segmenter_settings(self, arm: str, folder: Path) -> TrainSegmenterConfig:
        """`train_segmenter` for an arm of this seed."""
        config, recipe = self.config, recipe_of(arm)
        settings = config.train_segmenter if recipe is None else config.segmentation(recipe)
        settings = replace(
            settings,
            out_dir=str(folder),
            seed=self.seed,
            resume=True,
            data=replace(settings.data, split_file=str(self.split[1])),
        )
        if arm == HALF:
            settings = _halved(settings, self._steps(settings))
        if arm == ALL_LABELS:
            data = replace(settings.data, split_file=str(self.all_labels))
            settings = replace(settings, epoch_steps=self._steps(settings), data=data)
        if arm == OVERSAMPLE:
            settings.oversample_classes = self.oversampled()
            settings.oversample_factor = config.oversample_factor
        if arm == COPY_PASTE or (recipe is not None and config.recipes[recipe].copy_paste):
            settings.augment = replace(settings.augment, copy_paste=config.copy_paste)
        if recipe is not None:
            source = self.data.folder / f"seed_{self.data.source_seed(self.seed):03d}"
            used = [recipe, *config.recipes[recipe].beside]
            folders = [str(source / pairs_folder(config, name)) for name in used]
            settings.synthetic = folders if len(folders) > 1 else folders[0]
            mix = mix_of(arm)
            settings.synthetic_ratio = 1.0 if mix is None else mix.ratio
        return settings

    def compute(self, arm: str, pairs: dict[str, Any]) -> None:
        """Trains an arm's segmenter and stores its result, with what is known of its pairs."""
        # Without synthetic pairs a mixed arm is the same run as real only.
        run = self.train_segmenter(arm if not pairs or pairs["kept"] else REAL)
        shape = TileConfusions.shape("val") | TileConfusions.shape("inner")
        arrays = read_arrays(run / TILES, shape, "Remove its folder, and run trial again.")
        val, inner = (TileConfusions.from_arrays(arrays, name) for name in ("val", "inner"))
        facts = {"kept": None, "generated": None, "tau": None, **pairs}
        seconds = (read_outcome(run) or {}).get("seconds", 0.0)
        facts |= {"seconds": seconds, "support": self.support()}
        result = RunResult(arm, self.seed, val, inner, self._predict(run), facts)
        write_result(self.data.folder, result)

    @torch.inference_mode()
    def _predict(self, run: Path) -> npt.NDArray[np.uint8]:
        """Classes that a run's segmenter predicts on the examples, shape (E, S, S)."""
        device = self.config.trainer.device()
        segmenter = load_segmenter(run / SEGMENTER, device)
        inputs = segmenter.facts.scaling.to_network(self.data.example_images.to(device))
        predicted: npt.NDArray[np.uint8] = segmenter.network(inputs).argmax(1).byte().cpu().numpy()
        return predicted


def _halved(settings: TrainSegmenterConfig, steps: int) -> TrainSegmenterConfig:
    """The same training with half the updates, of `steps` an epoch."""
    if settings.epochs > 1:
        epochs = settings.epochs // 2
        return replace(settings, epochs=epochs, validate_every=epochs)
    return replace(settings, epoch_steps=max(1, steps // 2))


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Redirects what a run prints to a file: a trial has too many runs to show them all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_append(path) as log, contextlib.redirect_stdout(log):
        yield
