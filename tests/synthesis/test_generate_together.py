"""Generation by several processes: the same bytes as by one."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from synthesis_helpers import files, refused

from geoseg_gan.data.synthetic import read_manifest

SCRIPT = Path(__file__).parents[2] / "scripts" / "generate.py"


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


@pytest.mark.slow
def test_two_processes_keep_what_one_keeps_and_go_on_from_it(
    run_generate, root, generator, segmenter, plain_histogram
):
    gen_ckpt, asked = generator(root), {"segmenter_ckpt": str(segmenter()), "alpha": 3.0}
    pilot = read_manifest(run_generate(gen_ckpt, "pilot", tau=0, num_samples=20, **asked))
    scores = [line["score"] for line in pilot]
    asked |= {"tau": statistics.quantiles(scores, n=3)[1], "bs": 2}
    whole = run_generate(gen_ckpt, "whole", keep=9, **asked)
    run_generate(gen_ckpt, "parts", keep=2, **asked)
    listed = len(read_manifest(whole))
    parts = run_generate(gen_ckpt, "parts", keep=9, devices=2, num_workers=None, **asked)
    assert len(read_manifest(parts)) == listed > 12
    (parts / "scores.png").write_bytes((whole / "scores.png").read_bytes())  # drawn there for once
    assert files(parts) == files(whole)


@pytest.mark.slow
def test_a_mistake_in_another_process_is_told_and_leaves_what_can_go_on(
    run_generate, root, generator, tmp_path
):
    gen_ckpt = generator(root)
    whole = run_generate(gen_ckpt, "whole", num_samples=10)
    sources = [line["source"] for line in read_manifest(whole)]
    broken = next(stem for stem in sources[5:] if stem not in sources[:5])
    path = root / "train" / "masks" / f"{broken}.png"
    content, seen = path.read_bytes(), path.stat()
    path.write_bytes(b"x" * len(content))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))  # as if it had not changed
    with refused(rf"^[^\n]*{broken}.png is not a PNG file[^\n]*$"):
        run_generate(gen_ckpt, "parts", num_samples=10, devices=2)
    assert len(read_manifest(tmp_path / "parts")) <= sources.index(broken)
    path.write_bytes(content)
    assert files(run_generate(gen_ckpt, "parts", num_samples=10)) == files(whole)


@pytest.mark.slow
def test_torchrun_generates_the_same_and_tells_a_mistake_once(
    run_generate, root, generator, tmp_path
):
    gen_ckpt = generator(root)
    whole = run_generate(gen_ckpt, "whole", num_samples=10)

    def run(*settings):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
        command += [str(SCRIPT), f"gen_ckpt={gen_ckpt}", "jitter=none", "trainer=cpu", *settings]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    done = run("num_samples=10", "save_dir=parts")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Generating 10 pairs of 32x32 px on the CPU in 2 processes") == 1
    assert files(tmp_path / "parts") == files(whole)
    done = run("num_samples=10", "save_dir=parts", "seed=1")
    assert done.returncode == 1 and done.stderr.count("error: save_dir=parts holds pairs of") == 1
