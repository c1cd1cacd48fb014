"""The evaluate command: how good are generated pairs, beside what real images reach?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from geoseg_gan.checkpoints import LoadedGenerator, load_generator
from geoseg_gan.config import command, plain
from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.datamodule import check_same_type
from geoseg_gan.data.dataset import Fit, PairSource, WindowDataset
from geoseg_gan.data.images import MaskReader
from geoseg_gan.data.leaks import refuse_shared_images, shared_ground
from geoseg_gan.data.pairs import Pair, find_pairs
from geoseg_gan.data.scan import check_sizes, scan
from geoseg_gan.data.split import split_pairs
from geoseg_gan.data.synthetic import SyntheticFacts, read_synthetic, refuse_synthetic
from geoseg_gan.errors import UserError, check_choice, plural
from geoseg_gan.evaluation import fidelity
from geoseg_gan.evaluation.artefacts import spectra, texture
from geoseg_gan.evaluation.images import ImageSet, collect, painted_like, spread
from geoseg_gan.evaluation.obedience import agreement, diversity, real_diversity
from geoseg_gan.evaluation.pictures import CLOSEST, write_closest, write_pictures
from geoseg_gan.evaluation.report import RESULT, print_figures, write_evaluation
from geoseg_gan.models.features import FEATURES, MINIMUM_SIZE, Lite0Features, build_features
from geoseg_gan.schemas import EvaluateConfig
from geoseg_gan.synthesis.recognizer import Recognizer, load_recognizer

_FEWEST = 16
"""Images below which no figure means anything."""

_MOST_TRAINING = 5000
"""Training windows that are searched for copies, evenly spread where there are more."""


@dataclass(frozen=True)
class _Subject:
    """What is evaluated, and how the real tiles beside it are read."""

    generator: LoadedGenerator | None
    synthetic: SyntheticFacts | None
    scaling: ImageScaling | None
    root: Path
    reader: MaskReader
    image_size: int
    fit: Fit
    train: list[Pair]
    val: list[Pair]


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Measures fidelity, agreement, diversity, artefacts and memorisation.

    Args:
        config: What is evaluated, on which real tiles.

    Returns:
        The main figures by name: "kid", "fid", "precision", "recall", "checkerboard", and
        "agreement" and "diversity" where they could be had.

    Raises:
        UserError: If the configuration, a checkpoint or a folder is not as it must be.
    """
    check(config)
    device = config.trainer.device()
    subject = _open(config, device)
    if subject.image_size < MINIMUM_SIZE:
        raise UserError(
            f"the images are {subject.image_size} px wide: features need {MINIMUM_SIZE} px. Train "
            "with a larger image_size."
        )
    refuse_shared_images(subject.train, subject.val)
    val, train = (_windows(subject, pairs) for pairs in (subject.val, subject.train))
    scaling = _scaling(subject)
    recognizer = _recognizer(config, subject, scaling, device)
    network = build_features(config.features, len(scaling.low), _path(config.features_weights))
    perceptual = (
        network if isinstance(network, Lite0Features) else Lite0Features(len(scaling.low))
    ).to(device)
    extract = fidelity.Extractor(network.to(device), scaling, device, config.bs)
    _say_start(config, subject)
    real = collect(val, spread(len(val), config.num_samples))
    fake = _fake(config, subject, real, device)
    train_rows = spread(len(train), _MOST_TRAINING)
    counts = {"painted": len(fake), "validation": len(real), "training": len(train_rows)}
    _check_counts(counts)
    of_real = extract(real, "Features of validation images")
    of_fake = extract(fake, "Features of painted images")
    of_train = extract.of_windows(train, train_rows, "Features of training images")
    names = subject.reader.palette.names
    near = fidelity.memorisation(of_train, of_fake, of_real)
    figures: dict[str, Any] = {
        "images": counts,
        "warnings": _warnings(subject, recognizer),
        "fidelity": {
            "painted": fidelity.compare(of_real, of_fake),
            "real halves": fidelity.halves(of_real, real.groups, config.seed),
            "training ground": fidelity.compare(of_real, of_train),
            **fidelity.controls(extract, real, of_real, config.seed),
        },
        "coverage": {
            "painted": fidelity.coverage(of_real, of_fake),
            "training ground": fidelity.coverage(of_real, of_train),
        },
        "agreement": None,
        "diversity": None,
        "spectrum": spectra(real, fake, scaling),
        "texture": texture(real, fake, scaling, names),
        "memorisation": near,
    }
    if recognizer is not None:
        figures["agreement"] = {
            "painted": agreement(recognizer, fake, names, "Judging painted images"),
            "real": agreement(recognizer, real, names, "Judging real images"),
        }
    if subject.generator is not None:
        figures["diversity"] = {
            "painted": diversity(
                perceptual,
                subject.generator,
                real,
                variants=config.variants,
                seed=config.seed,
                device=device,
                title="Painting masks several times",
            ),
            "real": real_diversity(perceptual, real, scaling, len(names), device),
        }
    facts = {
        "settings": plain(config),
        "checkpoint": None
        if subject.generator is None
        else {"sha256": subject.generator.digest, "epoch": subject.generator.epoch},
        "segmenter": None if recognizer is None else {"sha256": recognizer.digest},
        "image_size": subject.image_size,
    }
    closest = np.argsort(near["painted"])[:CLOSEST].tolist()
    originals = collect(train, [train_rows[near["rows"][row]] for row in closest])
    near["closest"] = [
        {"painted": fake.names[row], "training": original, "distance": near["painted"][row]}
        for row, original in zip(closest, originals.names, strict=True)
    ]
    folder = Path(config.out_dir)
    write_pictures(folder, figures, subject.reader.palette, scaling, real=real, fake=fake)
    write_closest(folder, near["closest"], fake.part(closest), originals, scaling)
    write_evaluation(folder, figures, facts)
    print_figures(folder, figures)
    return _main_figures(figures)


main = command(EvaluateConfig)(evaluate)


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
    if config.features_weights is not None and config.features == "lite0":
        raise UserError(
            f"features_weights={config.features_weights}: features=lite0 brings its own. Leave it "
            "away, or set features=inception."
        )
    if config.num_samples < _FEWEST or config.variants < 2 or config.bs < 1 or config.seed < 0:
        raise UserError(
            f"num_samples={config.num_samples} must be {_FEWEST} or more, variants="
            f"{config.variants} 2 or more, bs={config.bs} positive, seed={config.seed} 0 or more."
        )
    config.onnx.check()
    config.trainer.check()
    if (Path(config.out_dir) / RESULT).exists():
        raise UserError(
            f"out_dir={config.out_dir} already holds an evaluation. Choose another out_dir."
        )


def _open(config: EvaluateConfig, device: torch.device) -> _Subject:
    if config.gen_ckpt is not None:
        generator = load_generator(Path(config.gen_ckpt), device)
        trained = generator.facts.config
        data = trained["data"]
        root = Path(config.data_root or trained["data_root"])
        refuse_synthetic(root)
        return _Subject(
            generator,
            None,
            generator.facts.scaling,
            root,
            MaskReader(generator.facts.palette, data["mask_format"], data["unknown"]),
            trained["image_size"],
            cast(Fit, data["fit"]),
            split_pairs(root, trained)[0],
            find_pairs(root, "val", data["group_regex"]),
        )
    assert config.folder is not None
    synthetic = read_synthetic(Path(config.folder))
    root = Path(config.data_root or synthetic.data_root)
    refuse_synthetic(root)
    return _Subject(
        None,
        synthetic,
        None,
        root,
        synthetic.reader(),
        synthetic.image_size,
        "crop",
        find_pairs(root, "train"),
        find_pairs(root, "val"),
    )


def _recognizer(
    config: EvaluateConfig, subject: _Subject, scaling: ImageScaling, device: torch.device
) -> Recognizer | None:
    if config.segmenter_ckpt is None:
        return None
    return load_recognizer(
        Path(config.segmenter_ckpt),
        subject.reader.palette,
        scaling,
        subject.image_size,
        device,
        config.class_map,
        config.onnx,
    )


def _scaling(subject: _Subject) -> ImageScaling:
    index = scan(subject.train, subject.reader)
    scaling = subject.scaling or ImageScaling.fit(index)
    if (len(scaling.low), scaling.dtype) != (index.bands, index.dtype.name):
        raise UserError(
            f"data_root={subject.root} holds images with {plural(index.bands, 'band')} of "
            f"{index.dtype}, but the generator paints {plural(len(scaling.low), 'band')} of "
            f"{scaling.dtype}. Give the data that it was trained on, or data like it."
        )
    return scaling


def _windows(subject: _Subject, pairs: list[Pair]) -> WindowDataset:
    """All windows of some pairs, once it is sure that they can be compared."""
    index = scan(pairs, subject.reader)
    check_same_type(scan(subject.train, subject.reader), index)
    if subject.fit == "crop":
        check_sizes(index, subject.image_size)
    source = PairSource(pairs, subject.reader)
    return WindowDataset(source, index.sizes, subject.image_size, subject.fit)


def _check_counts(counts: dict[str, int]) -> None:
    if min(counts.values()) < _FEWEST:
        shown = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UserError(
            f"figures need {_FEWEST} images of each kind, but there are so many: {shown}. Give "
            "more tiles, or train with a smaller image_size, which makes more windows of a tile."
        )


def _fake(
    config: EvaluateConfig, subject: _Subject, real: ImageSet, device: torch.device
) -> ImageSet:
    """What is judged: images of the validation masks, or the pairs of a generated folder."""
    if subject.generator is not None:
        title = "Painting held-out masks"
        return painted_like(subject.generator, real, config.seed, device, title)
    assert subject.synthetic is not None
    painted = _windows(subject, subject.synthetic.pairs)
    return collect(painted, spread(len(painted), config.num_samples))


def _warnings(subject: _Subject, recognizer: Recognizer | None) -> list[str]:
    """What is known of data and segmenter that makes figures better than they are."""
    warnings = [shared_ground(subject.train, subject.val)]
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
    found = {key: figures["fidelity"]["painted"][key] for key in ("kid", "fid")}
    found |= figures["coverage"]["painted"]
    found["checkerboard"] = figures["spectrum"]["gap"]["checkerboard"]
    found["repetition"] = float(np.mean(figures["texture"]["painted"] or [np.nan]))
    if figures["agreement"]:
        found["agreement"] = figures["agreement"]["painted"]["miou"]
    if figures["diversity"]:
        found["diversity"] = figures["diversity"]["painted"]["layers"]
    return found


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _say_start(config: EvaluateConfig, subject: _Subject) -> None:
    what = config.gen_ckpt or config.folder
    where = "GPU" if config.trainer.on_gpu() else "CPU"
    print(
        f"Evaluating {what} on {plural(len(subject.val), 'validation tile')} of {subject.root}, in "
        f"windows of {subject.image_size} px, with features of {config.features} on the {where}, "
        f"into {config.out_dir}."
    )
    if config.segmenter_ckpt is None:
        print("Without segmenter_ckpt there will be no figure for agreement.")
