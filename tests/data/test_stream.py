"""Streams: packing folders, and reading them in training."""

import dataclasses
import gc
import json
import pickle
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from defaults import defaults
from geometry import FLIPS

from geoseg_gan.data import pack as module
from geoseg_gan.data.datamodule import GanDataModule
from geoseg_gan.data.dataset import PairSource
from geoseg_gan.data.image_files import UnreadableError
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.pairs import DataError, PairList, find_pairs
from geoseg_gan.data.sampler import SampleIndex
from geoseg_gan.data.scan import default_cache_folder, scan
from geoseg_gan.data.segmenter_datamodule import SegmenterDataModule
from geoseg_gan.data.settings import MixingSettings, PackSettings
from geoseg_gan.data.stream import address, check_root, open_stream
from geoseg_gan.training.train import train
from geoseg_gan.utils.errors import UserError, install

pytest.importorskip("litdata", reason="streams are an extra")

BATCH = 4


@pytest.fixture
def root(make_folder, tmp_path):
    return make_folder(tmp_path / "data", train=18, val=3, size=(48, 40))


@pytest.fixture
def pack(settings, tmp_path):
    def call(root, name="stream", **changed):
        out = tmp_path / name
        data = dataclasses.replace(settings, **changed)
        module.pack(defaults(PackSettings, str(root), str(out), 0.02, data))
        return out

    return call


@pytest.fixture
def stream(pack, root):
    return pack(root)


@pytest.fixture
def module_of(settings):
    def make(root, kind="stream", rank=0, world=1, cls=GanDataModule, inner_share=0.0, **changed):
        knobs = {"image_size": 32, "batch_size": BATCH, "jitter": FLIPS, "seed": 3}
        if cls is SegmenterDataModule:
            knobs["mixing"] = defaults(MixingSettings)
        data = dataclasses.replace(settings, format=kind, **changed)
        made = cls(root, data, inner_share=inner_share, **knobs)
        made.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        made.setup()
        return made

    return make


def batches(data, epoch):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


@pytest.mark.parametrize(("bands", "dtype"), [(3, "uint8"), (5, "uint16")])
def test_what_was_packed_is_read_back_bit_by_bit_without_a_scan(
    make_folder, tmp_path, pack, settings, bands, dtype
):
    root = make_folder(tmp_path / "any", train=7, val=2, size=32, bands=bands, dtype=dtype)
    (root / "tiles.csv").write_text("stem,group\ntrain_003,north\n")
    out = pack(root)
    assert {path.name for path in out.iterdir()} == {"config.yaml", "stream.json", "train", "val"}
    for split in ("train", "val"):
        reader = mask_reader(settings)
        pairs = find_pairs(root, split)
        seen, (index, source) = scan(pairs, reader), open_stream(out, split, reader)
        for name in ("sizes", "pixels", "unknown", "low", "high"):
            np.testing.assert_array_equal(getattr(index, name), getattr(seen, name))
        assert index.dtype == seen.dtype and index.bands == bands
        assert [(p.stem, p.group) for p in index.pairs] == [(p.stem, p.group) for p in pairs]
        files = PairSource(pairs, reader)
        for row in range(len(pairs)):
            for mine, theirs in zip(source.read(row), files.read(row), strict=True):
                np.testing.assert_array_equal(mine, theirs, strict=True)


def test_a_packing_that_fails_leaves_nothing(pack, root, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "write_json", fail)
    with pytest.raises(OSError, match="No space"):
        pack(root, "other")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_two_ranks_of_two_workers_show_each_pair_once_an_epoch_in_new_orders(stream, module_of):
    ranks = [module_of(stream, rank=rank, world=2, num_workers=2) for rank in range(2)]
    alone = module_of(stream)
    shown = []
    for epoch in range(2):
        parts = [batches(data, epoch) for data in ranks]
        assert [len(part) for part in parts] == [4, 4]
        stems = [stem for part in parts for batch in part for stem in batch["stem"]]
        assert len(stems) == 16 and max(Counter(stems).values()) == 1
        shown.append(stems)
        # Together they are what one process without workers trains on, augmentation included.
        for mine, *theirs in zip(batches(alone, epoch), *parts, strict=True):
            assert mine["stem"] == [stem for half in theirs for stem in half["stem"]]
            assert torch.equal(mine["image"], torch.cat([half["image"] for half in theirs]))
            assert torch.equal(mine["label"], torch.cat([half["label"] for half in theirs]))
    assert shown[0] != shown[1]


def test_an_epoch_goes_through_one_file_after_the_other(stream, module_of):
    data = module_of(stream)
    rows = [draw.row for draw in data.train_dataloader().sampler]
    parts = data.train_dataset.parts[0].source.parts()[rows]
    assert len(set(parts)) > 3
    assert np.count_nonzero(np.diff(parts)) == len(set(parts)) - 1
    # Each file holds pairs from everywhere: neighbours by name are not neighbours on disk.
    assert np.any(np.diff(data.train_dataset.parts[0].source.places) != 1)


def test_items_held_out_tiles_and_validation_are_the_folders(stream, root, module_of):
    mine, theirs = module_of(stream, inner_share=0.3), module_of(root, "folder", inner_share=0.3)
    assert isinstance(mine.train_index.pairs, PairList) and len(mine.inner_dataset) > 0
    assert list(mine.train_index.pairs.stems) == list(theirs.train_index.pairs.stems)
    for name in ("inner_dataset", "val_dataset", "train_dataset"):
        one, other = getattr(mine, name), getattr(theirs, name)
        for n in (2, 0):
            if name == "train_dataset":
                n = SampleIndex(n, n)
            assert one[n]["stem"] == other[n]["stem"]
            assert torch.equal(one[n]["image"], other[n]["image"])


def test_a_segmenter_trains_on_a_stream_too(stream, root, module_of):
    mine = module_of(stream, cls=SegmenterDataModule, inner_share=0.3)
    assert Counter(s for b in batches(mine, 0) for s in b["stem"]).most_common(1)[0][1] == 1
    theirs = module_of(root, "folder", cls=SegmenterDataModule, inner_share=0.3)
    assert mine.split_summary() == theirs.split_summary()


@pytest.mark.filterwarnings("ignore:unclosed file.*chunk:ResourceWarning")  # LitData's
def test_what_is_elsewhere_is_fetched_as_whole_files_or_pair_by_pair(stream, settings, monkeypatch):
    def ranged(self, remote, offset, length, local):  # as the services do it
        whole = Path(remote.removeprefix("local:")).read_bytes()
        return whole[int(offset) : int(offset) + int(length)]

    monkeypatch.setattr("litdata.streaming.downloader.LocalDownloader.download_bytes", ranged)
    reader = mask_reader(settings)
    _, near = open_stream(stream, "train", reader)
    _, far = open_stream(Path(f"local:{stream}"), "train", reader)
    spawned = pickle.loads(pickle.dumps(far))
    for source, is_whole in ((far, False), (spawned, False), (far.repeated(), True)):
        for row in range(6):
            for mine, theirs in zip(source.read(row), near.read(row), strict=True):
                np.testing.assert_array_equal(mine, theirs)
        assert bool(list(default_cache_folder().rglob("chunk-*.bin"))) == is_whole
    del source, far, spawned
    gc.collect()  # while the warning is expected


def test_an_address_keeps_the_slash_that_paths_take_away(tmp_path):
    assert address(Path("s3://bucket/stream")) == "s3://bucket/stream"
    assert address(tmp_path) == str(tmp_path)


@pytest.mark.slow
def test_training_on_a_stream_goes_on_with_the_next_epochs_order(stream, tmp_path, composed, tiny):
    common = (*tiny, f"data_root={stream}", "data.format=stream", "optimizer.schedule=constant")

    def run(name, *more):
        train(composed("train", *common, f"out_dir={tmp_path / name}", *more))
        return {path.name for path in (tmp_path / name).iterdir()}

    assert {"G_e001.pt", "D_e001.pt", "epoch001_0.jpg", "last.ckpt"} <= run("parts", "epochs=1")
    run("parts", "epochs=2", "resume=true")
    run("whole", "epochs=2")
    whole, parts = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    for key, value in whole.items():
        assert not torch.is_tensor(value) or torch.equal(value, parts[key]), key


def test_a_cache_in_memory_does_not_go_with_a_stream(settings):
    with pytest.raises(UserError, match=r"data\.cache=ram keeps all pairs in memory"):
        dataclasses.replace(settings, format="stream", cache="ram")


def test_a_stream_and_a_folder_are_not_taken_for_each_other(stream, root, settings):
    with pytest.raises(DataError, match=r"stream that scripts/pack\.py wrote.*data\.format=stream"):
        find_pairs(stream, "train")
    settings.format = "stream"
    with pytest.raises(DataError, match=r"holds no stream\.json.*set data\.format=folder"):
        check_root(settings, root)
    check_root(settings, stream)


@pytest.mark.parametrize(
    ("key", "value"),
    [("ignore", [[1, 2, 3]]), ("mask_format", "index"), ("group_regex", "train_.")],
)
def test_a_stream_that_was_packed_by_other_settings_is_refused(stream, settings, key, value):
    changed = dataclasses.replace(settings, format="stream", **{key: value})
    with pytest.raises(DataError, match="was packed with another data"):
        check_root(changed, stream)


def rewrite(path, **changes):
    """Changes entries of a stream's file, named from the top as in config__compression."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            np.savez(path, **dict(arrays) | changes)
        return
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, name = key.split("__")
        part = content
        for parent in parents:
            part = part[parent]
        part[name] = value
    path.write_text(json.dumps(content))


OTHER_TREE = {"type": "collections.defaultdict", "context": "x", "children_spec": []}
LEFT = "Copy the stream again, or pack the folder again"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pairs.npz", None, "is not whole"),
        ("pairs.npz", b"PK", r"pairs\.npz cannot be read"),
        ("pairs.npz", {"places": np.zeros(18, int)}, "the places of the pairs"),
        ("pairs.npz", {"chunk_ends": np.array([1, 2, 3, 4, 18])}, "the pairs of the chunks"),
        ("pairs.npz", {"sizes": np.zeros((18, 2), int)}, "has 'sizes', which holds 0, not 1 to"),
        ("pairs.npz", {"stems_ends": np.array([0, 5])}, "has '.*_ends', which is"),
        ("pairs.npz", {"stems": np.zeros(3, np.uint8)}, "the ends of the strings do not fit"),
        ("index.json", {"config__data_format": ["bytes", "pickle"]}, "which is 'pickle', not"),
        ("index.json", {"config__data_spec": json.dumps([1, OTHER_TREE])}, "'colle.*dict', not"),
        ("index.json", {"config__compression": "zstd"}, "'config.compression', which is 'zstd'"),
        ("index.json", {"chunks": []}, "the pairs of the chunks"),
        ("index.json", b"{", r"index\.json cannot be read"),
        ("chunk-0-0.bin", b"", "chunk-0-0.bin has 0 of"),
        ("chunk-0-0.bin", None, "is not whole"),
        ("../stream.json", {"splits": {"train": 7}}, "they list 18 pairs, but stream.json has 7"),
        ("../stream.json", {"dtype": "object"}, "has 'dtype', which is 'object', not one of"),
    ],
)  # fmt: skip
def test_a_stream_that_is_not_whole_or_could_run_code_is_refused(
    stream, settings, name, changes, message
):
    path = stream / "train" / name
    if changes is None:
        path.unlink()
    elif isinstance(changes, bytes):
        path.write_bytes(changes)
    else:
        rewrite(path, **changes)
    with pytest.raises(UserError, match=rf"{message}.*{LEFT}"):
        open_stream(stream, "train", mask_reader(settings))


def test_chunks_elsewhere_and_damaged_ones_are_refused(stream, settings):
    path = stream / "train" / "chunk-0-0.bin"
    path.write_bytes(b"\xff" * path.stat().st_size)
    source = open_stream(stream, "train", mask_reader(settings))[1]
    damaged = r"cannot be read|does not decode|is not a PNG file"
    with pytest.raises(UnreadableError, match=damaged):
        for row in range(18):
            source.read(row)
    chunks = json.loads((stream / "train/index.json").read_text())["chunks"]
    chunks[0]["filename"] = "../val/chunk-0-0.bin"
    rewrite(stream / "train/index.json", chunks=chunks)
    with pytest.raises(UserError, match=r"'\.\./val/chunk-0-0\.bin' is not the name of a chunk"):
        open_stream(stream, "train", mask_reader(settings))


def test_without_litdata_the_extra_is_named(stream, settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "litdata", None)
    settings.format = "stream"
    with pytest.raises(UserError, match=re.escape(install("stream"))):
        check_root(settings, stream)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("data", {}, "exists already. Choose a new folder"),
        ("new", {"format": "stream"}, "packs folders. Set data.format=folder"),
    ],
)
def test_packing_refuses_what_it_would_overwrite_or_cannot_read(pack, root, name, changed, message):
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError, match=re.escape(message)):
        pack(root, name, **changed)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("size", [0, 2048])
def test_files_of_an_impossible_size_are_refused(settings, size):
    with pytest.raises(UserError, match=rf"chunk_mb={size}: use more than 0, up to 2047"):
        defaults(PackSettings, "data", "new", size, settings)


def test_the_command_packs_a_demo_world_and_says_how_to_train_on_it(tmp_path, composed, capsys):
    sizes = ("data.demo.train_tiles=3", "data.demo.val_tiles=1", "data.demo.tile_size=64")
    paths = (f"data_root={tmp_path / 'demo'}", f"out_dir={tmp_path / 'stream'}")
    packed = module.pack(composed("pack", "data=demo", *sizes, *paths))
    sizes_of = {split: (part.pairs, part.chunks) for split, part in packed.items()}
    assert sizes_of == {"train": (3, 1), "val": (1, 1)}
    shown = capsys.readouterr().out
    assert "train: 3 pairs in 1 file, 0 MB" in shown
    command = shown.split("Next: ")[1].split()
    assert command[:2] == ["python", "scripts/train.py"]
    # What it tells, with the same data settings, is a stream that training accepts.
    given = [word for word in command[2:] if not word.startswith("data_root=")]
    settings = composed("train", "data=demo", *sizes, *given).data
    check_root(settings, tmp_path / "stream")
