"""The calibrate command: can one believe a trial's verdict, and what would it overlook?"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

from geoseg_gan.config import command, plain
from geoseg_gan.errors import UserError, plural
from geoseg_gan.files import atomic_path, write_json
from geoseg_gan.schemas import CalibrateConfig
from geoseg_gan.trials.null import NULL_DRAWS, null_trials
from geoseg_gan.trials.results import REAL, RunResult, read_results
from geoseg_gan.trials.statistics import share_interval
from geoseg_gan.trials.verdict import Kind

FIGURES, REPORT = "calibration.json", "calibration.md"
MINIMUM_RUNS = 20
"""Fewer real-only runs show too little of the chance that tells runs apart."""


def calibrate(config: CalibrateConfig) -> dict[str, float]:
    """Deals real-only runs out to made-up trials, without an effect and with one added.

    Args:
        config: The trial that has the runs, and what is made up of them.

    Returns:
        The share of made-up trials that say "Use it" for each number of seeds: "null/5" where
        there is nothing to find, "power/5" with the effect.

    Raises:
        UserError: If settings, runs or output folder are not as they must be.
    """
    out_dir = Path(config.out_dir)
    check(config)
    if (out_dir / FIGURES).exists():
        raise UserError(f"{out_dir / FIGURES} exists. Choose another out_dir.")
    runs = [result for result in read_results(Path(config.folder)) if result.arm == REAL]
    if len(runs) < MINIMUM_RUNS:
        raise UserError(
            f"folder={config.folder} holds {plural(len(runs), 'result')} of arm {REAL}, and it "
            f"takes {MINIMUM_RUNS}. Add runs: trial with out_dir={config.folder} arms=[{REAL}] "
            f"seeds={MINIMUM_RUNS}."
        )
    most = len(runs) // (1 + config.ratios)
    if most < 2 or max(config.seeds, default=2) > most:
        raise UserError(
            f"seeds={config.seeds} with ratios={config.ratios}: {len(runs)} runs are enough for "
            f"{plural(most, 'seed')}. Ask for fewer seeds or ratios, or add runs."
        )
    seeds = sorted(config.seeds) or list(range(2, most + 1))
    print(
        f"Dealing {len(runs)} runs of real only in {config.folder} out to "
        f"{plural(config.trials, 'made-up trial')} each of {', '.join(map(str, seeds))} seeds and "
        f"{plural(config.ratios, 'ratio')}, without an effect and with "
        f"{100 * config.effect:+.1f} mIoU."
    )
    rows = _rows(config, runs, seeds)
    content = {
        "runs": len(runs),
        "validation": {
            "tiles": len(runs[0].val.stems),
            "groups": len(set(runs[0].val.groups)),
        },
        "draws": NULL_DRAWS,
        "rows": rows,
        "settings": plain(config),
    }
    text = _markdown(content)
    with atomic_path(out_dir / REPORT) as scratch:
        scratch.write_text(text)
    write_json(out_dir / FIGURES, content)
    Console().print(Markdown(text))
    print(f"Wrote {out_dir / REPORT} and {FIGURES}.")
    shares = {f"null/{row['seeds']}": row["null"]["use"]["share"] for row in rows}
    return shares | {f"power/{row['seeds']}": row["effect"]["use"]["share"] for row in rows}


main = command(CalibrateConfig)(calibrate)


def check(config: CalibrateConfig) -> None:
    """Refuses a configuration before anything is read.

    Raises:
        UserError: Naming the key, its value and what to do.
    """
    for key in ("trials", "ratios"):
        if getattr(config, key) < 1:
            raise UserError(f"{key}={getattr(config, key)} must be 1 or more.")
    if config.seed < 0:
        raise UserError(f"seed={config.seed} must be 0 or more.")
    if min(config.seeds, default=2) < 2 or len(set(config.seeds)) < len(config.seeds):
        raise UserError(
            f"seeds={config.seeds}: use different numbers of seeds, 2 or more, as in [3,5]."
        )
    if not 0 < config.effect < 1:
        raise UserError(f"effect={config.effect}: use a share of 1, as in 0.03 for 3 points.")
    if not Path(config.folder).is_dir():
        raise UserError(f"folder={config.folder} is not a folder. Give the out_dir of a trial.")


def _rows(
    config: CalibrateConfig, runs: Sequence[RunResult], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    rows = []
    for count in track(seeds, "Judging"):
        null, raised = (
            null_trials(
                runs,
                seeds=count,
                ratios=config.ratios,
                trials=config.trials,
                rng_seed=config.seed,
                effect=effect,
            )
            for effect in (0.0, config.effect)
        )
        rows.append({"seeds": count, "null": _shares(null), "effect": _shares(raised)})
    return rows


def _shares(verdicts: Counter[Kind]) -> dict[str, dict[str, float]]:
    total = verdicts.total()
    found: dict[str, dict[str, float]] = {}
    kinds: tuple[Kind, ...] = ("use", "no effect", "do not use")
    for kind in kinds:
        low, high = share_interval(verdicts[kind], total)
        found[kind] = {"share": verdicts[kind] / total, "low": low, "high": high}
    return found


def _markdown(content: dict[str, Any]) -> str:
    settings = content["settings"]
    lines = [
        "# How far a trial's verdict can be trusted",
        "",
        f"{content['runs']} runs of real only, which differ by their seeds alone, judged on "
        f"{plural(content['validation']['tiles'], 'validation tile')} of "
        f"{plural(content['validation']['groups'], 'group')} of ground. They were dealt out at "
        f"random to {plural(settings['trials'], 'made-up trial')} a row, of real only and "
        f"{plural(settings['ratios'], 'ratio')}, and the whole rule was applied, the choice of the "
        'ratio included. Without an effect, every "Use it" is wrong; by the 95 % interval, at most '
        f"2.5 % should be. With {100 * settings['effect']:+.1f} mIoU added to the runs of all "
        'ratios, "Use it" is right, and its share is the power. In parentheses the 95 % interval '
        "of each share.",
        "",
        '| seeds | no effect: "Use it" | no effect: "Don\'t use it" | '
        f'{100 * settings["effect"]:+.1f} mIoU: "Use it" |',
        "|---|---|---|---|",
    ]
    for row in content["rows"]:
        cells = (row["null"]["use"], row["null"]["do not use"], row["effect"]["use"])
        lines.append(f"| {row['seeds']} | {' | '.join(_shown(cell) for cell in cells)} |")
    lines += [
        "",
        "The made-up trials share their runs, so that these intervals count the chance of dealing "
        "only, not which runs there are. Made-up arms are not paired by seed, which costs them "
        'power that a trial has, and have no rival to beat, which could only turn a "Use it" '
        f"down. Each trial had {content['draws']:,} bootstrap draws.",
    ]
    return "\n".join(lines) + "\n"


def _shown(share: dict[str, float]) -> str:
    return f"{share['share']:.1%} ({share['low']:.1%} to {share['high']:.1%})"
