"""The compare command, and the outcome that it reads."""

import json
import math

import pytest

from geoseg_gan.training.compare import compare
from geoseg_gan.training.runs import read_outcome, write_outcome
from geoseg_gan.training.settings import CompareConfig
from geoseg_gan.utils.errors import UserError


def test_outcomes_are_strict_json_and_say_what_is_wrong_with_them(tmp_path):
    assert read_outcome(tmp_path) is None
    write_outcome(tmp_path, {"g/loss": math.nan, "objective": 0.5}, epochs=3)
    expected = {"objective": 0.5, "epochs": 3, "figures": {"g/loss": None}}
    assert read_outcome(tmp_path) == expected
    spoilt = {"figures": {}, "objective": 0.5}
    for content, message in (
        ("{}", "lacks 'objective'"),
        ('{"objective": NaN}', "cannot be read"),
        (json.dumps(spoilt | {"objective": "x"}), "has 'objective', which is 'x', not a number"),
        (
            json.dumps(spoilt | {"monitor": ["kid"]}),
            r"has 'monitor', which is \['kid'\], not",
        ),
        (json.dumps(spoilt | {"figures": {"a": []}}), r"has 'figures\.a', which is \[\]"),
    ):
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(UserError, match=rf"result\.json {message}.*repeat the run"):
            read_outcome(tmp_path)


def run_of(folder, objective, monitor="kid", **settings):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps({"out_dir": str(folder), **settings}))
    if objective is not False:
        figures = {} if objective is None else {"objective": objective}
        write_outcome(folder, figures, monitor=monitor, epochs=2, seconds=90.0)


def rows_of(folder):
    table = (folder / "sweep.md").read_text().splitlines()
    return [line.split(" | ") for line in table if line.startswith("| ")]


def test_compare_ranks_in_the_monitor_s_direction_and_lists_the_rest(tmp_path):
    for number, objective in enumerate([0.25, 0.75, 0.5, None, False]):
        seed = {"seed": 1, "model": {"style": [number % 2]}}
        run_of(tmp_path / f"r{number}", objective, "agreement", **seed)
    (tmp_path / "r5").mkdir()
    assert compare(CompareConfig(str(tmp_path))) == {"runs": 5, "finished": 4, "best": 0.75}
    head, *rows = rows_of(tmp_path)
    assert head == ["| objective", "model.style", "epochs", "minutes", "folder |"]
    assert [row[0] for row in rows] == ["| 75.0 %", "| 50.0 %", "| 25.0 %"]
    assert rows[0][1:] == [r"\[1\]", "2", "1.5", "`r1` |"]
    text = (tmp_path / "sweep.md").read_text()
    assert "4 finished runs, of 6" in text and "higher is better" in text
    rest = text.split("Finished without a figure")[1]
    assert rest.index("`r3`") < rest.index("Not finished") < rest.index("`r4`")
    assert rest.index("Failed, or not started") < rest.index("`r5`")


def test_compare_names_choices_as_they_were_given(tmp_path):
    for number, jitter in enumerate(("none", "strong")):
        job = f"bands=[0,1],epochs=2,jitter={jitter},lr=1e-{number}"
        run_of(tmp_path / job, number / 10, jitter={"p": number})
    compare(CompareConfig(str(tmp_path)))
    assert [row[1:3] for row in rows_of(tmp_path)] == [
        ["jitter", "lr"],
        ["none", "1"],
        ["strong", "0.1"],
    ]


def test_segmenters_are_ranked_by_held_out_tiles_or_else_by_validation_tiles(tmp_path):
    scores = [{"inner/miou": 0.5, "val/miou": 0.75}, {"inner/miou": 0.25, "val/miou": 1.0}, {}]
    for number, found in enumerate(scores):
        run_of(tmp_path / f"r{number}", False, epochs=4, lr=number)
        (tmp_path / f"r{number}/scores.json").write_text(json.dumps({"epoch": 3, **found}))
    assert compare(CompareConfig(str(tmp_path))) == {"runs": 3, "finished": 3, "best": 0.5}
    head, *rows = rows_of(tmp_path)
    assert head == ["| objective", "lr", "epochs", "minutes", "folder |"]
    assert rows == [["| 50.0 %", "0", "4", "", "`r0` |"], ["| 25.0 %", "1", "4", "", "`r1` |"]]
    assert "inner/miou (higher is better)" in (tmp_path / "sweep.md").read_text()
    for number in (0, 1):
        text = json.dumps({"val/miou": scores[number]["val/miou"]})
        (tmp_path / f"r{number}/scores.json").write_text(text)
    assert compare(CompareConfig(str(tmp_path)))["best"] == 1.0
    (tmp_path / "r0/scores.json").write_text('{"val/miou": "x"}')
    with pytest.raises(UserError, match=r"scores\.json has 'val/miou', which is 'x', not a number"):
        compare(CompareConfig(str(tmp_path)))


def test_compare_refuses_what_cannot_be_compared(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        compare(CompareConfig(str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="holds no runs"):
        compare(CompareConfig(str(tmp_path)))
    run_of(tmp_path / "a", 0.1, "kid")
    run_of(tmp_path / "b", 0.2, "fid")
    with pytest.raises(UserError, match="are fid and kid"):
        compare(CompareConfig(str(tmp_path)))
