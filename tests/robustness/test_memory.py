"""Memory stays flat, however long a command runs."""

import psutil
import pytest
from cases import ALONE, GENERATE, NETWORKS, PALETTE, TINY, prepared
from processes import start

MOST = 12 * 2**20
"""Bytes by which a process may grow after it has warmed up."""


def growth(run, warm, limit=900):
    """How much more memory a command has at its end than once `warm()` is true."""
    process, first, last = psutil.Process(run.pid), None, 0
    while run.wait(0.1) is None:
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
    small = ("image_size=16", "samples=0", "keep_checkpoints=1", "epoch_steps=200")
    arguments = (PALETTE, *NETWORKS, *TINY, *ALONE, "data_root=../data", "out_dir=out", *small)
    run = start("train", (*arguments, "epochs=11"), cwd, fresh=True)
    grown = growth(run, lambda: any((cwd / "out").glob("G_e001.pt")))
    record_property("kB more after 2,000 training steps", max(0, grown // 1024))
    assert grown < MOST


@pytest.mark.slow
def test_generating_2000_pairs(places, record_property):
    cwd = prepared(places, "generate", "long")
    run = start("generate", (*GENERATE, "num_samples=2200", "num_workers=0"), cwd, fresh=True)
    grown = growth(run, lambda: any((cwd / "out").glob("pair_00200_img.*")))
    record_property("kB more after 2,000 pairs", max(0, grown // 1024))
    assert grown < MOST
