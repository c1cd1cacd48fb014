"""Seeds side by side: processes that each compute a share of them, on a device of its own.

Nothing here imports torch, so that a process has chosen its GPU before CUDA looks for one.
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

    The processes share the cores: each has its part of the threads, or as many as OMP_NUM_THREADS
    says. However this ends, all of them have ended.

    Args:
        config: The trial.
        seeds: The seeds, which the processes take in turn.
        arms: The arms that are wanted of each.

    Raises:
        UserError: If a run met a user's mistake, or a process was lost.
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
            "a process that computed seeds has ended unexpectedly (-9 can be a lack of memory): "
            f"{str(error).splitlines()[-1].strip()} What was finished is saved. Call again to go "
            "on, with fewer devices or smaller batches if memory is short."
        ) from None
    finally:
        get_reusable_executor().shutdown(kill_workers=True)


def _gpus(count: int) -> list[str]:
    """The names of GPUs, as CUDA_VISIBLE_DEVICES has them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return [name.strip() for name in visible.split(",")]


def _compute(
    config: TrialConfig, seeds: Sequence[int], arms: Sequence[str], gpu: str | None, parent: int
) -> list[tuple[str, type[Warning]]]:
    """What a process does; the warnings that it met."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends us
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
    """Ends this process once the one that started it has ended, however that came about."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
