"""What tests of both training commands share: weights and logged figures of a run's folder."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REPO = Path(__file__).parents[1]


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


def last_checkpoint(out_dir):
    return torch.load(out_dir / "last.ckpt", weights_only=True)


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert not torch.is_tensor(first[name]) or torch.equal(first[name], second[name]), name


def differ(first, second):
    return any(not torch.equal(first[name], second[name]) for name in first)


def board_of(out_dir):
    board = EventAccumulator(str(out_dir))
    board.Reload()
    return board


def run_script(name, *arguments, cwd, **environment):
    """Runs `scripts/name.py` in a process of its own, and returns what it has printed."""
    command = [sys.executable, str(REPO / "scripts" / f"{name}.py"), *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
