import json
import re
import stat
from dataclasses import replace

import pytest
from defaults import defaults

from geoseg_gan.data.demo import world as module
from geoseg_gan.data.demo.world import MARKER, is_drawn, write_world
from geoseg_gan.data.images import read_image
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.palette import Palette, PaletteClass
from geoseg_gan.data.settings import DemoSettings
from geoseg_gan.utils.errors import UserError

PALETTE = Palette([PaletteClass(f"class {i}", [40 * i, 10, 9]) for i in range(6)], [[0, 0, 0]])
SMALL = defaults(DemoSettings, train_tiles=3, val_tiles=1, tile_size=64, seed=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "deep" / "demo"
    write_world(root, PALETTE, SMALL)
    return root


@pytest.fixture
def nothing_drawn(monkeypatch):
    def fail(*args):
        raise RuntimeError("nothing should be drawn")

    monkeypatch.setattr(module, "ProcessPoolExecutor", fail)


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_world_is_a_data_folder_in_the_normal_layout(world):
    train, val = find_pairs(world, "train"), find_pairs(world, "val")
    assert [pair.stem for pair in train] == ["train_00000", "train_00001", "train_00002"]
    assert [pair.stem for pair in val] == ["val_00000"]
    seen = set()
    for pair in [*train, *val]:
        image = read_image(pair.image)
        seen.add(image.tobytes())
        label, unknown = MaskReader(PALETTE).read(pair.mask)
        assert image.shape == (64, 64, 3) and label.shape == (64, 64) and unknown == 0
        assert pair.image.suffix == ".jpg" and image.std() > 5
    assert len(seen) == 4  # every tile is a place of its own
    assert json.loads((world / MARKER).read_text())["train_tiles"] == 3
    assert stat.S_IMODE(world.stat().st_mode) == 0o755
    assert [path.name for path in world.parent.iterdir()] == ["demo"]  # no scratch is left


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others(world, tmp_path):
    write_world(tmp_path / "again", PALETTE, SMALL)
    assert contents(tmp_path / "again") == contents(world)
    (tmp_path / "other").mkdir()  # an empty folder may be drawn into
    assert not is_drawn(tmp_path / "other", SMALL)
    write_world(tmp_path / "other", PALETTE, replace(SMALL, seed=2))
    first, other = contents(world), contents(tmp_path / "other")
    assert first.keys() == other.keys()
    assert [path for path in first if first[path] == other[path]] == []


def test_a_world_that_stands_is_not_drawn_again(world, nothing_drawn):
    assert is_drawn(world, SMALL)
    write_world(world, PALETTE, SMALL)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path, nothing_drawn):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("dear to me")
    with pytest.raises(UserError, match=r"which holds other files\. Set data_root to a new folder"):
        write_world(tmp_path / "demo", PALETTE, SMALL)
    assert contents(tmp_path).popitem()[1] == b"dear to me"
    assert len(contents(tmp_path)) == 1
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=re.escape(f"into {tmp_path / 'file'}, which holds")):
        write_world(tmp_path / "file", PALETTE, SMALL)
    with pytest.raises(RuntimeError, match="nothing should be drawn"):
        write_world(tmp_path / "new", PALETTE, SMALL)
    assert not (tmp_path / "new").exists() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("change", [{"seed": 2}, {"tile_size": 128}, {"val_tiles": 2}])
def test_another_world_or_a_marker_of_someone_else_is_refused(
    world, tmp_path, nothing_drawn, change
):
    with pytest.raises(UserError, match=r"holds another demo world\. .*, or remove this one\."):
        write_world(world, PALETTE, replace(SMALL, **change))
    for text in ("", "{", "[]"):
        (tmp_path / MARKER).write_text(text)
        with pytest.raises(UserError, match="holds another demo world"):
            is_drawn(tmp_path, SMALL)


@pytest.mark.parametrize("same", [True, False])
def test_whoever_is_second_keeps_the_first_ones_folder(world, tmp_path, monkeypatch, same):
    root = tmp_path / "demo"

    class Quick:
        """Draws nothing, while another process finishes its own world."""

        def __init__(self, *args):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            root.mkdir()
            (root / MARKER).write_bytes((world / MARKER).read_bytes() if same else b"{}")

        def map(self, draw, jobs, chunksize):
            return iter(jobs)

    monkeypatch.setattr(module, "ProcessPoolExecutor", Quick)
    if same:
        write_world(root, PALETTE, SMALL)
    else:
        with pytest.raises(UserError, match="another demo world"):
            write_world(root, PALETTE, SMALL)
    assert [path.name for path in root.iterdir()] == [MARKER]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
