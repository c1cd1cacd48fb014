from dataclasses import dataclass, field

import pytest
from defaults import defaults

from geoseg_gan import distributed as module
from geoseg_gan.distributed import run_together
from geoseg_gan.team import Team
from geoseg_gan.utils.device import TrainerSettings
from geoseg_gan.utils.errors import UserError


@dataclass
class Config:
    devices: int
    trainer: TrainerSettings = field(default_factory=lambda: defaults(TrainerSettings, "cpu"))


def test_one_process_has_all_there_is():
    assert run_together(lambda config, team: team.share(team.rank), Config(1)) == [0]
    assert Team().gather([3, 4]) == [3, 4] and Team().part(7, 2) == range(7)


@pytest.mark.parametrize(("count", "step", "size"), [(20, 16, 2), (1000, 16, 3), (3, 8, 4)])
def test_parts_are_whole_batches_in_order(count, step, size):
    parts = [Team(rank, size).part(count, step) for rank in range(size)]
    assert [row for part in parts for row in part] == list(range(count))
    assert all(part.start % step == 0 for part in parts if part)
    batches = [-(-len(part) // step) for part in parts]
    assert max(batches) - min(batches) <= 1


def test_a_mistake_before_anything_is_shared_starts_no_process(monkeypatch):
    monkeypatch.setattr(module._Followers, "start", None)

    def work(config, team):
        raise UserError("a mistake")

    with pytest.raises(UserError, match="a mistake"):
        run_together(work, Config(2))


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (3, 4, 1)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}, (3, 4, 1)),
        # A batch script that runs the command without srun, and srun of a single task.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, None),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}, None),
        # What Lightning leaves behind in a process that has trained.
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, None),
    ],
)
def test_processes_of_torchrun_and_srun_know_their_place(variables, place, monkeypatch):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    for name in (*names, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert module._place() == place
