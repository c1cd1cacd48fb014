"""The system's errors: one line, earlier results intact, and the run goes on once they are gone."""

import os
import re
import resource
import shutil
import subprocess

import pytest
from cases import CASES, CLOCKS, prepared
from processes import alive_after, check_whole, compare, start

NEW = ("tile", "tile, polygons", "pack", "prepare", "export")
"""Cases that make a folder which appears as a whole."""

RUNS = (
    "train", "train_segmenter", "generate", "generate, a scene", "evaluate", "predict",
    "check_data", *NEW, "trial", "compare",
)  # fmt: skip
"""Every command once, and its other ways."""


def stderr_lines(run):
    """The lines on stderr, warnings aside."""
    return [line for line in run.texts()[1].splitlines() if not line.startswith("warning: ")]


def check_refusal(run, place=""):
    """Asserts that a command ends with one line and exit code 1, and leaves no process."""
    code = run.end()
    lines = stderr_lines(run)
    assert code == 1 and len(lines) == 1 and lines[0].startswith("error: "), (code, run.texts())
    assert re.search(place, lines[0]), lines
    assert not alive_after(run.pid)


def check_goes_on(case, cwd, reference):
    name, arguments = CASES[case]
    run = start(name, arguments, cwd)
    assert run.end() == 0, run.texts()
    compare(cwd, reference, CLOCKS)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of some kilobytes: `small_disk(folder, 300)`."""
    mounted = []

    def mount(folder, size, more=""):
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k{more}", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small disk takes the rights of root")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("case", RUNS[:-1])
def test_a_full_disk(case, share, places, undisturbed, small_disk, record_property):
    reference, _ = undisturbed(case)
    cwd = prepared(places, case, f"full{share}")
    out = cwd / "out"
    disk = cwd if case in NEW else out
    small_disk(disk, max(4, int(share * size_of(reference / "out"))))
    name, arguments = CASES[case]
    cache = {"XDG_CACHE_HOME": str(places / "cache")}
    run = start(name, arguments, cwd, **cache)
    check_refusal(run, "space|disk is full")
    check_whole(out)
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    run = start(name, arguments, cwd, **cache)
    assert run.end() == 0, run.texts()
    compare(out, reference / "out", CLOCKS)
    record_property("full disks and limits", 1)


LIMITS = {
    "RLIMIT_FSIZE": (resource.RLIMIT_FSIZE, 500),
    "RLIMIT_NOFILE": (resource.RLIMIT_NOFILE, 10),
}


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("case", RUNS)
def test_limits_of_a_process(case, limit, places, undisturbed, record_property):
    reference, _ = undisturbed(case)
    cwd = prepared(places, case, limit)
    name, arguments = CASES[case]
    kind, value = LIMITS[limit]
    run = start(name, arguments, cwd, LIMIT=f"{int(kind)} {value}")
    check_refusal(run)
    check_whole(cwd / "out")
    check_goes_on(case, cwd, reference)
    record_property("full disks and limits", 1)


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS)
def test_a_place_below_a_file(case, places, record_property):
    cwd = prepared(places, case, "below")
    (cwd / "file").write_text("mine")
    name, arguments = CASES[case]
    moved = [word.replace("=out", "=file/out") for word in arguments]
    check_refusal(start(name, moved, cwd), "file")
    assert (cwd / "file").read_text() == "mine"
    record_property("full disks and limits", 1)


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS)
def test_a_folder_that_may_only_be_read(case, places, undisturbed, small_disk, record_property):
    reference, _ = undisturbed(case)
    cwd = prepared(places, case, "readonly")
    kept = shutil.copytree(cwd, places / f"{case}-kept", dirs_exist_ok=True)
    small_disk(cwd, 65536)
    shutil.copytree(kept, cwd, dirs_exist_ok=True)
    subprocess.run(["mount", "-o", "remount,ro", str(cwd)], check=True)
    name, arguments = CASES[case]
    cache = {"XDG_CACHE_HOME": str(places / "cache")}
    check_refusal(start(name, arguments, cwd, **cache), "Read-only")
    subprocess.run(["mount", "-o", "remount,rw", str(cwd)], check=True)
    run = start(name, arguments, cwd, **cache)
    assert run.end() == 0, run.texts()
    compare(cwd / "out", reference / "out", CLOCKS)
    record_property("full disks and limits", 1)
