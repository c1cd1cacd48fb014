"""The trial command: do synthetic pairs make a segmenter better, and can one believe it?"""

import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from geoseg_gan.config import plain, read_yaml, write_yaml
from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.demo.world import write_world
from geoseg_gan.data.images import mask_reader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.palette import class_ids
from geoseg_gan.data.sampler import CROPS
from geoseg_gan.data.scan import check_sizes, scan
from geoseg_gan.data.split import refuse_shared_images, shared_groups
from geoseg_gan.data.stream import check_root
from geoseg_gan.data.synthetic import refuse_synthetic
from geoseg_gan.models.discriminators.oasis import changed_settings
from geoseg_gan.models.registry import Generator, build_generator
from geoseg_gan.models.segmenters import check_segmenter
from geoseg_gan.models.settings import ModelSettings
from geoseg_gan.synthesis.candidates import check_variants
from geoseg_gan.synthesis.filter import check_can_ignore, check_filter
from geoseg_gan.synthesis.generate import check_pair_size
from geoseg_gan.synthesis.sampling import SAMPLINGS
from geoseg_gan.training.runs import flat
from geoseg_gan.training.train import check_networks
from geoseg_gan.trial_workers import Lines, run_side_by_side
from geoseg_gan.trials.report import REPORT, write_report
from geoseg_gan.trials.results import REAL, read_results, result_path
from geoseg_gan.trials.runs import (
    TrialData,
    TrialRuns,
    all_arms,
    generation,
    pairs_folder,
    refined_folder,
    tile_count,
)
from geoseg_gan.trials.schedule import Kind, Task, plan
from geoseg_gan.trials.settings import RefineSettings, TrialConfig
from geoseg_gan.utils.errors import UserError, check_choice, plural
from geoseg_gan.utils.files import LOCK, atomic_path, held

_FREE_TO_CHANGE = (
    *("data_root", "out_dir", "seeds", "arms", "ratios", "merge"),
    *("devices", "trainer"),
)

"""Settings that may differ between calls that add to the same results."""


def trial(config: TrialConfig) -> dict[str, float]:
    """Compares segmenters trained on real tiles with such trained on a mix, over several seeds.

    Every finished result is stored; a second call computes only what is missing.

    Args:
        config: What is compared on what, and how.

    Returns:
        Figures by name: "gain", the difference in validation mIoU that the verdict is about, and
        "real/miou".

    Raises:
        UserError: If the configuration, the data or the output folder is not as it must be.
    """
    check(config)
    folder, root = Path(config.out_dir), Path(config.data_root)
    _check_same_trial(config, folder)
    if config.data.demo is not None:
        write_world(root, config.data.classes(), config.data.demo)
    warnings = _check_data(config, root)
    with held(folder):
        _check_same_trial(config, folder)  # once more: another call may have begun one meanwhile
        _keep_settings(config, folder)
        _merge(config, folder)
        _compute(config)
        return _report(config, warnings)


def check(config: TrialConfig) -> None:
    """Refuses a configuration before anything slow starts or anything is written.

    Raises:
        UserError: Naming the key, its value and what to do.
    """
    positive = ("epochs", "bs", "lr", "segmenter_epochs", "segmenter_lr", "num_samples", "variants")
    for key in positive:
        if getattr(config, key) <= 0:
            raise UserError(f"{key}={getattr(config, key)} must be positive.")
    for key in ("epoch_steps", "segmenter_epoch_steps", "train_tiles"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise UserError(f"{key}={value}: use 1 or more, or null.")
    if config.segmenter_bs < 2:
        raise UserError(
            f"segmenter_bs={config.segmenter_bs}: use 2 or more, which batch normalisation needs."
        )
    seed_list(config)
    wrong = [ratio for ratio in config.ratios if not 0 < ratio < 1]
    if wrong or not config.ratios or len(set(config.ratios)) < len(config.ratios):
        raise UserError(f"ratios={config.ratios}: use different shares between 0 and 1.")
    for arm in config.arms:
        check_choice("arms", arm, all_arms(config))
    if config.train_tiles is not None and config.train_fraction is not None:
        raise UserError("Give train_tiles or train_fraction, not both.")
    if config.train_fraction is not None and not 0 < config.train_fraction <= 1:
        raise UserError(f"train_fraction={config.train_fraction}: use a share above 0, up to 1.")
    if config.data.split_file is not None and tile_count(config, 1) is not None:
        raise UserError("data.split_file says which tiles are used: leave train_tiles away.")
    if not 0 < config.inner_share <= 0.5:
        raise UserError(
            f"inner_share={config.inner_share}: use a share above 0, up to 0.5; tau and ratio are "
            "chosen on these tiles."
        )
    if config.oversample_factor < 1:
        raise UserError(f"oversample_factor={config.oversample_factor} must be 1 or more.")
    check_filter(config.tau, config.alpha)
    check_choice("crops", config.crops, CROPS)
    check_choice("sampling", config.sampling, SAMPLINGS)
    for precision in (config.precision, config.gan_precision):
        config.trainer.check(config.devices, precision)
    config.copy_paste.check("copy_paste")
    reader = mask_reader(config.data)
    check_can_ignore(config.alpha, reader)
    if not config.recipes:
        raise UserError("recipes is empty: give recipe=synthetic, or others, as in recipe=[...].")
    for name, recipe in config.recipes.items():
        recipe.check(name, config.jitter)
        recipe.mixing.gate(reader.palette)
        check_can_ignore(recipe.alpha, reader)
    class_ids(config.oversample_classes, reader.palette, "oversample_classes")
    classes = reader.palette.num_classes
    config.segmenter_loss.check(classes)
    config.loss.check()
    check_networks(config.model, config.loss, classes, config.image_size)
    with torch.device("meta"):  # shapes only: no memory, no time
        generator = build_generator(plain(config.model)["generator"], classes, 3)
    for name, recipe in config.recipes.items():
        check_variants(generation(config, name)["variants"], cast(Generator, generator))
        if recipe.image_size is not None:
            check_pair_size(
                recipe.image_size,
                cast(Generator, generator).stride,
                config.image_size,
                config.data.fit,
                f"recipes.{name}.",
            )
        if recipe.refine is not None:
            _check_refined(config, recipe.refine, name)
    check_segmenter(config.segmenter, config.image_size)
    check_root(config.data, Path(config.data_root))


def _check_refined(config: TrialConfig, refine: RefineSettings, name: str) -> None:
    """Refuses a second training that cannot start where the first ends."""
    model = ModelSettings(config.model.generator, refine.discriminator)
    first, second = (plain(of)["discriminator"] or {} for of in (config.model, model))
    for key in changed_settings(first, second):
        raise UserError(
            f"recipes.{name}.refine.discriminator must be that of the trial with others beside it, "
            f"but has {key}={second.get(key)}, not {first[key]}. Use recipe=refined with "
            "model=unet_oasis, or recipe=refined_light with model=unet_oasis_light."
        )
    check_networks(model, refine.loss, config.data.classes().num_classes, config.image_size)


def seed_list(config: TrialConfig) -> list[int]:
    """The seeds of a trial: a list as it is given, or those from 0 on.

    Raises:
        UserError: If `seeds` is neither a positive number nor a list of different seeds.
    """
    value = config.seeds
    seeds = list(range(value)) if isinstance(value, int) else value
    valid = isinstance(seeds, list) and all(isinstance(s, int) and s >= 0 for s in seeds)
    if isinstance(value, bool) or not valid or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds={value}: use how many, as in 5, or different seeds, as in [0,1].")
    return sorted(seeds)


def _check_same_trial(config: TrialConfig, folder: Path) -> None:
    """Refuses results in a folder that come from other settings than these."""
    path = folder / "config.yaml"
    if not path.is_file():
        if folder.is_dir() and any(entry.name != LOCK for entry in folder.iterdir()):
            raise UserError(f"out_dir={folder} holds other files. Choose a new folder.")
        return
    now = flat(plain(config))
    for key, stored in flat(read_yaml(path)).items():
        part, _, rest = key.partition(".")
        if part == "recipes" and rest.split(".")[0] not in config.recipes:
            continue
        if key not in now:
            raise UserError(
                f"{folder} holds a trial of another version, which had a setting {key}. Choose "
                "another out_dir."
            )
        if part not in _FREE_TO_CHANGE and now.get(key) != stored:
            raise UserError(
                f"{folder} holds a trial with {key}={stored}, not {now.get(key)}. Give "
                f"{key}={stored}, or choose another out_dir."
            )


def _keep_settings(config: TrialConfig, folder: Path) -> None:
    """Writes the settings, or adds new recipes to those that are there."""
    path = folder / "config.yaml"
    stored = read_yaml(path) if path.is_file() else {"recipes": {}}
    if not path.is_file() or config.recipes.keys() - stored["recipes"].keys():
        write_yaml(path, replace(config, recipes={**stored["recipes"], **config.recipes}))


def _check_data(config: TrialConfig, root: Path) -> list[str]:
    """Refuses validation tiles that would prove nothing; warnings of such that prove less."""
    refuse_synthetic(root)
    regex = config.data.group_regex
    train = find_pairs(root, "train", regex)
    count = tile_count(config, len(train))
    if count is not None and not 2 <= count <= len(train):
        raise UserError(
            f"train_tiles={count}: {root / 'train'} holds {len(train)} tiles; use 2 up."
        )
    if config.data.fit == "crop":
        sizes = [config.image_size, *(r.image_size or 0 for r in config.recipes.values())]
        check_sizes(scan(train, mask_reader(config.data)), max(sizes))
    val = find_pairs(root, "val", regex)
    refuse_shared_images(train, val)
    warning = shared_groups(train, val)
    return [warning] if warning else []


def _merge(config: TrialConfig, folder: Path) -> None:
    """Takes in results of other trials with the same settings, those of a sweep's jobs included."""
    for name in config.merge:
        found = sorted(Path(name).rglob("results/*/seed_*.npz"))
        if not found:
            raise UserError(f"merge: {name} holds no results of a trial.")
        for path in found:
            _check_same_trial(config, path.parents[2])
            target = folder / path.relative_to(path.parents[2])
            if not target.is_file():
                with atomic_path(target) as scratch:
                    shutil.copyfile(path, scratch)


def _compute(config: TrialConfig) -> None:
    """Computes what is missing, and says how it goes."""
    folder, arms, seeds = Path(config.out_dir), config.arms or all_arms(config), seed_list(config)
    wanted = [(arm, seed) for seed in seeds for arm in arms]
    missing = [(a, s) for a, s in wanted if not result_path(folder, a, s).is_file()]
    print(
        f"Trial of {plural(len(arms), 'arm')} with {plural(len(seeds), 'seed')} in {folder}: "
        f"{len(wanted) - len(missing)} of {plural(len(wanted), 'result')} are there."
    )
    if not missing:
        return
    # Bound to the terminal now, since runs send what they print elsewhere.
    console = Console(file=sys.stdout)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as bar:
        row = bar.add_task("Trial")

        def show(text: str) -> None:
            bar.update(row, description=text)

        needs, lines = _begin(config, missing, show)
        bar.update(row, total=len(needs))
        try:
            with closing(lines):
                for line in lines:
                    if line is not None:
                        console.print(line)
                    bar.advance(row)
        except (KeyboardInterrupt, SystemExit):
            count = sum(result_path(folder, a, s).is_file() for a, s in wanted)
            console.print(
                f"Stopped with {count} of {plural(len(wanted), 'result')} in {folder}. The same "
                "call goes on from there."
            )
            raise


def _begin(
    config: TrialConfig, missing: list[tuple[str, int]], show: Callable[[str], None]
) -> tuple[dict[Task, list[Task]], Lines]:
    """The tasks that missing results take, and what does them while one goes through it."""
    runs = TrialRuns(config)
    if config.devices == 1:
        # Results bring what they need with them, so that all arms of a seed come before the next.
        alone: dict[Task, list[Task]] = {Task(Kind.RESULT, s, arm): [] for arm, s in missing}
        return alone, _one_by_one(runs, list(alone), show)
    gan_seeds = {seed: runs.data.gan_seed(seed) for _, seed in missing}
    for seed in gan_seeds:
        runs.data.split(seed)  # written here, since several processes would write it
    needs = plan(
        missing,
        gan_seeds,
        lambda recipe: pairs_folder(config, recipe),
        lambda recipe: refined_folder(config, recipe),
    )
    return needs, run_side_by_side(config, needs, show)


def _one_by_one(runs: TrialRuns, tasks: list[Task], show: Callable[[str], None]) -> Lines:
    for task in tasks:
        show(str(task))
        yield runs.run(task)


def _report(config: TrialConfig, warnings: list[str]) -> dict[str, float]:
    """Writes the report on all results there are, and prints the verdict."""
    folder, data = Path(config.out_dir), TrialData(config)
    order = {arm: number for number, arm in enumerate(all_arms(config))}
    results = sorted(
        (r for r in read_results(folder) if r.arm in order),
        key=lambda r: (order[r.arm], r.seed),
    )
    samples = [data.examples[i] for i in range(len(data.examples))]
    scaling = ImageScaling.fit(data.train_index)
    images = [scaling.to_rgb(np.moveaxis(sample["image"].numpy(), 0, -1)) for sample in samples]
    labels = [sample["label"].numpy() for sample in samples]
    palette = config.data.classes()
    verdict, content = write_report(
        folder, results, palette, plain(config), images, labels, warnings
    )
    for warning in content["warnings"]:
        print(f"Note: {warning}")
    print(verdict.sentence)
    if verdict.rival is not None:
        print(verdict.rival)
    print(f"Wrote {folder / REPORT}, with pictures and all figures beside it.")
    arms = content["arms"]
    figures = {"real/miou": arms[REAL]["miou"]["value"]} if REAL in arms else {}
    if verdict.arm is not None and REAL in arms:
        figures["gain"] = arms[verdict.arm]["difference"]["value"]
    return figures
