"""What is installed from the wheel runs on its own."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_s_commands_run_in_a_clean_environment(tmp_path):
    """Its dependencies are those of this environment: to install them again would take 6 GB."""
    source, home = tmp_path / "source", tmp_path / "clean"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("geoseg_gan", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)

    def call(*command, **options):
        done = subprocess.run(command, capture_output=True, text=True, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path))
    call(*build, str(source))
    (wheel,) = tmp_path.glob("*.whl")
    shutil.rmtree(source)
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    call(python, "-m", "pip", "install", "--no-deps", "--no-index", str(wheel))
    # A line in a .pth file adds a folder, but none of that folder's own .pth files: not the sources
    # that are installed here for editing.
    (packages,) = home.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("-packages")]
    (packages / "others.pth").write_text("\n".join(others))

    empty = tmp_path / "empty"
    empty.mkdir()
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = "import geoseg_gan, sys; sys.stdout.write(geoseg_gan.__file__)"
    found = call(python, "-c", where, cwd=empty, env=clean)
    assert Path(found).is_relative_to(home)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for point in project["scripts"]:
        shown = call(home / "bin" / point, "--help", cwd=empty, env=clean)
        name = point.removeprefix("geoseg-").replace("-", "_")
        assert f"scripts/{name}.py" in shown and "=" in shown
    assert "epochs: 10" in call(home / "bin" / "geoseg-train", "--cfg", "job", cwd=empty, env=clean)
    assert not list(empty.iterdir())
