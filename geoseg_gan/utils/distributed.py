"""Processes that share a command's work.

torchrun and SLURM's srun start processes themselves; elsewhere `launch` starts them on this
machine. Each finds its rank in the environment, where Lightning's Trainer and Fabric look for it.

On the CPU the last bits of what networks give depend on how many threads add up: processes started
here use as many as the one that starts them, unless `share_cores` divides them.
"""

import math
import os
import pickle
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from geoseg_gan.utils.device import REQUEUE_SIGNAL, TrainerSettings
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import SCRATCH, atomic_path, held
from geoseg_gan.utils.processes import side_by_side

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class Launchable(Protocol):
    """What starting processes needs of a command's configuration."""

    devices: int
    trainer: TrainerSettings


T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound=Launchable)

_PATIENCE = timedelta(days=1)  # for the others, as while rank 0 scans new data
_ALIKE = 5.0  # seconds in which a launcher ends all others after rank 0 has failed


def launch(
    function: Callable[[ConfigT], T],
    config: ConfigT,
    check: Callable[[ConfigT], None],
    *,
    holds: str = "out_dir",
    share_cores: bool = False,
) -> T:
    """Runs a function in the processes that share its work, while one of them holds its folder.

    Args:
        function: A function of a module. It is called here where there is one device, or where
            torchrun or srun has started this process; else in `config.devices` new processes.
        config: Its configuration; it must pickle.
        check: Refuses a configuration before any process is started or anything is written. It is
            asked again once the folder is held, since another call may have ended meanwhile.
        holds: The setting that names the folder in which no other call may run meanwhile.
        share_cores: Whether new processes on the CPU divide the threads of this one among
            themselves, instead of each having as many.

    Returns:
        What the function returned in rank 0.

    Raises:
        UserError: If a user's mistake is found in any process, or one ends unexpectedly.
    """
    folder = Path(getattr(config, holds))
    if math.prod(_processes()) > 1:
        rank = rank_of_process()
        try:
            check(config)
            with nullcontext() if rank else held(folder, holds):
                check(config)
                return function(config)
        except UserError:
            if rank:
                time.sleep(_ALIKE)  # rank 0 tells the user of a mistake that all have found
            raise
    check(config)
    if config.trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={config.trainer.num_nodes}: start the command on all machines with "
            "torchrun or srun."
        )
    with held(folder, holds):
        check(config)
        if config.devices == 1:
            return function(config)
        with tempfile.TemporaryDirectory(prefix="geoseg_gan_", ignore_cleanup_errors=True) as store:
            return _spawn(function, config, Path(store), share_cores)


def rank_of_process() -> int:
    """The rank that torchrun, srun or `launch` has given this process; 0 where it is alone."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def open_fabric(settings: TrainerSettings) -> "Fabric":
    """Fabric over the processes that run the function given to `launch`."""
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    per_node, nodes = _processes()
    alone = per_node * nodes == 1
    fabric = Fabric(
        accelerator="cuda" if settings.on_gpu() else "cpu",
        strategy="auto" if alone else "ddp",
        devices=per_node,
        num_nodes=nodes,
        plugins=[LightningEnvironment()] if alone else None,  # a batch script without srun
    )
    fabric.launch()
    return fabric


def where_in_words(fabric: "Fabric") -> str:
    """Where the work is done, as in "the CPU in 2 processes"."""
    size, on_gpu = fabric.world_size, fabric.device.type == "cuda"
    if size == 1:
        return "the GPU" if on_gpu else "the CPU"
    return f"{size} GPUs" if on_gpu else f"the CPU in {size} processes"


def share_of(fabric: "Fabric", count: int, batch: int) -> range:
    """This process's share of `count` items in order, in whole batches."""
    batches = -(-count // batch)
    first, last = (
        batches * rank // fabric.world_size * batch
        for rank in (fabric.global_rank, fabric.global_rank + 1)
    )
    return range(min(first, count), min(last, count))


def gather_arrays(
    fabric: "Fabric", arrays: Mapping[str, npt.NDArray[Any]], folder: Path
) -> dict[str, npt.NDArray[Any]] | None:
    """Joins the arrays of all processes along their first axis, in order of rank.

    Names and further axes are alike in all; the arrays pass through files in `folder`.

    Returns:
        The joined arrays in rank 0; None in the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{SCRATCH}rank{rank:04}.npz" for rank in range(fabric.world_size)]
    if fabric.global_rank:
        with atomic_path(paths[fabric.global_rank]) as scratch:
            np.savez(scratch, allow_pickle=False, **arrays)
    fabric.barrier()
    if fabric.global_rank:
        return None
    parts = [dict(arrays)]
    for path in paths[1:]:
        with np.load(path, allow_pickle=False) as content:
            parts.append(dict(content))
        path.unlink()
    # An empty share knows neither type nor further axes.
    filled = {name: [part[name] for part in parts if len(part[name])] for name in arrays}
    return {name: np.concatenate(filled[name] or [arrays[name]]) for name in arrays}


def _processes() -> tuple[int, int]:
    """How many processes there are on each machine, and how many machines."""
    size, per_node = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if "RANK" in os.environ:  # of torchrun or `launch`
        return per_node, size // per_node
    # Only srun sets these: a batch script without it runs one process.
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) // nodes, nodes


def _spawn(function: Callable[[ConfigT], T], config: ConfigT, folder: Path, share_cores: bool) -> T:
    import torch

    size, threads = config.devices, torch.get_num_threads()
    if (share_cores or config.trainer.on_gpu()) and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, threads // size)
    work = pickle.dumps((function, config))
    arguments = [(work, rank, size, folder / "store") for rank in range(size)]
    signals = [REQUEUE_SIGNAL] if config.trainer.requeue else []
    result: T = side_by_side(_join, arguments, threads, signals)[0]
    return result


def _join(work: bytes, rank: int, size: int, store: Path) -> Any:
    """What a started process does: it joins the others, and calls the function with them."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0", "GROUP_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    os.environ.pop("SLURM_NTASKS", None)  # Lightning would ask SLURM for the rank
    if rank:
        warnings.simplefilter("ignore")
    import torch
    from torch import distributed
    from torch.distributed import FileStore  # type: ignore[attr-defined]

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    function, config = pickle.loads(work)  # imports Lightning, which reads its rank
    on_gpu = config.trainer.on_gpu()
    if on_gpu:
        torch.cuda.set_device(rank)
    # Made here, since Lightning's own would listen on all addresses of the machine.
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=FileStore(str(store), size),
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
        device_id=torch.device("cuda", rank) if on_gpu else None,
    )
    result = function(config)
    distributed.destroy_process_group()
    return result
