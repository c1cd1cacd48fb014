"""What tests of both training commands share: weights and logged figures of a run's folder."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from geoseg_gan.training.callbacks.timing import Throughput
from geoseg_gan.utils.signals import Stopped

REPO = Path(__file__).parents[1]


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


def last_checkpoint(out_dir):
    return torch.load(out_dir / "last.ckpt", weights_only=True)


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert not torch.is_tensor(first[name]) or torch.equal(first[name], second[name]), name


def assert_same(first, second):
    """Two values of plain types and tensors are equal, bit by bit."""
    if torch.is_tensor(first):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for mine, theirs in zip(first, second, strict=True):
            assert_same(mine, theirs)
    else:
        assert first == second


def assert_same_state(first, second):
    """Two runs are at the same place, with the same networks, optimisers and schedules."""
    states = [last_checkpoint(out_dir) for out_dir in (first, second)]
    for state in states:
        state["callbacks"].pop("TimeBudget", None)  # wall-clock time
        state["config"] = {}
        for callback in state["callbacks"].values():
            callback.get("figures", {}).pop("images_per_second", None)
    assert_same(*states)


@contextmanager
def signal_at(step, number=signal.SIGTERM):
    """Within it a training gets a signal in the step after this many, and has to end."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == step:
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as stop:
        patch.setattr(Throughput, "on_train_batch_start", on_train_batch_start)
        yield
    assert stop.value.code == 128 + number


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
