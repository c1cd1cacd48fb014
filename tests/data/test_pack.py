from geoseg_gan.data.pack import pack
from geoseg_gan.data.stream import check_root


def test_the_command_packs_a_demo_world_and_says_how_to_train_on_it(tmp_path, composed, capsys):
    sizes = ("data.demo.train_tiles=3", "data.demo.val_tiles=1", "data.demo.tile_size=64")
    paths = (f"data_root={tmp_path / 'demo'}", f"out_dir={tmp_path / 'stream'}")
    packed = pack(composed("pack", "data=demo", *sizes, *paths))
    assert {split: (part.pairs, part.chunks) for split, part in packed.items()} == {
        "train": (3, 1),
        "val": (1, 1),
    }
    shown = capsys.readouterr().out
    assert "train: 3 pairs in 1 file, 0 MB" in shown
    told = shown.split("Next: ")[1].split()
    assert told[:2] == ["python", "scripts/train.py"]
    # What it tells, with the same data settings, is a stream that training accepts.
    given = [word for word in told[2:] if not word.startswith("data_root=")]
    settings = composed("train", "data=demo", *sizes, *given).data
    check_root(settings, tmp_path / "stream")
