"""Drawn command lines: each is accepted or refused in one line, in bounded time."""

import random
import time

import pytest
from attempts import NEEDED, Attempts, knobs
from defaults import SCHEMAS

from geoseg_gan.utils.messages import choices

pytestmark = pytest.mark.filterwarnings("default")

VALUES = [
    # numbers
    "nan", "inf", "-inf", "1e999", "-1", "0", "-0.0", "0.5", "4294967296", "1e30", "9" * 40,
    "1000000", "1e-400", "0x10", "1_000", "true", "null", "???",
    # shapes
    "", "[]", "{}", "[1,1]", "[null]", "[[0]]", "{a:1}", "{a:{b:[1]}}", "[" * 60, "{" * 60,
    "x" * 5000, "1,2", "range(1,3)", "choice(1,2)", "glob(*)", "sort(3,1)", "int(x)",
    # markup, quotes, formats, controls
    "[/b]", "'[/b]'", "'[link=x]y[/link]'", '"', "'", "'a", "}", "]", ")", "a b", "a=b", "%s",
    "%(x)s", "{0}", "\\", "'\\'", "\x1b[31m", "a\tb", "a\nb", "'a\nb'", "\u00e9\u6f22\U0001f6f0",
    "\udcff", "\u202e",
    # interpolations and tags
    "${data_root}", "${nope}", "${oc.env:HOME}", "${oc.env:NOPE}", "${.}", "${..a}", "${", "${}",
    "\\${a}", "${pick:a,b}", "${file_name:}", "${hydra:job.name}", "${oc.decode:x}",
    "!!python/object/apply:os.getpid", "&a", "*a", "- a",
    # places
    "nowhere", "../..", "/dev/null", "/dev/full", "/proc/self/mem", "s3://bucket/x", "http://127.0.0.1:9/x",
    "~", "-", "--", "demo", "none", "auto", "all",
]  # fmt: skip

MOST = 1000  # command lines of a part

GROUPS = [
    "data", "loss", "model", "jitter", "augment", "segmenter", "optimizer", "trainer", "recipe",
    "experiment", "model/generator", "model/discriminator", "recipe/refine", "hydra/launcher",
]  # fmt: skip


def line(draw, name, keys):
    """A command line: what is needed, and one to three settings of which some are hostile."""
    words = list(NEEDED.get(name, ()))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        key = draw.choice(keys) if draw.random() < 0.85 else draw.choice(GROUPS)
        if draw.random() < 0.1:
            key = draw.choice((key.upper(), key[:-1], f"{key}.x", f"{key}.0", f"x.{key}", ""))
        value = draw.choice(VALUES)
        if key in GROUPS and draw.random() < 0.5 and choices(key):
            value = draw.choice(choices(key))
        form = draw.random()
        if form < 0.7:
            words.append(f"{key}={value}")
        elif form < 0.85:
            words.append(f"{draw.choice(('+', '++', '~'))}{key}={value}")
        else:
            other = draw.choice(("_global_", "data", "x", "", "train.data", ":", value))
            words.append(
                draw.choice((f"~{key}", key, f"{key}@{other}={value}", f"+{key}@{other}={value}"))
            )
    return words


def faults_of(attempts, draw, keys):
    name = draw.choice(list(SCHEMAS))
    return attempts.faults(name, *line(draw, name, keys[name]), mistake=False)


@pytest.fixture
def attempts(monkeypatch, capfd, tmp_path):
    return Attempts(monkeypatch, capfd, tmp_path / "work").without_work()


@pytest.fixture(scope="module")
def keys():
    return {name: [key for key, _ in knobs(name)] for name in SCHEMAS}


def test_drawn_command_lines(attempts, keys):
    draw = random.Random(1)
    assert list(filter(None, (faults_of(attempts, draw, keys) for _ in range(10)))) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_drawn_command_lines(attempts, keys, seed, part, deadline, record_property):
    end, draw, wrong = deadline(0.04), random.Random(f"{seed} {part}"), []
    number = 0
    while number < MOST and time.monotonic() < end:
        number += 1
        if found := faults_of(attempts, draw, keys):
            wrong.append(found)
    record_property("command lines", number)
    assert wrong == [], "\n".join(["", *wrong])
