"""Processes that share a command's work, shown with functions that do little else."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from defaults import defaults

from geoseg_gan.utils import distributed as module
from geoseg_gan.utils.device import TrainerSettings
from geoseg_gan.utils.distributed import gather_arrays, launch, open_fabric
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import LOCK
from geoseg_gan.utils.signals import Stopped


@dataclass
class Config:
    devices: int = 2
    what: str = ""
    out_dir: str = "unset"
    trainer: TrainerSettings = field(default_factory=lambda: defaults(TrainerSettings, "cpu"))


def accept(config):
    pass


def listening():
    """Addresses that this process accepts connections at, in the notation of /proc/net."""
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]
    ]
    return {row[1].split(":")[0] for row in lines if Path(f"socket:[{row[9]}]") in links}


def share(config):
    """Adds the ranks up, joins arrays of different lengths, and looks at what is open meanwhile."""
    fabric = open_fabric(config.trainer)
    with fabric.rank_zero_first():
        pass
    rank = torch.tensor(fabric.global_rank)
    total = fabric.all_reduce(rank, reduce_op="sum")
    rows = np.full((1 + fabric.global_rank, 2), fabric.global_rank)
    joined = gather_arrays(fabric, {"rows": rows}, Path(config.out_dir))
    return {
        "sum": float(total),
        "rows": None if joined is None else joined["rows"][:, 0].tolist(),
        "threads": torch.get_num_threads(),
        "addresses": sorted(listening()),
        "pid": os.getpid(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_processes_share_what_they_find_and_listen_nowhere_but_on_this_machine(devices, tmp_path):
    found = launch(share, Config(devices, out_dir=str(tmp_path)), accept)
    assert found["sum"] == devices - 1
    assert found["rows"] == [0, 1, 1][: 2 * devices - 1]
    assert found["threads"] == torch.get_num_threads()
    assert (found["pid"] == os.getpid()) == (devices == 1)
    if devices == 2:
        assert found["addresses"]
        assert set(found["addresses"]) <= {"0100007F", "00000000000000000000000001000000"}
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def fail(config):
    """Fails in the last process while the first one waits for it."""
    fabric = open_fabric(config.trainer)
    if fabric.global_rank == 1:
        if config.what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"mistake": UserError, "error": ValueError}[config.what]("it went wrong")
    fabric.barrier()
    return {}


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        pytest.param("mistake", UserError, "^it went wrong$", marks=pytest.mark.slow),
        pytest.param("error", ValueError, "^it went wrong", marks=pytest.mark.slow),
        pytest.param("killed", UserError, r"exit code -9.*call again", marks=pytest.mark.slow),
    ],
)
def test_what_goes_wrong_in_one_process_ends_all_and_is_raised_once(
    what, kind, message, tmp_path, capfd
):
    with pytest.raises(kind, match=message) as error:
        launch(fail, Config(what=what, out_dir=str(tmp_path)), accept)
    assert capfd.readouterr().err.count("Traceback") == 0
    if what == "error":
        assert "In process 1 of 2" in error.value.__notes__[0]


def test_a_mistake_in_the_configuration_starts_no_process(monkeypatch):
    def check(config):
        raise UserError("a mistake")

    monkeypatch.setattr(module, "_spawn", None)
    with pytest.raises(UserError, match="a mistake"):
        launch(share, Config(), check)
    several = defaults(TrainerSettings, "cpu", num_nodes=2)
    with pytest.raises(UserError, match="num_nodes=2: start the command on all machines"):
        launch(share, Config(1, trainer=several), accept)


def linger(config):
    """Tells that all are there, and what ends them."""
    open_fabric(config.trainer).barrier()
    try:
        Path(config.out_dir, os.environ["RANK"]).write_text(str(os.getpid()))
        time.sleep(300)
    except Stopped:
        Path(config.out_dir, f"ended_{os.environ['RANK']}").touch()
        raise


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_what_ends_the_command_ends_its_processes(number, code, tmp_path):
    script = tmp_path / "command.py"
    script.write_text(
        "import sys\n"
        "from test_distributed import Config, accept, launch, linger\n"
        "if __name__ == '__main__':\n"
        "    launch(linger, Config(out_dir=sys.argv[1]), accept)\n"
    )
    paths = (str(Path(__file__).parent), str(Path(__file__).parents[1]))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    ranks = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(path.exists() and path.read_text() for path in ranks))
    command.send_signal(number)
    assert command.wait(180) == code
    wait_until(lambda: not any(Path("/proc", path.read_text()).exists() for path in ranks))
    if number != signal.SIGKILL:
        assert all((tmp_path / f"ended_{path.name}").exists() for path in ranks)


def wait_until(condition):
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("variables", "per_node", "nodes"),
    [
        ({}, 1, 1),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, 2, 2),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}, 2, 2),
        # A batch script that runs the command without srun.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, 1, 1),
    ],
)
def test_processes_of_torchrun_and_srun_are_known(variables, per_node, nodes, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert module._processes() == (per_node, nodes)
