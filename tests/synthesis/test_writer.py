from contextlib import contextmanager

import numpy as np
import pytest
from defaults import defaults

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.images import MaskReader
from geoseg_gan.data.jitter import draw_warp
from geoseg_gan.data.settings import JitterSettings
from geoseg_gan.synthesis import writer as module
from geoseg_gan.synthesis.candidates import Candidate
from geoseg_gan.synthesis.filter import Verdict
from geoseg_gan.synthesis.writer import Manifest, PairWriter, read_manifest

LABEL = np.zeros((8, 8), np.uint8)
IMAGE = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def open_writer(tmp_path, palette):
    @contextmanager
    def writing():
        place = (tmp_path, "pairs", MaskReader(palette), ImageScaling([0] * 3, [255] * 3))
        with Manifest(tmp_path) as manifest, PairWriter(*place, manifest.add) as writer:
            yield writer

    return writing


def candidate(index):
    warp = draw_warp(defaults(JitterSettings), np.random.default_rng(0))
    return Candidate(index, index, 0, "a", warp, (0, 0, 8), LABEL)


def test_dropped_pairs_are_listed_and_leave_no_files(open_writer, tmp_path, palette):
    filtered = LABEL.copy()
    filtered[0] = 255
    with open_writer() as writer:
        writer.add(candidate(0), IMAGE, Verdict(LABEL, "too bad", 0.25))
        writer.add(candidate(1), IMAGE, Verdict(filtered, None, 0.75, 8))
        writer.add(candidate(2), None, Verdict(LABEL, "shows no Water"))
    names = {"manifest.jsonl", "pair_00001_img.jpg", "pair_00001_mask.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    lines = read_manifest(tmp_path)
    assert [line["kept"] for line in lines] == [False, True, False]
    assert [line.get("score") for line in lines] == [0.25, 0.75, None]
    written, _ = MaskReader(palette).read(tmp_path / "pair_00001_mask.png")
    assert np.array_equal(written, filtered)


def test_nothing_is_listed_behind_a_pair_that_could_not_be_written(
    open_writer, tmp_path, monkeypatch
):
    write_image = module.write_image

    def full(path, image):
        if "00001" in path.name:
            raise OSError("disk full")
        write_image(path, image)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_image", full)
        with pytest.raises(OSError, match="disk full"), open_writer() as writer:
            for index in range(4):
                writer.add(candidate(index), IMAGE, Verdict(LABEL))
    assert [line["index"] for line in read_manifest(tmp_path)] == [0]


def test_lines_are_listed_in_order_and_not_before_their_turn(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"index": 0}\n')
    with Manifest(tmp_path) as manifest:
        for index in (2, 4, 1):
            manifest.add({"index": index})
    assert [line["index"] for line in read_manifest(tmp_path)] == [0, 1, 2]
