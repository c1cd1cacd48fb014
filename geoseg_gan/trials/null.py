"""How often a trial's rule is wrong, and how often it finds what is there.

Runs of real only, told apart by their seeds alone, are dealt out to made-up arms: whatever differs
between such arms is chance.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from geoseg_gan.errors import UserError, plural
from geoseg_gan.metrics.tiles import TileConfusions
from geoseg_gan.trials.results import PLAIN, REAL, Mix, RunResult
from geoseg_gan.trials.statistics import Comparison, Tally, tally
from geoseg_gan.trials.verdict import Kind, judge

NULL_DRAWS = 1000
"""Bootstrap draws of each made-up trial: hundreds are judged, and only counted."""

_STEPS = 40  # halvings until the effect is as asked for, to the last digit


def null_trials(
    results: Sequence[RunResult],
    *,
    seeds: int,
    ratios: int,
    trials: int,
    rng_seed: int = 0,
    effect: float = 0.0,
) -> Counter[Kind]:
    """Applies the whole rule, choice of ratio included, to arms that differ by chance alone.

    Args:
        results: Runs of arm real.
        seeds: How many seeds each made-up trial has.
        ratios: How many ratios it compares, an arm each beside real only.
        trials: How many are made up.
        rng_seed: Fixes the dealing.
        effect: What is added to the mean IoU of every run that is dealt to a ratio arm, on
            validation and on held-out training tiles; in shares of 1.

    Returns:
        How often each verdict came.

    Raises:
        UserError: If there are too few runs.
    """
    needed = (1 + ratios) * seeds
    if needed > len(results):
        raise UserError(
            f"{plural(len(results), 'run')} of arm {REAL} are too few for {plural(seeds, 'seed')} "
            f"and {plural(ratios, 'ratio')}, which take {needed}. Ask for fewer seeds, or add "
            f"runs: trial with arms=[{REAL}] and more seeds."
        )
    mixed = [Mix(PLAIN, (number + 1) / (ratios + 1)).arm for number in range(ratios)]
    arms = [REAL, *mixed]
    plain = [tally(result) for result in results]
    raised = [tally(lift(result, effect)) for result in results] if effect else plain
    rng = np.random.default_rng(rng_seed)
    verdicts: Counter[Kind] = Counter()
    kept = dict.fromkeys(mixed, dict.fromkeys(range(seeds), 1))
    for _ in range(trials):
        dealt = iter(rng.permutation(len(results))[:needed].tolist())
        runs: list[Tally] = []
        for seed in range(seeds):
            for arm in arms:
                pool = plain if arm == REAL else raised
                runs.append(replace(pool[next(dealt)], arm=arm, seed=seed))
        verdicts[judge(Comparison(runs, NULL_DRAWS), kept).kind] += 1
    return verdicts


def lift(result: RunResult, effect: float) -> RunResult:
    """A run whose mean IoU is better by `effect`, on validation and on held-out tiles.

    In every tile the same share of the wrong pixels of every class is made right.

    Raises:
        UserError: If the run is too good to become better by so much.
    """
    return replace(result, val=_lift(result.val, effect), inner=_lift(result.inner, effect))


def _lift(tiles: TileConfusions, effect: float) -> TileConfusions:
    wanted = _miou(tiles.counts) + effect
    if wanted > 1:
        raise UserError(f"effect={effect}: a run reaches {wanted - effect:.3f} without it.")
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _miou(_corrected(tiles.counts, middle)) < wanted:
            low = middle
        else:
            high = middle
    return replace(tiles, counts=_corrected(tiles.counts, high))


def _corrected(counts: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    """Makes a share of the wrong pixels right, in tenths of thousandths of a pixel."""
    fine: npt.NDArray[np.int64] = counts * 10_000
    moved = np.rint(fine * share).astype(np.int64)
    diagonal = np.arange(counts.shape[1])
    moved[:, diagonal, diagonal] = 0
    better: npt.NDArray[np.int64] = fine - moved
    better[:, diagonal, diagonal] += moved.sum(2)
    return better


def _miou(counts: npt.NDArray[np.int64]) -> float:
    """Mean IoU of all tiles together, over the classes that the labels hold."""
    total = counts.sum(0).astype(np.float64)
    hits, true = np.diagonal(total), total.sum(1)
    union = true + total.sum(0) - hits
    return float((hits / np.maximum(union, 1))[true > 0].mean())
