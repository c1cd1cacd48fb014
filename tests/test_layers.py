"""Imports point one way: scripts, commands, modules, then data, models and losses."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "geoseg_gan"
COMMANDS = {path.stem for path in (PACKAGE.parent / "scripts").glob("*.py")}
FRAMEWORKS = {"hydra", "omegaconf", "lightning"}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def modules_in(*folders):
    return sorted(path for folder in folders for path in (PACKAGE / folder).glob("*.py"))


@pytest.mark.parametrize("path", modules_in("models", "losses", "metrics"), ids=lambda p: p.stem)
def test_networks_and_losses_know_neither_hydra_nor_lightning(path):
    assert not [name for name in imports_of(path) if name.split(".")[0] in FRAMEWORKS]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_hydra_is_imported_by_the_configuration_and_the_commands_only(path):
    if path.parent == PACKAGE and path.stem in COMMANDS | {"config"}:
        return
    assert not [n for n in imports_of(path) if n.split(".")[0] in {"hydra", "omegaconf"}]


PICTURES = {"pictures", "plots"}
LOWER = {
    "metrics": {"metrics", "errors"},
    "data": {"data", "errors", "files"},
    "models": {"models", "errors"},
    "losses": {"losses", "models", "data", "errors"},
    "synthesis": {"synthesis", "checkpoints", "data", "models", "metrics", "errors", "files"}
    | PICTURES,
    "trials": {"trials", "metrics", "data", "errors", "files"} | PICTURES,
    "ladders": {"ladders", "errors", "files"} | PICTURES,
    "evaluation": {"evaluation", "synthesis", "checkpoints", "data", "models", "metrics", "files"}
    | {"plots_evaluation"}
    | PICTURES,
    "callbacks": {"callbacks", "gan", "segmenter", "checkpoints", "resume", "data", "models"}
    | {"errors", "evaluation", "speed"}
    | PICTURES,
}


@pytest.mark.parametrize("layer", LOWER)
def test_a_layer_imports_only_what_is_below_it(layer):
    for path in modules_in(layer):
        used = {n.split(".")[1] for n in imports_of(path) if n.startswith("geoseg_gan.")}
        assert used <= LOWER[layer], path


def test_scripts_only_call_the_package():
    for path in (PACKAGE.parent / "scripts").glob("*.py"):
        assert list(imports_of(path)) == [f"geoseg_gan.{path.stem}"]
