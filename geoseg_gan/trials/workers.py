"""Processes that each compute some of the seeds, on a device of their own.

This module does not import torch, so that a process chooses its GPU before CUDA starts.
"""

import os
import signal
import threading
import time
import warnings
from collections.abc import Sequence

from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from geoseg_gan.trials.settings import TrialConfig
from geoseg_gan.utils.errors import UserError


def compute_side_by_side(config: TrialConfig, seeds: Sequence[int], arms: Sequence[str]) -> None:
    """Computes the missing results of seeds in `config.devices` processes.

    Each process has its share of the cores' threads, or OMP_NUM_THREADS threads. All of them have
    ended when this returns or raises.

    Args:
        config: The trial.
        seeds: The seeds, handed out in turn.
        arms: The arms to compute for each.

    Raises:
        UserError: If a run met a user's mistake, or a process ended unexpectedly.
    """
    count = min(config.devices, len(seeds))
    gpus = _gpus(config.devices) if config.trainer.on_gpu() else [None] * count
    work = [
        delayed(_compute)(config, seeds[number::count], arms, gpus[number], os.getpid())
        for number in range(count)
    ]
    try:
        processes = Parallel(n_jobs=count, backend="loky", batch_size=1, pre_dispatch="all")
        for text, category in (warning for found in processes(work) for warning in found):
            warnings.warn(text, category, stacklevel=2)
    except TerminatedWorkerError as error:
        raise UserError(
            "A process that computed seeds ended unexpectedly (-9 can mean too little memory): "
            f"{str(error).splitlines()[-1].strip()} Finished runs are saved. Run the command again "
            "to continue, with fewer devices or smaller batches if memory is short."
        ) from None
    finally:
        get_reusable_executor().shutdown(kill_workers=True)


def _gpus(count: int) -> list[str]:
    """The names of the visible GPUs, as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return [name.strip() for name in visible.split(",")]


def _compute(
    config: TrialConfig, seeds: Sequence[int], arms: Sequence[str], gpu: str | None, parent: int
) -> list[tuple[str, type[Warning]]]:
    """Computes seeds in a worker process, and returns the warnings that it raised."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # a terminal sends it to all processes; the parent ends this one
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    from geoseg_gan.trials.runs import compute_seeds

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for category in (FutureWarning, DeprecationWarning):  # of libraries, about each other
            warnings.simplefilter("ignore", category)
        compute_seeds(config, seeds, arms)
    return [(str(warning.message), warning.category) for warning in caught]


def _end_with(parent: int) -> None:
    """Ends this process once the one that started it has ended for any reason."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
