import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from geoseg_gan.config import write_yaml
from geoseg_gan.data.split import FIT, INNER
from geoseg_gan.models.checkpoints import load_generator, load_segmenter
from geoseg_gan.trials import runs as trial_runs
from geoseg_gan.trials.results import read_results
from geoseg_gan.trials.trial import check, seed_list
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import LOCK, held

SCRIPT = Path(__file__).parents[1] / "scripts" / "trial.py"
NOISE = ("style_channels", "region_channels", "texture_octaves")
ARMS = ["real", "oversample", "copy_paste", "synthetic_0.25", "synthetic_0.5", "synthetic_only"]


def by_arm(folder, seed=0):
    return {result.arm: result for result in read_results(folder) if result.seed == seed}


def test_a_trial_leaves_results_of_every_arm_and_seed_and_a_report(run_trial, capsys):
    folder, figures = run_trial("trial", "seeds=2")
    results = read_results(folder)
    assert {(r.arm, r.seed) for r in results} == {(arm, seed) for arm in ARMS for seed in (0, 1)}
    for name in ("trial.json", "trial.md", "trial.png", "trial_examples.png", "config.yaml"):
        assert (folder / name).is_file(), name
    stored = json.loads((folder / "trial.json").read_text())
    assert stored["verdict"]["sentence"] in (folder / "trial.md").read_text()
    assert stored["verdict"]["sentence"] in capsys.readouterr().out
    assert set(figures) == {"gain", "real/miou"}
    assert not list(folder.rglob("last.ckpt"))
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


def test_nothing_sees_a_tile_that_is_held_out_of_it(run_trial):
    folder, _ = run_trial("trial", "seeds=1", "train_tiles=8")
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


def test_a_second_call_computes_only_what_is_missing(run_trial, monkeypatch, capsys):
    folder, _ = run_trial("trial", "seeds=1")
    calls = []
    monkeypatch.setattr(trial_runs.TrialRuns, "compute", lambda *a: calls.append(a[1:]))
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("results/*/*")}
    (folder / "results/copy_paste/seed_000.npz").unlink()
    with pytest.raises(AttributeError):  # what the stand-in returned is no result
        run_trial("trial", "seeds=1")
    assert calls == [("copy_paste", 0)]
    assert "5 of 6 results are there" in capsys.readouterr().out
    for path in folder.glob("results/*/*"):
        assert path.stat().st_mtime_ns == stamps[path]


def test_an_interrupted_trial_gives_what_an_uninterrupted_one_gives(run_trial, monkeypatch):
    whole, _ = run_trial("whole", "seeds=1")
    fails = iter([False, False, False, True])
    original = trial_runs.train_segmenter

    def fragile(config):
        if next(fails, False):
            raise KeyboardInterrupt
        original(config)

    monkeypatch.setattr(trial_runs, "train_segmenter", fragile)
    with pytest.raises(KeyboardInterrupt):
        run_trial("broken", "seeds=1")
    broken, _ = run_trial("broken", "seeds=1")
    for arm, result in by_arm(broken).items():
        assert np.array_equal(result.val.counts, by_arm(whole)[arm].val.counts), arm


def test_a_generator_cut_off_in_its_first_epoch_is_trained_anew(run_trial, tmp_path):
    stray = tmp_path / "trial/seed_000/gan/G_e001.pt"
    run_trial("trial", "seeds=1", "arms=[real]", "epochs=2")
    stray.parent.mkdir(parents=True)
    stray.touch()
    folder, _ = run_trial("trial", "seeds=1", "arms=[synthetic_0.5]", "epochs=2")
    assert "synthetic_0.5" in by_arm(folder) and not stray.exists()


def test_a_class_that_a_seed_s_tiles_lack_is_not_oversampled(run_trial, monkeypatch):
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
        run_trial("trial", "arms=[oversample]", palette, "oversample_classes=[Water,Settlement]")


def test_the_generators_crops_are_those_of_the_trial(composed, trial_overrides, monkeypatch):
    asked = []
    monkeypatch.setattr(trial_runs, "train", asked.append)
    for crops in ("uniform", "rare"):
        config = composed("trial", *trial_overrides("trial", f"crops={crops}"))
        trial_runs.TrialRuns(config)._generator(0)
        assert asked.pop().crops == crops


def test_all_arms_of_a_seed_begin_with_the_same_weights(run_trial, monkeypatch):
    begun = {}
    original = trial_runs.train_segmenter

    def watched(config):
        import geoseg_gan.training.train_segmenter as module

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
    run_trial("trial", "seeds=2", "arms=[real,copy_paste,synthetic_0.5]")
    assert len(begun) == 6

    def same(first, second):
        return all(torch.equal(begun[first][k], v) for k, v in begun[second].items())

    assert same(("real", 0), ("copy_paste", 0)) and same(("real", 0), ("synthetic_0.5", 0))
    assert not same(("real", 0), ("real", 1))


def test_where_the_filter_keeps_nothing_the_verdict_says_so(run_trial):
    folder, _ = run_trial("trial", "seeds=2", "tau=0.99")
    runs = by_arm(folder)
    assert set(runs) == set(ARMS) - {"synthetic_only"}
    assert runs["synthetic_0.5"].facts["kept"] == 0
    assert np.array_equal(runs["synthetic_0.5"].val.counts, runs["real"].val.counts)
    sentence = json.loads((folder / "trial.json").read_text())["verdict"]["sentence"]
    assert re.search("Don't use it.*filter kept nothing", sentence)


def test_one_generator_may_serve_all_seeds_and_the_report_says_so(run_trial):
    folder, _ = run_trial("trial", "seeds=2", "share_gan=true", "arms=[real,synthetic_0.5]")
    assert (folder / "seed_000/gan").is_dir() and not (folder / "seed_001/gan").exists()
    assert "conditional on one GAN" in (folder / "trial.md").read_text()
    first, second = (by_arm(folder, seed)["real"].inner.stems for seed in (0, 1))
    assert first == second  # else the generator would have seen tiles that are held out
    (told,) = json.loads((folder / "trial.json").read_text())["filter"]  # once, not for each seed
    assert told["seed"] == 0 and told["seconds"] > 0 and told["generators"]["gan"] > 0


def test_results_of_other_machines_are_merged(run_trial, tmp_path):
    run_trial("jobs/a", "seeds=[0]", "arms=[real,synthetic_0.5]")
    run_trial("jobs/b", "seeds=[1]", "arms=[real,synthetic_0.5]")
    arms, jobs = "arms=[real,synthetic_0.5]", f"merge=[{tmp_path / 'jobs'}]"
    merged, _ = run_trial("all", "seeds=2", arms, jobs)
    assert {(r.arm, r.seed) for r in read_results(merged)} == {
        (arm, seed) for arm in ("real", "synthetic_0.5") for seed in (0, 1)
    }
    assert not list(merged.glob("seed_*"))  # nothing was trained again
    with pytest.raises(UserError, match=r"jobs/a holds a trial with num_samples=6, not 7"):
        run_trial("other", "num_samples=7", f"merge=[{tmp_path / 'jobs'}]")
    with pytest.raises(UserError, match=r"merge: .*data holds no results"):
        run_trial("none", f"merge=[{tmp_path / 'data'}]")


def test_other_settings_do_not_enter_the_same_folder(run_trial):
    run_trial("trial", "seeds=[0]", "arms=[real]")
    with pytest.raises(UserError, match=r"holds a trial with segmenter_epochs=1, not 2"):
        run_trial("trial", "seeds=[0]", "arms=[real]", "segmenter_epochs=2")


def test_two_calls_do_not_compute_in_one_folder(run_trial, tmp_path):
    with held(tmp_path / "trial"):
        with pytest.raises(UserError, match="in use by another call"):
            run_trial("trial", "seeds=1", "arms=[real]")
        assert [path.name for path in (tmp_path / "trial").iterdir()] == [LOCK]


def test_validation_images_that_stand_in_training_are_refused(run_trial, tmp_path):
    root = tmp_path / "data"
    shutil.copy(root / "train/images/train_000.png", root / "val/images/val_000.png")
    with pytest.raises(UserError, match="has the same pixels as"):
        run_trial("trial")
    assert not (tmp_path / "trial").exists()


def test_ground_that_stands_in_both_splits_is_warned_of_in_the_report(run_trial):
    with pytest.warns(UserWarning, match="3 location groups"):
        folder, _ = run_trial("trial", "seeds=1", "arms=[real]", "data.group_regex='[0-9]+'")
    assert "- Warning: 3 location groups (e.g. '000')" in (folder / "trial.md").read_text()


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
        ("recipes.synthetic.image_size=33", r"recipes\.synthetic\.image_size=33: .*multiples of"),
        ("recipes.synthetic.image_size=256", "smaller than|256"),
        ("recipes.synthetic.compose.generate=grafts", r"synthetic\.compose\.generate=grafts"),
        ("train_tiles=500", "train_tiles=500: .* holds 12 tiles"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(run_trial, tmp_path, setting, message):
    with pytest.raises(UserError, match=message):
        run_trial("trial", setting)
    assert not (tmp_path / "trial").exists()


def test_variants_need_noise(composed, trial_overrides):
    settings = vars(composed("trial").model.generator)
    quiet = (f"model.generator.{key}=0" for key in NOISE if key in settings)
    silent = [*trial_overrides("t"), *quiet]
    check(composed("trial", *silent))
    with pytest.raises(UserError, match=r"variants=2: the generator takes no noise.*variants=1"):
        check(composed("trial", *silent, "variants=2"))


def test_variants_are_handed_on(composed, trial_overrides, monkeypatch):
    class Enough(Exception):
        pass

    def watched(config):
        assert config.variants == 3
        raise Enough

    monkeypatch.setattr(trial_runs, "generate", watched)
    monkeypatch.setattr(trial_runs.TrialRuns, "_generator", lambda *_: Path("G.pt"))
    monkeypatch.setattr(trial_runs.TrialRuns, "_segmenter", lambda *_: Path("real"))
    with pytest.raises(Enough):
        trial_runs.TrialRuns(composed("trial", *trial_overrides("t", "variants=3"))).compute(
            "synthetic_0.5", 0
        )


def test_another_version_s_trial_is_not_continued(run_trial, tmp_path, composed, trial_overrides):
    write_yaml(tmp_path / "old/config.yaml", composed("trial", *trial_overrides("old")))
    with (tmp_path / "old/config.yaml").open("a") as text:
        text.write("dropout: 0.5\n")
    with pytest.raises(UserError, match=r"trial of another version, which had a setting dropout"):
        run_trial("old")


def test_tiles_may_be_asked_for_in_one_way_only(composed, trial_overrides):
    with pytest.raises(UserError, match="not both"):
        check(composed("trial", *trial_overrides("t", "train_tiles=4", "train_fraction=0.5")))


def test_seeds_are_counted_or_listed(composed):
    assert seed_list(composed("trial", "seeds=3")) == [0, 1, 2]
    assert seed_list(composed("trial", "seeds=[7,3]")) == [3, 7]


def test_the_script_tells_a_mistake_in_one_line():
    command = [sys.executable, str(SCRIPT), "seeds=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: seeds=0: use how many")
    assert len(done.stderr.splitlines()) == 1
