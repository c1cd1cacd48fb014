"""Imports point one way, from scripts down to utils, and commands start light."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from geoseg_gan.utils.signals import SIGNALS, Stopped

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "geoseg_gan"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
ROOMS = (
    "utils", "config", "data", "models", "losses", "synthesis", "evaluation", "training", "export",
    "trials", "studio", "cli",
)  # fmt: skip
"""From the lowest to the highest: each may import those before it."""


def imports_of(path, lazy=True):
    """What a file imports, by dotted name; with `lazy`, inside functions too.

    What stands under `if TYPE_CHECKING` counts as well: a reader has to know it.
    """
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in names)


def own(path, **options):
    return {n for n in imports_of(path, **options) if n in MODULES and n != "geoseg_gan"}


def room(name):
    return name.split(".")[1]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "geoseg_gan"])
def test_a_room_imports_only_rooms_below_it(name):
    higher = ROOMS[ROOMS.index(room(name)) + 1 :]
    assert [other for other in own(MODULES[name]) if room(other) in higher] == []


def test_the_package_s_root_holds_the_frame_and_rooms_alone():
    entries = {path.stem for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert entries == {*ROOMS, "__init__", "py"}


def test_no_import_goes_in_a_circle():
    graph = {name: own(path) for name, path in MODULES.items() if name != "geoseg_gan"}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", MODULES)
def test_frameworks_stay_where_they_belong(name):
    found = {imported.split(".")[0] for imported in imports_of(MODULES[name])}
    frame = ("geoseg_gan.config", "geoseg_gan.utils.messages")
    assert "hydra" not in found or name in frame
    # Recipes change the parts of a composed trial.
    assert "omegaconf" not in found or name in (
        "geoseg_gan.config",
        "geoseg_gan.trials.settings",
        "geoseg_gan.utils.yaml_files",
    )
    if name.startswith(("geoseg_gan.models", "geoseg_gan.losses")):
        assert "lightning" not in found


def test_configuration_and_settings_load_neither_torch_nor_cv2():
    settings = [name for name in MODULES if name.endswith(".settings")]
    assert len(settings) >= 6
    heavy = ["torch", "lightning", "cv2", "rasterio", "scipy", "matplotlib"]
    code = (
        f"import sys, geoseg_gan.config, {', '.join(settings)}; "
        f"sys.exit(str([name for name in {heavy} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"


def test_scripts_only_call_the_package():
    for path in (ROOT / "scripts").glob("*.py"):
        assert set(imports_of(path)) == {"geoseg_gan.cli"}
        assert f"    {path.stem}()\n" in path.read_text()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_command_is_imported_ends_it_in_one_line(number):
    code = (
        "import signal, sys; from geoseg_gan import cli; assert 'hydra' not in sys.modules; "
        f"cli.resolve_name = lambda name: signal.raise_signal({int(number)}); cli.train()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == f"error: {Stopped(number)}\n"


def test_the_wheel_has_every_folder_of_the_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(listed) == folders | {"geoseg_gan.configs"}
