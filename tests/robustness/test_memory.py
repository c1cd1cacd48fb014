"""Memory stays flat, however long a command runs."""

import psutil
import pytest
from cases import ALONE, GENERATE, NETWORKS, PALETTE, TINY, prepared
from processes import start

MOST = 12 * 2**20
"""Bytes by which a process may grow after it has warmed up."""


def growth(run, warm, done):
    """How much a command's memory grows from when `warm()` is true until `done()` is."""
    process, first, last = psutil.Process(run.pid), None, 0
    while run.wait(0.1) is None and not done():
        try:
            last = process.memory_full_info().uss
        except (psutil.Error, OSError):
            break
        if first is None and warm():
            first = last
    assert run.end() == 0, run.texts()
    assert first is not None
    return last - first


@pytest.mark.slow
def test_training_for_2000_steps(places, record_property):
    cwd = prepared(places, "train", "long")
    small = ("image_size=16", "samples=0", "keep_checkpoints=1", "epoch_steps=200", "epochs=12")
    arguments = (PALETTE, *NETWORKS, *TINY, *ALONE, "data_root=../data", "out_dir=out", *small)
    run = start("train", arguments, cwd, fresh=True)
    grown = growth(run, (cwd / "out" / "G_e002.pt").exists, (cwd / "out" / "G_e012.pt").exists)
    record_property("kB more after 2,000 training steps", max(0, grown // 1024))
    assert grown < MOST


@pytest.mark.slow
def test_generating_2000_pairs(places, record_property):
    cwd = prepared(places, "generate", "long")
    run = start("generate", (*GENERATE, "num_samples=2200", "num_workers=0"), cwd, fresh=True)
    warm, done = (cwd / "out" / f"pair_{number:05}_img.jpg" for number in (199, 2199))
    grown = growth(run, warm.exists, done.exists)
    record_property("kB more after 2,000 pairs", max(0, grown // 1024))
    assert grown < MOST
