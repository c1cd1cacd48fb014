"""The trial command: do synthetic pairs make a segmenter better, and how certain is that?"""

import contextlib
import math
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from geoseg_gan.config import plain, stored_yaml, write_yaml
from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.demo.world import write_world
from geoseg_gan.data.fingerprint import (
    FINGERPRINTS,
    Fingerprints,
    fingerprint,
    fingerprint_files,
    refuse_change,
)
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.palette import class_ids
from geoseg_gan.data.scan import check_sizes, scan
from geoseg_gan.data.split import INNER, refuse_shared_images, shared_groups, split_rows
from geoseg_gan.data.synthetic import refuse_synthetic
from geoseg_gan.models.discriminators.oasis import changed_settings
from geoseg_gan.models.registry import Generator, build_generator
from geoseg_gan.models.segmenters import check_segmenter
from geoseg_gan.synthesis.candidates import check_variants
from geoseg_gan.synthesis.filter import check_can_ignore
from geoseg_gan.synthesis.generate import check as check_generation
from geoseg_gan.synthesis.inputs import check_pair_size
from geoseg_gan.synthesis.pseudo_labels import check_images, check_labels
from geoseg_gan.synthesis.settings import UNLABELLED
from geoseg_gan.training.runs import differences, in_words
from geoseg_gan.training.settings import TrainConfig
from geoseg_gan.training.train import check as check_training
from geoseg_gan.training.train import check_networks
from geoseg_gan.training.train_segmenter import check as check_segmentation
from geoseg_gan.trials.arms import REAL
from geoseg_gan.trials.ground import GROUND, Ground, on_new_ground
from geoseg_gan.trials.report import REPORT, write_report
from geoseg_gan.trials.results import read_result, read_results, result_path
from geoseg_gan.trials.runs import LOG, TrialData, compute_pairs, compute_seeds
from geoseg_gan.trials.settings import RecipeSettings, TrialConfig
from geoseg_gan.trials.statistics import Comparison, tally
from geoseg_gan.trials.verdict import no_room
from geoseg_gan.trials.workers import compute_side_by_side
from geoseg_gan.utils.confusion import mean_iou
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import atomic_path, check_apart, held, is_unused, write_json
from geoseg_gan.utils.reading import check_content, read_json, whole
from geoseg_gan.utils.tables import percent

DATA = "data.json"
"""The file with the fingerprints of the data that all results of a trial are of."""

_FREE = {"data_root", "out_dir", "seeds", "arms", "ratios", "merge", "devices", "trainer"}
"""Settings, of the trial and its parts, that calls on the same folder may change."""

_STORED = {
    "recipes": {"*": {"generate?": {}}},
    "train": {"epochs": whole()},
    "generate": {"tau": object},
    "train_segmenter": {"epochs": whole()},
}
"""What the `config.yaml` of a trial holds at least, as a shape of `utils.reading`."""


def trial(config: TrialConfig) -> dict[str, float]:
    """Compares segmenters trained on real tiles with segmenters trained on real and synthetic ones.

    Every finished result is stored: a second call computes only what is missing.

    Returns:
        Figures by name: "gain", the difference in validation mIoU that the verdict is about, and
        "real/miou".

    Raises:
        UserError: If the configuration, the data or the output folder does not allow for it.
    """
    check(config)
    folder, root = Path(config.out_dir), Path(config.data_root)
    check_apart("out_dir", folder, root)
    _check_folder(config, folder)
    if config.data.demo is not None:
        write_world(root, config.data.classes(), config.data.demo)
    warnings, data, ground = _check_data(config, root)
    _refuse_other_data(folder, data)
    merged = _to_merge(config, folder, data)
    with held(folder):
        _check_folder(config, folder)  # again: another call may have begun one meanwhile
        _refuse_other_data(folder, data)
        _keep_settings(config, folder, data)
        _merge(folder, merged)
        if ground is not None:
            if not (folder / GROUND).is_dir():
                ground.write(folder / GROUND)
            config = on_new_ground(config)
        _compute(config)
        return _report(config, warnings)


def check(config: TrialConfig) -> None:
    """Refuses, with a UserError, a configuration before anything slow starts or is written."""
    config.check()
    reader = mask_reader(config.data)
    class_ids(config.oversample_classes, reader.palette, "oversample_classes")
    new = str(Path(config.out_dir) / "new")
    with _naming("train"):
        check_training(replace(config.train, out_dir=new))
    with torch.device("meta"):  # shapes only: no memory, no time
        classes = reader.palette.num_classes
        settings = plain(config.train.model)["generator"]
        generator = cast(Generator, build_generator(settings, classes, 3))
    with _naming("train_segmenter"):
        check_segmentation(replace(config.train_segmenter, out_dir=new))
    for name in config.recipes:
        pairs = config.generation(name)
        with _naming(f"recipes.{name}.generate"):
            own = replace(pairs, segmenter_ckpt=f"{new}.pt", save_dir=new)
            check_generation(replace(own, gen_ckpt=new) if own.needs_generator else own)
            check_can_ignore(pairs.alpha, reader)
            if pairs.needs_generator:
                check_variants(pairs.variants, generator)
            if pairs.image_size is not None:
                stride = generator.stride if pairs.needs_generator else 1
                check_pair_size(pairs.image_size, stride, config.train.image_size, config.data.fit)
        with _naming(f"recipes.{name}.train_segmenter"):
            mixed = replace(config.segmentation(name), out_dir=new, synthetic=new)
            check_segmentation(replace(mixed, synthetic_ratio=max(config.ratios)))
        if (refinement := config.refinement(name)) is not None:
            with _naming(f"recipes.{name}.refine"):
                _check_refinement(config, refinement)
                check_training(replace(refinement, out_dir=new))


@contextlib.contextmanager
def _naming(part: str) -> Iterator[None]:
    """Puts the name of a part of the settings before messages about a mistake in it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{part}: {error}") from None


def _check_refinement(config: TrialConfig, refinement: TrainConfig) -> None:
    """Refuses a second training whose networks cannot start from those of the first one."""
    for kind in ("generator", "discriminator"):
        first, second = (plain(part.model)[kind] for part in (config.train, refinement))
        wrong = changed_settings(first, second) + sorted(second.keys() - first.keys())
        if wrong:
            raise UserError(
                f"model.{kind}.{wrong[0]}={second.get(wrong[0])}: a second training starts from "
                f"the networks of the first, which have {first.get(wrong[0], 'no such setting')}."
            )


def _check_folder(config: TrialConfig, folder: Path) -> None:
    """Refuses an output folder that holds other files or another trial."""
    if (stored := stored_yaml(folder)) is not None:
        _check_same_trial(config, folder, stored)
    elif not is_unused(folder):
        raise UserError(f"out_dir={folder} holds other files. Choose a new folder.")


def _check_same_trial(config: TrialConfig, folder: Path, stored: dict[str, Any]) -> None:
    """Refuses a folder whose results were computed with other settings than ours."""
    advice = "It is not the config.yaml of a trial: choose another folder."
    check_content(folder / "config.yaml", stored, _STORED, advice)
    ours = plain(config)
    recipes, others = stored.pop("recipes"), ours.pop("recipes")
    changes = [c for c in differences(stored, ours) if _FREE.isdisjoint(str(c[0]).split(".")[:2])]
    for name in recipes.keys() & others.keys():
        stored_recipe = asdict(RecipeSettings()) | recipes[name]  # which may lack newer knobs
        for key in ("unlabelled", "true_masks"):  # earlier versions repeated the trial's own there
            if stored_recipe["generate"].get(key) == stored.get(key):
                stored_recipe["generate"].pop(key, None)
        old, new = ({f"recipes.{name}": part} for part in (stored_recipe, others[name]))
        changes += differences(old, new)
        changes += ((key, before, after) for key, after, before in differences(new, old))
    for change in changes:
        raise UserError(
            f"{folder} holds a trial with {in_words(change, TrialConfig)}, or choose another "
            "out_dir."
        )


def _refuse_other_data(folder: Path, data: Fingerprints) -> None:
    """Refuses a folder whose results are of other data; those of earlier versions do not tell."""
    path, advice = folder / DATA, "Bring them back, or choose another out_dir."
    if path.is_file():
        refuse_change(read_json(path, FINGERPRINTS, advice), data, f"{folder} is of", advice)


def _keep_settings(config: TrialConfig, folder: Path, data: Fingerprints) -> None:
    """Writes settings, by which the folder is a trial's, and data; adds new recipes."""
    stored = stored_yaml(folder)
    recipes = stored["recipes"] if stored else {}
    if stored is None or config.recipes.keys() - recipes.keys():
        write_yaml(folder / "config.yaml", replace(config, recipes={**recipes, **config.recipes}))
    if not (folder / DATA).is_file():
        write_json(folder / DATA, data)


def _check_data(config: TrialConfig, root: Path) -> tuple[list[str], Fingerprints, Ground | None]:
    """Refuses unusable data.

    Returns:
        Warnings about validation tiles that are not independent, the fingerprints, and how
        `val_groups` divides the tiles; None without.
    """
    refuse_synthetic(root)
    regex = config.data.group_regex
    train, val = (find_pairs(root, part, regex) for part in ("train", "val"))
    patterns = config.val_groups
    ground = None if patterns is None else Ground.divide(patterns, train, val)
    labelled = train if ground is None else ground.labelled
    count = config.train_tiles
    if count is not None and not 2 <= count <= len(labelled):
        raise UserError(
            f"train_tiles={count}: there are {len(labelled)} labelled tiles; use 2 or more."
        )
    if not split_rows(labelled, config.data.split_file, config.inner_share, 0)[1]:
        raise UserError(
            f"data.split_file={config.data.split_file} holds no tile out, and tau and ratio are "
            f"chosen on such tiles. Give some the part {INNER}."
        )
    reader = mask_reader(config.data)
    index = scan(train, reader)
    if config.data.fit == "crop":
        pairs = [config.generation(name).image_size or 0 for name in config.recipes]
        sizes = [config.image_size, config.train.image_size, config.train_segmenter.image_size]
        segmenter = config.train_segmenter
        inner = check_segmenter(segmenter.segmenter, segmenter.image_size)
        gan, classes = config.train, reader.palette.num_classes
        step = check_networks(gan.model, gan.loss, classes, gan.image_size)
        check_sizes(index, max(sizes + pairs), stride=math.lcm(step, inner))
    refuse_shared_images(train, val)
    sources = {config.generation(name).source for name in config.recipes}
    if UNLABELLED in sources:
        check_labels(reader, config.data.fit)
    files: Fingerprints = {}
    if UNLABELLED in sources and ground is None:
        folder = Path(config.unlabelled or root / UNLABELLED)
        if config.unlabelled is None and not folder.is_dir():
            raise UserError(
                f"there are no unlabelled images in {folder}. Name location groups that stand for "
                "new ground in val_groups=[...], or give unlabelled=FOLDER."
            )
        side = config.train_segmenter.image_size
        images = check_images(folder, root, side, index.bands, index.dtype.name)
        files = {UNLABELLED: fingerprint_files(list(images))}
    parts = (train, val) if ground is None else (ground.labelled, ground.validated)
    warning = shared_groups(*parts)
    data = {"train": fingerprint(index), "val": fingerprint(scan(val, reader)), **files}
    return [warning] if warning else [], data, ground


def _to_merge(config: TrialConfig, folder: Path, data: Fingerprints) -> list[Path]:
    """The results of other trials with the same settings, such as the jobs of a sweep.

    Raises:
        UserError: If they are of other settings or data, or one that is to be copied is none.
    """
    paths = []
    for name in config.merge:
        found = sorted(Path(name).rglob("results/*/seed_*.npz"))
        if not found:
            raise UserError(f"merge: {name} holds no results of a trial.")
        for source in sorted({path.parents[2] for path in found}):
            stored = stored_yaml(source)
            if stored is None:
                raise UserError(
                    f"merge: {source} holds results, but not the config.yaml of their trial. "
                    "Copy it from where they were computed."
                )
            _check_same_trial(config, source, stored)
            _refuse_other_data(source, data)
        for path in found:
            if not (folder / path.relative_to(path.parents[2])).is_file():
                read_result(path)  # which refuses what is none
                paths.append(path)
    return paths


def _merge(folder: Path, paths: list[Path]) -> None:
    """Copies results of other trials, the first of each arm and seed."""
    for path in paths:
        target = folder / path.relative_to(path.parents[2])
        if not target.is_file():
            with atomic_path(target) as scratch:
                shutil.copyfile(path, scratch)


def _compute(config: TrialConfig) -> None:
    """Computes missing results, those first by which it may end."""
    folder = Path(config.out_dir)
    arms, seeds = config.arms or config.all_arms(), config.seed_list()
    stored = {(result.arm, result.seed) for result in read_results(folder)}
    done = len(stored & {(arm, seed) for arm in arms for seed in seeds})
    print(
        f"Trial of {plural(len(arms), 'arm')} with {plural(len(seeds), 'seed')} in {folder}: "
        f"{done} of {plural(len(arms) * len(seeds), 'result')} are there."
    )
    if not config.arms:
        _compute_arms(config, config.first_arms(), seeds)
        if no_room(Comparison([tally(result) for result in read_results(folder)])):
            others = [arm for arm in arms if arm not in config.first_arms()]
            print(f"Left out, since there is no room: arms=[{','.join(others)}] computes them.")
            return
    _compute_arms(config, arms, seeds)


def _compute_arms(config: TrialConfig, arms: list[str], seeds: list[int]) -> None:
    """Computes what is missing of some arms, on as many devices as asked for."""
    folder = Path(config.out_dir)
    wanted = [(arm, seed) for seed in seeds for arm in arms]
    missing = [(a, s) for a, s in wanted if not result_path(folder, a, s).is_file()]
    seeds = sorted({seed for _, seed in missing})
    if not missing:
        return
    with _progress(folder, missing):
        if config.devices == 1:
            compute_seeds(config, seeds, arms)
            return
        if config.share_gan:  # all seeds wait for what they share
            compute_pairs(TrialData(config), 0, arms)
        compute_side_by_side(config, seeds, arms)


@contextlib.contextmanager
def _progress(folder: Path, missing: list[tuple[str, int]]) -> Iterator[None]:
    """Shows a progress bar, and a line for each result as some process stores it."""
    # Bound to the terminal now, since stdout is redirected to log files during runs.
    console = Console(file=sys.stdout, markup=False, emoji=False)
    ended, waiting = threading.Event(), list(missing)

    def show_stored() -> None:
        for arm, seed in list(waiting):
            if (path := result_path(folder, arm, seed)).is_file():
                waiting.remove((arm, seed))
                result = read_result(path)
                reached = percent(mean_iou(result.val.counts.sum(0)))
                took = f"{result.facts['seconds']:.0f} s"
                console.print(f"{arm}, seed {seed}: mIoU {reached} ({took})")
                bar.advance(row)
        if logs := list(folder.glob(f"seed_*/*/{LOG}")):
            newest = max(logs, key=lambda path: path.stat().st_mtime_ns)
            bar.update(row, description=newest.parent.relative_to(folder).as_posix())

    def follow() -> None:
        while not ended.wait(0.5):
            show_stored()

    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as bar:
        row = bar.add_task("Trial", total=len(missing))
        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()
            show_stored()
        for arm, seed in waiting:
            console.print(f"{arm}, seed {seed}: left out, because the filter kept no pairs.")


def _report(config: TrialConfig, warnings: list[str]) -> dict[str, float]:
    """Writes the report on all results in the folder, and prints the verdict."""
    folder, data = Path(config.out_dir), TrialData(config)
    order = {arm: number for number, arm in enumerate(config.all_arms())}
    results = sorted(
        (r for r in read_results(folder) if r.arm in order),
        key=lambda r: (order[r.arm], r.seed),
    )
    samples = [data.examples[i] for i in range(len(data.examples))]
    scaling = ImageScaling.fit(data.train_index)
    images = [scaling.to_rgb(np.moveaxis(sample["image"].numpy(), 0, -1)) for sample in samples]
    labels = [sample["label"].numpy() for sample in samples]
    classes, settings = config.data.classes(), plain(config)
    verdict, content = write_report(
        folder, results, classes, settings, config.meaning, images, labels, warnings
    )
    for warning in content["warnings"]:
        print(f"Note: {warning}")
    for line in filter(None, (verdict.sentence, verdict.rival, verdict.room, verdict.plateau)):
        print(line)
    print(f"Wrote {folder / REPORT}, with pictures and all figures beside it.")
    arms = content["arms"]
    figures = {"real/miou": arms[REAL]["miou"]["value"]} if REAL in arms else {}
    if verdict.arm is not None and REAL in arms:
        figures["gain"] = arms[verdict.arm]["difference"]["value"]
    return figures
