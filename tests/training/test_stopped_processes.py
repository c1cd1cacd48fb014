"""Trainings in processes of their own that signals stop, with the default number of workers."""

import os
import signal
import subprocess
import sys
import time

import pytest
from run_folders import REPO, assert_same_state, last_checkpoint

pytestmark = pytest.mark.slow


def start(name, *settings, cwd):
    command = [sys.executable, str(REPO / "scripts" / f"{name}.py"), *settings]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("name", "workers", "number", "whole_group"),
    [
        ("train", 3, signal.SIGTERM, False),
        ("train_segmenter", "null", signal.SIGHUP, True),  # all processes get it
    ],
)
def test_processes_save_at_a_signal_and_go_on_exactly(
    name, workers, number, whole_group, tmp_path, make_folder, tiny, tiny_segmenter
):
    root = make_folder(tmp_path / "data", train=8)
    common = [*(tiny if name == "train" else tiny_segmenter), f"data_root={root}", "resume=true"]
    common = [o for o in common if not o.startswith(("data.num_workers", "bs="))]
    common.append(f"data.num_workers={workers}")
    common += ["bs=4", "epochs=3", "epoch_steps=15", "samples=0", "devices=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    undisturbed = start(name, *common, f"out_dir={whole}", cwd=tmp_path)
    shown = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, shown
    common.append(f"out_dir={parts}")
    stopped = start(name, *common, "checkpoint_minutes=0", cwd=tmp_path)
    until = time.monotonic() + 200
    while not (parts / "last.ckpt").exists():
        assert time.monotonic() < until and stopped.poll() is None
        time.sleep(0.05)
    (os.killpg if whole_group else os.kill)(stopped.pid, number)
    out, err = stopped.communicate(timeout=200)
    assert stopped.returncode == 128 + number, err
    assert out.count("Stopped in epoch ") == 1 and err.count("error: ") == 1, (out, err)
    assert "Traceback" not in err
    assert last_checkpoint(parts)["global_step"] < 45
    again = start(name, *common, cwd=tmp_path)
    shown = again.communicate(timeout=300)
    assert again.returncode == 0, shown
    assert_same_state(whole, parts)
