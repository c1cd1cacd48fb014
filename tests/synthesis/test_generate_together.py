"""Generation by several processes: the same bytes as by one."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from geoseg_gan.generate_rounds import enough, plan_rounds
from geoseg_gan.synthesis import report
from geoseg_gan.synthesis.writer import read_manifest
from geoseg_gan.team import Team
from geoseg_gan.utils.errors import UserError

SCRIPT = Path(__file__).parents[1] / "scripts" / "generate.py"


@pytest.fixture(autouse=True)
def one_thread():
    """One thread here, as in the processes that are started: bytes depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def root(tmp_path, make_folder):
    return make_folder(tmp_path / "data", train=12, val=0)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_two_processes_keep_what_one_keeps_and_go_on_from_it(
    paint, root, generator, segmenter, monkeypatch
):
    gen_ckpt, asked = generator(root), {"segmenter_ckpt": str(segmenter()), "alpha": 3.0}
    # Drawing axes takes longer than all the rest.
    monkeypatch.setattr(report, "score_histogram", lambda *_: np.zeros((8, 8, 3), np.uint8))
    pilot = read_manifest(paint(gen_ckpt, "pilot", tau=0, num_samples=20, **asked))
    scores = [line["score"] for line in pilot]
    asked |= {"tau": statistics.quantiles(scores, n=3)[1], "bs": 2}
    whole = paint(gen_ckpt, "whole", keep=9, **asked)
    paint(gen_ckpt, "parts", keep=2, **asked)
    listed = len(read_manifest(whole))
    assert len(read_manifest(paint(gen_ckpt, "parts", keep=9, devices=2, **asked))) == listed > 12
    assert files(whole.with_name("parts")) == files(whole)


def test_a_mistake_in_another_process_is_told_and_leaves_what_can_go_on(
    paint, root, generator, tmp_path
):
    gen_ckpt = generator(root)
    whole = paint(gen_ckpt, "whole", num_samples=10)
    sources = [line["source"] for line in read_manifest(whole)]
    broken = next(stem for stem in sources[5:] if stem not in sources[:5])
    path = root / "train" / "masks" / f"{broken}.png"
    content, seen = path.read_bytes(), path.stat()
    path.write_bytes(b"x" * len(content))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))  # as if it had not changed
    with pytest.raises(UserError, match=rf"^[^\n]*{broken}.png: does not decode[^\n]*$"):
        paint(gen_ckpt, "parts", num_samples=10, devices=2)
    assert len(read_manifest(tmp_path / "parts")) <= sources.index(broken)
    path.write_bytes(content)
    assert files(paint(gen_ckpt, "parts", num_samples=10)) == files(whole)


@pytest.mark.slow
def test_torchrun_paints_the_same_and_tells_a_mistake_once(paint, root, generator, tmp_path):
    gen_ckpt = generator(root)
    whole = paint(gen_ckpt, "whole", num_samples=10)

    def run(*settings):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
        command += [str(SCRIPT), f"gen_ckpt={gen_ckpt}", "jitter=none", "trainer=cpu", *settings]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    done = run("num_samples=10", "save_dir=parts")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Painting 10 pairs of 32x32 px on the CPU in 2 processes") == 1
    assert files(tmp_path / "parts") == files(whole)
    done = run("num_samples=10", "save_dir=parts", "seed=1")
    assert done.returncode == 1 and done.stderr.count("error: save_dir=parts holds pairs of") == 1


def test_every_candidate_is_in_one_part_of_one_round():
    for size, wanted in ((1, None), (2, None), (3, 5), (3, 1000)):
        plans = [plan_rounds(7, 150, 4, Team(rank, size), wanted) for rank in range(size)]
        order = [
            n for together in zip(*plans, strict=True) for plan in together for b in plan for n in b
        ]
        assert order == list(range(7, 150))
        assert max(len(batch) for plan in plans for part in plan for batch in part) == 4
    few = [plan_rounds(0, 10, 8, Team(rank, 2), None) for rank in range(2)]
    assert few == [[[[0, 1, 2, 3, 4]]], [[[5, 6, 7, 8, 9]]]]


def test_candidates_count_until_enough_are_kept():
    kept = [False, True, True, False, True]
    assert [enough(kept, wanted) for wanted in (None, 0, 1, 2, 3, 4)] == [5, 0, 2, 3, 5, 5]
