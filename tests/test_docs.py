"""Commands in the user's documents can be composed, and links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from defaults import SCHEMAS

from geoseg_gan.config import compose

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/**/*.md"))]


def _commands() -> dict[str, tuple[str, list[str]]]:
    """Commands by their text; those of experiments belong to the version that ran them."""
    commands = {}
    for page in PAGES:
        if page.parent.name == "experiments":
            continue
        blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        text = "".join(blocks).replace("\\\n", " ")
        for line in re.findall(r"^[^#\n]*\bscripts/\w+\.py.*", text, re.MULTILINE):
            script, _, rest = line.split("scripts/", 1)[1].partition(".py")
            words = shlex.split(rest, comments=True)
            settings = [w for w in words if not w.startswith(("-", "hydra"))]
            if "--config-dir" not in words:
                key = f"{script} {' '.join(settings)}"
                sweep = "-m" in words
                commands[key] = script, [_first(s) for s in settings] if sweep else settings
    return commands


def _first(setting: str) -> str:
    """The first of the values that a sweep goes through."""
    return re.sub(r"(=(?:\[[^]]*\]|[^,\[]*)),.*", r"\1", setting)


@pytest.mark.parametrize("command", _commands())
def test_a_documented_command_composes(command):
    script, settings = _commands()[command]
    compose(SCHEMAS[script], settings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings]
            assert anchor in slugs, target
