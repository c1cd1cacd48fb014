"""What the generate command makes pairs from: networks, masks, and the look of images."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric

from geoseg_gan.data.dataset import PairSource
from geoseg_gan.data.exemplars import Exemplars
from geoseg_gan.data.fingerprint import change_in, fingerprint
from geoseg_gan.data.masks import MaskReader, stored_mask_reader
from geoseg_gan.data.palette import class_ids
from geoseg_gan.data.scan import FolderIndex, check_same_type, check_sizes, scan
from geoseg_gan.data.split import split_pairs
from geoseg_gan.data.styles import Styles
from geoseg_gan.data.synthetic import check_synthetic, read_synthetic
from geoseg_gan.data.transplant import Transplanter
from geoseg_gan.models.checkpoints import RunFacts
from geoseg_gan.models.generators.noise import NoiseSpec
from geoseg_gan.models.loaded import LoadedGenerator, load_generator, load_segmenter
from geoseg_gan.synthesis.candidates import CandidateMasks, check_variants
from geoseg_gan.synthesis.filter import AUTO, check_can_ignore
from geoseg_gan.synthesis.generate_images import default_workers
from geoseg_gan.synthesis.recognizer import Recognizer, load_recognizer
from geoseg_gan.synthesis.sampling import mask_weights
from geoseg_gan.synthesis.settings import GenerateConfig
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import check_apart


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
    shows_real = config.compose.generate != "all" or config.compose.match
    if shows_real or config.alpha is not None or not config.needs_generator:
        generator.facts.scaling.check_fits(index, root)
    size = config.image_size or trained["image_size"]
    check_pair_size(size, generator.network.stride, trained["image_size"], trained["data"]["fit"])
    if trained["data"]["fit"] == "crop":
        check_sizes(index, size, "Set image_size={}.", generator.network.stride)
    recognizer = _open_recognizer(config, generator.facts, reader, device, size)
    candidates = _open_candidates(config, generator, index, reader, size)
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
        raise AssertionError("images are laid together from exemplars")


def _open_generator(config: GenerateConfig, device: torch.device) -> LoadedGenerator:
    """The generator; for exemplars, what it or a segmenter knows of its training data."""
    if config.gen_ckpt is not None:
        generator = load_generator(Path(config.gen_ckpt), device)
        return generator if config.needs_generator else replace(generator, network=_NoNetwork())
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


def check_pair_size(size: int, stride: int, trained: int, fit: str) -> None:
    """Refuses pairs of a size that a generator cannot make.

    Args:
        size: Side of the pairs in pixels.
        stride: The generator's.
        trained: Side of the images that it is trained on, which `fit` makes of tiles.
        fit: "crop" or "resize".

    Raises:
        UserError: If the size is no multiple of the stride, or changes the metres per pixel.
    """
    if size % stride:
        raise UserError(
            f"image_size={size}: this generator makes images of multiples of {stride} px."
        )
    if fit == "resize" and size != trained:
        raise UserError(
            f"image_size={size}: training saw whole tiles resized to {trained} px "
            "(data.fit=resize), and at another size a pixel would show another length on the "
            "ground. Leave it out."
        )


def _open_recognizer(
    config: GenerateConfig,
    facts: RunFacts,
    reader: MaskReader,
    device: torch.device,
    size: int,
) -> Recognizer | None:
    if config.segmenter_ckpt is None:
        return None
    path = Path(config.segmenter_ckpt)
    check_can_ignore(config.alpha, reader)
    recognizer = load_recognizer(
        path, facts.palette, facts.scaling, size, device, config.class_map, config.onnx
    )
    if config.tau == AUTO and not recognizer.held_out:
        raise UserError(
            f"tau=auto compares with real pairs held out of the segmenter's training, of which "
            f"{path} knows none. Train it with inner_share above 0, or give tau a number."
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
    size: int,
) -> CandidateMasks:
    facts, weights, transplanter, styles, exemplars = generator.facts, None, None, None, None
    fit = facts.config["data"]["fit"]
    if config.sampling != "uniform":
        weights = mask_weights(config.sampling, index.pixels)
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
