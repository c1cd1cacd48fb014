"""What the generate command paints from and judges by, opened and checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geoseg_gan.checkpoints import LoadedGenerator, load_generator
from geoseg_gan.config import plain
from geoseg_gan.data.images import MaskReader
from geoseg_gan.data.palette import class_ids
from geoseg_gan.data.scan import FolderIndex, check_sizes, scan
from geoseg_gan.data.split import split_pairs
from geoseg_gan.data.transplant import Transplanter
from geoseg_gan.errors import UserError
from geoseg_gan.schemas import GenerateConfig
from geoseg_gan.synthesis.class_losses import with_class_losses
from geoseg_gan.synthesis.filter import AUTO, check_can_ignore
from geoseg_gan.synthesis.masks import CandidateMasks, check_variants
from geoseg_gan.synthesis.paint import default_workers
from geoseg_gan.synthesis.recognizer import Recognizer, load_recognizer
from geoseg_gan.synthesis.sampling import mask_weights
from geoseg_gan.synthesis.styles import Styles
from geoseg_gan.team import Team

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
