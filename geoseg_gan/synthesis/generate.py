"""The generate command: new image-mask pairs from training masks, or from unlabelled images."""

import math
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from lightning.fabric import Fabric
from rich.progress import Progress, track

from geoseg_gan.config import plain
from geoseg_gan.data.dataset import PairSource
from geoseg_gan.data.exemplars import Exemplars
from geoseg_gan.data.fingerprint import change_in, fingerprint
from geoseg_gan.data.masks import MaskReader, stored_mask_reader
from geoseg_gan.data.palette import class_ids
from geoseg_gan.data.scan import FolderIndex, check_same_type, check_sizes, scan
from geoseg_gan.data.settings import LARGEST_SIDE
from geoseg_gan.data.split import split_pairs
from geoseg_gan.data.styles import Styles
from geoseg_gan.data.synthetic import (
    GENERATION,
    MANIFEST,
    Line,
    check_synthetic,
    read_manifest,
    read_synthetic,
)
from geoseg_gan.data.transplant import Transplanter
from geoseg_gan.models.checkpoints import (
    LoadedGenerator,
    RunFacts,
    load_generator,
    load_segmenter,
)
from geoseg_gan.models.generators.noise import NoiseSpec
from geoseg_gan.synthesis.candidates import CandidateMasks, check_variants
from geoseg_gan.synthesis.filter import (
    AUTO,
    GeneratedPair,
    PairFilter,
    check_can_ignore,
    check_filter,
    choose_tau,
    generate_and_filter,
)
from geoseg_gan.synthesis.generate_images import default_workers
from geoseg_gan.synthesis.pseudo_labels import check as check_labelling
from geoseg_gan.synthesis.pseudo_labels import label_images
from geoseg_gan.synthesis.recognizer import Recognizer, load_recognizer, with_class_losses
from geoseg_gan.synthesis.report import (
    print_outcome,
    print_shares,
    realised_shares,
    write_contact_sheet,
    write_extremes,
    write_histogram,
)
from geoseg_gan.synthesis.sampling import SAMPLINGS, expected_shares, mask_weights
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
from geoseg_gan.utils.files import check_apart, write_json

SOURCES = ("masks", UNLABELLED)
"""What pairs are made from."""

_TRIES = 10  # candidates for each pair that keep asks for
MOST = 10_000_000
"""How many candidates or images a folder can have."""
_PILOT = 256  # candidates whose scores tau=auto looks at

_MAY_DIFFER_ON_RERUN = {
    *("save_dir", "gen_ckpt", "segmenter_ckpt", "num_samples", "keep", "max_tries"),
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
    return launch(_generate, config, check, holds="save_dir")


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
    tau = float((stored_facts(folder, facts) or {}).get("tau", 0.0))
    listed = read_manifest(folder)
    # An interrupted call of several processes may have left gaps.
    todo = sorted(set(range(_end(config))) - _indices(listed))
    if leads:
        _print_start(config, inputs, where_in_words(fabric), todo, len(listed))
    _write_pairs(config, inputs, fabric, files, tau, todo, listed)
    fabric.barrier()
    if not leads:
        return {}
    merge_manifest(folder)
    return _report(config, inputs, files, tau)


@dataclass(frozen=True)
class Inputs:
    """What pairs are generated from, and scored by if there is a recognizer."""

    generator: LoadedGenerator  # where exemplars take its place, of its facts alone
    recognizer: Recognizer | None
    candidates: CandidateMasks
    index: FolderIndex
    reader: MaskReader
    root: Path
    device: torch.device
    workers: int


def open_inputs(config: GenerateConfig, fabric: Fabric) -> Inputs:
    """Loads networks and lists the masks; writes nothing but caches.

    Raises:
        UserError: If a checkpoint or the data are not as they must be.
    """
    device = fabric.device
    generator = _open_generator(config, device)
    if config.needs_generator:
        check_variants(config.variants, generator.network)
    trained = generator.facts.config
    root = Path(config.data_root or trained["data_root"])
    check_apart("save_dir", Path(config.save_dir), root)
    palette = generator.facts.palette
    reader = stored_mask_reader(palette, trained["data"])
    fitted, held_out = split_pairs(root, trained)
    whole = scan([*fitted, *held_out], reader)
    if root == Path(trained["data_root"]):
        _warn_of_change(generator, whole, root)
    index = whole.rows(range(len(fitted)))
    if config.compose.generate != "all" or config.compose.match or not config.needs_generator:
        # Real images are shown or measured.
        generator.facts.scaling.check_fits(index, root)
    size = config.image_size or trained["image_size"]
    check_pair_size(size, generator.network.stride, trained["image_size"], trained["data"]["fit"])
    if trained["data"]["fit"] == "crop":
        check_sizes(index, size, "Set image_size={} or less.")
    recognizer = _open_recognizer(config, generator, index, reader, device, size)
    candidates = _open_candidates(config, generator, index, reader, recognizer, size)
    workers = config.num_workers
    if workers is None:
        sharing = min(fabric.world_size, max(1, torch.cuda.device_count()))
        workers = default_workers(device, sharing)
    return Inputs(generator, recognizer, candidates, index, reader, root, device, workers)


class _NoNetwork:
    """Stands where exemplars are laid together, and no network is run."""

    def __init__(self) -> None:
        self.noise = NoiseSpec(0, 0, 0)
        self.stride = 1

    def __call__(self, one_hot: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("images are laid together from exemplars")


def _open_generator(config: GenerateConfig, device: torch.device) -> LoadedGenerator:
    """The generator; without one, what a segmenter knows of the data it was trained on."""
    if config.gen_ckpt is not None:
        return load_generator(Path(config.gen_ckpt), device)
    path = Path(config.segmenter_ckpt or "")
    segmenter = load_segmenter(path)
    if "data_root" not in segmenter.facts.config:
        raise UserError(
            f"segmenter_ckpt={path} does not know what data it was trained on. Give a segmenter.pt "
            "that train_segmenter wrote, or gen_ckpt."
        )
    return LoadedGenerator(_NoNetwork(), segmenter.facts, segmenter.epoch, segmenter.digest)


def _warn_of_change(generator: LoadedGenerator, index: FolderIndex, root: Path) -> None:
    """Warns where the training pairs are others than when the generator was trained on them."""
    stored = {k: v for k, v in (generator.facts.data or {}).items() if k == "train"}
    if change := change_in(stored or None, {"train": fingerprint(index)}):
        warnings.warn(f"{root} has changed since the generator's training: {change}.", stacklevel=2)


def check_pair_size(size: int, stride: int, trained: int, fit: str, key: str = "") -> None:
    """Refuses pairs of a size that a generator cannot make.

    Args:
        size: Side of the pairs in pixels.
        stride: The generator's.
        trained: Side of the images that it is trained on, which `fit` makes of tiles.
        fit: "crop" or "resize".
        key: Where the size stands in the configuration, ending in a dot.

    Raises:
        UserError: If the size is no multiple of the stride, or changes the metres per pixel.
    """
    if size % stride:
        raise UserError(
            f"{key}image_size={size}: this generator makes images of multiples of {stride} px."
        )
    if fit == "resize" and size != trained:
        raise UserError(
            f"{key}image_size={size}: training saw whole tiles resized to {trained} px "
            "(data.fit=resize), and at another size a pixel would show another length on the "
            "ground. Leave it out."
        )


def _open_recognizer(
    config: GenerateConfig,
    generator: LoadedGenerator,
    index: FolderIndex,
    reader: MaskReader,
    device: torch.device,
    size: int,
) -> Recognizer | None:
    if config.segmenter_ckpt is None:
        return None
    facts, path = generator.facts, Path(config.segmenter_ckpt)
    check_can_ignore(config.alpha, reader)
    recognizer = load_recognizer(
        path, facts.palette, facts.scaling, size, device, config.class_map, config.onnx
    )
    if config.tau == AUTO and not recognizer.held_out:
        raise UserError(
            f"tau=auto compares with real pairs held out of the segmenter's training, of which "
            f"{path} knows none. Train it with inner_share above 0, or give tau a number."
        )
    if recognizer.class_losses is None and (config.alpha or config.sampling == "hard"):
        fit = facts.config["data"]["fit"]
        return with_class_losses(
            recognizer, path, config.onnx, index, reader, facts.scaling, fit, size
        )
    return recognizer


def _open_look(
    config: GenerateConfig, index: FolderIndex, reader: MaskReader, facts: RunFacts
) -> PairSource:
    """The pairs whose look images take on: the training tiles, or pairs of another ground."""
    if config.style_from is None:
        return PairSource(index.pairs, reader)
    look = read_synthetic(Path(config.style_from), "style_from")
    check_synthetic(look, reader.palette, facts.config["data"]["gsd"], "style_from")
    check_same_type(index, scan(look.pairs, look.reader()))
    return PairSource(look.pairs, look.reader())


def _open_candidates(
    config: GenerateConfig,
    generator: LoadedGenerator,
    index: FolderIndex,
    reader: MaskReader,
    recognizer: Recognizer | None,
    size: int,
) -> CandidateMasks:
    facts, weights, transplanter, styles, exemplars = generator.facts, None, None, None, None
    fit = facts.config["data"]["fit"]
    if config.sampling != "uniform":
        losses = None if recognizer is None else recognizer.class_losses
        weights = mask_weights(config.sampling, index.pixels, losses)
    if config.jitter.transplant.p > 0:
        transplanter = Transplanter.of_masks(config.jitter.transplant, index, reader)
    if config.compose.match or not config.needs_generator:
        look = _open_look(config, index, reader, facts)
        if config.compose.match:
            styles = Styles.of_tiles(look.pairs, look.reader, facts.scaling)
        if not config.needs_generator:
            exemplars = Exemplars(look, facts.palette.num_classes, fit, size)
            if config.style_from is not None:
                _check_exemplars(config, exemplars, index, reader)
    return CandidateMasks(
        pairs=index.pairs,
        reader=reader,
        image_size=size,
        fit=fit,
        jitter=config.jitter,
        compose=config.compose,
        seed=config.seed,
        sampling=weights,
        required=class_ids(config.require_classes, reader.palette, "require_classes"),
        pixels=index.pixels,
        transplanter=transplanter,
        variants=config.variants,
        styles=styles,
        exemplars=exemplars,
    )


def _check_exemplars(
    config: GenerateConfig, exemplars: Exemplars, index: FolderIndex, reader: MaskReader
) -> None:
    """Warns of classes that the pairs of `style_from` lack, whose pixels are then ignored.

    Raises:
        UserError: If they are required, or pixels cannot be ignored.
    """
    kinds = np.arange(reader.palette.num_classes, dtype=np.uint8)
    lacking = (exemplars.known(kinds[None])[0] != kinds) & (index.pixels[:, :-1] > 0).any(0)
    if not lacking.any():
        return
    names = " and ".join(reader.palette.names[kind] for kind in np.flatnonzero(lacking))
    said = f"style_from={config.style_from} holds no {names}"
    required = class_ids(config.require_classes, reader.palette, "require_classes")
    if lacking[required].any():
        raise UserError(f"{said}, which require_classes asks for. Give a folder with it.")
    if not reader.can_write_ignore:
        raise UserError(
            f"{said}, and the data have no value for pixels that do not count. Give a folder with "
            "these classes, or train on data with one in data.ignore or data.index_map."
        )
    warnings.warn(f"{said}: its pixels will not count.", stacklevel=2)


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
    if stored_facts(folder, facts) is None:
        if inputs.recognizer is not None:
            facts = facts | {"tau": _choose_tau(config, inputs, inputs.recognizer)}
        write_json(folder / GENERATION, facts)
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
    real = f"the mean of real held-out windows, {np.nanmean(held_out):.3f}"
    pilot = plural(count, "candidate")
    print(
        f"tau=auto: {tau:.4g}; those of {pilot} that score above it reach {real}."
        if reached
        else f"tau=auto: {tau:.4g}, which keeps the best tenth of {pilot}. No more than that reach "
        f"{real}: images do not follow their masks well enough."
    )
    return tau


def _end(config: GenerateConfig) -> int:
    """The number after that of the last candidate."""
    return config.num_samples if config.keep is None else config.max_tries or _TRIES * config.keep


def _indices(listed: Sequence[Line]) -> set[int]:
    return {line["index"] for line in listed}


def _print_start(
    config: GenerateConfig, inputs: Inputs, where: str, todo: Sequence[int], listed: int
) -> None:
    manifest = Path(config.save_dir) / MANIFEST
    if not todo:
        key = "num_samples" if config.keep is None else "max_tries"
        print(
            f"Nothing to generate: {manifest} lists {plural(listed, 'pair')}, and "
            f"{key}={_end(config)} asks for no more."
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
    tau: float,
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
        PairFilter(inputs.recognizer, tau, config.alpha),
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
            f"Gave up at max_tries={_end(config)}: kept {len(kept)} of the "
            f"{config.keep} asked for. Raise max_tries, or lower tau."
        )
    return {"generated": float(len(manifest)), "pairs": float(len(kept))}


def check(config: GenerateConfig) -> None:
    """Refuses a configuration before anything slow starts or anything is written.

    Raises:
        UserError: Naming the key, its value and what to do.
    """
    for key, most in (
        *(("num_samples", MOST), ("keep", MOST // _TRIES), ("max_tries", MOST)),
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
        keys += ["tau"] * (config.tau == AUTO) + ["sampling"] * (config.sampling == "hard")
        if keys:
            raise UserError(
                f"{keys[0]}={getattr(config, keys[0])} needs a segmenter to score by: set "
                "segmenter_ckpt to a segmenter.pt that train_segmenter wrote, or to an ONNX model."
            )
    if config.max_tries is not None and config.max_tries < (config.keep or math.inf):
        raise UserError(
            f"max_tries={config.max_tries} bounds keep={config.keep}: set keep, and max_tries to "
            "at least as many."
        )
    if config.mask_path is not None:
        return
    if config.style_from is not None and not config.compose.match and config.needs_generator:
        raise UserError(
            f"style_from={config.style_from}: compose.match=0 leaves colours as they are. Set it "
            "above 0, e.g. compose.match=1, or compose.source=exemplars."
        )
    stored_facts(Path(config.save_dir), {})
