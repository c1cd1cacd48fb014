import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from geoseg_gan import trial_runs
from geoseg_gan.checkpoints import load_generator, load_segmenter
from geoseg_gan.config import read_yaml, write_yaml
from geoseg_gan.data.split import FIT, INNER
from geoseg_gan.errors import UserError
from geoseg_gan.trial import check, seed_list, trial
from geoseg_gan.trial_data import pairs_folder
from geoseg_gan.trials.lock import LOCK, held
from geoseg_gan.trials.results import read_results

SCRIPT = Path(__file__).parents[1] / "scripts" / "trial.py"
NOISE = ("style_channels", "region_channels", "texture_octaves")
ARMS = ["real", "oversample", "copy_paste", "synthetic_0.25", "synthetic_0.5", "synthetic_only"]


@pytest.fixture
def overrides(tmp_path, make_folder, tiny, tiny_segmenter):
    """Settings of a trial of tiny networks, as `overrides("name", "seeds=2")`."""
    root = make_folder(tmp_path / "data", train=12, val=3)
    segmenter = [o for o in tiny_segmenter if o.split("=")[0] not in ("bs", "image_size")]
    shared = dict.fromkeys([*tiny, *segmenter])

    def of(name, *more):
        return [
            *shared, f"data_root={root}", f"out_dir={tmp_path / name}", "epochs=1", "epoch_steps=2",
            "segmenter_epochs=1", "segmenter_epoch_steps=2", "segmenter_bs=2", "num_samples=6",
            "tau=0", "ratios=[0.25,0.5]", *more,
        ]  # fmt: skip

    return of


@pytest.fixture
def run(tmp_path, composed, overrides):
    def call(name, *more):
        figures = trial(composed("trial", *overrides(name, *more)))
        return tmp_path / name, figures

    return call


def by_arm(folder, seed=0):
    return {result.arm: result for result in read_results(folder) if result.seed == seed}


def test_a_trial_leaves_results_of_every_arm_and_seed_and_a_report(run, capsys):
    folder, figures = run("trial", "seeds=2")
    results = read_results(folder)
    assert {(r.arm, r.seed) for r in results} == {(arm, seed) for arm in ARMS for seed in (0, 1)}
    for name in ("trial.json", "trial.md", "trial.png", "trial_examples.png", "config.yaml"):
        assert (folder / name).is_file(), name
    stored = json.loads((folder / "trial.json").read_text())
    assert stored["verdict"]["sentence"] in (folder / "trial.md").read_text()
    assert stored["verdict"]["sentence"] in capsys.readouterr().out
    assert set(figures) == {"gain", "real/miou"}
    assert not list(folder.rglob("last.ckpt")) and not list(folder.rglob("D_e*.pt"))
    for seed in (0, 1):
        runs = by_arm(folder, seed)
        # All arms are judged on the same tiles, in full, with the same networks at the start.
        for result in runs.values():
            assert result.val.stems == ["val_000", "val_001", "val_002"]
            assert result.inner.stems == runs["real"].inner.stems
            assert np.array_equal(result.val.counts.sum(2), runs["real"].val.counts.sum(2))
            assert result.examples.shape == (8, 32, 32)
        assert runs["synthetic_0.5"].facts["painted"] == 6
        assert runs["real"].facts["support"]["total_tiles"] == 12 - len(runs["real"].inner.stems)
        assert not np.array_equal(runs["real"].val.counts, runs["synthetic_0.5"].val.counts)


def test_nothing_sees_a_tile_that_is_held_out_of_it(run):
    folder, _ = run("trial", "seeds=1", "train_tiles=8")
    lines = (folder / "seed_000" / "split.csv").read_text().splitlines()[1:]
    parts = {stem: part for stem, part in (line.split(",") for line in lines)}
    fitted = {stem for stem, part in parts.items() if part == FIT}
    assert len(parts) == 8 and set(parts.values()) == {FIT, INNER}
    manifest = (folder / "seed_000/synthetic/manifest.jsonl").read_text().splitlines()
    assert {json.loads(line)["source"] for line in manifest} <= fitted
    for arm in ARMS:
        facts = load_segmenter(folder / "seed_000" / arm / "segmenter.pt").facts
        assert facts.config["data"]["split_file"].endswith("seed_000/split.csv")
        assert facts.config["select"] == "last"
    generator = load_generator(folder / "seed_000/gan/G_e001.pt")
    assert generator.facts.config["data"]["split_file"].endswith("seed_000/split.csv")
    inner = {stem for stem, part in parts.items() if part == INNER}
    assert set(by_arm(folder)["real"].inner.stems) == inner


def test_a_second_call_computes_only_what_is_missing(run, monkeypatch, capsys):
    folder, _ = run("trial", "seeds=1")
    calls = []
    monkeypatch.setattr(trial_runs.TrialRuns, "compute", lambda *a: calls.append(a[1:]))
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("results/*/*")}
    (folder / "results/copy_paste/seed_000.npz").unlink()
    with pytest.raises(AttributeError):  # what the stand-in returned is no result
        run("trial", "seeds=1")
    assert calls == [("copy_paste", 0)]
    assert "5 of 6 results are there" in capsys.readouterr().out
    for path in folder.glob("results/*/*"):
        assert path.stat().st_mtime_ns == stamps[path]


def test_an_interrupted_trial_gives_what_an_uninterrupted_one_gives(run, monkeypatch):
    whole, _ = run("whole", "seeds=1")
    fails = iter([False, False, False, True])
    original = trial_runs.train_segmenter

    def fragile(config):
        if next(fails, False):
            raise KeyboardInterrupt
        original(config)

    monkeypatch.setattr(trial_runs, "train_segmenter", fragile)
    with pytest.raises(KeyboardInterrupt):
        run("broken", "seeds=1")
    broken, _ = run("broken", "seeds=1")
    for arm, result in by_arm(broken).items():
        assert np.array_equal(result.val.counts, by_arm(whole)[arm].val.counts), arm


def test_a_generator_cut_off_in_its_first_epoch_is_trained_anew(run, tmp_path):
    stray = tmp_path / "trial/seed_000/gan/G_e001.pt"
    run("trial", "seeds=1", "arms=[real]", "epochs=2")
    stray.parent.mkdir(parents=True)
    stray.touch()
    folder, _ = run("trial", "seeds=1", "arms=[synthetic_0.5]", "epochs=2")
    assert "synthetic_0.5" in by_arm(folder) and not stray.exists()


def test_a_class_that_a_seed_s_tiles_lack_is_not_oversampled(run, monkeypatch):
    class Enough(Exception):
        pass

    def watched(config):
        assert config.oversample_classes == [2]
        raise Enough

    monkeypatch.setattr(trial_runs, "train_segmenter", watched)
    palette = (
        "data.palette=[{name:Background,color:[250,62,119]},{name:Water,color:[0,0,255]},"
        "{name:Settlement,color:[255,214,33]},{name:Forest land,color:[168,232,84]}]"
    )
    with pytest.raises(Enough):
        run("trial", "arms=[oversample]", palette, "oversample_classes=[Water,Settlement]")


def test_the_generators_crops_are_those_of_the_trial(composed, overrides, monkeypatch):
    asked = []
    monkeypatch.setattr(trial_runs, "train", asked.append)
    for crops in ("uniform", "rare"):
        config = composed("trial", *overrides("trial", f"crops={crops}"))
        trial_runs.TrialRuns(config)._generator(0)
        assert asked.pop().crops == crops


def test_all_arms_of_a_seed_begin_with_the_same_weights(run, monkeypatch):
    begun = {}
    original = trial_runs.train_segmenter

    def watched(config):
        import geoseg_gan.train_segmenter as module

        build = module.build_segmenter

        def building(*args, **kwargs):
            network = build(*args, **kwargs)
            weights = {k: v.clone() for k, v in network.state_dict().items()}
            begun[Path(config.out_dir).name, config.seed] = weights
            return network

        with monkeypatch.context() as patched:
            patched.setattr(module, "build_segmenter", building)
            original(config)

    monkeypatch.setattr(trial_runs, "train_segmenter", watched)
    run("trial", "seeds=2", "arms=[real,copy_paste,synthetic_0.5]")
    assert len(begun) == 6

    def same(first, second):
        return all(torch.equal(begun[first][k], v) for k, v in begun[second].items())

    assert same(("real", 0), ("copy_paste", 0)) and same(("real", 0), ("synthetic_0.5", 0))
    assert not same(("real", 0), ("real", 1))


def test_where_the_filter_keeps_nothing_the_verdict_says_so(run):
    folder, _ = run("trial", "seeds=2", "tau=0.99")
    runs = by_arm(folder)
    assert set(runs) == set(ARMS) - {"synthetic_only"}
    assert runs["synthetic_0.5"].facts["kept"] == 0
    assert np.array_equal(runs["synthetic_0.5"].val.counts, runs["real"].val.counts)
    sentence = json.loads((folder / "trial.json").read_text())["verdict"]["sentence"]
    assert re.search("Don't use it.*filter kept nothing", sentence)


def test_one_generator_may_serve_all_seeds_and_the_report_says_so(run):
    folder, _ = run("trial", "seeds=2", "share_gan=true", "arms=[real,synthetic_0.5]")
    assert (folder / "seed_000/gan").is_dir() and not (folder / "seed_001/gan").exists()
    assert "conditional on one GAN" in (folder / "trial.md").read_text()
    first, second = (by_arm(folder, seed)["real"].inner.stems for seed in (0, 1))
    assert first == second  # else the generator would have seen tiles that are held out


def test_results_of_other_machines_are_merged(run, tmp_path):
    run("jobs/a", "seeds=[0]", "arms=[real,synthetic_0.5]")
    run("jobs/b", "seeds=[1]", "arms=[real,synthetic_0.5]")
    merged, _ = run("all", "seeds=2", "arms=[real,synthetic_0.5]", f"merge=[{tmp_path / 'jobs'}]")
    assert {(r.arm, r.seed) for r in read_results(merged)} == {
        (arm, seed) for arm in ("real", "synthetic_0.5") for seed in (0, 1)
    }
    assert not list(merged.glob("seed_*"))  # nothing was trained again
    with pytest.raises(UserError, match=r"jobs/a holds a trial with num_samples=6, not 7"):
        run("other", "num_samples=7", f"merge=[{tmp_path / 'jobs'}]")
    with pytest.raises(UserError, match=r"merge: .*data holds no results"):
        run("none", f"merge=[{tmp_path / 'data'}]")


def test_other_settings_do_not_enter_the_same_folder(run):
    run("trial", "seeds=[0]", "arms=[real]")
    with pytest.raises(UserError, match=r"holds a trial with segmenter_epochs=1, not 2"):
        run("trial", "seeds=[0]", "arms=[real]", "segmenter_epochs=2")


def test_two_calls_do_not_compute_in_one_folder(run, tmp_path):
    with held(tmp_path / "trial"):
        with pytest.raises(UserError, match="in use by another call"):
            run("trial", "seeds=1", "arms=[real]")
        assert [path.name for path in (tmp_path / "trial").iterdir()] == [LOCK]


def test_validation_images_that_stand_in_training_are_refused(run, tmp_path):
    root = tmp_path / "data"
    shutil.copy(root / "train/images/train_000.png", root / "val/images/val_000.png")
    with pytest.raises(UserError, match="has the same pixels as"):
        run("trial")
    assert not (tmp_path / "trial").exists()


def test_ground_that_stands_in_both_splits_is_warned_of_in_the_report(run):
    with pytest.warns(UserWarning, match="3 groups of ground"):
        folder, _ = run("trial", "seeds=1", "arms=[real]", "data.group_regex='[0-9]+'")
    assert "- Warning: 3 groups of ground (e.g. '000')" in (folder / "trial.md").read_text()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seeds=0", "seeds=0: use how many"),
        ("seeds=[1,1]", r"seeds=\[1, 1\]: use how many"),
        ("ratios=[0.5,1.0]", "use different shares between 0 and 1"),
        ("arms=[real,mixed]", "arms=mixed is not one of real"),
        ("train_fraction=1.5", "train_fraction=1.5: use a share"),
        ("inner_share=0", "chosen on these tiles"),
        ("tau=2", "tau=2: use a number"),
        ("segmenter_bs=1", "segmenter_bs=1: use 2 or more"),
        ("segmenter_epoch_steps=0", "segmenter_epoch_steps=0: use 1 or more"),
        ("num_samples=0", "num_samples=0 must be positive"),
        ("variants=0", "variants=0 must be positive"),
        ("devices=0", "devices=0: use 1 to"),
        ("copy_paste.p=2", r"copy_paste\.p=2"),
        ("alpha=0", "alpha=0.0 must be positive"),
        ("crops=rarely", "crops=rarely is not one of uniform"),
        ("oversample_classes=[Forest]", "'Forest'"),
        ("~recipe", "recipes is empty: give recipe=synthetic"),
        ("recipes.synthetic.mixing.classes=[Sea]", "'Sea'"),
        ("recipes.synthetic.compose.paint=grafts", r"recipes\.synthetic\.compose\.paint=grafts"),
        ("train_tiles=500", "train_tiles=500: .* holds 12 tiles"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(run, tmp_path, setting, message):
    with pytest.raises(UserError, match=message):
        run("trial", setting)
    assert not (tmp_path / "trial").exists()


def test_variants_need_noise(composed, overrides):
    settings = vars(composed("trial").model.generator)
    silent = [*overrides("t"), *(f"model.generator.{key}=0" for key in NOISE if key in settings)]
    check(composed("trial", *silent))
    with pytest.raises(UserError, match=r"variants=2: the generator takes no noise.*variants=1"):
        check(composed("trial", *silent, "variants=2"))


def test_variants_are_handed_on(composed, overrides, monkeypatch):
    class Enough(Exception):
        pass

    def watched(config):
        assert config.variants == 3
        raise Enough

    monkeypatch.setattr(trial_runs, "generate", watched)
    monkeypatch.setattr(trial_runs.TrialRuns, "_generator", lambda *_: Path("G.pt"))
    monkeypatch.setattr(trial_runs.TrialRuns, "_segmenter", lambda *_: Path("real"))
    with pytest.raises(Enough):
        trial_runs.TrialRuns(composed("trial", *overrides("t", "variants=3"))).compute(
            "synthetic_0.5", 0
        )


def of(recipe, *settings):
    return [f"recipes.{recipe}.{setting}" for setting in settings]


def test_recipes_that_paint_alike_share_their_pairs(composed, overrides):
    names = ["synthetic", "first", "apart", "filtered", "rare", "grafts", "repaint", "style"]
    config = composed("trial", *overrides("t", f"recipe=[{','.join(names)}]"))
    check(config)
    folders = {name: pairs_folder(config, name) for name in names}
    assert folders["synthetic"] == folders["first"] == folders["apart"] == "synthetic"
    assert len(set(folders.values())) == len(names) - 2
    same = composed("trial", *overrides("t", "recipe=[filtered]", "alpha=1.25"))
    assert pairs_folder(same, "filtered") == "synthetic"  # what the trial's own settings say


def test_a_recipe_s_settings_reach_generation_and_training(composed, overrides, monkeypatch):
    class Enough(Exception):
        pass

    def painting(config):
        assert (config.alpha, config.tau, config.compose.match) == (1.25, 0.3, 0.5)
        return {"painted": 4.0, "pairs": 4.0}

    def training(config):
        assert config.synthetic == str(Path(runs.folder / "seed_000" / folder))
        assert (config.synthetic_ratio, config.mixing.schedule) == (0.5, "falling")
        assert config.augment.copy_paste.p == 0.5
        raise Enough

    settings = ("alpha=1.25", "tau=0.3", "compose.match=0.5", "copy_paste=true")
    config = composed("trial", *overrides("t", "recipe=falling", *of("falling", *settings)))
    runs, folder = trial_runs.TrialRuns(config), pairs_folder(config, "falling")
    facts = runs.folder / "seed_000" / folder / "generation.json"
    facts.parent.mkdir(parents=True)
    facts.write_text('{"tau": 0.3}')
    monkeypatch.setattr(trial_runs, "generate", painting)
    monkeypatch.setattr(runs, "_generator", lambda *_: Path("G.pt"))
    with monkeypatch.context() as patched:
        patched.setattr(runs, "_segmenter", lambda *_: Path("real"))
        assert runs._synthesise(folder, 0)["kept"] == 4
    monkeypatch.setattr(trial_runs, "train_segmenter", training)
    with pytest.raises(Enough):
        runs.compute("falling_0.5", 0)


def test_recipes_may_be_added_but_not_changed(run, tmp_path):
    run("trial", "seeds=[0]", "arms=[real]")
    run("trial", "seeds=[0]", "arms=[real]", "recipe=[first]")
    run("trial", "seeds=[0]", "arms=[real]")
    assert set(read_yaml(tmp_path / "trial/config.yaml")["recipes"]) == {"synthetic", "first"}
    with pytest.raises(UserError, match=r"recipes\.first\.mixing\.schedule=first, not"):
        run("trial", "arms=[real]", "recipe=[first]", "recipes.first.mixing.schedule=falling")


def test_a_trial_of_another_version_is_not_continued(run, tmp_path, composed, overrides):
    write_yaml(tmp_path / "old/config.yaml", composed("trial", *overrides("old")))
    with (tmp_path / "old/config.yaml").open("a") as text:
        text.write("dropout: 0.5\n")
    with pytest.raises(UserError, match=r"trial of another version, which had a setting dropout"):
        run("old")


def test_tiles_may_be_asked_for_in_one_way_only(composed, overrides):
    with pytest.raises(UserError, match="not both"):
        check(composed("trial", *overrides("t", "train_tiles=4", "train_fraction=0.5")))


def test_seeds_are_counted_or_listed(composed):
    assert seed_list(composed("trial", "seeds=3")) == [0, 1, 2]
    assert seed_list(composed("trial", "seeds=[7,3]")) == [3, 7]


def test_the_script_tells_a_mistake_in_one_line():
    command = [sys.executable, str(SCRIPT), "seeds=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: seeds=0: use how many")
    assert len(done.stderr.splitlines()) == 1
