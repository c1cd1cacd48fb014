"""The ladder command: which recipe is best at an equal time budget?"""

import hashlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from geoseg_gan.config import command, compose_train
from geoseg_gan.errors import UserError, check_choice, plural
from geoseg_gan.evaluate_measures import FEWEST
from geoseg_gan.ladder_runs import LadderRun, judge, refuse_other_training, train_rest
from geoseg_gan.ladders.processes import Processes
from geoseg_gan.ladders.report import REPORT, write_report, write_samples
from geoseg_gan.ladders.results import read_results, result_path
from geoseg_gan.ladders.targets import targets
from geoseg_gan.lock import held
from geoseg_gan.schemas import LadderConfig, TrainConfig
from geoseg_gan.train import check as check_training
from geoseg_gan.trial import seed_list

_PARTS = 3  # of a run, as the progress bar counts them: training and two evaluations


def ladder(config: LadderConfig) -> dict[str, float]:
    """Trains and judges a generator for every row and seed, and compares the rows.

    Every finished run is stored as a small file; a second call computes only what is missing.

    Args:
        config: The rows, and what is computed of them.

    Returns:
        How many "results" there are, and in how many "rows".

    Raises:
        UserError: If the configuration or a result is not as it must be, or a run has failed.
    """
    check(config)
    folder = Path(config.out_dir)
    failed: list[LadderRun] = []
    if not config.report_only:
        with held(folder):
            failed = _compute(config)
    figures = _report(config)
    if failed:
        raise UserError(
            f"{plural(len(failed), 'run')} of the ladder failed: {', '.join(map(str, failed))}. "
            "See above; the same call tries again."
        )
    return figures


main = command(LadderConfig)(ladder)


def check(config: LadderConfig) -> None:
    """Refuses a configuration before anything slow starts or anything is written.

    Raises:
        UserError: Naming the key, its value and what to do.
    """
    if not config.ladder:
        raise UserError("ladder is empty: give rows, as in configs/ladder.yaml.")
    for row in config.ladder:
        if not re.fullmatch(r"[\w.+-]+", row):
            raise UserError(f"ladder.{row}: a row is also a folder; use letters, digits and _.")
    for row in config.rows:
        check_choice("rows", row, config.ladder)
    seed_list(config)
    if config.jobs < 1 or config.num_samples < FEWEST:
        raise UserError(
            f"jobs={config.jobs} must be positive, num_samples={config.num_samples} {FEWEST} or "
            "more."
        )
    if config.report_only:
        return
    if config.segmenter_ckpt is None or not Path(config.segmenter_ckpt).is_file():
        raise UserError(
            f"segmenter_ckpt={config.segmenter_ckpt}: give the segmenter.pt that judges agreement, "
            "which train_segmenter writes; or report_only=true for the table of what is there."
        )


def _compute(config: LadderConfig) -> list[LadderRun]:
    """Computes what is missing, and says how it goes.

    Returns:
        The runs that failed.
    """
    folder, seeds, rows = Path(config.out_dir), seed_list(config), config.rows or [*config.ladder]
    _refuse_other_judge(config)
    wanted = [LadderRun.of(config, row, seed) for seed in seeds for row in rows]
    missing = [run for run in wanted if not result_path(folder, run.row, run.seed).is_file()]
    to_train, minutes = 0, 0.0
    for run in missing:
        try:
            settings = _checked(run)
        except UserError as error:
            raise UserError(f"row {run.row}: {error}") from None
        if not run.is_trained():
            to_train += 1
            minutes += settings.max_minutes or 0
    print(
        f"Ladder of {plural(len(rows), 'row')} with {plural(len(seeds), 'seed')} in {folder}: "
        f"{len(wanted) - len(missing)} of {plural(len(wanted), 'result')} are there."
    )
    if not missing:
        return []
    time = timedelta(seconds=round(60 * minutes / config.jobs))
    print(
        f"{plural(to_train, 'run')} to train, {len(missing)} to evaluate, {config.jobs} at once"
        + (f": {time} of training, and the evaluations." if minutes else ".")
    )
    return _work(config, missing)


def _checked(run: LadderRun) -> TrainConfig:
    """The settings of a run's training, once they can be trained with, or have been."""
    settings = compose_train([*run.overrides, *run.going_on()])
    if settings.devices != 1:
        raise UserError(f"devices={settings.devices}: a run of a ladder has one device.")
    if not settings.inner_share and settings.data.split_file is None:
        raise UserError(
            "inner_share=0 holds no training tiles out, by which rows are judged. Set "
            "inner_share=0.1 or so in common."
        )
    if run.is_trained():
        refuse_other_training(run, settings)
    else:
        check_training(settings)
    return settings


def _work(config: LadderConfig, runs: list[LadderRun]) -> list[LadderRun]:
    console = Console(file=sys.stdout)
    processes = Processes(max(1, torch.get_num_threads() // config.jobs))
    failed = []
    bar = Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console)
    pool = ThreadPoolExecutor(config.jobs)
    try:
        with _termination_raises(), bar:
            line = bar.add_task("Ladder", total=_PARTS * len(runs))
            jobs = {
                pool.submit(_climb, config, run, processes, lambda: bar.advance(line)): run
                for run in runs
            }
            for done in as_completed(jobs):
                text, ended_well = done.result()
                console.print(text, markup=False, highlight=False, soft_wrap=True)
                if not ended_well:
                    failed.append(jobs[done])
    except (KeyboardInterrupt, SystemExit):
        processes.end()
        console.print(
            "Stopped. The same call goes on from there: runs with a last.ckpt for what is left of "
            "their time."
        )
        raise
    finally:
        processes.end()
        pool.shutdown(cancel_futures=True)
    return failed


def _climb(
    config: LadderConfig, run: LadderRun, processes: Processes, advance: Callable[[], Any]
) -> tuple[str, bool]:
    """Trains, evaluates and stores a run, as far as that is not done.

    Returns:
        What to tell, and whether all went well.
    """
    problem = train_rest(run, processes)
    advance()
    if problem is None:
        problem = judge(config, run, processes, advance)
    if problem is not None:
        return f"{run} failed: {problem} (all of it: {run.log})", False
    result = run.store(Path(config.out_dir), config.common)
    val, training = result["splits"]["val"], result["training"]
    return (
        f"{run}: {training['images']:,} images, KID x 1000 {1000 * val['kid']:.0f} on validation "
        f"tiles (floor {1000 * val['kid_floor']:.0f})",
        True,
    )


def _refuse_other_judge(config: LadderConfig) -> None:
    """Refuses to add to results that were judged otherwise."""
    assert config.segmenter_ckpt is not None, "check() has made sure"
    with Path(config.segmenter_ckpt).open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    for results in read_results(Path(config.out_dir), config.common, config.ladder).values():
        for key, now in (("num_samples", config.num_samples), ("segmenter", digest)):
            if results[0][key] != now:
                raise UserError(
                    f"{config.out_dir} holds results that were judged with {key}="
                    f"{results[0][key]}, not {now}. Give the same, or choose another out_dir."
                )


def _report(config: LadderConfig) -> dict[str, float]:
    """Writes the report on all results there are."""
    folder = Path(config.out_dir)
    results = read_results(folder, config.common, config.ladder)
    if not results:
        if config.report_only:
            raise UserError(f"{folder / 'results'} holds no result of a ladder. Correct out_dir.")
        return {"rows": 0.0, "results": 0.0}
    for row, own in results.items():
        sheet = LadderRun.folder_of(folder, row, own[0]["seed"]) / "evaluation_val" / "samples.png"
        if sheet.is_file():
            write_samples(folder, row, sheet)
    base = next(iter(config.ladder))
    write_report(folder, results, base)
    for row, own in results.items():
        met = targets(own, results.get(base, []))
        print(f"{row}: " + ", ".join(f"{name} {target}" for name, target in met.items()))
    print(f"Wrote {folder / REPORT}, with picture and samples beside it.")
    return {"rows": float(len(results)), "results": float(sum(map(len, results.values())))}


@contextmanager
def _termination_raises() -> Iterator[None]:
    """Lets what ends this process also end those that it has started."""
    if threading.current_thread() is not threading.main_thread():
        yield  # of a launcher, which alone may handle signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
