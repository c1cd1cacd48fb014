"""The generate command: new image-mask pairs from training masks, or from unlabelled images."""

import warnings
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from lightning.fabric import Fabric
from rich.progress import Progress, track

from geoseg_gan.config import plain
from geoseg_gan.data.fingerprint import fingerprint
from geoseg_gan.data.settings import LARGEST_SIDE
from geoseg_gan.data.synthetic import (
    GENERATION,
    MANIFEST,
    Line,
    read_manifest,
)
from geoseg_gan.models.loaded import with_files
from geoseg_gan.synthesis.filter import (
    AUTO,
    GeneratedPair,
    PairFilter,
    check_filter,
    choose_tau,
    generate_and_filter,
)
from geoseg_gan.synthesis.inputs import Inputs, open_inputs
from geoseg_gan.synthesis.pseudo_labels import check as check_labelling
from geoseg_gan.synthesis.pseudo_labels import label_images
from geoseg_gan.synthesis.recognizer import Recognizer, measure_class_losses
from geoseg_gan.synthesis.report import (
    print_outcome,
    print_shares,
    realised_shares,
    write_contact_sheet,
    write_extremes,
    write_histogram,
)
from geoseg_gan.synthesis.sampling import SAMPLINGS, expected_shares
from geoseg_gan.synthesis.scene import check_scene, generate_scene
from geoseg_gan.synthesis.settings import LARGEST_BATCH, UNLABELLED, GenerateConfig
from geoseg_gan.synthesis.writer import (
    Layout,
    PairFiles,
    PairWriter,
    merge_manifest,
    stored_facts,
)
from geoseg_gan.utils.distributed import launch, open_fabric, share_of, where_in_words
from geoseg_gan.utils.errors import LARGEST_SEED, UserError, check_choice, check_range, plural
from geoseg_gan.utils.files import write_json
from geoseg_gan.utils.tables import percent

SOURCES = ("masks", UNLABELLED)
"""What pairs are made from."""

_TRIES = 10  # candidates for each pair that keep asks for
MOST = 10_000_000
"""How many candidates or images a folder can have."""
_PILOT = 256  # candidates whose scores tau=auto looks at

_MAY_DIFFER_ON_RERUN = {
    *("save_dir", "gen_ckpt", "segmenter_ckpt", "num_samples", "keep"),
    *("bs", "num_workers", "devices", "trainer", "mask_path", "overlap"),
    *("source", "unlabelled", "true_masks", "confidence", "tta"),
}


def generate(config: GenerateConfig) -> dict[str, float]:
    """Samples training masks, jitters them, generates their images, and saves the good pairs.

    With `mask_path` it renders that mask in place of all this (see `synthesis.scene`); with
    `source=unlabelled` a segmenter labels images (see `synthesis.pseudo_labels`).

    The same seed gives the same pairs whatever the batch size and the number of workers and
    devices; calling again continues where an interrupted call stopped.

    Args:
        config: Which generator, how many pairs, which segmenter scores them, and where to.

    Returns:
        How many candidates the folder lists, as "generated", and how many are kept, as "pairs".

    Raises:
        UserError: If configuration, checkpoint, data or folder are not as they must be.
    """
    return launch(_generate, with_files(config), check, holds="save_dir")


def _generate(config: GenerateConfig) -> dict[str, float]:
    fabric = open_fabric(config.trainer)
    if config.mask_path is not None:
        return generate_scene(config, fabric.device)
    if config.source == UNLABELLED:
        return label_images(config, fabric)
    with fabric.rank_zero_first():  # what it caches, the others find
        inputs = open_inputs(config, fabric)
    folder, facts = Path(config.save_dir), facts_of(config, inputs)
    files = PairFiles(
        folder, cast(Layout, config.layout), inputs.reader, inputs.generator.facts.scaling
    )
    leads = fabric.is_global_zero
    if leads:
        _begin(folder, facts, config, inputs)
    fabric.barrier()
    stored = stored_facts(folder, facts) or {}
    tau = float(stored.get("tau", 0.0))
    # tau=auto can come to 0 too, and drops what scores 0 then.
    limit = None if config.tau == 0 else tau
    losses = stored.get("class_losses", ())
    pair_filter = PairFilter(inputs.recognizer, limit, config.alpha, losses)
    listed = read_manifest(folder)
    # An interrupted call of several processes may have left gaps.
    todo = sorted(set(range(_end(config))) - _indices(listed))
    if leads:
        _print_start(config, inputs, where_in_words(fabric), todo, len(listed))
    _write_pairs(config, inputs, fabric, files, pair_filter, todo, listed)
    fabric.barrier()
    if not leads:
        return {}
    merge_manifest(folder)
    return _report(config, inputs, files, tau)


def facts_of(config: GenerateConfig, inputs: Inputs) -> dict[str, Any]:
    """What `generation.json` says; a rerun in the same folder must agree with it."""
    settings = {k: v for k, v in plain(config).items() if k not in _MAY_DIFFER_ON_RERUN}
    generator, recognizer = inputs.generator, inputs.recognizer
    data, index_map = generator.facts.config["data"], inputs.reader.to_dict()["index_map"]
    return {
        "format": 1,
        "checkpoint": {"sha256": generator.digest, "epoch": generator.epoch}
        if config.needs_generator
        else None,
        "segmenter": None if recognizer is None else {"sha256": recognizer.digest},
        "data": {"train": fingerprint(inputs.index)},
        "masks": len(inputs.index.pairs),
        "palette": generator.facts.palette.to_dict(),
        "mask_format": data["mask_format"],
        **({} if index_map is None else {"index_map": index_map}),
        "gsd": data["gsd"],
        "image_size": inputs.candidates.image_size,
        "config": {**settings, "data_root": str(inputs.root)},
    }


def _begin(folder: Path, facts: dict[str, Any], config: GenerateConfig, inputs: Inputs) -> None:
    """Makes the folder, or sees that it holds pairs of this generation."""
    stored, recognizer = stored_facts(folder, facts), inputs.recognizer
    found = dict(stored or facts)
    if recognizer is not None and "tau" not in found:
        found["tau"] = _choose_tau(config, inputs, recognizer)
    # Earlier versions kept class losses beside the segmenter.
    if recognizer is not None and config.alpha is not None and "class_losses" not in found:
        fit, size = inputs.generator.facts.config["data"]["fit"], inputs.candidates.image_size
        real = inputs.index, inputs.reader, fit, size
        found["class_losses"] = measure_class_losses(recognizer, *real)
    if found != stored:
        write_json(folder / GENERATION, found)
    merge_manifest(folder)


def _choose_tau(config: GenerateConfig, inputs: Inputs, recognizer: Recognizer) -> float:
    """The threshold; for tau=auto from the scores of the first candidates."""
    if config.tau != AUTO:
        return float(config.tau)
    count = min(_PILOT, _end(config))
    pairs = generate_and_filter(
        inputs.generator,
        inputs.candidates,
        _batches(range(count), config.bs),
        PairFilter(recognizer),
        num_workers=inputs.workers,
        device=inputs.device,
    )
    scores = [pair.decision.score for pair in track(pairs, "Choosing tau", total=count)]
    size, held_out = inputs.candidates.image_size, recognizer.held_out or []
    if recognizer.window not in (None, size):
        warnings.warn(
            f"tau=auto compares pairs of {size} px with real windows of {recognizer.window} px, "
            f"which hold other numbers of classes. Train the segmenter with image_size={size}.",
            stacklevel=2,
        )
    tau, reached = choose_tau([score for score in scores if score is not None], held_out)
    real = f"the mean of real held-out windows, {percent(float(np.nanmean(held_out)))} %"
    pilot, chosen = plural(count, "candidate"), f"tau=auto: {tau:.4g} ({percent(tau)} %)"
    print(
        f"{chosen}; those of {pilot} that score above it reach {real}."
        if reached
        else f"{chosen}, which keeps the best tenth of {pilot}. No more than that reach "
        f"{real}: images do not follow their masks well enough."
    )
    return tau


def _end(config: GenerateConfig) -> int:
    """The number after that of the last candidate."""
    return config.num_samples if config.keep is None else _TRIES * config.keep


def _indices(listed: Sequence[Line]) -> set[int]:
    return {line["index"] for line in listed}


def _print_start(
    config: GenerateConfig, inputs: Inputs, where: str, todo: Sequence[int], listed: int
) -> None:
    manifest = Path(config.save_dir) / MANIFEST
    if not todo:
        key = "num_samples" if config.keep is None else "keep"
        print(
            f"Nothing to generate: {manifest} lists {plural(listed, 'pair')}, and "
            f"{key}={getattr(config, key)} asks for no more."
        )
        return
    size, variants = inputs.candidates.image_size, config.variants
    count, masks = len(todo), len({index // variants for index in todo})
    if config.keep is not None:
        what, of = "pairs", f"{variants} images of each mask"
    else:
        up_to = "" if count == masks * variants else "up to "
        what, of = plural(count, "pair"), f"{plural(masks, 'mask')}, {up_to}{variants} images each"
    what += f" ({of})" if variants > 1 else ""
    means = "from regions of real tiles"
    if config.needs_generator:
        means = f"with a generator of {plural(inputs.generator.epoch, 'epoch')}"
    goal = config.keep and f", until {plural(config.keep, 'pair')} can be kept"
    print(
        f"Generating {what} of {size}x{size} px on {where} from "
        f"{plural(len(inputs.index.pairs), 'mask')} of {inputs.root / 'train'}, {means}, into "
        f"{config.save_dir}{goal or ''}."
    )
    if listed:
        print(f"Going on: {plural(listed, 'pair')} listed in {manifest}.")


def _write_pairs(
    config: GenerateConfig,
    inputs: Inputs,
    fabric: Fabric,
    files: PairFiles,
    pair_filter: PairFilter,
    todo: Sequence[int],
    listed: Sequence[Line],
) -> None:
    """Generates, filters and saves pairs, in rounds of which each process has a share.

    With `keep`, all learn after each round which of its candidates would be kept. Only those up to
    the last one that is wanted are saved and listed, as with one process.
    """
    rounds = _batches(todo, config.bs * fabric.world_size)
    shares = [share_of(fabric, len(numbers), 1) for numbers in rounds]
    mine = [numbers[s.start : s.stop] for numbers, s in zip(rounds, shares, strict=True)]
    pairs = generate_and_filter(
        inputs.generator,
        inputs.candidates,
        [numbers for numbers in mine if numbers],
        pair_filter,
        num_workers=inputs.workers,
        device=inputs.device,
    )
    kept, last_listed = sum(line["kept"] for line in listed), max(_indices(listed), default=-1)
    title = "Generating pairs" if inputs.recognizer is None else "Generating and scoring pairs"
    # What is asked for is what the bar counts: candidates, or kept pairs.
    total, done = _end(config), len(listed)
    if config.keep is not None:
        total, done = config.keep, kept
    with (
        closing(pairs),
        Progress(disable=not fabric.is_global_zero or not todo) as bar,
        PairWriter(files, fabric.global_rank) as writer,
    ):
        task = bar.add_task(title, total=total, completed=done)
        for numbers, share in zip(rounds, shares, strict=True):
            gaps = sum(number < last_listed for number in numbers)  # all belong to what is listed
            if config.keep is not None and kept >= config.keep and not gaps:
                break
            found = list(islice(pairs, len(share)))
            end = advance = len(numbers)
            if config.keep is not None:
                flags = _kept_flags(fabric, found, share, len(numbers))
                kept_before = kept + flags.cumsum(0) - flags
                end = max(gaps, int((kept_before < config.keep).sum()))
                advance = int(flags[:end].sum())
                kept += advance
            writer.add(found[: max(0, end - share.start)])
            bar.advance(task, advance)


def _batches(numbers: Sequence[int], size: int) -> list[list[int]]:
    return [list(numbers[at : at + size]) for at in range(0, len(numbers), size)]


def _kept_flags(
    fabric: Fabric, found: Sequence[GeneratedPair], share: range, count: int
) -> torch.Tensor:
    """Which of a round's `count` candidates all processes would keep, (N,), 0 or 1."""
    flags = torch.zeros(count, dtype=torch.int32, device=fabric.device)
    kept = [int(pair.decision.kept) for pair in found]
    flags[share.start : share.stop] = torch.tensor(kept, dtype=torch.int32)
    return cast(torch.Tensor, fabric.all_reduce(flags, reduce_op="sum")).cpu()


def _report(
    config: GenerateConfig, inputs: Inputs, files: PairFiles, tau: float
) -> dict[str, float]:
    """Shows what the folder holds now; returns the main figures."""
    recognizer, candidates = inputs.recognizer, inputs.candidates
    manifest = read_manifest(files.folder)
    kept = [line["index"] for line in manifest if line["kept"]]
    write_contact_sheet(files, kept, config.variants)
    if recognizer is not None:
        write_histogram(files, manifest, tau, recognizer.held_out or [])
        write_extremes(files, manifest, candidates, inputs.generator, recognizer, inputs.device)
    print_shares(
        inputs.reader.palette,
        inputs.index.class_shares(),
        expected_shares(candidates.weights, inputs.index.pixels),
        realised_shares(files, kept),
    )
    print_outcome(files.folder, manifest, None if recognizer is None else tau)
    if config.keep is not None and len(kept) < config.keep:
        print(
            f"Gave up at {_end(config)} candidates: kept {len(kept)} of the "
            f"{config.keep} asked for. Lower tau."
        )
    return {"generated": float(len(manifest)), "pairs": float(len(kept))}


def check(config: GenerateConfig) -> None:
    """Refuses, with a UserError, a configuration before anything slow starts or is written."""
    for key, most in (
        *(("num_samples", MOST), ("keep", MOST // _TRIES)),
        *(("variants", 1000), ("bs", LARGEST_BATCH), ("image_size", LARGEST_SIDE)),
    ):
        check_range(key, getattr(config, key), 1, most)
    check_choice("source", config.source, SOURCES)
    check_scene(config)
    check_range("num_workers", config.num_workers, 0, 1024)
    check_range("seed", config.seed, 0, LARGEST_SEED)
    check_choice("layout", config.layout, get_args(Layout))
    check_choice("sampling", config.sampling, SAMPLINGS)
    check_filter(config.tau, config.alpha)
    config.onnx.check()
    config.trainer.check(config.devices)
    if config.source == UNLABELLED:
        check_labelling(config)
        stored_facts(Path(config.save_dir), {})
        return
    if config.mask_path is None:
        config.compose.check(config.jitter.transplant.p)
    without = config.segmenter_ckpt or ""
    if config.gen_ckpt is None and (config.needs_generator or not without.endswith(".pt")):
        advice = "give the generator, as in gen_ckpt=G_e050.pt"
        if not config.needs_generator:
            advice += ", or the segmenter whose data exemplars are taken from, as in "
            advice += "segmenter_ckpt=segmenter.pt"
        raise UserError(f"gen_ckpt is not set: {advice}.")
    if config.unlabelled is not None:
        raise UserError(f"unlabelled={config.unlabelled} is labelled by source=unlabelled: set it.")
    if config.segmenter_ckpt is None:
        keys = [k for k in ("keep", "alpha", "class_map") if getattr(config, k) is not None]
        keys += ["tau"] * (config.tau == AUTO)
        if keys:
            raise UserError(
                f"{keys[0]}={getattr(config, keys[0])} needs a segmenter to score by: set "
                "segmenter_ckpt to a segmenter.pt that train_segmenter wrote, or to an ONNX model."
            )
    if config.mask_path is not None:
        return
    if config.style_from is not None and not config.compose.match and config.needs_generator:
        raise UserError(
            f"style_from={config.style_from}: compose.match=0 leaves colours as they are. Set it "
            "above 0, e.g. compose.match=1, or compose.source=exemplars."
        )
    stored_facts(Path(config.save_dir), {})
