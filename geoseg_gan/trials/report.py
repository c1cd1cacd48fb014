"""The report of a trial: `trial.json`, `trial.md` and the pictures."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.palette import Palette
from geoseg_gan.synthesis.settings import UNLABELLED
from geoseg_gan.trials.arms import (
    COPY_PASTE,
    FREE_RIVALS,
    HALF,
    REAL,
    is_control,
    mix_of,
    recipe_of,
)
from geoseg_gan.trials.plots import trial_picture
from geoseg_gan.trials.results import RunResult
from geoseg_gan.trials.statistics import Comparison, tally
from geoseg_gan.trials.verdict import RULE, Verdict, reach_verdict, signed
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import atomic_path, write_json
from geoseg_gan.utils.pictures import RGB, beside, write_picture
from geoseg_gan.utils.tables import as_markdown, markdown_table, percent

REPORT, FIGURES = "trial.md", "trial.json"
PICTURE, EXAMPLES = "trial.png", "trial_examples.png"

RARE = 0.03
"""A class with a smaller share of the training pixels counts as rare."""

_FEW_SEEDS, _FEW_GROUPS = 5, 10


def write_report(
    folder: Path,
    results: Sequence[RunResult],
    palette: Palette,
    settings: Mapping[str, Any],
    meaning: Callable[[str], str],
    images: Sequence[RGB],
    labels: Sequence[npt.NDArray[np.uint8]],
    warnings: Sequence[str] = (),
) -> tuple[Verdict, dict[str, Any]]:
    """Computes a trial's figures and writes its report.

    Args:
        folder: The trial's output folder.
        results: All finished runs.
        palette: The classes.
        settings: The trial's configuration as plain types.
        meaning: Says what an arm is trained on.
        images: The example windows in RGB.
        labels: Their label maps, shape (S, S), uint8.
        warnings: Warnings about the data, which the report repeats.

    Returns:
        The verdict, and what `trial.json` holds.

    Raises:
        UserError: If there is no result, or results were evaluated on different tiles.
    """
    if not results:
        raise UserError(f"{folder} holds no results yet. Compute more arms or seeds.")
    support = _support(results)
    rare = [c for c, entry in enumerate(support) if 0 < entry["share"] < RARE]
    comparison = Comparison([tally(result) for result in results], rare=rare)
    kept: dict[str, dict[int, int]] = {}
    for r in results:
        if r.facts["kept"] is not None:
            kept.setdefault(r.arm, {})[r.seed] = r.facts["kept"]
    free = {r.arm for r in results if r.facts["kept"] and not r.facts["generator_seconds"]}
    allowed = [arm for arm in comparison.arms if arm in free and not is_control(arm)]
    verdict = reach_verdict(comparison, kept, allowed, first=settings.get("val_groups") is not None)
    asked = {arm for arm in kept if not is_control(arm)} or {*kept}
    content = {
        "title": _title(*_kinds(asked, settings)),
        "verdict": vars(verdict),
        "rule": RULE,
        "warnings": [*warnings, *_warnings(comparison, results, kept, settings)],
        "validation": {"tiles": len(results[0].val.stems), "groups": len(comparison.groups)},
        "arms": {
            arm: {"meaning": meaning(arm), **_figures(comparison, arm, palette.names)}
            for arm in comparison.arms
        },
        "support": dict(zip(palette.names, support, strict=True)),
        "rare": [palette.names[c] for c in rare],
        "filter": _pairs(results),
        "runs": [
            {"arm": r.arm, "seed": r.seed}
            | {key: value for key, value in r.facts.items() if key != "support"}
            for r in results
        ],
        "settings": settings,
    }
    write_picture(folder / PICTURE, trial_picture(comparison, verdict.arm, palette.names, support))
    shown = [arm for arm in (REAL, COPY_PASTE, verdict.arm) if arm in comparison.arms]
    _write_examples(folder / EXAMPLES, results, shown, palette, images, labels)
    write_json(folder / FIGURES, content)
    stored: dict[str, Any] = json.loads((folder / FIGURES).read_text())  # None in place of NaN
    with atomic_path(folder / REPORT) as scratch:
        scratch.write_text(_markdown(stored, shown))
    return verdict, stored


def _kinds(arms: Collection[str], settings: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether some arms mix in synthetic images, and whether some mix in labelled real ones."""
    recipes = settings.get("recipes", {})
    sources = {recipes.get(recipe_of(arm), {}).get("generate", {}).get("source") for arm in arms}
    return not arms or bool(sources - {UNLABELLED}), UNLABELLED in sources


def _title(has_generated: bool, has_labelled: bool) -> str:
    """The question that a trial answers, by where its pairs come from."""
    kinds = ["synthetic data"] * has_generated + ["labels of unlabelled images"] * has_labelled
    return f"{'Does' if kinds == ['synthetic data'] else 'Do'} {' or '.join(kinds)} help?"


def _warnings(
    comparison: Comparison,
    results: Sequence[RunResult],
    kept: Mapping[str, Mapping[int, int]],
    settings: Mapping[str, Any],
) -> list[str]:
    """What makes the figures less certain."""
    found = []
    seeds = sorted({result.seed for result in results})
    counts = {arm: len(comparison.seeds(arm)) for arm in comparison.arms}
    for count in sorted({count for count in counts.values() if count < _FEW_SEEDS}):
        few = [arm for arm in counts if counts[arm] == count]
        of = f" of {', '.join(few)}" * (len(few) < len(counts))
        found.append(
            f"There is only 1 seed{of}, which gives no intervals. Use five or more."
            if count == 1
            else f"There are only {count} seeds{of}: intervals are wide, and more seeds may change "
            "the verdict. Use five or more."
        )
    if settings["share_gan"]:
        found.append(
            "All seeds share one GAN and one draw of training tiles: with others, figures of "
            "synthetic pairs may differ by more than the intervals show."
        )
    groups = len(comparison.groups)
    if groups < _FEW_GROUPS:
        found.append(
            f"The validation tiles come from only {plural(groups, 'location group')}: in other "
            "places figures may differ by more than the intervals show."
        )
    missing = [
        f"{arm} for seed {', '.join(map(str, lacking))}"
        for arm in comparison.arms
        if (lacking := sorted(set(seeds) - set(comparison.seeds(arm))))
    ]
    if missing:
        found.append(
            f"Results are missing: {'; '.join(missing)}. Two arms are compared over the seeds for "
            "which both have results."
        )
    empty = {
        arm: ", ".join(str(seed) for seed, count in sorted(counts.items()) if count == 0)
        for arm, counts in kept.items()
    }
    for which in sorted(set(filter(None, empty.values()))):
        arms = ", ".join(arm for arm, seeds in empty.items() if seeds == which)
        found.append(
            f"The filter kept no pairs for seed {which}, for which these arms equal real only: "
            f"{arms}."
        )
    return found


def _figures(comparison: Comparison, arm: str, names: Sequence[str]) -> dict[str, Any]:
    """What `trial.json` holds of an arm."""
    level, difference = comparison.level(arm), comparison.difference(arm)
    return {
        "seeds": level.seeds,
        "miou": vars(level.miou),
        "miou_by_seed": level.by_seed,
        "inner_miou": comparison.inner_miou(arm),
        "difference": vars(difference.miou),
        "difference_by_seed": difference.by_seed,
        "rare": vars(level.rare),
        "rare_difference": vars(difference.rare),
        "classes": dict(zip(names, map(vars, level.classes), strict=True)),
        "class_differences": dict(zip(names, map(vars, difference.classes), strict=True)),
        "inner_class_differences": dict(zip(names, comparison.inner_gains(arm), strict=True)),
    }


def _support(results: Sequence[RunResult]) -> list[dict[str, float]]:
    """Every class's support among the fitted real tiles (mean over seeds) and in validation."""
    of_seeds = {r.seed: r.facts["support"] for r in results}.values()
    means = {
        key: np.mean([support[key] for support in of_seeds], 0)
        for key in ("pixels", "tiles", "groups")
    }
    means["share"] = means["pixels"] / max(1.0, means["pixels"].sum())
    true, groups = results[0].val.counts.sum(2), np.array(results[0].val.groups)
    means["val_pixels"], means["val_tiles"] = true.sum(0), (true > 0).sum(0)
    means["val_groups"] = np.array([len(set(groups[column > 0])) for column in true.T])
    return [{key: float(value[c]) for key, value in means.items()} for c in range(len(true[0]))]


def _pairs(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """What the filter did with each seed's pairs, which several arms, or all seeds, share."""
    found = {
        (r.facts["pairs"], r.facts["gan_seed"]): {
            "pairs": r.facts["pairs"],
            "seed": r.facts["gan_seed"],
            **{key: r.facts[key] for key in ("kept", "generated", "tau")},
            "seconds": r.facts["synthesis_seconds"],
            "generators": r.facts["generator_seconds"],
        }
        for r in results
        if r.facts["kept"] is not None
    }
    return [found[key] for key in sorted(found)]


def _markdown(content: Mapping[str, Any], shown: Sequence[str]) -> str:
    """The text of `trial.md`, from what `trial.json` holds and the arms that the examples show."""
    verdict, arms = content["verdict"], content["arms"]
    tiles, groups = content["validation"]["tiles"], content["validation"]["groups"]
    lines = [f"# {content['title']}", "", f"**{verdict['sentence']}**", ""]
    for text in filter(None, (verdict[key] for key in ("rival", "room", "plateau"))):
        lines += [text, ""]
    lines += [f"- Warning: {text}" for text in content["warnings"]]
    lines += [""] * bool(content["warnings"])
    lines += [
        f"Figures are IoU in per cent on {plural(tiles, 'real validation tile')} from "
        f"{plural(groups, 'location group')}, which each run reads once, at its end. In "
        "parentheses: 95 % intervals from a bootstrap over seeds and location groups. All arms "
        f"but {HALF} have the same number of updates. For each seed they start from the same "
        "weights.",
        "",
        *markdown_table(
            ["arm", "seeds", "mIoU", "difference to real only", "held-out training tiles"],
            [
                [
                    arm + " (picked)" * (arm == verdict["arm"]),
                    len(entry["seeds"]),
                    _shown(entry["miou"]),
                    "" if arm == REAL else _shown(entry["difference"], sign=True),
                    percent(entry["inner_miou"]),
                ]
                for arm, entry in arms.items()
            ],
        ),
        *("", "What they are trained on; a number at the end is the share of the pairs:", ""),
        *_meanings(arms),
        *("", f"![differences]({PICTURE})", "", "## By class", ""),
        f"IoU of {REAL}, and each other arm's difference to it. The first columns count the "
        "class's pixels (with their share), tiles and location groups among the real training "
        "tiles, averaged over the seeds, and among the validation tiles. A class that only one "
        "location group holds has no interval.",
        "",
        *_by_class(content),
        *_inner(content),
        *("", "## Examples", "", f"![examples]({EXAMPLES})", ""),
        *(f"Image, mask, and predictions of the first seed: {', '.join(shown)}.", ""),
        *("## How it was done", "", RULE, ""),
        *_done(content, content["settings"]),
    ]
    return "\n".join(lines) + "\n"


def _meanings(arms: Mapping[str, Any]) -> list[str]:
    """A line for each meaning, with the arms that differ in their share alone."""
    names: dict[str, list[str]] = {}
    for arm, entry in arms.items():
        names.setdefault(entry["meaning"], []).append(arm)
    return [f"- {', '.join(same)}: {meaning}." for meaning, same in names.items()]


def _by_class(content: Mapping[str, Any]) -> list[str]:
    """The table of IoU and differences by class, and for rare classes together."""
    arms = content["arms"]
    others = [arm for arm in arms if arm != REAL]

    def figures(level: str, difference: str, name: str | None = None) -> list[str]:
        parts = [arms[REAL][level]] if REAL in arms else [None]
        parts += [arms[arm][difference] for arm in others]
        return [
            "-" if part is None else _shown(part[name] if name else part, sign=number > 0)
            for number, part in enumerate(parts)
        ]

    rows = [
        [
            as_markdown(name),
            f"{support['pixels']:,.0f} ({support['share']:.1%})",
            *(f"{support[key]:.0f}" for key in ("tiles", "groups")),
            *(f"{support[f'val_{key}']:,.0f}" for key in ("pixels", "tiles", "groups")),
            *figures("classes", "class_differences", name),
        ]
        for name, support in content["support"].items()
    ]
    if content["rare"]:
        title = f"mean of those under {RARE:.0%}"
        rows.append([title, *[""] * 6, *figures("rare", "rare_difference")])
    support = ["trained on: pixels", "tiles", "groups", "validated on: pixels", "tiles", "groups"]
    return markdown_table(["class", *support, REAL, *others], rows)


def _inner(content: Mapping[str, Any]) -> list[str]:
    """The table of differences by class on the tiles that choices are made on."""
    arms = content["arms"]
    mixed = [arm for arm in arms if mix_of(arm) is not None and not is_control(arm)]
    if not mixed or REAL not in arms:
        return []
    rows = []
    for name in content["support"]:
        gains = [arms[arm]["inner_class_differences"][name] for arm in mixed]
        rows.append([as_markdown(name), *("-" if gain is None else signed(gain) for gain in gains)])
    title = (
        "Differences to real only on the held-out training tiles, by which classes may be chosen "
        "(`mixing.classes`):"
    )
    return ["", title, "", *markdown_table(["class", *mixed], rows)]


def _done(content: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    pairs, segmenter, generate = content["filter"], settings["segmenter"], settings["generate"]
    train, segmentation = settings["train"], settings["train_segmenter"]
    training = sum(run["seconds"] for run in content["runs"])
    generators = {(p["seed"], n): s for p in pairs for n, s in p["generators"].items()}
    synthesis = sum(entry["seconds"] for entry in pairs) + sum(generators.values())
    arms_of: dict[str, list[str]] = {}
    for run in content["runs"]:
        if run["kept"] is not None and run["arm"] not in arms_of.setdefault(run["pairs"], []):
            arms_of[run["pairs"]].append(run["arm"])
    kept = [
        f"{entry['kept']} of {entry['generated']} for seed {entry['seed']}"
        f"{'' if len(arms_of) == 1 else ' in ' + ' and '.join(arms_of[entry['pairs']])}"
        + f" (tau {entry['tau']:.3f})"
        * bool(entry["tau"])
        for entry in pairs
    ]
    tiles = "all tiles"
    if settings["train_tiles"] is not None:
        tiles = f"{plural(settings['train_tiles'], 'tile')}, drawn by each seed"
    lines = [
        f"- Training tiles: {tiles}; {settings['inner_share']:.0%} of them, in whole "
        "location groups, are held out of all training."
    ]
    if (groups := settings.get("val_groups")) is not None:
        lines.append(
            f"- New ground: {', '.join(groups)}. Its tiles in train/ are the unlabelled images, "
            "those in val/ are validated on; all other tiles are the labelled ones."
        )
    if generators:
        lines.append(
            f"- Generators: {plural(train['epochs'], 'epoch')}, batches of {train['bs']}; "
            f"{plural(generate['num_samples'], 'pair')} generated for each seed, "
            f"tau={generate['tau']}."
        )
    rivals = [arm for arm in FREE_RIVALS if arm in content["arms"]]
    return [
        *lines,
        f"- Pairs kept: {', '.join(kept) or 'none were made'}.",
        f"- Segmenters: {segmenter['arch']} on {segmenter['encoder']}, "
        f"{plural(segmentation['epochs'], 'epoch')}, batches of {segmentation['bs']}.",
        f"- Time: {training / 60:.0f} minutes for segmenters, {synthesis / 60:.0f} for "
        f"{'generators and their pairs' if generators else 'pairs'}.",
        *([f"- Arms that need no generated pair: {', '.join(rivals)}."] if rivals else []),
        "- All settings are in `config.yaml`, all figures in `trial.json`, and the confusion "
        "matrices that they are computed from in `results/`.",
    ]


def _shown(estimate: Mapping[str, float | None], sign: bool = False) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"
    text = signed(value) if sign else percent(value)
    if low is None or high is None:
        return text
    if not sign:  # Student's intervals of few seeds leave what an IoU can be
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{text} ({100 * low:.1f} to {100 * high:.1f})"


def _write_examples(
    path: Path,
    results: Sequence[RunResult],
    arms: Sequence[str],
    palette: Palette,
    images: Sequence[RGB],
    labels: Sequence[npt.NDArray[np.uint8]],
) -> None:
    """Draws a row per example: image, mask, and predictions of some arms' first seed."""
    first = {r.arm: r for r in sorted(results, key=lambda r: r.seed, reverse=True)}
    pictures = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        predicted = [palette.color_table[first[arm].examples[number]] for arm in arms]
        pictures += [image, palette.color_table[label], *predicted]
    titles = ["image", "mask", *arms]
    write_picture(path, beside(pictures, len(titles), titles))
