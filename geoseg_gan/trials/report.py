"""The report of a trial: `trial.json`, `trial.md` and the pictures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.palette import Palette
from geoseg_gan.errors import UserError, plural
from geoseg_gan.files import atomic_path, write_json
from geoseg_gan.pictures import RGB, beside, captioned, write_picture
from geoseg_gan.trials.markdown import EXAMPLES, PICTURE, RARE, markdown
from geoseg_gan.trials.plots import trial_picture
from geoseg_gan.trials.results import REAL, RunResult, recipe_of
from geoseg_gan.trials.statistics import Comparison, Summary, tally
from geoseg_gan.trials.verdict import RULE, Verdict, judge

REPORT = "trial.md"
_FEW_SEEDS, _FEW_GROUPS = 5, 10


def write_report(
    folder: Path,
    results: Sequence[RunResult],
    palette: Palette,
    settings: Mapping[str, Any],
    images: Sequence[RGB],
    labels: Sequence[npt.NDArray[np.uint8]],
    warnings: Sequence[str] = (),
) -> tuple[Verdict, dict[str, Any]]:
    """Works out a trial's figures and writes its report.

    Args:
        folder: Where to.
        results: All runs there are.
        palette: The classes.
        settings: The trial's configuration, plain types.
        images: The example windows that runs predicted, as they are shown.
        labels: Their label maps, shape (S, S), uint8.
        warnings: What is known of the data that a reader must know too.

    Returns:
        The verdict, and what `trial.json` holds.

    Raises:
        UserError: If there is no result, or results do not belong together.
    """
    if not results:
        raise UserError(f"{folder} holds no result of a trial yet: ask for more arms or seeds.")
    support = _support(results)
    rare = [c for c, entry in enumerate(support) if 0 < entry["share"] < RARE]
    comparison = Comparison([tally(result) for result in results], rare=rare)
    kept: dict[str, dict[int, int]] = {}
    for r in results:
        if r.facts["kept"] is not None:
            kept.setdefault(r.arm, {})[r.seed] = r.facts["kept"]
    verdict = judge(comparison, kept)
    warnings = [*warnings, *_warnings(comparison, results, kept, settings)]
    arms = {arm: _arm(comparison, arm, palette) for arm in comparison.arms}
    left_out = {} if verdict.arm is None else comparison.without_groups(verdict.arm)
    content = _finite(
        {
            "verdict": {
                "kind": verdict.kind,
                "sentence": verdict.sentence,
                "arm": verdict.arm,
                "rival": verdict.rival,
            },
            "rule": RULE,
            "warnings": warnings,
            "validation": {
                "tiles": len(results[0].val.stems),
                "groups": len(comparison.groups),
            },
            "arms": arms,
            "support": dict(zip(palette.names, support, strict=True)),
            "rare": [palette.names[c] for c in rare],
            "filter": _pairs(results),
            "without_group": left_out,
            "runs": [_run(result) for result in results],
            "settings": dict(settings),
        }
    )
    write_picture(folder / PICTURE, trial_picture(comparison, verdict.arm, palette.names, support))
    shown = [arm for arm in (REAL, "copy_paste", verdict.arm) if arm in comparison.arms]
    _write_examples(folder / EXAMPLES, results, shown, palette, images, labels)
    with atomic_path(folder / REPORT) as scratch:
        scratch.write_text(markdown(content, comparison.arms, shown))
    write_json(folder / "trial.json", content)
    return verdict, content


def _warnings(
    comparison: Comparison,
    results: Sequence[RunResult],
    kept: Mapping[str, Mapping[int, int]],
    settings: Mapping[str, Any],
) -> list[str]:
    """What a reader must know before believing a figure."""
    found = []
    seeds = sorted({result.seed for result in results})
    fewest = min(len(comparison.seeds(arm)) for arm in comparison.arms)
    if fewest < _FEW_SEEDS:
        found.append(
            f"Only {plural(fewest, 'seed')}: intervals are wide, and what is found may not last. "
            "Five are usual."
        )
    if settings["share_gan"]:
        found.append(
            "All figures of synthetic pairs are conditional on one GAN and one draw of training "
            "tiles: with another one they may differ by more than the intervals say."
        )
    groups = len(comparison.groups)
    if groups < _FEW_GROUPS:
        found.append(
            f"Validation rests on {plural(groups, 'group')} of ground only: on other ground "
            "figures may differ by more than the intervals say."
        )
    missing = [
        f"{arm} of seed {', '.join(map(str, lacking))}"
        for arm in comparison.arms
        if (lacking := sorted(set(seeds) - set(comparison.seeds(arm))))
    ]
    if missing:
        found.append(
            f"Results are missing: {'; '.join(missing)}. Two arms are compared over the seeds that "
            "both have."
        )
    empty = {
        arm: ", ".join(str(seed) for seed, count in sorted(counts.items()) if count == 0)
        for arm, counts in kept.items()
    }
    for seed in sorted(set(filter(None, empty.values()))):
        arms = ", ".join(arm for arm, seeds in empty.items() if seeds == seed)
        found.append(
            f"The filter kept nothing with seed {seed}: there {arms} are what real only is."
        )
    return found


def _arm(comparison: Comparison, arm: str, palette: Palette) -> dict[str, Any]:
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
        "classes": _by_class(level, palette),
        "class_differences": _by_class(difference, palette),
        "inner_class_differences": dict(
            zip(palette.names, comparison.inner_gains(arm), strict=True)
        ),
    }


def _by_class(summary: Summary, palette: Palette) -> dict[str, Any]:
    return {n: vars(e) for n, e in zip(palette.names, summary.classes, strict=True)}


def _support(results: Sequence[RunResult]) -> list[dict[str, float]]:
    """What every class rests on: fitted real tiles, averaged over the seeds, and validation."""
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
    found = {}
    for r in sorted(results, key=lambda r: r.seed):
        if r.facts["kept"] is not None:
            name = r.facts.get("pairs", recipe_of(r.arm))
            facts = {key: r.facts.get(key) for key in ("kept", "painted", "tau")}
            seed = r.facts.get("gan_seed", r.seed)
            found[name, seed] = {
                "pairs": name,
                "seed": seed,
                **facts,
                "seconds": r.facts.get("synthesis_seconds", 0.0),
                "generators": r.facts.get("generator_seconds", {}),
            }
    return [found[key] for key in sorted(found)]


def _run(result: RunResult) -> dict[str, Any]:
    facts = {key: value for key, value in result.facts.items() if key != "support"}
    return {"arm": result.arm, "seed": result.seed, **facts}


def _finite(value: Any) -> Any:
    """The same content with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _write_examples(
    path: Path,
    results: Sequence[RunResult],
    arms: Sequence[str],
    palette: Palette,
    images: Sequence[RGB],
    labels: Sequence[npt.NDArray[np.uint8]],
) -> None:
    """Image, mask, and what segmenters of some arms predict with their first seed, a row each."""
    first = {r.arm: r for r in sorted(results, key=lambda r: r.seed, reverse=True)}
    pictures = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        predicted = [palette.color_table[first[arm].examples[number]] for arm in arms]
        pictures += [image, palette.color_table[label], *predicted]
    titles = ["image", "mask", *arms]
    pictures[: len(titles)] = map(captioned, pictures[: len(titles)], titles)
    write_picture(path, beside(pictures, columns=len(titles)))
