"""Generators that learn from generated pairs and from labelled images too."""

from dataclasses import replace
from pathlib import Path

import pytest
from run_folders import assert_same_weights, differ, last_checkpoint, weights

from geoseg_gan.data.synthetic import read_synthetic
from geoseg_gan.models.checkpoints import SegmenterEvaluation, save_network
from geoseg_gan.models.loaded import load_generator, load_segmenter
from geoseg_gan.synthesis import pseudo_labels
from geoseg_gan.training.train import open_data, train
from geoseg_gan.training.train_segmenter import train_segmenter
from geoseg_gan.utils.errors import UserError


@pytest.fixture
def asked(tmp_path, make_folder, composed, tiny):
    """The configuration of a training of tiny networks: `asked("run", "setting=value")`."""
    root = make_folder(tmp_path / "data")

    def call(name, *more):
        return composed(
            "train", *tiny, f"data_root={root}", f"out_dir={tmp_path / name}", "epochs=1", *more
        )

    return call


@pytest.mark.parametrize("workers", [0, "null"])
def test_generated_pairs_are_mixed_in_at_their_share(asked, make_generated, tmp_path, workers):
    made = make_generated(tmp_path / "made", range(3))
    config = asked(
        *("run", f"synthetic={made}", "synthetic_ratio=0.25", "bs=4", "epoch_steps=8"),
        *(f"data.num_workers={workers}", "model=clade"),  # which asks for regions
    )
    data = open_data(config)
    batches = list(data.train_dataloader())
    stems = [stem for batch in batches for stem in batch["stem"]]
    mixed = [stem for stem in stems if stem.startswith("pair_")]
    assert len(stems) == 32 and len(mixed) == 8 and len(set(mixed)) == 3
    assert all("regions" in batch for batch in batches) == data.regions
    assert len(data.train_windows().source.pairs) == 6  # judged by real tiles alone


def test_what_is_mixed_in_counts_and_has_to_stay(asked, make_generated, tmp_path, capsys):
    made = make_generated(tmp_path / "made", range(3))
    train(asked("real"))
    train(asked("mixed", f"synthetic={made}"))
    assert "50% of every epoch from 3 pairs in" in " ".join(capsys.readouterr().out.split())
    assert differ(*(weights(tmp_path / name / "G_e001.pt") for name in ("real", "mixed")))
    assert "synthetic=made" in last_checkpoint(tmp_path / "mixed")["data"]
    make_generated(made, range(4))
    with pytest.raises(UserError, match="is not what the run in"):
        train(asked("mixed", f"synthetic={made}", "resume=true", "epochs=2"))
    namesake = make_generated(tmp_path / "other/made", range(3))
    data = open_data(asked("two", f"synthetic=[{made},{namesake}]"))
    assert {"synthetic=made", "synthetic=made+"} <= set(data.fingerprints)


@pytest.mark.filterwarnings("ignore:.*but is held out", "ignore:.*hardly tell classes apart")
def test_unlabelled_images_are_labelled_and_mixed_in(
    asked, composed, tiny_segmenter, tmp_path, monkeypatch
):
    monkeypatch.setattr(pseudo_labels, "_SURE", 0.0)
    root = tmp_path / "data"
    images = f"unlabelled={root / 'train/images'}"
    paths = (f"data_root={root}", f"out_dir={tmp_path / 'segmenter'}", "epochs=1", "samples=0")
    train_segmenter(composed("train_segmenter", *tiny_segmenter, *paths))
    teacher = tmp_path / "segmenter/segmenter.pt"
    loaded = load_segmenter(teacher)
    first, *rest = loaded.facts.palette.classes
    palette = replace(loaded.facts.palette, classes=(replace(first, name="Other"), *rest))
    other = tmp_path / "other.pt"
    facts, judged = (
        replace(loaded.facts, palette=palette),
        SegmenterEvaluation([0.5], {"val/miou": 0.5}),
    )
    save_network(other, "segmenter", loaded.network, facts, 1, judged)
    wanted = (images, f"segmenter_ckpt={teacher}", "synthetic_ratio=0.5")
    for settings, message in (
        ((images,), r"a segmenter has to label these images. Set segmenter_ckpt"),
        ((*wanted[1:], f"unlabelled={tmp_path / 'none'}"), "none"),
        ((*wanted[1:], f"unlabelled={root / 'val/images'}"), "is a validation image"),
        ((*wanted[:1], f"segmenter_ckpt={other}"), r"segmenter_ckpt=.* holds 3 classes .*, but"),
    ):
        with pytest.raises(UserError, match=message):
            train(asked("run", *settings))
        assert not (tmp_path / "run").exists()
    train(asked("run", *wanted))
    labelled = read_synthetic(tmp_path / "run/labelled")
    assert labelled.filter_digest == load_segmenter(teacher).digest
    facts = load_generator(tmp_path / "run/G_e001.pt").facts
    assert facts.config["synthetic"] == [str(tmp_path / "run/labelled")]
    first = weights(tmp_path / "run/G_e001.pt")
    with pytest.raises(UserError, match=r"has unlabelled=.*train/images, not .*val/images"):
        others = (*wanted[1:], f"unlabelled={root / 'val/images'}")
        train(asked("run", *others, "resume=true", "epochs=2"))
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    teacher.unlink()  # what is labelled is not labelled again
    train(asked("moved", *wanted, "resume=true", "epochs=2"))
    assert_same_weights(first, weights(moved / "G_e001.pt"))
    assert Path(moved / "G_e002.pt").is_file()


@pytest.mark.filterwarnings("ignore:.*but is held out", "ignore:.*hardly tell classes apart")
@pytest.mark.filterwarnings("ignore:.*never occurs in the masks")  # of so small a world
def test_windows_are_as_large_as_the_generator_needs_and_the_demo_is_drawn_first(
    composed, tiny, tiny_segmenter, tmp_path, make_folder, monkeypatch
):
    monkeypatch.setattr(pseudo_labels, "_SURE", 0.0)
    root = make_folder(tmp_path / "data")
    paths = (f"data_root={root}", f"out_dir={tmp_path / 'segmenter'}", "epochs=1", "samples=0")
    small = ("epoch_steps=1", "augment=none")
    train_segmenter(composed("train_segmenter", *tiny_segmenter, *paths, *small))
    config = composed(
        *("train", *tiny, f"data_root={root}", f"out_dir={tmp_path / 'run'}", "epochs=1"),
        *("epoch_steps=1", "image_size=64", f"unlabelled={root / 'train/images'}"),
        f"segmenter_ckpt={tmp_path / 'segmenter/segmenter.pt'}",
    )
    train(config)
    assert read_synthetic(tmp_path / "run/labelled").image_size == 64
    demo = composed(
        *("train", "data=demo", "data.demo.train_tiles=4", "data.demo.val_tiles=2", "trainer=cpu"),
        *(f"data_root={tmp_path / 'demo'}", f"out_dir={tmp_path / 'other'}", "image_size=64"),
        *(f"unlabelled={root / 'train/images'}", "segmenter_ckpt=none.pt"),
    )
    with pytest.raises(UserError, match=r"none\.pt"):
        train(demo)
    assert (tmp_path / "demo/train/images").is_dir()
