"""Mistakes of users: each is refused in one line with exit code 1, and leaves nothing."""

import dataclasses
import itertools
import random
import time
import typing

import pytest
from attempts import NEEDED, Attempts, kinds_of, knobs
from defaults import SCHEMAS

from geoseg_gan.config import compose, plain

pytestmark = pytest.mark.filterwarnings("default")

WRONG = {
    int: ("many", "1.5", "nan", "inf", "[1]", "{a:1}", "", "9" * 30),
    float: ("many", "nan", "inf", "-inf", "1e999", "[1]", "{a:1}", ""),
    bool: ("maybe", "[true]", "7.5"),
    str: ("[1]", "{a:1}"),
    list: ("3", "text", "{a:1}"),
    dict: ("3", "text", "[1]"),
    "part": ("3", "[1,1]", "text.yaml", "true"),
}
"""Values that no setting of a type may have."""

PLACES = {"out_dir", "save_dir", "data_root", "source", "folder", "gen_ckpt"}
"""Settings that name a place, of the user's choice; an empty text names none."""

CHOICES = {
    "layout", "sampling", "crops", "scale_lr", "monitor", "select", "features", "split",
    "precision", "mixing.schedule", "optimizer.schedule", "data.mask_format", "data.unknown",
    "data.fit", "data.format", "data.cache", "compose.generate", "remainder",
    "keep_checkpoints", "loss.adversarial", "trainer.accelerator", "propose",
}  # fmt: skip
"""Settings that are one of some words."""

FREE_SIGN = {"onnx.mean", "seeds", "class_map"}
"""Numbers that may be negative, and what is no number."""


def typed_mistakes(name):
    """Every mistake of type and range of a command, one at a time."""
    for key, hint in knobs(name):
        kinds = kinds_of(hint)
        part, _, rest = key.partition(".")
        leaf = rest if name == "trial" and rest and part in SCHEMAS else key
        if typing.Any in kinds:
            continue
        for kind in kinds:
            base = typing.get_origin(kind) or kind
            values = WRONG["part" if dataclasses.is_dataclass(kind) else base] if kind else ()
            yield from (f"{key}={value}" for value in values)
        if None not in kinds:
            yield f"{key}=null"
        if {int, float} & set(kinds) and leaf not in FREE_SIGN:
            yield f"{key}=-1"
        if leaf in PLACES:
            yield f"{key}="
        if leaf in CHOICES:
            yield f"{key}=nonsense"
    yield from (f"{key}s=1" for key, _ in knobs(name))


def network_mistakes():
    """Mistakes in the settings of networks, whose names depend on the network."""
    for model in ("unet", "spade", "oasis", "projected"):
        networks = plain(compose(SCHEMAS["train"], [f"model={model}"]))["model"]
        for network, settings in networks.items():
            for key, value in settings.items():
                wrong = ("many", "[1]", "{a:1}")
                if isinstance(value, int | float) and not isinstance(value, bool):
                    wrong += ("nan", "-1", "1000000000", "null", "1e30")
                for text in wrong:
                    yield [f"model={model}", f"model.{network}.{key}={text}"]


def all_mistakes(draw):
    """Every mistake in random order, the commands in turn: command and settings."""
    found = {name: [] for name in SCHEMAS}
    found["networks"] = [("train", line) for line in network_mistakes()]
    for name in SCHEMAS:
        for line in typed_mistakes(name):
            key = line.partition("=")[0]
            needed = [w for w in NEEDED.get(name, ()) if w.partition("=")[0] != key]
            found[name].append((name, [*needed, line]))
    for lines in found.values():
        draw.shuffle(lines)
    return [m for turn in itertools.zip_longest(*found.values()) for m in turn if m]


@pytest.fixture
def attempts(monkeypatch, capfd, tmp_path):
    return Attempts(monkeypatch, capfd, tmp_path / "work").without_work()


def test_some_mistakes(attempts):
    some = all_mistakes(random.Random(0))[:9]
    assert [found for name, line in some if (found := attempts.faults(name, *line))] == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_mistakes(attempts, seed, part, deadline, record_property):
    end, wrong, number = deadline(0.04), [], 0
    for name, line in all_mistakes(random.Random(seed))[part::4]:
        if time.monotonic() > end:
            break
        number += 1
        if found := attempts.faults(name, *line):
            wrong.append(found)
    record_property("mistakes", number)
    assert wrong == [], "\n".join(["", *wrong])
