import ast
from pathlib import Path

from rich.markdown import Markdown
from rich.table import Table

import geoseg_gan
from geoseg_gan.utils.tables import as_markdown, console, markdown_table, percent

PACKAGE = Path(geoseg_gan.__file__).parent


def test_a_table_has_a_head_and_keeps_bars_in_its_cells():
    lines = markdown_table(["a", "b"], [(1, "x|y"), (2, "z")])
    assert lines == ["| a | b |", "|---|---|", "| 1 | x\\|y |", "| 2 | z |"]


def test_names_are_shown_as_they_are(capsys):
    table = Table("[/x]", box=None)
    table.add_row("o[/b] :smile:")
    terminal = console()
    terminal.print(table)
    terminal.print("[red]a[/blue]")
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "[/x]",
        "o[/b] :smile:",
        "[red]a[/blue]",
    ]


NAMES = (
    "Roof [metal]", "[/x]", "[a](b)", "*a* <b> & `c`", "a | b", "_x_ y_z __init__", "# 1", "~~a~~",
    "train_00__b1", r"C:\[d]",
)  # fmt: skip


def test_names_stay_what_they_are_in_markdown(capsys):
    terminal = console()
    terminal.print(Markdown("\n".join(markdown_table(["name"], [[as_markdown(n)] for n in NAMES]))))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line and set(line) != {"─"}] == ["name", *NAMES]
    for name in NAMES:
        terminal.print(Markdown(f"# {as_markdown(name)}"))
        assert name in capsys.readouterr().out


def test_no_other_terminal_reads_markup():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console":
                given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                assert given.get("markup") is given.get("emoji") is False, path


def test_shares_are_shown_in_per_cent():
    assert [percent(share) for share in (0.6333, 1.0, float("nan"))] == ["63.3", "100.0", "-"]
