"""The evaluate command: how good are generated pairs, beside what real images reach?"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from geoseg_gan.config import command, plain
from geoseg_gan.data.leaks import shared_ground
from geoseg_gan.distributed import run_together
from geoseg_gan.errors import UserError, check_choice, plural
from geoseg_gan.evaluate_measures import FEWEST, Measured, Subject, measure, open_subject
from geoseg_gan.evaluation import fidelity
from geoseg_gan.evaluation.artefacts import spectra, texture
from geoseg_gan.evaluation.images import SPLITS, collect
from geoseg_gan.evaluation.obedience import agreement, diversity, real_diversity
from geoseg_gan.evaluation.pictures import CLOSEST, write_closest, write_pictures
from geoseg_gan.evaluation.report import RESULT, print_figures, write_evaluation
from geoseg_gan.lock import held
from geoseg_gan.models.features import FEATURES
from geoseg_gan.schemas import EvaluateConfig
from geoseg_gan.team import Team


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
    return run_together(_evaluate, config)


def _evaluate(config: EvaluateConfig, team: Team) -> dict[str, float]:
    check(config)
    with team.leader_first():
        subject = open_subject(config, team)
    with held(Path(config.out_dir)) if team.leads else nullcontext():
        if team.leads:
            _check_unwritten(config)  # once more: another call may have ended meanwhile
            _say_start(config, subject, team)
        measured = measure(config, subject, team)
        return _report(config, subject, measured) if measured is not None else {}


main = command(EvaluateConfig)(evaluate)


def _report(config: EvaluateConfig, subject: Subject, measured: Measured) -> dict[str, float]:
    """Works out all figures from what was measured, and writes them; the main ones."""
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
            "painted": fidelity.compare(of_real, of_fake),
            "real halves": fidelity.halves(of_real, real.groups, config.seed),
            "training ground": fidelity.compare(of_real, of_train),
            **{
                name: fidelity.compare(of_real, features, paired=True)
                for name, features in measured.of_controls.items()
            },
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
        figures["agreement"] = {k: agreement(v, names) for k, v in measured.confusions.items()}
    if generator is not None:
        figures["diversity"] = {
            "painted": diversity(measured.distances, generator),
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
    closest = np.argsort(near["painted"])[:CLOSEST].tolist()
    originals = collect(subject.train, [train_rows[near["rows"][row]] for row in closest])
    near["closest"] = [
        {"painted": fake.names[row], "training": original, "distance": near["painted"][row]}
        for row, original in zip(closest, originals.names, strict=True)
    ]
    folder = Path(config.out_dir)
    palette, kind = subject.reader.palette, subject.kind
    write_pictures(folder, figures, palette, scaling, real=real, fake=fake, kind=kind)
    write_closest(folder, near["closest"], fake.part(closest), originals, scaling)
    write_evaluation(folder, figures, facts)
    print_figures(folder, figures)
    return _main_figures(figures)


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
    check_choice("split", config.split, SPLITS)
    if config.split == "held_out" and config.gen_ckpt is None:
        raise UserError(
            f"split=held_out: of folder={config.folder} it is not known which tiles its generator "
            "held out. Give gen_ckpt instead, or use split=val."
        )
    if config.features_weights is not None and config.features == "lite0":
        raise UserError(
            f"features_weights={config.features_weights}: features=lite0 brings its own. Leave it "
            "away, or set features=inception."
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
    if (Path(config.out_dir) / RESULT).exists():
        raise UserError(
            f"out_dir={config.out_dir} already holds an evaluation. Choose another out_dir."
        )


def _warnings(subject: Subject) -> list[str]:
    """What is known of data and segmenter that makes figures better than they are."""
    warnings = [shared_ground(subject.train_pairs, subject.val_pairs, kind=subject.kind)]
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
    found = {key: figures["fidelity"]["painted"][key] for key in ("kid", "fid")}
    found |= figures["coverage"]["painted"]
    found["checkerboard"] = figures["spectrum"]["gap"]["checkerboard"]
    found["repetition"] = float(np.mean(figures["texture"]["painted"] or [np.nan]))
    if figures["agreement"]:
        found["agreement"] = figures["agreement"]["painted"]["miou"]
    if figures["diversity"]:
        found["diversity"] = figures["diversity"]["painted"]["layers"]
    return found


def _say_start(config: EvaluateConfig, subject: Subject, team: Team) -> None:
    what, tiles = config.gen_ckpt or config.folder, len(subject.val_pairs)
    print(
        f"Evaluating {what} on {plural(tiles, f'{subject.kind} tile')} of {subject.root}, in "
        f"windows of {subject.image_size} px, with features of {config.features} on "
        f"{team.where(config.trainer)}, into {config.out_dir}."
    )
    if config.segmenter_ckpt is None:
        print("Without segmenter_ckpt there will be no figure for agreement.")
