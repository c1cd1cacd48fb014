import json

import numpy as np
import pytest
from defaults import defaults
from synthesis_helpers import BYTES, refused

from geoseg_gan.data.jitter import draw_warp
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.settings import JitterSettings
from geoseg_gan.data.synthetic import GENERATION, read_manifest
from geoseg_gan.synthesis import writer as module
from geoseg_gan.synthesis.candidates import Candidate
from geoseg_gan.synthesis.filter import Decision, GeneratedPair
from geoseg_gan.synthesis.writer import (
    PairFiles,
    PairWriter,
    drop_by_hand,
    merge_manifest,
    stored_facts,
)
from geoseg_gan.utils.files import held, write_json

LABEL = np.zeros((8, 8), np.uint8)


@pytest.fixture
def files(tmp_path, palette):
    return PairFiles(tmp_path, "pairs", MaskReader(palette), BYTES)


def pair(index):
    warp = draw_warp(defaults(JitterSettings), np.random.default_rng(0))
    candidate = Candidate(index, index, 0, "a", warp, (0, 0, 8), LABEL)
    return GeneratedPair(candidate, np.zeros((8, 8, 3), np.uint8), Decision(LABEL))


def test_nothing_is_listed_behind_a_pair_that_could_not_be_written(files, tmp_path, monkeypatch):
    write_image = module.write_image

    def full(path, image):
        if "00001" in path.name:
            raise OSError("disk full")
        write_image(path, image)

    monkeypatch.setattr(module, "write_image", full)
    with pytest.raises(OSError, match="disk full"), PairWriter(files) as writer:
        writer.add([pair(index) for index in range(4)])
    assert [line["index"] for line in read_manifest(tmp_path)] == [0]


def test_the_parts_of_all_processes_are_merged_in_order(files, tmp_path):
    for rank, numbers in ((0, (0, 1, 4)), (1, (2, 3, 5)), (2, (6,))):
        with PairWriter(files, rank) as writer:
            writer.add([pair(index) for index in numbers])
    cut = tmp_path / "manifest.part2.jsonl"
    cut.write_text(cut.read_text() + '{"index": 7, "kep')
    before = (tmp_path / "manifest.jsonl").read_text()
    assert [line["index"] for line in merge_manifest(tmp_path)] == list(range(7))
    assert not list(tmp_path.glob("manifest.part*"))
    # A call that was stopped between the two steps leaves lines in both.
    cut.write_text(before)
    assert merge_manifest(tmp_path) == read_manifest(tmp_path)
    assert json.loads((tmp_path / "manifest.jsonl").read_text().splitlines()[3])["index"] == 3


GOOD = '{"index": 0, "kept": true}\n'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (GOOD + "x\n", "line 2, cannot be read"),
        (GOOD + "\n", "line 2, cannot be read"),
        ("[0]\n", r"line 1, holds what is \[0\], not a mapping"),
        ('{"kept": true}\n', "line 1, lacks 'index'"),
        ('{"index": -1, "kept": true}\n', "line 1, has 'index', which is -1, not a whole number"),
        ('{"index": 1e300, "kept": true}\n', "line 1, has 'index', which is 1e\\+300, not"),
        ('{"index": true, "kept": true}\n', "line 1, has 'index', which is True, not"),
        ('{"index": 0, "kept": 1}\n', "line 1, has 'kept', which is 1, not true or false"),
        ('{"index": 0, "kept": true, "score": NaN}\n', "line 1, cannot be read .*NaN"),
        ("[" * 10**5 + "\n", "line 1, cannot be read .*nested too deeply"),
        (GOOD + GOOD, "line 2, cannot be read .*pair 0 stands twice"),
        (b"\xff\xfe\n", "cannot be read .*utf-8"),
    ],
)
def test_a_manifest_that_generate_did_not_write_is_refused_by_its_line(tmp_path, lines, message):
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    for read in (read_manifest, merge_manifest):
        with refused(rf"manifest\.jsonl,? {message}.* generate into a new folder"):
            read(tmp_path)
    path.write_text(GOOD)
    (tmp_path / "manifest.part1.jsonl").write_text(GOOD.replace("true", "false"))
    with refused(r"manifest\.part1\.jsonl lists pair 0 otherwise than before"):
        merge_manifest(tmp_path)


# Pairs that are dropped by hand


@pytest.fixture
def four(files, tmp_path):
    with PairWriter(files) as writer:
        writer.add([pair(index) for index in range(3)])
        writer.add([pair(3)._replace(decision=Decision(LABEL, "score is not above tau=0.5", 0.2))])
    return tmp_path


def test_a_pair_is_dropped_and_taken_back_in_the_manifest_alone(four):
    path = four / "manifest.jsonl"
    before, names = path.read_text(), sorted(four.iterdir())
    drop_by_hand(four, 1)
    lines = path.read_text().splitlines()
    assert [lines[row] for row in (0, 2, 3)] == [before.splitlines()[row] for row in (0, 2, 3)]
    changed, original = json.loads(lines[1]), json.loads(before.splitlines()[1])
    assert changed == original | {"kept": False, "why": "dropped by hand"}
    drop_by_hand(four, 1)  # again changes nothing
    assert path.read_text().splitlines() == lines
    drop_by_hand(four, 1, dropped=False)
    assert path.read_text() == before
    assert sorted(four.iterdir()) == sorted([*names, four / ".lock"])


@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("index", [3, 4])
def test_what_is_not_kept_can_neither_be_dropped_nor_taken_back(four, index, dropped):
    before = (four / "manifest.jsonl").read_text()
    with refused(f"manifest.jsonl does not list pair {index} as kept"):
        drop_by_hand(four, index, dropped)
    assert (four / "manifest.jsonl").read_text() == before


def test_nothing_is_dropped_while_another_call_holds_the_folder(four):
    with held(four), refused("is in use by process"):
        drop_by_hand(four, 1)
    assert all(line["kept"] for line in read_manifest(four)[:3])


# What a folder says of its generation

SAID = {"format": 1, "segmenter": None, "config": {"seed": 0, "layout": "pairs", "variants": 1}}
PLACES = {"data_root": "trial/ground", "true_masks": "trial/ground/unlabelled_masks"}


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path / GENERATION, SAID | {"tau": 0.6})
    return tmp_path


def test_a_folder_of_the_same_generation_tells_what_only_it_knows(folder):
    stored = stored_facts(folder, SAID | {"config": SAID["config"] | PLACES})  # moved since
    assert stored is not None and stored["tau"] == 0.6
    assert stored_facts(folder / "new", SAID) is None
    (folder / GENERATION).unlink()
    assert stored_facts(folder, SAID) is None


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"config": {"seed": 1, "layout": "pairs"}}, r"config\.seed was 0, now 1"),
        ({"config": {"seed": 0, "layout": "pairs", "new": 1}}, r"config\.new was None, now 1"),
        ({"config": {"seed": 0}}, "config was .*, now "),
        ({"segmenter": {"sha256": "ab"}}, "segmenter was None, now .*ab"),
        ({"gsd": 0.5}, r"gsd was None, now 0\.5"),
    ],
)
def test_what_differs_is_named_with_both_values(folder, now, message):
    with refused(message):
        stored_facts(folder, SAID | now)


@pytest.mark.parametrize("content", ["", "{", "3", "[1]", "{}"])
def test_a_file_that_generate_did_not_write_is_named(tmp_path, content):
    (tmp_path / GENERATION).write_text(content)
    with refused(r"generation\.json (cannot be read|holds what is|lacks) .*Choose a new folder"):
        stored_facts(tmp_path, SAID)
