"""Measures how often a trial's rule is wrong, and how often it finds an effect that is there.

Use: python scripts/dev/calibrate.py FOLDER [--trials N] [--ratios N] [--effect 0.03] [--json FILE]

FOLDER is the out_dir of a trial with arms=[real] and many seeds. Its runs, which differ by chance
alone, are dealt out at random to the arms of made-up trials, and the whole rule is applied, the
choice of the ratio included: every "Use it" is wrong. Then an effect is added to the runs of all
ratios, and every "Use it" is right.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import binomtest

from geoseg_gan.trials.arms import PLAIN, REAL, Mix
from geoseg_gan.trials.results import RunResult, read_results
from geoseg_gan.trials.statistics import Comparison, tally
from geoseg_gan.trials.verdict import reach_verdict
from geoseg_gan.utils.confusion import TileConfusions, mean_iou
from geoseg_gan.utils.files import write_json
from geoseg_gan.utils.tables import markdown_table

DRAWS = 1000  # bootstrap draws of a made-up trial: hundreds are made, and only counted


def made_up_trials(
    runs: Sequence[RunResult], seeds: int, ratios: int, trials: int, effect: float = 0.0
) -> Counter[str]:
    """Counts the verdicts of trials whose arms differ by chance, and by an effect.

    Args:
        runs: Runs of the arm `real`, at least (1 + ratios) * seeds.
        seeds: Seeds of each made-up trial.
        ratios: How many ratios it compares.
        trials: How many are made up.
        effect: Added to the mIoU of every run that is dealt to a ratio, in shares of 1.
    """
    mixed = [Mix(PLAIN, (number + 1) / (ratios + 1)).arm for number in range(ratios)]
    plain = [tally(run) for run in runs]
    raised = [tally(lift(run, effect)) for run in runs] if effect else plain
    kept = dict.fromkeys(mixed, dict.fromkeys(range(seeds), 1))
    rng = np.random.default_rng(0)
    verdicts: Counter[str] = Counter()
    for _ in range(trials):
        dealt = iter(rng.permutation(len(runs)).tolist())
        tallies = [
            replace((plain if arm == REAL else raised)[next(dealt)], arm=arm, seed=seed)
            for seed in range(seeds)
            for arm in (REAL, *mixed)
        ]
        verdicts[reach_verdict(Comparison(tallies, DRAWS), kept).kind] += 1
    return verdicts


def lift(run: RunResult, effect: float) -> RunResult:
    """A run whose mIoU is higher by `effect`, on validation and on held-out tiles.

    In every tile the same share of the wrong pixels of every class is made right.
    """
    return replace(run, val=_lift(run.val, effect), inner=_lift(run.inner, effect))


def _lift(tiles: TileConfusions, effect: float) -> TileConfusions:
    wanted = mean_iou(tiles.counts.sum(0)) + effect
    if wanted > 1:
        raise SystemExit(f"error: --effect {effect}: a run has mIoU {wanted - effect:.3f} already.")
    share = brentq(lambda x: mean_iou(_corrected(tiles.counts, x).sum(0)) - wanted, 0, 1)
    return replace(tiles, counts=_corrected(tiles.counts, share))


def _corrected(counts: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    """Makes a share of the wrong pixels right, counted in ten-thousandths of a pixel."""
    fine: npt.NDArray[np.int64] = counts * 10_000
    moved = np.rint(fine * share).astype(np.int64)
    diagonal = np.arange(counts.shape[1])
    moved[:, diagonal, diagonal] = 0
    better: npt.NDArray[np.int64] = fine - moved
    better[:, diagonal, diagonal] += moved.sum(2)
    return better


def _share(verdicts: Counter[str]) -> dict[str, float]:
    """The share of "Use it" with its 95 % interval (Clopper and Pearson 1934)."""
    found = binomtest(verdicts["use"], verdicts.total())
    interval = found.proportion_ci(0.95, method="exact")
    return {"share": found.statistic, "low": interval.low, "high": interval.high}


def calibrate(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Prints a Markdown table with a row for each number of seeds, and returns its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="out_dir of a trial with arms=[real]")
    parser.add_argument("--trials", type=int, default=400, help="made-up trials a row")
    parser.add_argument("--ratios", type=int, default=3, help="ratios that each compares")
    parser.add_argument("--effect", type=float, default=0.03, help="mIoU added, in shares of 1")
    parser.add_argument("--json", type=Path, help="file that also gets the figures")
    options = parser.parse_args(arguments)
    runs = [run for run in read_results(options.folder) if run.arm == REAL]
    most = len(runs) // (1 + options.ratios)
    if most < 2:
        parser.error(
            f"{len(runs)} runs of {REAL} are too few: 2 seeds take {2 + 2 * options.ratios}"
        )
    rows: list[dict[str, Any]] = []
    for seeds in range(2, most + 1):
        null, power = (
            _share(made_up_trials(runs, seeds, options.ratios, options.trials, effect))
            for effect in (0.0, options.effect)
        )
        rows.append({"seeds": seeds, "null": {"use": null}, "effect": {"use": power}})
    cells = [
        [
            row["seeds"],
            *(
                "{share:.1%} [{low:.1%}, {high:.1%}]".format(**row[part]["use"])
                for part in ("null", "effect")
            ),
        ]
        for row in rows
    ]
    head = ["seeds", '"Use it", nothing there', f'"Use it", {100 * options.effect:+.1f} mIoU']
    print("\n".join(markdown_table(head, cells)))
    if options.json:
        write_json(options.json, {"runs": len(runs), "trials": options.trials, "rows": rows})
    return rows


if __name__ == "__main__":
    calibrate(sys.argv[1:])
