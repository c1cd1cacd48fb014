import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from published_folders import TINIES
from run_folders import REPO

SCRIPT = REPO / "scripts" / "dev" / "gpu_evidence.sh"
NETWORKS = (
    "model.generator.width=4 model.generator.depth=3 model.generator.max_width=8 "
    "model.discriminator.width=8 model.discriminator.depth=3 model.discriminator.max_width=16 "
    "image_size=64"
)
SMALL = {
    "LIMIT": "3000",
    "EXTRA": "trainer=cpu",
    "GAN_EXTRA": f"{NETWORKS} bs=2 epochs=1 epoch_steps=2 data.num_workers=0",
    "SEGMENTER_EXTRA": "segmenter=fpn_light image_size=64 bs=2 epochs=1 epoch_steps=2 "
    "data.num_workers=0",
    "EVALUATE_EXTRA": "num_samples=16 variants=2 bs=4",
    "TRIAL_EXTRA": f"{NETWORKS} seeds=2 arms=[real,synthetic_0.25] train.bs=2 train.epochs=1 "
    "train.epoch_steps=2 train.data.num_workers=0 generate.num_samples=4 segmenter=fpn_light "
    "train_segmenter.bs=2 train_segmenter.epochs=1 train_segmenter.epoch_steps=2",
    "BENCHMARK": "--seconds 0.05 --rounds 1",
}
"""Numbers with which everything runs on a CPU, in minutes."""
STEPS = ["data", "segmenter", "checks", "benchmark", "gan128", "gan256", "refine", "trial"]


def collect(*arguments, **environment):
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", SCRIPT, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


@pytest.fixture
def source(tmp_path):
    """A made-up Dubai set: nine pictures of a scene, each a tile large."""
    colors = np.array([value for _, value in TINIES["dubai"].legend], np.uint8)
    rows, columns = np.mgrid[:256, :256]
    for part in range(1, 10):
        rng = np.random.default_rng(part)
        classes = (rows // 16 + columns // 24 + part) % len(colors)
        pixels = (classes[..., None] * 25 + rng.integers(0, 60, (256, 256, 3))).astype(np.uint8)
        for folder, ending, picture in (
            ("images", "jpg", pixels),
            ("masks", "png", colors[classes]),
        ):
            path = tmp_path / "source" / folder / f"tile1_image_part_{part:03d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    return tmp_path / "source"


def test_what_cannot_start_is_refused_in_one_line(tmp_path):
    for arguments, message in (
        ((), "use: scripts/dev/gpu_evidence.sh OUT SOURCE [STEP ...]"),
        ((tmp_path / "out", tmp_path, "date"), f"no step date: use {' '.join(STEPS)}."),
    ):
        done = collect(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {message}\n")
    assert not list(tmp_path.iterdir())


def test_a_check_that_failed_is_repeated(tmp_path):
    python, broken, out = (tmp_path / name for name in ("python", "broken", "out"))
    python.write_text(
        f'#!/bin/bash\n[[ $1 != - ]] || exec "{sys.executable}" "$@"\necho "$@" >> "{out}/calls"\n'
        f'mkdir -p "{out}/checks/fp32"\n[[ $* != *=16-mixed* || ! -e "{broken}" ]]\n'
    )
    python.chmod(0o755)
    broken.touch()
    done = collect(out, tmp_path, "checks", PYTHON=str(python), COMMIT="none")
    assert done.returncode == 1 and "Check fp16: fail." in done.stdout
    assert "Some checks failed: see" in done.stderr and not (out / "done/checks").exists()
    broken.unlink()
    (out / "calls").unlink()
    done = collect(out, tmp_path, "checks", PYTHON=str(python), COMMIT="none")
    assert (done.returncode, done.stderr) == (0, "") and (out / "done/checks").exists()
    (call,) = (out / "calls").read_text().splitlines()
    assert "precision=16-mixed" in call
    stored = json.loads((out / "results/checks.json").read_text())
    assert {entry["outcome"] for entry in list(stored.values())[2:]} == {"pass"}


@pytest.mark.slow
def test_all_steps_run_on_a_cpu_and_are_skipped_once_they_are_done(source, tmp_path):
    out = tmp_path / "out"
    expired = collect(out, source, "data", LIMIT="1")
    assert expired.returncode == 124
    assert expired.stderr.endswith("The time of step data is up: call again, and it goes on.\n")
    done = collect(out, source, **SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    names = ["benchmark", "checks", "runs"]
    stored = {name: json.loads((out / "results" / f"{name}.json").read_text()) for name in names}
    others = ["gan128.png", "gan256.png", "refine.png", "trial.md", "trial.png"]
    files = sorted(path.name for path in (out / "results").iterdir())
    assert files == sorted([*(f"{name}.json" for name in names), *others])
    for content in stored.values():
        assert content["machine"]["gpu"] is None and content["machine"]["torch"]
    outcomes = {name: entry["outcome"] for name, entry in list(stored["checks"].items())[2:]}
    assert outcomes.pop("fp16") == "refused"
    assert set(outcomes.values()) == {"pass"} and len(outcomes) == 6
    figures = stored["benchmark"]["256px_8"]["figures"]
    assert figures["training step / matrix products"] > 0
    for name in ("gan128", "gan256", "refine"):
        assert stored["runs"][f"{name}/result.json"]["steps"] > 0
        assert "agreement" in stored["runs"][f"{name}/evaluation/evaluation.json"]["figures"]
    assert stored["runs"]["trial/trial.json"]["verdict"]["sentence"]
    before = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    again = collect(out, source, **SMALL)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.splitlines() == [f"Step {name} is done." for name in STEPS]
    assert before == {path: path.stat().st_mtime_ns for path in before}
