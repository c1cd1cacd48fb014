import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from subprocess import Popen

import numpy as np
import pytest
from PIL import Image

from geoseg_gan import ladder as command_module
from geoseg_gan.config import compose_train, write_yaml
from geoseg_gan.errors import UserError
from geoseg_gan.files import write_json
from geoseg_gan.ladder import ladder
from geoseg_gan.ladders import report
from geoseg_gan.ladders.processes import Processes, setting

COMMON = ("data_root={}", "image_size=64", "bs=4", "inner_share=0.2", "max_minutes=6")


def evaluation(segmenter, kid):
    """The parts of an evaluation.json that a ladder reads."""
    sides = {"miou": 0.6, "pixel_accuracy": 0.8, "classes": {"Forest": 0.6}}
    row = {"kid": 0.02, "kid_error": 0.01, "fid": 30.0, "images": 16}
    gap = {"low": 0.0, "middle": 0.0, "high": -0.5, "checkerboard": 0.1}
    return {
        "settings": {"num_samples": 16},
        "checkpoint": {"sha256": "c" * 64},
        "segmenter": {"sha256": segmenter},
        "figures": {
            "images": {"painted": 16},
            "fidelity": {
                "painted": row | {"kid": kid}, "training ground": row, "real halves": row
            },
            "coverage": {"painted": {"precision": 0.5, "recall": 0.1}},
            "agreement": {"painted": sides, "real": sides},
            "diversity": {"painted": {"layers": 0.9}, "real": {"layers": 1.2}},
            "spectrum": {"gap": gap, "real_gap": gap},
            "texture": {"painted": [0.2, 0.4], "real": [0.1]},
        },
    }  # fmt: skip


class Fake:
    """Stands in for the processes of commands: notes calls, and leaves what they would leave."""

    def __init__(self):
        self.calls = []
        self.fail = ""

    def run(self, command, overrides, log):
        self.calls.append((command, *overrides))
        given = {o.split("=", 1)[0]: o.split("=", 1)[1].strip("'") for o in overrides}
        folder = log.parent / given["out_dir"]
        if self.fail and self.fail in " ".join(overrides):
            return "error: out of luck"
        if command == "train":
            write_yaml(folder / "config.yaml", compose_train(overrides))
            (folder / "G_e009.pt").touch()
            (folder / "G_e1000.pt").touch()
            result = {"objective": None, "steps": 50, "seconds": 60.0}
            write_json(folder / "result.json", result | {"figures": {"images_per_second": 3.0}})
        else:
            digest = command_module.hashlib.sha256(b"judge").hexdigest()
            content = evaluation(digest, 0.1 if given["split"] == "val" else 0.05)
            folder.mkdir()
            Image.new("RGB", (60, 40), "red").save(folder / "samples.png")
            write_json(folder / "evaluation.json", content)
        return None

    def end(self):
        pass


@pytest.fixture
def fake(monkeypatch):
    runner = Fake()
    monkeypatch.setattr(command_module, "Processes", lambda threads: runner)
    return runner


@pytest.fixture
def run(tmp_path, make_folder, composed, monkeypatch):
    """Calls the ladder: `run(rows=["wide"])`."""
    make_folder(tmp_path / "data")
    (tmp_path / "segmenter.pt").write_bytes(b"judge")
    monkeypatch.setattr(report, "ladder_picture", lambda *_: np.zeros((4, 4, 3), np.uint8))
    config = replace(
        composed("ladder", "num_samples=16"),
        out_dir=str(tmp_path / "out"),
        segmenter_ckpt=str(tmp_path / "segmenter.pt"),
        common=[override.format(tmp_path / "data") for override in COMMON],
        ladder={"base": [], "wide": ["bs=6"]},
    )
    return lambda **changes: ladder(replace(config, **changes))


def of(calls, command):
    return [call for call in calls if call[0] == command]


def test_only_what_is_missing_is_computed_and_all_is_reported(run, fake, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(seeds=[2]) == {"rows": 2.0, "results": 2.0}
    shown = capsys.readouterr().out
    assert "2 rows with 1 seed" in shown and "0 of 2 results are there" in shown
    assert "2 runs to train, 2 to evaluate, 1 at once: 0:12:00 of training" in shown
    trained, judged = of(fake.calls, "train"), of(fake.calls, "evaluate")
    common = [o.format(tmp_path / "data") for o in COMMON]
    assert trained[0] == ("train", *common, "seed=2", setting("out_dir", out / "base/seed_002"))
    # A row's setting takes the place of the common one.
    assert "bs=6" in trained[1] and "bs=4" not in trained[1]
    assert [call[2] for call in judged] == 2 * ["split=held_out", "split=val"]
    assert setting("gen_ckpt", out / "base/seed_002/G_e1000.pt") in judged[0]
    assert "num_samples=16" in judged[0]
    stored = json.loads((out / "results/wide_seed_002.json").read_text())
    assert stored["training"] == {
        "steps": 50, "images": 300, "seconds": 60.0, "images_per_second": 3.0, "resumed": 0.0,
    }  # fmt: skip
    assert stored["splits"]["held_out"]["kid"] == 0.05 and stored["splits"]["val"]["kid"] == 0.1

    fake.calls.clear()
    shutil.rmtree(out / "wide/seed_002/evaluation_val")
    (out / "results/wide_seed_002.json").unlink()
    assert run(seeds=[2])["results"] == 2
    assert [call[:3] for call in fake.calls] == [
        ("evaluate", setting("gen_ckpt", out / "wide/seed_002/G_e1000.pt"), "split=val")
    ]
    fake.calls.clear()
    assert run(report_only=True, segmenter_ckpt=None)["results"] == 2
    assert not fake.calls
    assert "![wide](samples/wide.jpg)" in (out / "ladder.md").read_text()


def test_the_others_run_when_one_fails_which_is_told(run, fake, capsys):
    fake.fail = "bs=6"
    with pytest.raises(UserError, match=r"1 run of the ladder failed: wide seed 0\. See above"):
        run(jobs=2)
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "wide seed 0 failed: error: out of luck (all of it: " in shown
    assert "base: KID" in shown and len(of(fake.calls, "train")) == 2


def test_an_interrupted_run_goes_on_for_what_is_left_of_its_time(run, fake, tmp_path):
    folder = tmp_path / "out/base/seed_000"
    common = [o.format(tmp_path / "data") for o in COMMON]
    write_yaml(folder / "config.yaml", compose_train(common))
    (folder / "last.ckpt").touch()
    now = time.time()
    os.utime(folder / "config.yaml", (now - 300, now - 300))  # five of six minutes
    os.utime(folder / "last.ckpt", (now - 60, now - 60))  # of which four were saved
    run(rows=["base"])
    call = of(fake.calls, "train")[0]
    assert call[-2:] == ("resume=true", "max_minutes=2.000") and "max_minutes=6" not in call
    stored = json.loads((tmp_path / "out/results/base_seed_000.json").read_text())
    assert stored["training"]["resumed"] == 4 and stored["training"]["seconds"] == 300
    assert "began anew: base seed 0." in (tmp_path / "out/ladder.md").read_text()
    (tmp_path / "out/results/base_seed_000.json").unlink()
    fake.calls.clear()
    run(rows=["base"])  # what it was trained with is still the row's
    assert not fake.calls


def test_what_was_trained_or_judged_otherwise_is_refused(run, fake, tmp_path):
    run(rows=["base"])
    with pytest.raises(UserError, match=r"judged with num_samples=16, not 20\. Give the same"):
        run(num_samples=20)
    (tmp_path / "segmenter.pt").write_bytes(b"another")
    with pytest.raises(UserError, match="judged with segmenter="):
        run()
    (tmp_path / "segmenter.pt").write_bytes(b"judge")
    (tmp_path / "out/results/base_seed_000.json").unlink()
    fake.calls.clear()
    with pytest.raises(UserError, match=r"row base: .* was trained with bs=4, not 8 as this call"):
        run(ladder={"base": ["bs=8"]})
    assert not fake.calls


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ["bass"]}, "rows=bass is not one of base, wide. Did you mean 'base'?"),
        ({"jobs": 0}, "jobs=0 must be positive"),
        ({"segmenter_ckpt": "no.pt"}, "or report_only=true for the table of what is there"),
        ({"ladder": {"a": ["lrr=1"]}}, "row a: there is no setting 'lrr'. Did you mean 'lr'?"),
        ({"ladder": {"a": ["bs=0"]}}, "row a: bs=0 must be positive"),
        ({"ladder": {"a": ["inner_share=0"]}}, "row a: inner_share=0 holds no training tiles out"),
        ({"report_only": True}, "holds no result of a ladder"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(run, fake, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        run(**changes)
    assert not fake.calls


def test_processes_leave_a_log_and_their_last_line(tmp_path, monkeypatch):
    fails = "print('working', flush=True); print('error: broken\\n'); raise SystemExit(1)"
    codes = iter([fails, "print('fine')", "import time; time.sleep(60)"])

    def start(arguments, **kwargs):
        assert arguments[1:] == ["-c", "from geoseg_gan.train import main; main()", "bs=4"]
        return Popen([sys.executable, "-S", "-c", next(codes)], **kwargs)

    monkeypatch.setattr(subprocess, "Popen", start)
    runner, log = Processes(1), tmp_path / "row/seed_000.log"
    assert runner.run("train", ["bs=4"], log) == "error: broken"
    assert runner.run("train", ["bs=4"], log) is None
    assert log.read_text().split() == ["working", "error:", "broken", "fine"]
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(runner.run, "train", ["bs=4"], log)
        while not runner._running:
            time.sleep(0.01)
        runner.end()
        assert job.result(10) == "exit code -15"
    assert runner.run("train", ["bs=4"], log) == "stopped"


def test_settings_of_any_characters_reach_a_command(tmp_path):
    odd = tmp_path / "it's a, b=c [d]"
    assert compose_train([setting("out_dir", odd)]).out_dir == str(odd)
