from concurrent.futures import Future
from multiprocessing import Pipe

import numpy as np
import pytest
import torch

from geoseg_gan import trial_workers
from geoseg_gan.trial_workers import run_side_by_side, worker_environment
from geoseg_gan.trials.results import read_results
from geoseg_gan.trials.schedule import Kind, Task
from geoseg_gan.trials.trial import trial
from geoseg_gan.utils.errors import UserError


@pytest.fixture
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_processes_find_what_one_finds(
    tmp_path, composed, make_folder, tiny, tiny_segmenter, one_thread, capfd
):
    root = make_folder(tmp_path / "data", train=8, val=2)
    segmenter = [o for o in tiny_segmenter if o.split("=")[0] not in ("bs", "image_size")]
    found = []
    for devices in (1, 2):
        out = tmp_path / str(devices)
        trial(
            composed(
                "trial", *dict.fromkeys([*tiny, *segmenter]), f"data_root={root}",
                f"out_dir={out}", "epochs=1", "epoch_steps=1", "segmenter_epochs=1",
                "segmenter_epoch_steps=1", "segmenter_bs=2", "num_samples=4", "tau=0", "seeds=1",
                "ratios=[0.5]", "arms=[real,synthetic_0.5]", f"devices={devices}",
            )
        )  # fmt: skip
        found.append({result.arm: result for result in read_results(out)})
        shown = capfd.readouterr()
        lines = [line.split(" (")[0] for line in shown.out.splitlines() if "mIoU" in line]
        assert [line.split(":")[0] for line in lines[:2]] == [
            "real, seed 0",
            "synthetic_0.5, seed 0",
        ]
        assert not shown.err and not list(out.glob("worker_*"))
    alone, shared = found
    assert set(alone) == set(shared) == {"real", "synthetic_0.5"}
    for arm, result in alone.items():
        assert np.array_equal(result.val.counts, shared[arm].val.counts), arm
        assert np.array_equal(result.inner.counts, shared[arm].inner.counts), arm
    assert not np.array_equal(alone["real"].val.counts, alone["synthetic_0.5"].val.counts)


class Stub:
    """Stands in for a process: its first task goes on for ever, those of others go wrong."""

    made: list["Stub"]
    outcome: object

    def __init__(self, config, number):
        self.number, self.free, self.calls = number, True, []
        self.exit_code, self.log = 0, None
        self.made.append(self)

    def start(self, task):
        self.free = False
        future = Future()
        if self.number:
            future.set_result(self.outcome)
        return future

    def tell_to_end(self):
        self.calls.append("told")

    def end(self):
        self.calls.append("ended")


@pytest.mark.parametrize(
    ("mistake", "error", "text"),
    [(True, UserError, "^no such tile$"), (False, RuntimeError, "real, seed 1 failed:\nno such")],
)
def test_where_one_fails_all_processes_are_ended(composed, monkeypatch, mistake, error, text):
    outcome = trial_workers._Outcome(None, [("odd", UserWarning)], "no such tile", mistake)
    stub = type("Stubs", (Stub,), {"made": [], "outcome": outcome})
    monkeypatch.setattr(trial_workers, "_Worker", stub)
    needs = {Task(Kind.RESULT, seed, "real"): [] for seed in range(3)}
    shown = []
    with pytest.warns(UserWarning, match="odd"), pytest.raises(error, match=text):
        list(run_side_by_side(composed("trial", "devices=2"), needs, shown.append))
    assert shown == ["real, seed 0", "real, seed 0; real, seed 1"]
    assert [worker.calls for worker in stub.made] == [["told", "ended"]] * 2


class Collected:
    """Stands in for a process that ended well and that another thread is just collecting."""

    def __init__(self):
        self.codes = [None, None, 0]
        self.sentinel, other = Pipe()
        other.close()

    def join(self):
        pass

    @property
    def exitcode(self):
        return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]


def test_an_empty_log_goes_also_where_the_exit_code_comes_late(tmp_path, composed):
    worker = trial_workers._Worker(composed("trial", f"out_dir={tmp_path}"), 0)
    worker.log.touch()
    worker._process = Collected()
    worker.end()
    assert worker.exit_code == 0 and not worker.log.exists()


def test_each_process_has_a_device_and_its_share_of_threads(composed, monkeypatch):
    config = composed("trial", "devices=2", "trainer=cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert worker_environment(1, config) == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # given by hand, it counts for every process
    assert worker_environment(1, config) == {"OMP_NUM_THREADS": "5"}
    monkeypatch.setattr(type(config.trainer), "on_gpu", lambda _: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert worker_environment(1, config)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5e")
    assert worker_environment(0, config)["CUDA_VISIBLE_DEVICES"] == "3"
    assert worker_environment(1, config)["CUDA_VISIBLE_DEVICES"] == "GPU-5e"
