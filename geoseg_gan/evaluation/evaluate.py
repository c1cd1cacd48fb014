"""The evaluate command: figures of generated images beside those that real images reach."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric
from torch import Tensor

from geoseg_gan.config import plain
from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.dataset import PairSource, WindowDataset
from geoseg_gan.data.images import MaskReader
from geoseg_gan.data.pairs import Pair, find_pairs
from geoseg_gan.data.scan import check_same_type, check_sizes, scan
from geoseg_gan.data.settings import Fit
from geoseg_gan.data.split import refuse_shared_images, shared_groups, split_pairs
from geoseg_gan.data.synthetic import SyntheticFolder, read_synthetic, refuse_synthetic
from geoseg_gan.evaluation import fidelity
from geoseg_gan.evaluation.agreement import (
    Distances,
    agreement,
    diversity,
    diversity_rows,
    noise_distances,
    predicted_confusion,
    real_diversity,
)
from geoseg_gan.evaluation.artefacts import spectra, texture
from geoseg_gan.evaluation.images import REAL_KINDS, ImageSet, collect, generate_like
from geoseg_gan.evaluation.report import (
    CLOSEST,
    FIGURES_FILE,
    print_figures,
    write_closest,
    write_evaluation,
    write_pictures,
)
from geoseg_gan.evaluation.settings import EvaluateConfig
from geoseg_gan.models.checkpoints import LoadedGenerator, load_generator
from geoseg_gan.models.pretrained.features import (
    FEATURES,
    MINIMUM_SIZE,
    Lite0Features,
    build_features,
)
from geoseg_gan.synthesis.recognizer import Recognizer, load_recognizer
from geoseg_gan.utils.distributed import (
    gather_arrays,
    launch,
    open_fabric,
    share_of,
    where_in_words,
)
from geoseg_gan.utils.errors import UserError, check_choice, plural
from geoseg_gan.utils.files import held
from geoseg_gan.utils.pictures import evenly_spaced

FEWEST = 16
"""Images of each kind below which no figure means anything."""

_MOST_TRAINING = 5000
"""Training windows searched for copies, at most; evenly spaced where there are more."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """What is evaluated, and how the real tiles beside it are read.

    Attributes:
        generator: The generator; None where a folder is evaluated.
        synthetic: The folder; None where a generator is evaluated.
        root: The data folder.
        reader: Reads masks.
        image_size: Side of all images in pixels.
        fit: How tiles become windows.
        train_pairs: The tiles that were trained on.
        val_pairs: The real tiles that generated images are compared with.
        kind: What these are called: "validation", or "held-out" where they are training tiles.
    """

    generator: LoadedGenerator | None
    synthetic: SyntheticFolder | None
    root: Path
    reader: MaskReader
    image_size: int
    fit: Fit
    train_pairs: Sequence[Pair]
    val_pairs: Sequence[Pair]
    kind: str

    def windows(self, pairs: Sequence[Pair]) -> WindowDataset:
        """All windows of some pairs, once checked that they can be compared.

        Raises:
            UserError: If their images are of another type, or too small.
        """
        index = scan(pairs, self.reader)
        check_same_type(scan(self.train_pairs, self.reader), index)
        if self.fit == "crop":
            check_sizes(index, self.image_size)
        source = PairSource(pairs, self.reader)
        return WindowDataset(source, index.sizes, self.image_size, self.fit)


@dataclass(frozen=True)
class Subject(Source):
    """A source with the networks and windows that measuring takes.

    Attributes:
        scaling: From stored values to [-1, 1].
        device: Where networks are.
        recognizer: The segmenter for agreement; None without one.
        extract: Computes features.
        perceptual: The network of the distances for diversity.
        train: Windows of the training tiles; `train_rows` are the ones used.
        val: Windows of the tiles to compare with; `val_rows` are the ones used.
        generated: Windows of a folder's pairs; None for a generator. `generated_rows` are the ones
            used; empty for a generator.
    """

    scaling: ImageScaling
    device: torch.device
    recognizer: Recognizer | None
    extract: fidelity.Extractor
    perceptual: Lite0Features
    train: WindowDataset
    train_rows: list[int]
    val: WindowDataset
    val_rows: list[int]
    generated: WindowDataset | None
    generated_rows: list[int]

    def counts(self) -> dict[str, int]:
        """How many images there are of each kind."""
        return {
            "generated": len(self.val_rows if self.generated is None else self.generated_rows),
            self.kind: len(self.val_rows),
            "training": len(self.train_rows),
        }


@dataclass(frozen=True)
class Measured:
    """What all processes together have measured, in the order of the images.

    Attributes:
        real: The real images to compare with.
        fake: The generated images: of the same masks, or the pairs of a folder.
        of_real: Features of `real`, shape (N, D).
        of_fake: Features of `fake`, shape (M, D).
        of_train: Features of training images, shape (T, D).
        of_controls: Features of `real` with known damage, by the damage; empty unless asked for.
        confusions: The segmenter's predictions on "generated" and "real" images against their
            masks, shape (C, C) each; empty without a segmenter.
        distances: Between generated images of one mask, by mask; empty for a folder.
    """

    real: ImageSet
    fake: ImageSet
    of_real: Floats
    of_fake: Floats
    of_train: Floats
    of_controls: dict[str, Floats]
    confusions: dict[str, Tensor]
    distances: list[Distances]


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Measures fidelity, agreement, diversity, artefacts and memorisation.

    Args:
        config: What is evaluated, on which real tiles.

    Returns:
        The main figures by name: "kid", "fid", "precision", "recall", "checkerboard", and
        "agreement" and "diversity" where they were measured.

    Raises:
        UserError: If the configuration, a checkpoint or a folder cannot be used.
    """
    return launch(_evaluate, config, check)


def _evaluate(config: EvaluateConfig) -> dict[str, float]:
    fabric = open_fabric(config.trainer)
    with fabric.rank_zero_first():
        subject = open_subject(config, fabric.device, fabric.is_global_zero)
    with held(Path(config.out_dir)) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            _check_unwritten(config)  # again: another call may have ended meanwhile
            _say_start(config, subject, where_in_words(fabric))
        measured = measure(config, subject, fabric)
        return _report(config, subject, measured) if measured is not None else {}


def check(config: EvaluateConfig) -> None:
    """Refuses a configuration before anything slow starts or anything is written.

    Raises:
        UserError: Naming the key, its value and what to do.
    """
    if (config.gen_ckpt is None) == (config.folder is None):
        raise UserError(
            "Set gen_ckpt to a G_e###.pt that training wrote, or folder to the save_dir of "
            "generate; one of the two."
        )
    check_choice("features", config.features, FEATURES)
    check_choice("split", config.split, REAL_KINDS)
    if config.split == "held_out" and config.gen_ckpt is None:
        raise UserError(
            f"split=held_out: of folder={config.folder} it is not known which tiles its generator "
            "held out. Give gen_ckpt instead, or use split=val."
        )
    if config.features_weights is not None and config.features == "lite0":
        raise UserError(
            f"features_weights={config.features_weights}: features=lite0 brings its own. Drop it, "
            "or set features=inception."
        )
    if config.num_samples < FEWEST or config.variants < 2 or config.bs < 1 or config.seed < 0:
        raise UserError(
            f"num_samples={config.num_samples} must be {FEWEST} or more, variants="
            f"{config.variants} 2 or more, bs={config.bs} positive, seed={config.seed} 0 or more."
        )
    config.onnx.check()
    config.trainer.check(config.devices)
    _check_unwritten(config)


def _check_unwritten(config: EvaluateConfig) -> None:
    if (Path(config.out_dir) / FIGURES_FILE).exists():
        raise UserError(
            f"out_dir={config.out_dir} already holds an evaluation. Choose another out_dir."
        )


def _say_start(config: EvaluateConfig, subject: Subject, where: str) -> None:
    what, tiles = config.gen_ckpt or config.folder, len(subject.val_pairs)
    print(
        f"Evaluating {what} on {plural(tiles, f'{subject.kind} tile')} of {subject.root}, in "
        f"windows of {subject.image_size} px, with features of {config.features} on "
        f"{where}, into {config.out_dir}."
    )
    if config.segmenter_ckpt is None:
        print("Without segmenter_ckpt there will be no figure for agreement.")


def open_subject(config: EvaluateConfig, device: torch.device, refuse_shared: bool) -> Subject:
    """Loads networks and lists the images, of which there must be enough.

    Args:
        config: What is evaluated, on which real tiles.
        device: Where networks go.
        refuse_shared: Whether to refuse images that are in both splits.

    Raises:
        UserError: If a checkpoint or a folder cannot be used, or there are too few images.
    """
    source = _open(config, device)
    if source.image_size < MINIMUM_SIZE:
        raise UserError(
            f"the images are {source.image_size} px wide: features need {MINIMUM_SIZE} px. Train "
            "with a larger image_size."
        )
    if refuse_shared:
        refuse_shared_images(source.train_pairs, source.val_pairs)
    val, train = (source.windows(pairs) for pairs in (source.val_pairs, source.train_pairs))
    generated = None if source.synthetic is None else source.windows(source.synthetic.pairs)
    scaling = _scaling(source)
    bands = len(scaling.low)
    weights = config.features_weights
    network = build_features(config.features, bands, None if weights is None else Path(weights))
    perceptual = network if isinstance(network, Lite0Features) else Lite0Features(bands)
    subject = Subject(
        **vars(source),
        scaling=scaling,
        device=device,
        recognizer=_recognizer(config, source, scaling, device),
        extract=fidelity.Extractor(network.to(device), scaling, device, config.bs),
        perceptual=perceptual.to(device),
        train=train,
        train_rows=evenly_spaced(len(train), _MOST_TRAINING),
        val=val,
        val_rows=evenly_spaced(len(val), config.num_samples),
        generated=generated,
        generated_rows=[]
        if generated is None
        else evenly_spaced(len(generated), config.num_samples),
    )
    counts = subject.counts()
    if min(counts.values()) < FEWEST:
        shown = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UserError(
            f"figures need {FEWEST} images of each kind, but there are {shown}. Give "
            "more tiles, or train with a smaller image_size, which makes more windows of a tile."
        )
    return subject


def _open(config: EvaluateConfig, device: torch.device) -> Source:
    if config.gen_ckpt is not None:
        generator = load_generator(Path(config.gen_ckpt), device)
        trained = generator.facts.config
        data = trained["data"]
        root = Path(config.data_root or trained["data_root"])
        refuse_synthetic(root)
        fitted, held_out = split_pairs(root, trained)
        if config.split == "held_out" and not held_out:
            raise UserError(
                f"split=held_out: the training of {config.gen_ckpt} held no tiles out "
                "(inner_share=0). Use split=val, or train with inner_share=0.15 or so."
            )
        return Source(
            generator,
            None,
            root,
            MaskReader(generator.facts.palette, data["mask_format"], data["unknown"]),
            trained["image_size"],
            cast(Fit, data["fit"]),
            fitted,
            held_out
            if config.split == "held_out"
            else find_pairs(root, "val", data["group_regex"]),
            REAL_KINDS[config.split],
        )
    assert config.folder is not None, "check() has made sure"
    synthetic = read_synthetic(Path(config.folder))
    root = Path(config.data_root or synthetic.data_root)
    refuse_synthetic(root)
    return Source(
        None,
        synthetic,
        root,
        synthetic.reader(),
        synthetic.image_size,
        "crop",
        find_pairs(root, "train"),
        find_pairs(root, "val"),
        REAL_KINDS["val"],
    )


def _recognizer(
    config: EvaluateConfig, source: Source, scaling: ImageScaling, device: torch.device
) -> Recognizer | None:
    if config.segmenter_ckpt is None:
        return None
    return load_recognizer(
        Path(config.segmenter_ckpt),
        source.reader.palette,
        scaling,
        source.image_size,
        device,
        config.class_map,
        config.onnx,
    )


def _scaling(source: Source) -> ImageScaling:
    index = scan(source.train_pairs, source.reader)
    known = None if source.generator is None else source.generator.facts.scaling
    scaling = known or ImageScaling.fit(index)
    if (len(scaling.low), scaling.dtype) != (index.bands, index.dtype.name):
        raise UserError(
            f"data_root={source.root} holds images with {plural(index.bands, 'band')} of "
            f"{index.dtype}, but the generator makes {plural(len(scaling.low), 'band')} of "
            f"{scaling.dtype}. Give the data that it was trained on, or data like it."
        )
    return scaling


def measure(config: EvaluateConfig, subject: Subject, fabric: Fabric) -> Measured | None:
    """Measures this process's share of the images, in the batches that one process would make.

    Returns:
        What all processes have measured, in rank 0; None in the others.

    Raises:
        UserError: If a user's mistake was found in any process.
    """

    def title(text: str) -> str | None:
        return text if fabric.is_global_zero else None

    extract, seed, device = subject.extract, config.seed, subject.device
    mine = share_of(fabric, len(subject.val_rows), config.bs)
    real = collect(subject.val, [subject.val_rows[row] for row in mine])
    if subject.generated is not None:
        others = share_of(fabric, len(subject.generated_rows), config.bs)
        fake = collect(subject.generated, [subject.generated_rows[row] for row in others])
    else:
        assert subject.generator is not None, "either a generator or a folder is evaluated"
        text = title(f"Generating images of {subject.kind} masks")
        place = {"first": mine.start, "batch_size": config.bs}
        fake = generate_like(subject.generator, real, seed, device, text, **place)
    of_real = extract(real, title(f"Features of {subject.kind} images"))
    of_fake = extract(fake, title("Features of generated images"))
    rows = [subject.train_rows[n] for n in share_of(fabric, len(subject.train_rows), config.bs)]
    of_train = extract.of_windows(subject.train, rows, title("Features of training images"))
    damaged = {}
    if config.controls:
        damaged = fidelity.controls(
            extract, real, seed, first=mine.start, quiet=not fabric.is_global_zero
        )
    confusions = {}
    if subject.recognizer is not None:
        for kind, images in (("generated", fake), ("real", real)):
            found = predicted_confusion(
                subject.recognizer,
                images,
                subject.reader.palette.num_classes,
                title(f"Segmenting {kind} images"),
                batch_size=config.bs,
            )
            total = fabric.all_reduce(found.to(device), reduce_op="sum")
            confusions[kind] = cast(Tensor, total).cpu()
    distances: list[Distances] = []
    if subject.generator is not None:
        shown = [row for row in diversity_rows(len(subject.val_rows)) if row in mine]
        distances = noise_distances(
            subject.perceptual,
            subject.generator,
            [real.labels[row - mine.start] for row in shown],
            shown,
            variants=config.variants,
            seed=seed,
            device=device,
            title=title("Generating masks several times"),
        )
    arrays = {f"real.{name}": np.asarray(value) for name, value in vars(real).items()}
    arrays |= {f"fake.{name}": np.asarray(value) for name, value in vars(fake).items()}
    arrays |= {f"control.{name}": part for name, part in damaged.items()}
    arrays |= {"of_real": of_real, "of_fake": of_fake, "of_train": of_train}
    arrays["distances"] = np.array(distances, np.float64).reshape(-1, 2)
    whole = gather_arrays(fabric, arrays, Path(config.out_dir))
    if whole is None:
        return None
    return Measured(
        _image_set(whole, "real"),
        _image_set(whole, "fake"),
        whole["of_real"],
        whole["of_fake"],
        whole["of_train"],
        {name: whole[f"control.{name}"] for name in damaged},
        confusions,
        [(first, second) for first, second in whole["distances"].tolist()],
    )


def _image_set(arrays: dict[str, npt.NDArray[Any]], kind: str) -> ImageSet:
    pixels, labels, counted = (arrays[f"{kind}.{key}"] for key in ("pixels", "labels", "counted"))
    names, groups = (arrays[f"{kind}.{key}"].tolist() for key in ("names", "groups"))
    return ImageSet(pixels, labels, counted, names, groups)


def _report(config: EvaluateConfig, subject: Subject, measured: Measured) -> dict[str, float]:
    """Computes all figures and writes them; returns the main ones."""
    generator, recognizer, scaling = subject.generator, subject.recognizer, subject.scaling
    real, fake = measured.real, measured.fake
    of_real, of_fake, of_train = measured.of_real, measured.of_fake, measured.of_train
    names = subject.reader.palette.names
    near = fidelity.memorisation(of_train, of_fake, of_real)
    train_rows = subject.train_rows
    figures: dict[str, Any] = {
        "images": subject.counts(),
        "warnings": _warnings(subject),
        "fidelity": {
            "generated": fidelity.compare(of_real, of_fake),
            "real halves": fidelity.halves(of_real, real.groups, config.seed),
            "training windows": fidelity.compare(of_real, of_train),
            **{
                name: fidelity.compare(of_real, features, paired=True)
                for name, features in measured.of_controls.items()
            },
        },
        "coverage": {
            "generated": fidelity.coverage(of_real, of_fake),
            "training windows": fidelity.coverage(of_real, of_train),
        },
        "agreement": None,
        "diversity": None,
        "spectrum": spectra(real, fake, scaling),
        "texture": texture(real, fake, scaling, names),
        "memorisation": near,
    }
    if recognizer is not None:
        figures["agreement"] = {k: agreement(v, names) for k, v in measured.confusions.items()}
    if generator is not None:
        figures["diversity"] = {
            "generated": diversity(measured.distances, generator),
            "real": real_diversity(subject.perceptual, real, scaling, len(names), subject.device),
        }
    facts = {
        "settings": plain(config),
        "checkpoint": None
        if generator is None
        else {"sha256": generator.digest, "epoch": generator.epoch},
        "segmenter": None if recognizer is None else {"sha256": recognizer.digest},
        "image_size": subject.image_size,
    }
    closest = np.argsort(near["generated"])[:CLOSEST].tolist()
    originals = collect(subject.train, [train_rows[near["rows"][row]] for row in closest])
    near["closest"] = [
        {"generated": fake.names[row], "training": original, "distance": near["generated"][row]}
        for row, original in zip(closest, originals.names, strict=True)
    ]
    folder = Path(config.out_dir)
    palette, kind = subject.reader.palette, subject.kind
    write_pictures(folder, figures, palette, scaling, real=real, fake=fake, kind=kind)
    write_closest(folder, near["closest"], fake.part(closest), originals, scaling)
    write_evaluation(folder, figures, facts)
    print_figures(folder, figures)
    return _main_figures(figures)


def _warnings(subject: Subject) -> list[str]:
    """What makes figures look better than they should, as far as data and segmenter show it."""
    warnings = [shared_groups(subject.train_pairs, subject.val_pairs, kind=subject.kind)]
    recognizer = subject.recognizer
    if (
        recognizer is not None
        and subject.synthetic is not None
        and subject.synthetic.filter_digest == recognizer.digest
    ):
        warnings.append(
            "Agreement is flattered: the pairs were kept because this very segmenter recognised "
            "them. Measure it with another segmenter, or on the generator (gen_ckpt)."
        )
    return [warning for warning in warnings if warning]


def _main_figures(figures: dict[str, Any]) -> dict[str, float]:
    found = {key: figures["fidelity"]["generated"][key] for key in ("kid", "fid")}
    found |= figures["coverage"]["generated"]
    found["checkerboard"] = figures["spectrum"]["gap"]["checkerboard"]
    found["repetition"] = float(np.mean(figures["texture"]["generated"] or [np.nan]))
    if figures["agreement"]:
        found["agreement"] = figures["agreement"]["generated"]["miou"]
    if figures["diversity"]:
        found["diversity"] = figures["diversity"]["generated"]["layers"]
    return found
