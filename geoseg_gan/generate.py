"""The generate command: from a generator and training masks to new image-mask pairs."""

import math
import warnings
from itertools import islice
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from rich.progress import Progress, track

from geoseg_gan.checkpoints import LoadedGenerator, load_generator
from geoseg_gan.config import command, plain
from geoseg_gan.data.images import MaskReader
from geoseg_gan.data.palette import class_ids
from geoseg_gan.data.scan import FolderIndex, check_sizes, scan
from geoseg_gan.data.split import split_pairs
from geoseg_gan.data.synthetic import FACTS
from geoseg_gan.data.transplant import Transplanter
from geoseg_gan.errors import UserError, check_choice, plural
from geoseg_gan.files import write_json
from geoseg_gan.schemas import GenerateConfig
from geoseg_gan.synthesis.class_losses import with_class_losses
from geoseg_gan.synthesis.filter import AUTO, check_can_ignore, check_filter, choose_tau, score
from geoseg_gan.synthesis.folder import stored_facts
from geoseg_gan.synthesis.judge import Judge
from geoseg_gan.synthesis.masks import CandidateMasks, check_variants
from geoseg_gan.synthesis.paint import paint_candidates
from geoseg_gan.synthesis.recognizer import Recognizer, load_recognizer
from geoseg_gan.synthesis.report import (
    print_outcome,
    print_shares,
    realised_shares,
    write_contact_sheet,
    write_extremes,
    write_histogram,
)
from geoseg_gan.synthesis.sampling import SAMPLINGS, expected_shares, mask_weights
from geoseg_gan.synthesis.writer import MANIFEST, Layout, PairWriter, read_manifest

_PILOT = 256  # candidates whose scores tau=auto looks at
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
    "trainer",
)


def generate(config: GenerateConfig) -> dict[str, float]:
    """Samples training masks, jitters and paints them, and saves the pairs that are good enough.

    The same seed gives the same pairs whatever the batch size and the number of workers; calling
    again goes on where an interrupted call stopped.

    Args:
        config: Which generator, how many pairs, which segmenter judges them, and where to.

    Returns:
        How many candidates the folder lists, as "painted", and how many are kept, as "pairs".

    Raises:
        UserError: If configuration, checkpoint, data or folder are not as they must be.
    """
    check(config)
    device = config.trainer.device()
    generator = load_generator(Path(config.gen_ckpt), device)
    check_variants(config.variants, generator.network)
    trained = generator.facts.config
    root = Path(config.data_root or trained["data_root"])
    palette = generator.facts.palette
    reader = MaskReader(palette, trained["data"]["mask_format"], trained["data"]["unknown"])
    pairs, _ = split_pairs(root, trained)
    index = scan(pairs, reader)
    if trained["data"]["fit"] == "crop":
        check_sizes(index, trained["image_size"])
    recognizer = _open_recognizer(config, generator, index, reader, device)
    candidates = _open_candidates(config, generator, index, reader, recognizer)
    folder = Path(config.save_dir)
    facts = _facts(config, generator, recognizer, root, len(pairs))
    stored = stored_facts(folder, facts)
    if stored is None:
        tau = _choose_tau(config, generator, candidates, recognizer, device)
        write_json(folder / FACTS, facts if recognizer is None else facts | {"tau": tau})
    else:
        tau = stored.get("tau", 0.0)
    manifest = read_manifest(folder)
    candidates.start = len(manifest)
    _say_start(config, generator, root, candidates, manifest)
    layout = cast(Layout, config.layout)
    judge = Judge(recognizer, tau, config.alpha)
    with PairWriter(folder, layout, reader, generator.facts.scaling) as writer:
        _paint(config, generator, candidates, judge, writer, device, manifest)
    manifest = read_manifest(folder)
    kept = [line["index"] for line in manifest if line["kept"]]
    write_contact_sheet(writer, kept, config.variants)
    if recognizer is not None:
        write_histogram(writer, manifest, tau, recognizer.held_out or [])
        write_extremes(writer, manifest, candidates, generator, recognizer, device)
    expected = expected_shares(candidates.weights, index.pixels)
    print_shares(palette, index.class_shares(), expected, realised_shares(writer, kept))
    print_outcome(folder, manifest, None if recognizer is None else tau)
    if config.keep is not None and len(kept) < config.keep:
        print(
            f"Gave up at max_tries={candidates.stop}: kept {len(kept)} of the {config.keep} asked "
            "for. Raise max_tries, or lower tau."
        )
    return {"painted": float(len(manifest)), "pairs": float(len(kept))}


main = command(GenerateConfig)(generate)


def check(config: GenerateConfig) -> None:
    """Refuses a configuration before anything slow starts or anything is written.

    Raises:
        UserError: Naming the key, its value and what to do.
    """
    for key in ("num_samples", "variants", "bs", "keep", "max_tries"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise UserError(f"{key}={value} must be 1 or more.")
    if config.num_workers < 0 or config.seed < 0:
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
    config.trainer.check()
    config.jitter.check()


def _open_recognizer(
    config: GenerateConfig,
    generator: LoadedGenerator,
    index: FolderIndex,
    reader: MaskReader,
    device: torch.device,
) -> Recognizer | None:
    if config.segmenter_ckpt is None:
        return None
    facts = generator.facts
    check_can_ignore(config.alpha, reader)
    recognizer = load_recognizer(
        Path(config.segmenter_ckpt),
        facts.palette,
        facts.scaling,
        facts.config["image_size"],
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
            facts.config["image_size"],
        )
    return recognizer


def _open_candidates(
    config: GenerateConfig,
    generator: LoadedGenerator,
    index: FolderIndex,
    reader: MaskReader,
    recognizer: Recognizer | None,
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
        image_size=trained["image_size"],
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
    )


def _facts(
    config: GenerateConfig,
    generator: LoadedGenerator,
    recognizer: Recognizer | None,
    root: Path,
    masks: int,
) -> dict[str, Any]:
    """What `generation.json` says, and a call that goes on must repeat."""
    settings = {k: v for k, v in plain(config).items() if k not in _FREE_TO_CHANGE}
    trained = generator.facts.config
    return {
        "format": 1,
        "checkpoint": {"sha256": generator.digest, "epoch": generator.epoch},
        "segmenter": None if recognizer is None else {"sha256": recognizer.digest},
        "masks": masks,
        "palette": generator.facts.palette.to_dict(),
        "mask_format": trained["data"]["mask_format"],
        "gsd": trained["data"]["gsd"],
        "image_size": trained["image_size"],
        "config": {**settings, "data_root": str(root)},
    }


def _choose_tau(
    config: GenerateConfig,
    generator: LoadedGenerator,
    candidates: CandidateMasks,
    recognizer: Recognizer | None,
    device: torch.device,
) -> float:
    """The threshold; for tau=auto from the scores of the first candidates."""
    if recognizer is None or config.tau != AUTO:
        return float(config.tau)
    held_out = recognizer.held_out or []
    count = min(_PILOT, len(candidates))
    painted = paint_candidates(
        generator, candidates, batch_size=config.bs, num_workers=config.num_workers, device=device
    )
    scores = [
        score(candidate.label, recognizer.logits(image))
        for candidate, image in track(islice(painted, count), "Choosing tau", total=count)
        if image is not None
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


def _paint(
    config: GenerateConfig,
    generator: LoadedGenerator,
    candidates: CandidateMasks,
    judge: Judge,
    writer: PairWriter,
    device: torch.device,
    manifest: list[dict[str, Any]],
) -> None:
    """Paints, judges and hands on candidates until there are enough."""
    kept = sum(line["kept"] for line in manifest)
    if not len(candidates) or (config.keep is not None and kept >= config.keep):
        return
    painted = paint_candidates(
        generator, candidates, batch_size=config.bs, num_workers=config.num_workers, device=device
    )
    title = "Painting" if judge.recognizer is None else "Painting and judging"
    done = candidates.start if config.keep is None else kept
    with Progress() as bar:
        # What is asked for is what the bar counts: kept pairs, or candidates.
        task = bar.add_task(title, total=config.keep or candidates.stop, completed=done)
        for candidate, image in painted:
            verdict = judge(candidate, image)
            writer.add(candidate, image, verdict)
            kept += verdict.kept
            bar.advance(task, 1 if config.keep is None else verdict.kept)
            if kept == config.keep:
                break


def _say_start(
    config: GenerateConfig,
    generator: LoadedGenerator,
    root: Path,
    candidates: CandidateMasks,
    manifest: list[dict[str, Any]],
) -> None:
    size = generator.facts.config["image_size"]
    where = "GPU" if config.trainer.on_gpu() else "CPU"
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
        f"Painting {what} of {size}x{size} px on the {where} from "
        f"{plural(len(candidates.pairs), 'mask')} of {root / 'train'}, with a generator of "
        f"{plural(generator.epoch, 'epoch')}, into {config.save_dir}{goal}."
    )
    if manifest:
        done = plural(len(manifest), "pair")
        print(f"Going on: {done} listed in {Path(config.save_dir) / MANIFEST}.")
