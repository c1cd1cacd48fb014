"""The generate command: from a generator and training masks to new image-mask pairs."""

import math
import warnings
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from rich.progress import Progress, track

from geoseg_gan.config import plain
from geoseg_gan.data.images import MaskReader
from geoseg_gan.data.palette import class_ids
from geoseg_gan.data.scan import FolderIndex, check_sizes, scan
from geoseg_gan.data.split import split_pairs
from geoseg_gan.data.synthetic import GENERATION
from geoseg_gan.data.transplant import Transplanter
from geoseg_gan.distributed import run_together
from geoseg_gan.generate_rounds import Line, Rounds, plan_rounds
from geoseg_gan.models.checkpoints import LoadedGenerator, load_generator
from geoseg_gan.synthesis.candidates import CandidateMasks, check_variants
from geoseg_gan.synthesis.compose import Styles
from geoseg_gan.synthesis.filter import (
    AUTO,
    Judge,
    check_can_ignore,
    check_filter,
    choose_tau,
    paint_and_judge,
)
from geoseg_gan.synthesis.generate_images import default_workers
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
from geoseg_gan.synthesis.settings import GenerateConfig
from geoseg_gan.synthesis.writer import (
    MANIFEST,
    Layout,
    Manifest,
    PairWriter,
    read_manifest,
    stored_facts,
)
from geoseg_gan.team import Team
from geoseg_gan.utils.errors import UserError, check_choice, plural
from geoseg_gan.utils.files import write_json

_TRIES = 10  # candidates for each pair that keep asks for


_FREE_TO_CHANGE = (
    "save_dir",
    "gen_ckpt",
    "segmenter_ckpt",
    "num_samples",
    "keep",
    "max_tries",
    "bs",
    "num_workers",
    "devices",
    "trainer",
)


@dataclass(frozen=True)
class Opened:
    """What pairs are painted from, and judged by.

    Attributes:
        generator: Paints them.
        recognizer: Judges them; None where nothing is judged.
        candidates: The masks.
        index: What is known of the training pairs.
        reader: Reads and writes masks.
        root: The data folder.
        device: Where networks are.
        workers: Processes that read and jitter masks.
    """

    generator: LoadedGenerator
    recognizer: Recognizer | None
    candidates: CandidateMasks
    index: FolderIndex
    reader: MaskReader
    root: Path
    device: torch.device
    workers: int


def open_inputs(config: GenerateConfig, team: Team) -> Opened:
    """Loads networks and lists the masks; nothing is written but what other calls may use too.

    Raises:
        UserError: If a checkpoint or the data are not as they must be.
    """
    device = team.device(config.trainer)
    generator = load_generator(Path(config.gen_ckpt), device)
    check_variants(config.variants, generator.network)
    trained = generator.facts.config
    root = Path(config.data_root or trained["data_root"])
    palette = generator.facts.palette
    reader = MaskReader(palette, trained["data"]["mask_format"], trained["data"]["unknown"])
    pairs, _ = split_pairs(root, trained)
    index = scan(pairs, reader)
    size = config.image_size or trained["image_size"]
    check_pair_size(size, generator.network.stride, trained["image_size"], trained["data"]["fit"])
    if trained["data"]["fit"] == "crop":
        check_sizes(index, size)
    recognizer = _open_recognizer(config, generator, index, reader, device, size)
    candidates = _open_candidates(config, generator, index, reader, recognizer, size)
    workers = config.num_workers
    if workers is None:
        workers = default_workers(device, team.neighbours)
    return Opened(generator, recognizer, candidates, index, reader, root, device, workers)


def check_pair_size(size: int, stride: int, trained: int, fit: str, key: str = "") -> None:
    """Refuses pairs of a size that a generator cannot paint.

    Args:
        size: Side of the pairs in pixels.
        stride: The generator's.
        trained: Side of the images that it is trained on.
        fit: How these are made of tiles.
        key: Where the size stands in the configuration, ending in a dot.

    Raises:
        UserError: If the size is no multiple of the stride, or changes the scale of the ground.
    """
    if size % stride:
        raise UserError(f"{key}image_size={size}: this generator paints multiples of {stride} px.")
    if fit == "resize" and size != trained:
        raise UserError(
            f"{key}image_size={size}: the generator sees whole tiles resized to {trained} px "
            "(data.fit=resize), and at another size the ground would have another scale. Leave "
            "it away."
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
    facts = generator.facts
    check_can_ignore(config.alpha, reader)
    recognizer = load_recognizer(
        Path(config.segmenter_ckpt),
        facts.palette,
        facts.scaling,
        size,
        device,
        config.class_map,
        config.onnx,
    )
    if config.tau == AUTO and not recognizer.held_out:
        raise UserError(
            f"tau=auto compares with real pairs held out of the segmenter's training, of which "
            f"{config.segmenter_ckpt} knows none. Train it with inner_share above 0, or give tau a "
            "number."
        )
    if recognizer.class_losses is None and (config.alpha or config.sampling == "hard"):
        return with_class_losses(
            recognizer,
            Path(config.segmenter_ckpt),
            config.onnx,
            index,
            reader,
            facts.scaling,
            facts.config["data"]["fit"],
            size,
        )
    return recognizer


def _open_candidates(
    config: GenerateConfig,
    generator: LoadedGenerator,
    index: FolderIndex,
    reader: MaskReader,
    recognizer: Recognizer | None,
    size: int,
) -> CandidateMasks:
    trained = generator.facts.config
    losses = None if recognizer is None else recognizer.class_losses
    uniform = config.sampling == "uniform"
    stop = config.num_samples
    if config.keep is not None:
        stop = config.max_tries or _TRIES * config.keep
    grafts = config.jitter.transplant.p > 0
    return CandidateMasks(
        index.pairs,
        reader,
        image_size=size,
        fit=trained["data"]["fit"],
        jitter=config.jitter,
        seed=config.seed,
        start=0,
        stop=stop,
        weights=None if uniform else mask_weights(config.sampling, index.pixels, losses),
        required=class_ids(config.require_classes, reader.palette, "require_classes"),
        pixels=index.pixels,
        transplanter=(
            Transplanter.of_masks(config.jitter.transplant, index, reader) if grafts else None
        ),
        variants=config.variants,
        compose=config.compose,
        styles=(
            Styles.of_tiles(index.pairs, reader, generator.facts.scaling)
            if config.compose.match
            else None
        ),
    )


def facts_of(config: GenerateConfig, opened: Opened) -> dict[str, Any]:
    """What `generation.json` says, and a call that goes on must repeat."""
    settings = {k: v for k, v in plain(config).items() if k not in _FREE_TO_CHANGE}
    generator, recognizer = opened.generator, opened.recognizer
    trained = generator.facts.config
    return {
        "format": 1,
        "checkpoint": {"sha256": generator.digest, "epoch": generator.epoch},
        "segmenter": None if recognizer is None else {"sha256": recognizer.digest},
        "masks": len(opened.index.pairs),
        "palette": generator.facts.palette.to_dict(),
        "mask_format": trained["data"]["mask_format"],
        "gsd": trained["data"]["gsd"],
        "image_size": opened.candidates.image_size,
        "config": {**settings, "data_root": str(opened.root)},
    }


_PILOT = 256  # candidates whose scores tau=auto looks at


def generate(config: GenerateConfig) -> dict[str, float]:
    """Samples training masks, jitters and paints them, and saves the pairs that are good enough.

    The same seed gives the same pairs whatever the batch size and the number of workers and
    devices; calling again goes on where an interrupted call stopped.

    Args:
        config: Which generator, how many pairs, which segmenter judges them, and where to.

    Returns:
        How many candidates the folder lists, as "painted", and how many are kept, as "pairs".

    Raises:
        UserError: If configuration, checkpoint, data or folder are not as they must be.
    """
    return run_together(_generate, config)


def _generate(config: GenerateConfig, team: Team) -> dict[str, float]:
    check(config)
    with team.leader_first():
        opened = open_inputs(config, team)
    # Rank 0 alone looks at the folder, since it is also the one that changes it.
    tau, done, kept = team.share(_begin(config, opened, team) if team.leads else (0.0, 0, 0))[0]
    candidates, generator = opened.candidates, opened.generator
    candidates.start = done
    wanted = None if config.keep is None else max(0, config.keep - kept)
    rounds = plan_rounds(done, candidates.stop, config.bs, team, wanted)
    judged = paint_and_judge(
        generator,
        candidates,
        [batch for batches in rounds for batch in batches],
        Judge(opened.recognizer, tau, config.alpha),
        num_workers=opened.workers,
        device=opened.device,
    )
    folder, written = Path(config.save_dir), list[Line]()
    title = "Painting" if opened.recognizer is None else "Painting and judging"
    with (
        closing(judged),
        Manifest(folder) if team.leads else nullcontext() as manifest,
        Progress(disable=not team.leads) as bar,
    ):
        # What is asked for is what the bar counts: kept pairs, or candidates.
        total, before = (candidates.stop, done) if config.keep is None else (config.keep, kept)
        task = bar.add_task(title, total=total, completed=before)

        def progress(candidates: int, kept: int) -> None:
            bar.advance(task, candidates if config.keep is None else kept)

        listing = written.append if manifest is None else manifest.add
        layout = cast(Layout, config.layout)
        with PairWriter(folder, layout, opened.reader, generator.facts.scaling, listing) as writer:
            together = Rounds(team, writer, written, manifest, wanted, progress)
            together.run(judged, rounds)
        together.finish()
    return _report(config, opened, writer, tau) if team.leads else {}


def _begin(config: GenerateConfig, opened: Opened, team: Team) -> tuple[float, int, int]:
    """Opens the folder: the threshold, how many candidates it lists, and how many kept pairs."""
    folder = Path(config.save_dir)
    facts = facts_of(config, opened)
    stored = stored_facts(folder, facts)
    if stored is None:
        tau = _choose_tau(config, opened)
        write_json(
            folder / GENERATION, facts if opened.recognizer is None else facts | {"tau": tau}
        )
    else:
        tau = stored.get("tau", 0.0)
    manifest = read_manifest(folder)
    opened.candidates.start = len(manifest)
    _say_start(config, opened, team, len(manifest))
    return tau, len(manifest), sum(line["kept"] for line in manifest)


def _report(
    config: GenerateConfig, opened: Opened, writer: PairWriter, tau: float
) -> dict[str, float]:
    """Shows and tells what the folder holds now; the main figures."""
    folder, recognizer, candidates = Path(config.save_dir), opened.recognizer, opened.candidates
    manifest = read_manifest(folder)
    kept = [line["index"] for line in manifest if line["kept"]]
    write_contact_sheet(writer, kept, config.variants)
    if recognizer is not None:
        write_histogram(writer, manifest, tau, recognizer.held_out or [])
        write_extremes(writer, manifest, candidates, opened.generator, recognizer, opened.device)
    print_shares(
        opened.reader.palette,
        opened.index.class_shares(),
        expected_shares(candidates.weights, opened.index.pixels),
        realised_shares(writer, kept),
    )
    print_outcome(folder, manifest, None if recognizer is None else tau)
    if config.keep is not None and len(kept) < config.keep:
        print(
            f"Gave up at max_tries={candidates.stop}: kept {len(kept)} of the {config.keep} asked "
            "for. Raise max_tries, or lower tau."
        )
    return {"painted": float(len(manifest)), "pairs": float(len(kept))}


def check(config: GenerateConfig) -> None:
    """Refuses a configuration before anything slow starts or anything is written.

    Raises:
        UserError: Naming the key, its value and what to do.
    """
    for key in ("num_samples", "variants", "bs", "keep", "max_tries", "image_size"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise UserError(f"{key}={value} must be 1 or more.")
    if (config.num_workers or 0) < 0 or config.seed < 0:
        raise UserError(
            f"num_workers={config.num_workers} and seed={config.seed} must be 0 or more."
        )
    check_choice("layout", config.layout, get_args(Layout))
    check_choice("sampling", config.sampling, SAMPLINGS)
    check_filter(config.tau, config.alpha)
    if config.segmenter_ckpt is None:
        keys = [k for k in ("keep", "alpha", "class_map") if getattr(config, k) is not None]
        keys += ["tau"] * (config.tau == AUTO) + ["sampling"] * (config.sampling == "hard")
        if keys:
            raise UserError(
                f"{keys[0]}={getattr(config, keys[0])} needs a segmenter to judge by: set "
                "segmenter_ckpt to a segmenter.pt that train_segmenter wrote, or to an ONNX model."
            )
    if config.max_tries is not None and config.max_tries < (config.keep or math.inf):
        raise UserError(
            f"max_tries={config.max_tries} bounds keep={config.keep}: set keep, and max_tries to "
            "at least as many."
        )
    config.onnx.check()
    config.trainer.check(config.devices)
    config.compose.check(config.jitter.transplant.p)


def _choose_tau(config: GenerateConfig, opened: Opened) -> float:
    """The threshold; for tau=auto from the scores of the first candidates."""
    recognizer, candidates = opened.recognizer, opened.candidates
    if recognizer is None or config.tau != AUTO:
        return float(config.tau)
    held_out = recognizer.held_out or []
    count = min(_PILOT, len(candidates))
    first = [list(range(at, min(count, at + config.bs))) for at in range(0, count, config.bs)]
    judged = paint_and_judge(
        opened.generator,
        candidates,
        first,
        Judge(recognizer),
        num_workers=opened.workers,
        device=opened.device,
    )
    scores = [
        one.verdict.score
        for one in track(judged, "Choosing tau", total=count)
        if one.verdict.score is not None
    ]
    size = candidates.image_size
    if recognizer.window not in (None, size):
        warnings.warn(
            f"tau=auto compares pairs of {size} px with real windows of {recognizer.window} px, "
            f"which hold other numbers of classes. Train the segmenter with image_size={size}.",
            stacklevel=2,
        )
    tau, reached = choose_tau(scores, held_out)
    real = f"the mean of real held-out windows, {np.nanmean(held_out):.3f}"
    seen = plural(count, "candidate")
    if reached:
        print(f"tau=auto: {tau:.4g}; those of {seen} that score above it reach {real}.")
    else:
        print(
            f"tau=auto: {tau:.4g}, which keeps the best tenth of {seen}. No more than that reach "
            f"{real}: the generator does not obey its masks well enough."
        )
    return tau


def _say_start(config: GenerateConfig, opened: Opened, team: Team, done: int) -> None:
    candidates, generator = opened.candidates, opened.generator
    size = candidates.image_size
    where = team.where(config.trainer)
    count, masks, variants = len(candidates), candidates.num_masks, config.variants
    up_to = "" if count == masks * variants else "up to "
    what, of = plural(count, "pair"), f"{plural(masks, 'mask')}, {up_to}{variants} images each"
    goal = ""
    if config.keep is not None:
        what, of = "pairs", f"{variants} images of each mask"
        goal = f", until {plural(config.keep, 'pair')} can be kept"
    if variants > 1 and count:
        what += f" ({of})"
    print(
        f"Painting {what} of {size}x{size} px on {where} from "
        f"{plural(len(candidates.pairs), 'mask')} of {opened.root / 'train'}, with a generator of "
        f"{plural(generator.epoch, 'epoch')}, into {config.save_dir}{goal}."
    )
    if done:
        print(f"Going on: {plural(done, 'pair')} listed in {Path(config.save_dir) / MANIFEST}.")
