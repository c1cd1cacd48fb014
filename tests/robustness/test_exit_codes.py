"""Every command leaves with the exit code that scripts and schedulers go by, and says why."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from defaults import SCHEMAS, TINY
from published_folders import draw

import geoseg_gan.config
from geoseg_gan.config import write_yaml
from geoseg_gan.data.settings import (
    check_data_command,
    pack_command,
    prepare_command,
    tile_command,
)
from geoseg_gan.evaluation.settings import evaluate_command, predict_command
from geoseg_gan.export.settings import export_command
from geoseg_gan.studio.settings import studio_command
from geoseg_gan.synthesis.settings import generate_command
from geoseg_gan.training.runs import write_outcome
from geoseg_gan.training.settings import compare_command, train_command, train_segmenter_command
from geoseg_gan.trials.settings import trial_command
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.signals import Stopped

COMMANDS = {
    "train": train_command,
    "generate": generate_command,
    "train_segmenter": train_segmenter_command,
    "evaluate": evaluate_command,
    "predict": predict_command,
    "trial": trial_command,
    "tile": tile_command,
    "check_data": check_data_command,
    "prepare": prepare_command,
    "pack": pack_command,
    "compare": compare_command,
    "export": export_command,
    "studio": studio_command,
}
STOPS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SEGMENTER = (
    "segmenter=unet_resnet34", "segmenter.encoder=mobilenet_v2", "augment=flips",
    "+segmenter.options.encoder_depth=3", "+segmenter.options.decoder_channels=[8,8,8]",
)  # fmt: skip
NETWORKS = tuple(text for text in TINY if text.startswith("model."))
DATA = ("data_root=data", TINY[0])
ARGUMENTS = {
    "train": (*TINY, *DATA, "out_dir=out", "epochs=1"),
    "generate": ("gen_ckpt=run/G_e002.pt", "data_root=data", "save_dir=out", "num_samples=8",
        "num_workers=0", "trainer=cpu"),
    "train_segmenter": (*SEGMENTER, *DATA, "out_dir=out", "epochs=1", "inner_share=0.3", "bs=2",
        "image_size=32", "data.num_workers=0", "trainer=cpu"),
    "evaluate": ("gen_ckpt=run/G_e002.pt", "data_root=more", "out_dir=out", "num_samples=16",
        "variants=2", "controls=false", "trainer=cpu"),
    "predict": ("segmenter_ckpt=segmenter.pt", "image_path=data/val/images", "out_dir=out",
        "trainer=cpu"),
    "trial": (*NETWORKS, *SEGMENTER, *DATA, "out_dir=out", "image_size=32", "seeds=1",
        "ratios=[0.5]", "arms=[real,synthetic_0.5]", "inner_share=0.3", "train.bs=2",
        "train.epochs=1", "train.epoch_steps=2", "generate.num_samples=4", "generate.tau=0",
        "train_segmenter.bs=2", "train_segmenter.epochs=1", "train_segmenter.epoch_steps=2",
        "data.num_workers=0", "generate.num_workers=0", "trainer=cpu"),
    "tile": ("source=data/train", "data_root=out", "tile_size=32", TINY[0]),
    "check_data": (*DATA, "out_dir=out", "image_size=32"),
    "prepare": ("data=loveda", "source=download", "data_root=out"),
    "pack": (*DATA, "out_dir=out"),
    "compare": ("folder=sweep",),
    "export": ("ckpt=run/G_e002.pt", "out_dir=out"),
    "studio": ("gen_ckpt=run/G_e002.pt", "data_root=data", "port=0", "trainer=cpu"),
}  # fmt: skip
"""Arguments with which each command has little to do."""

MISTAKES = {name: "gen_ckpt=none.pt" for name in ("generate", "evaluate", "studio")} | {
    "tile": "source=none",
    "prepare": "source=none",
    "compare": "folder=none",
    "export": "ckpt=none.pt",
    "predict": "image_path=none",
}
WRITING = [name for name in COMMANDS if name != "studio"]
"""Commands that end by themselves, and write. How the studio ends is tested beside it."""

LONG = {
    "train": ("epochs=100000",),
    "train_segmenter": ("epochs=100000",),
    "generate": ("num_samples=1000000",),
    "trial": ("train.epochs=100000",),
}
"""With these, commands go on until they are stopped; others are too quick, and sleep instead."""

SLEEP = """
import pkgutil, runpy, sys, time

def sleep(config):
    print("begun", flush=True)
    time.sleep(600)

sys.argv = sys.argv[1:]
pkgutil.resolve_name = lambda name: sleep
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_table_lists_every_command():
    assert set(COMMANDS) == set(ARGUMENTS) == set(SCHEMAS)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (UserError("bs is wrong."), 1, "error: bs is wrong.\n"),
        (OSError(28, "No space left on device", "a.pt"), 1, "error: No space left on device: a.pt"),
        *((Stopped(number), code, "error: ") for number, code in STOPS.items()),
    ],
)
def test_what_ends_a_command_is_its_exit_code(
    name, error, code, line, monkeypatch, capsys, run_command
):
    def end():
        if error is not None:
            raise error

    monkeypatch.setattr(geoseg_gan.config, "_run_hydra", lambda *_: end())
    assert run_command(COMMANDS[name]) == code
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(line)
    assert shown.err.count("\n") == (code != 0)


@pytest.fixture
def begin(trained, segmenter, composed, make_folder, tmp_path):
    """Starts a command in a folder that holds what it reads: `begin("train", "bs=0")`."""
    segmenter()  # for predict
    draw("loveda", tmp_path / "download")
    make_folder(tmp_path / "more", val=4)  # figures need 16 validation windows
    for lr in (0.1, 0.2):
        run = tmp_path / "sweep" / f"lr={lr}"
        write_yaml(run / "config.yaml", composed("train", f"lr={lr}"))
        write_outcome(run, {"objective": lr}, monitor="kid", epochs=1, steps=1, seconds=1.0)
    started = []

    def start(name, *more, sleeping=False, **options):
        script = str(Path(__file__).parents[2] / "scripts" / f"{name}.py")
        driver = ["-c", SLEEP, script] if sleeping else [script]
        process = subprocess.Popen(
            [sys.executable, *driver, *ARGUMENTS[name], *more],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end_of(process):
    """Exit code and lines on stderr, warnings aside."""
    _, errors = process.communicate(timeout=300)
    return process.returncode, [e for e in errors.splitlines() if not e.startswith("warning: ")]


def check_told(lines):
    assert len(lines) == 1 and lines[0].startswith("error: "), lines


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITING)
def test_success_is_0(name, begin):
    assert end_of(begin(name)) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_is_1(name, begin):
    code, lines = end_of(begin(name, MISTAKES.get(name, "data_root=none")))
    assert code == 1
    check_told(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITING)
def test_a_disk_that_takes_no_more_is_1(name, begin):
    """Files may not grow, as by a quota; a full disk takes the rights of root to make."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    code, lines = end_of(begin(name, preexec_fn=limit))
    assert code == 1
    check_told(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", STOPS)
def test_signals_are_128_and_their_number(name, number, begin, tmp_path):
    process = begin(name, *LONG.get(name, ()), sleeping=name not in LONG)
    assert process.stdout is not None
    if name in LONG:
        patience = time.monotonic() + 300
        while not list((tmp_path / "out").glob("**/*events*")) and time.monotonic() < patience:
            if name == "generate" and (tmp_path / "out" / "generation.json").exists():
                break
            assert process.poll() is None, end_of(process)
            time.sleep(0.2)
    else:
        assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    code, lines = end_of(process)
    assert code == STOPS[number]
    check_told(lines)
