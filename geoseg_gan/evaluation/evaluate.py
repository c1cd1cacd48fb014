"""The evaluate command: figures of generated images beside those that real images reach."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor

from geoseg_gan.config import has_settings, is_made, plain
from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.dataset import PairSource, WindowDataset
from geoseg_gan.data.fingerprint import (
    FINGERPRINTS,
    Fingerprints,
    fingerprint,
    fingerprint_files,
    refuse_change,
)
from geoseg_gan.data.masks import stored_mask_reader
from geoseg_gan.data.pairs import Pair, find_pairs
from geoseg_gan.data.palette import Palette
from geoseg_gan.data.scan import check_same_type, check_sizes, scan
from geoseg_gan.data.settings import Fit
from geoseg_gan.data.split import refuse_shared_images, shared_groups, split_pairs
from geoseg_gan.data.synthetic import SyntheticFolder, read_synthetic, refuse_synthetic
from geoseg_gan.evaluation import fidelity
from geoseg_gan.evaluation.agreement import (
    agreement,
    diversity,
    diversity_rows,
    noise_distances,
    predicted_confusion,
    real_diversity,
)
from geoseg_gan.evaluation.artefacts import spectra, texture
from geoseg_gan.evaluation.images import REAL_KINDS, Floats, ImageSet, collect, generate_like
from geoseg_gan.evaluation.report import (
    CLOSEST,
    FIGURES_FILE,
    print_figures,
    write_evaluation,
    write_pictures,
)
from geoseg_gan.evaluation.settings import EvaluateConfig
from geoseg_gan.models.loaded import LoadedGenerator, load_generator, with_files
from geoseg_gan.models.pretrained.features import (
    FEATURES,
    MINIMUM_SIZE,
    Lite0Features,
    build_features,
)
from geoseg_gan.synthesis.recognizer import Recognizer, load_recognizer
from geoseg_gan.synthesis.settings import LARGEST_BATCH
from geoseg_gan.utils.distributed import (
    gather_arrays,
    launch,
    open_fabric,
    share_of,
    where_in_words,
)
from geoseg_gan.utils.errors import LARGEST_SEED, UserError, check_choice, check_range, plural
from geoseg_gan.utils.files import check_apart
from geoseg_gan.utils.pictures import evenly_spaced
from geoseg_gan.utils.reading import Number, read_json

FEWEST = 16
"""Images of each kind below which no figure means anything."""

_MOST_TRAINING = 5000
"""Training windows searched for copies, at most; evenly spaced where there are more."""

_FIGURE = (None, Number())
_STORED = {
    "settings": dict,
    "checkpoint": (None, dict),
    "segmenter": (None, dict),
    "data": FINGERPRINTS,
    "figures": {
        "fidelity": {"generated": {"kid": _FIGURE, "fid": _FIGURE, "*": object}, "*": object},
        "coverage": {"generated": {"*": _FIGURE}, "*": object},
        "spectrum": {"gap": {"checkerboard": _FIGURE, "*": object}, "*": object},
        "texture": {"generated": (None, [_FIGURE]), "*": object},
        "agreement": (None, {"generated": {"miou": _FIGURE, "*": object}, "*": object}),
        "diversity": (None, {"generated": {"layers": _FIGURE, "*": object}, "*": object}),
        "*": object,
    },
    "*": object,
}  # what `_main_figures` reads of an evaluation.json


@dataclass(frozen=True)
class Subject:
    """What is evaluated, with all that measuring it takes.

    Attributes:
        generator: The generator; None where a folder is evaluated.
        synthetic: The folder; None where a generator is evaluated.
        root: The data folder.
        data: Fingerprints of all that is read.
        palette: The classes.
        image_size: Side of all images in pixels.
        kind: What the real images are called: "validation", or "held-out" for training tiles.
        scaling: From stored values to [-1, 1].
        device: Where networks are.
        recognizer: The segmenter for agreement; None without one.
        extract: Computes features.
        perceptual: The network of the distances for diversity.
        train: Windows of the tiles that were trained on; `train_rows` are the ones used.
        val: Windows of the tiles to compare with; `val_rows` are the ones used.
        generated: Windows of a folder's pairs; None for a generator. `generated_rows` are the ones
            used; empty for a generator.
    """

    generator: LoadedGenerator | None
    synthetic: SyntheticFolder | None
    root: Path
    data: Fingerprints
    palette: Palette
    image_size: int
    kind: str
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
        features: Of "real", "generated" and "training" images, shape (N, D) each.
        controls: Features of `real` with known damage, by the damage; empty unless asked for.
        confusions: The segmenter's predictions on "generated" and "real" images against their
            masks, shape (C, C) each; empty without a segmenter.
        distances: From `noise_distances`; empty for a folder.
    """

    real: ImageSet
    fake: ImageSet
    features: dict[str, Floats]
    controls: dict[str, Floats]
    confusions: dict[str, Tensor]
    distances: Floats


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """Measures fidelity, agreement, diversity, artefacts and memorisation.

    Returns:
        The main figures by name: "kid", "fid", "precision", "recall", "checkerboard", "repetition",
        and "agreement" and "diversity" where they were measured. Those of the folder where these
        settings have been evaluated already.

    Raises:
        UserError: If the configuration, a checkpoint or a folder cannot be used.
    """
    return launch(_evaluate, with_files(config), check)


def _stored(config: EvaluateConfig) -> dict[str, Any] | None:
    """The evaluation that lies in the output folder, None where none does."""
    path = Path(config.out_dir) / FIGURES_FILE
    advice = "Choose another out_dir."
    return cast(dict[str, Any], read_json(path, _STORED, advice)) if path.exists() else None


def _evaluate(config: EvaluateConfig) -> dict[str, float]:
    fabric = open_fabric(config.trainer)
    with fabric.rank_zero_first():
        subject = open_subject(config, fabric.device, fabric.is_global_zero)
    facts = _facts(config, subject)
    if (stored := _stored(config)) is not None:
        holds, advice = f"out_dir={config.out_dir} holds an evaluation", "Choose another out_dir."
        refuse_change(stored["data"], subject.data, f"{holds} of", advice)
        for key in ("checkpoint", "segmenter"):
            if stored[key] != facts[key]:
                raise UserError(f"{holds} with another {key} of the same name. {advice}")
        if fabric.is_global_zero:
            is_made(Path(config.out_dir), plain(config), stored["settings"])
        return _main_figures(stored["figures"])
    if fabric.is_global_zero:
        _say_start(config, subject, where_in_words(fabric))
    measured = measure(config, subject, fabric)
    return _report(config, subject, measured, facts) if measured is not None else {}


def _facts(config: EvaluateConfig, subject: Subject) -> dict[str, Any]:
    """What `evaluation.json` says beside the figures: of what they are."""
    generator, recognizer = subject.generator, subject.recognizer
    return {
        "settings": plain(config),
        "checkpoint": None
        if generator is None
        else {"sha256": generator.digest, "epoch": generator.epoch},
        "segmenter": None if recognizer is None else {"sha256": recognizer.digest},
        "image_size": subject.image_size,
        "data": subject.data,
    }


def check(config: EvaluateConfig) -> None:
    """Refuses, with a UserError, a configuration before anything slow starts or is written."""
    if (config.gen_ckpt is None) == (config.folder is None):
        raise UserError(
            "Set gen_ckpt to a G_e###.pt that train wrote, or folder to a folder of pairs "
            "that generate wrote; one of the two."
        )
    check_choice("features", config.features, FEATURES)
    check_choice("split", config.split, REAL_KINDS)
    if config.split == "held_out" and config.gen_ckpt is None:
        raise UserError(
            f"split=held_out: of folder={config.folder} it is not known which tiles its generator "
            "held out. Give gen_ckpt instead, or use split=val."
        )
    check_range("num_samples", config.num_samples, FEWEST, 1e6)
    check_range("variants", config.variants, 2, 1000)
    check_range("bs", config.bs, 1, LARGEST_BATCH)
    check_range("seed", config.seed, 0, LARGEST_SEED)
    config.onnx.check()
    config.trainer.check(config.devices)
    stored = _stored(config)
    if stored is not None and not has_settings(stored["settings"], plain(config)):
        raise UserError(
            f"out_dir={config.out_dir} already holds another evaluation. Choose another out_dir."
        )


def _say_start(config: EvaluateConfig, subject: Subject, where: str) -> None:
    what, tiles = config.gen_ckpt or config.folder, len(subject.val.source.pairs)
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
    generator = synthetic = trained = None
    fit: Fit = "crop"
    if config.gen_ckpt is not None:
        generator = load_generator(Path(config.gen_ckpt), device)
        trained = generator.facts.config
        data, image_size = trained["data"], trained["image_size"]
        fit = cast(Fit, data["fit"])
        reader = stored_mask_reader(generator.facts.palette, data)
        root = Path(config.data_root or trained["data_root"])
    else:
        synthetic = read_synthetic(Path(config.folder or ""))
        image_size, reader = synthetic.image_size, synthetic.reader()
        root = Path(config.data_root or synthetic.data_root)
    check_apart("out_dir", Path(config.out_dir), root)
    refuse_synthetic(root)
    train_pairs, val_pairs = _real_pairs(config, root, trained)
    if image_size < MINIMUM_SIZE:
        raise UserError(
            f"the images are {image_size} px wide: features need {MINIMUM_SIZE} px. Train with a "
            "larger image_size."
        )
    if refuse_shared:
        refuse_shared_images(train_pairs, val_pairs)
    trained_on = scan(train_pairs, reader)
    fingerprints: Fingerprints = {}

    def windows(name: str, pairs: Sequence[Pair]) -> WindowDataset:
        index = scan(pairs, reader)
        fingerprints[name] = fingerprint(index)
        if name != "train":  # whose images matter less, and can be many more
            images = fingerprint_files([pair.image for pair in pairs])["images"]
            fingerprints[name]["images"] = images
        check_same_type(trained_on, index)
        if fit == "crop":
            advice = "Give larger tiles, or train with image_size={}."
            check_sizes(index, image_size, advice, generator.network.stride if generator else 1)
        return WindowDataset(PairSource(pairs, reader), index.sizes, image_size, fit)

    val, train = windows(config.split, val_pairs), windows("train", train_pairs)
    generated = None if synthetic is None else windows("generated", synthetic.pairs)
    scaling = (generator and generator.facts.scaling) or ImageScaling.fit(trained_on)
    bands = len(scaling.low)
    scaling.check_fits(trained_on, root)
    network = build_features(config.features, bands)
    perceptual = network if isinstance(network, Lite0Features) else Lite0Features(bands)
    recognizer = None
    if config.segmenter_ckpt is not None:
        recognizer = load_recognizer(
            Path(config.segmenter_ckpt),
            reader.palette,
            scaling,
            image_size,
            device,
            config.class_map,
            config.onnx,
        )
    subject = Subject(
        generator=generator,
        synthetic=synthetic,
        root=root,
        data=fingerprints,
        palette=reader.palette,
        image_size=image_size,
        kind=REAL_KINDS[config.split],
        scaling=scaling,
        device=device,
        recognizer=recognizer,
        extract=fidelity.Extractor(network.to(device), scaling, device, config.bs),
        perceptual=perceptual.to(device),
        train=train,
        train_rows=evenly_spaced(len(train), _MOST_TRAINING),
        val=val,
        val_rows=evenly_spaced(len(val), config.num_samples),
        generated=generated,
        generated_rows=evenly_spaced(len(generated or ()), config.num_samples),
    )
    counts = subject.counts()
    if min(counts.values()) < FEWEST:
        shown = ", ".join(f"{count} {name}" for name, count in counts.items())
        advice = ""
        if synthetic is not None and counts.pop("generated") < FEWEST:
            advice += f" Generate more pairs into {config.folder}, with a larger num_samples."
        if min(counts.values()) < FEWEST:
            advice += " Give more tiles, or train with a smaller image_size, which makes more "
            advice += "windows of a tile."
        raise UserError(
            f"figures need {FEWEST} images of each kind, but there are {shown}.{advice}"
        )
    return subject


def _real_pairs(
    config: EvaluateConfig, root: Path, trained: Mapping[str, Any] | None
) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """The tiles that were trained on and those to compare with, by a generator's configuration."""
    if trained is None:
        return find_pairs(root, "train"), find_pairs(root, "val")
    fitted, held_out = split_pairs(root, trained)
    if config.split == "val":
        return fitted, find_pairs(root, "val", trained["data"]["group_regex"])
    if not held_out:
        raise UserError(
            f"split=held_out: the training of {config.gen_ckpt} held no tiles out (inner_share=0). "
            "Use split=val, or train with inner_share=0.15 or so."
        )
    return fitted, held_out


def measure(config: EvaluateConfig, subject: Subject, fabric: Fabric) -> Measured | None:
    """Measures this process's share of the images, in the batches that one process would make.

    Returns:
        What all processes have measured, in rank 0; None in the others.
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
    rows = [subject.train_rows[n] for n in share_of(fabric, len(subject.train_rows), config.bs)]
    arrays = {
        **{f"real.{name}": values for name, values in vars(real).items()},
        **{f"fake.{name}": values for name, values in vars(fake).items()},
        "features.real": extract(real, title(f"Features of {subject.kind} images")),
        "features.generated": extract(fake, title("Features of generated images")),
        "features.training": extract.of_windows(
            subject.train, rows, title("Features of training images")
        ),
        "distances": np.empty((0, 2)),
    }
    if config.controls:
        quiet = not fabric.is_global_zero
        damaged = fidelity.controls(extract, real, seed, first=mine.start, quiet=quiet)
        arrays |= {f"controls.{name}": values for name, values in damaged.items()}
    if subject.recognizer is not None:
        for kind, images in (("generated", fake), ("real", real)):
            found = predicted_confusion(
                subject.recognizer,
                images,
                subject.palette.num_classes,
                title(f"Segmenting {kind} images"),
                batch_size=config.bs,
            )
            arrays[f"confusions.{kind}"] = found[None].numpy()
    if subject.generator is not None:
        shown = [row for row in diversity_rows(len(subject.val_rows)) if row in mine]
        arrays["distances"] = noise_distances(
            subject.perceptual,
            subject.generator,
            [real.labels[row - mine.start] for row in shown],
            shown,
            variants=config.variants,
            seed=seed,
            device=device,
            title=title("Generating masks several times"),
        )
    whole = gather_arrays(fabric, arrays, Path(config.out_dir))
    if whole is None:
        return None
    parts: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for key, values in whole.items():
        part, _, name = key.partition(".")
        parts[part][name] = values
    return Measured(
        ImageSet(**parts["real"]),
        ImageSet(**parts["fake"]),
        parts["features"],
        parts["controls"],
        {kind: torch.from_numpy(each.sum(0)) for kind, each in parts["confusions"].items()},
        whole["distances"],
    )


def _report(
    config: EvaluateConfig, subject: Subject, measured: Measured, facts: Mapping[str, Any]
) -> dict[str, float]:
    """Computes all figures and writes them with the facts; returns the main ones."""
    generator, recognizer, scaling = subject.generator, subject.recognizer, subject.scaling
    real, fake, palette = measured.real, measured.fake, subject.palette
    of_real, of_fake, of_train = (measured.features[k] for k in ("real", "generated", "training"))
    near = fidelity.memorisation(of_train, of_fake, of_real)
    closest = np.argsort(near["generated"])[:CLOSEST].tolist()
    originals = collect(subject.train, [subject.train_rows[near["rows"][row]] for row in closest])
    near["closest"] = [
        {"generated": fake.names[row], "training": original, "distance": near["generated"][row]}
        for row, original in zip(closest, originals.names, strict=True)
    ]
    figures: dict[str, Any] = {
        "images": subject.counts(),
        "warnings": _warnings(subject),
        "fidelity": {
            "generated": fidelity.compare(of_real, of_fake),
            "real halves": fidelity.halves(of_real, real.groups, config.seed),
            "training windows": fidelity.compare(of_real, of_train),
            **{
                name: fidelity.compare(of_real, features, paired=True)
                for name, features in measured.controls.items()
            },
        },
        "coverage": {
            "generated": fidelity.coverage(of_real, of_fake),
            "training windows": fidelity.coverage(of_real, of_train),
        },
        "agreement": None,
        "diversity": None,
        "spectrum": spectra(real, fake, scaling),
        "texture": texture(real, fake, scaling, palette.names),
        "memorisation": near,
    }
    if recognizer is not None:
        figures["agreement"] = {
            kind: agreement(total, palette.names) for kind, total in measured.confusions.items()
        }
    if generator is not None:
        figures["diversity"] = {
            "generated": diversity(measured.distances, generator),
            "real": real_diversity(
                subject.perceptual, real, scaling, palette.num_classes, subject.device
            ),
        }
    folder = Path(config.out_dir)
    write_pictures(
        folder,
        figures,
        palette,
        scaling,
        real=real,
        fake=fake,
        originals=originals,
        closest=fake.part(closest),
    )
    write_evaluation(folder, figures, facts)
    print_figures(folder, figures)
    return _main_figures(figures)


def _warnings(subject: Subject) -> list[str]:
    """What makes figures look better than they should, as far as data and segmenter show it."""
    train, val = subject.train.source.pairs, subject.val.source.pairs
    warnings = [shared_groups(train, val, kind=subject.kind)]
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
    repetitions = np.array(figures["texture"]["generated"] or [np.nan], float)
    found["repetition"] = float(repetitions.mean())
    if figures["agreement"]:
        found["agreement"] = figures["agreement"]["generated"]["miou"]
    if figures["diversity"]:
        found["diversity"] = figures["diversity"]["generated"]["layers"]
    return {name: math.nan if value is None else value for name, value in found.items()}  # of JSON
