import json
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from run_folders import last_checkpoint, signal_at

from geoseg_gan.config import plain, write_yaml
from geoseg_gan.data.split import FIT, INNER
from geoseg_gan.models.loaded import load_generator, load_segmenter
from geoseg_gan.trials import runs, verdict
from geoseg_gan.trials.results import read_results
from geoseg_gan.trials.runs import SeedRuns, TrialData
from geoseg_gan.trials.trial import check, trial
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import LOCK, held

# On one worker, since most of them look at one trial.
pytestmark = pytest.mark.xdist_group("trial")

ARMS = [
    *("real", "real_half", "oversample", "copy_paste"),
    *("synthetic_0.25", "synthetic_0.5", "synthetic_only"),
]


def by_arm(folder, seed=0):
    return {result.arm: result for result in read_results(folder) if result.seed == seed}


def check_equal(folder, other, seeds=(0,), arms=ARMS):
    for seed in seeds:
        first, second = by_arm(folder, seed), by_arm(other, seed)
        for arm in arms:
            assert np.array_equal(first[arm].val.counts, second[arm].val.counts), arm
            assert np.array_equal(first[arm].inner.counts, second[arm].inner.counts), arm


def test_a_trial_leaves_results_of_every_arm_and_seed_and_a_report(finished):
    folder = finished.folder
    results = {(result.arm, result.seed) for result in read_results(folder)}
    assert results == {(arm, seed) for arm in ARMS for seed in (0, 1)}
    for name in ("trial.json", "trial.md", "trial.png", "trial_examples.png", "config.yaml"):
        assert (folder / name).is_file(), name
    stored = json.loads((folder / "trial.json").read_text())
    assert stored["verdict"]["sentence"] in (folder / "trial.md").read_text()
    assert set(finished.figures) == {"gain", "real/miou"}
    assert not list(folder.rglob("last.ckpt"))


@pytest.mark.parametrize("seed", [0, 1])
def test_all_arms_are_evaluated_on_the_same_tiles_in_full(finished, seed):
    results = by_arm(finished.folder, seed)
    real = results["real"]
    for result in results.values():
        assert result.val.stems == ["val_000", "val_001", "val_002"]
        assert result.inner.stems == real.inner.stems
        assert np.array_equal(result.val.counts.sum(2), real.val.counts.sum(2))
        assert result.examples.shape == (8, 32, 32) and result.facts["seconds"] > 0
    assert results["synthetic_0.5"].facts["generated"] == 6
    assert real.facts["support"]["total_tiles"] == 12 - len(real.inner.stems)
    assert not np.array_equal(real.val.counts, results["synthetic_0.5"].val.counts)


def test_all_arms_of_a_seed_begin_with_the_same_weights(finished):
    def same(first, second):
        return all(map(torch.equal, finished.weights[first], finished.weights[second]))

    assert len(finished.weights) == 2 * len(ARMS)
    assert all(same(("real", 0), (arm, 0)) for arm in ARMS)
    assert not same(("real", 0), ("real", 1))


def test_nothing_sees_a_tile_that_is_held_out_of_it(finished):
    folder = finished.folder / "seed_000"
    lines = (folder / "split.csv").read_text().splitlines()[1:]
    parts = dict(line.split(",") for line in lines)
    fitted, inner = ({stem for stem, of in parts.items() if of == part} for part in (FIT, INNER))
    assert len(parts) == 12 and fitted | inner == set(parts) and fitted and inner
    manifest = (folder / "synthetic/manifest.jsonl").read_text().splitlines()
    assert {json.loads(line)["source"] for line in manifest} <= fitted
    trained = [load_segmenter(folder / arm / "segmenter.pt").facts.config for arm in ARMS]
    assert all(config["select"] == "last" for config in trained)
    trained.append(load_generator(folder / "gan/G_e001.pt").facts.config)
    assert {config["data"]["split_file"] for config in trained} == {str(folder / "split.csv")}
    assert set(by_arm(finished.folder)["real"].inner.stems) == inner


def test_every_knob_of_the_parts_reaches_its_runs(trial_config, tmp_path):
    knobs = (
        "train.accumulate=2", "train.speed.fused=false", "train.scale_lr=linear", "lr=0.5",
        "train.crops=rare", "generate.variants=3", "generate.sampling=balanced",
        "train_segmenter.loss.dice=0.5", "train_segmenter.optimizer.warm_up=0.2",
    )  # fmt: skip
    own = SeedRuns(TrialData(config := trial_config(tmp_path / "trial", *knobs)), 1)
    gan = own.generator_settings(config.train, tmp_path)
    assert (gan.accumulate, gan.speed.fused, gan.scale_lr) == (2, False, "linear")
    assert (gan.lr, gan.crops, gan.seed) == (0.5, "rare", 1)
    pairs = own.generation_settings(config.generation("synthetic"), tmp_path, tmp_path, tmp_path)
    assert (pairs.variants, pairs.sampling, pairs.seed) == (3, "balanced", 1)
    for arm in ARMS:
        segmenter = own.segmenter_settings(arm, tmp_path)
        assert (segmenter.loss.dice, segmenter.optimizer.warm_up, segmenter.seed) == (0.5, 0.2, 1)


def test_arms_differ_in_nothing_but_what_they_are_called_after(trial_config, tmp_path):
    own = SeedRuns(TrialData(trial_config(tmp_path / "trial")), 0)
    settings = {arm: plain(own.segmenter_settings(arm, tmp_path)) for arm in ARMS}
    for arm, keys in {
        "oversample": {"oversample_classes", "oversample_factor"},
        "copy_paste": {"augment"},
        "real_half": {"epoch_steps"},
        "synthetic_0.5": {"synthetic", "synthetic_ratio"},
    }.items():
        real = settings["real"]
        assert {key for key in real if settings[arm][key] != real[key]} == keys
    assert settings["copy_paste"]["augment"]["copy_paste"]["p"] == 0.5
    assert settings["real_half"]["epoch_steps"] == 1
    longer = trial_config(tmp_path / "trial", "train_segmenter.epochs=5")
    half = SeedRuns(TrialData(longer), 0).segmenter_settings("real_half", tmp_path)
    assert (half.epochs, half.validate_every, half.epoch_steps) == (2, 2, 2)


def test_all_labels_are_all_tiles_that_are_not_held_out(trial_config, tmp_path):
    few = ("train_tiles=8", "train_segmenter.epoch_steps=null")
    own = SeedRuns(TrialData(trial_config(tmp_path / "trial", *few)), 0)
    settings = own.segmenter_settings("all_labels", tmp_path)
    assert settings.epoch_steps == len(own.split[0].pairs) // 2  # as real only has
    parts = {}
    for path in (own.split[1], settings.data.split_file):
        lines = Path(path).read_text().splitlines()[1:]
        parts[path] = {part: {x[:-4] for x in lines if x.endswith(part)} for part in (FIT, INNER)}
    few, every = (
        {part: {line.split(",")[0] for line in lines} for part, lines in found.items()}
        for found in parts.values()
    )
    assert every[INNER] == few[INNER] and every[FIT] > few[FIT]
    assert len(every[FIT]) + len(every[INNER]) == 12 and len(few[FIT]) + len(few[INNER]) == 8


def test_a_class_that_a_seed_s_tiles_lack_is_not_oversampled(trial_config, tmp_path):
    palette = (
        "data.palette=[{name:Background,color:[250,62,119]},{name:Water,color:[0,0,255]},"
        "{name:Settlement,color:[255,214,33]},{name:Forest land,color:[168,232,84]}]"
    )
    asked = "oversample_classes=[Water,Settlement]"
    assert SeedRuns(TrialData(trial_config(tmp_path, palette, asked)), 0).oversampled() == [2]


def test_a_second_call_computes_only_what_is_missing(copied, trial_config, no_runs, capsys):
    stamps = {path: path.stat().st_mtime_ns for path in copied.glob("results/*/*")}
    (removed := copied / "results/copy_paste/seed_000.npz").unlink()
    trial(trial_config(copied))
    assert "13 of 14 results are there" in capsys.readouterr().out
    changed = {path for path in stamps if path.stat().st_mtime_ns != stamps[path]}
    assert changed == {removed}


@pytest.mark.slow
def test_an_interrupted_trial_gives_what_an_uninterrupted_one_gives(
    finished, copied, trial_config, monkeypatch
):
    for name in ("synthetic", "synthetic_0.5"):
        shutil.rmtree(copied / "seed_000" / name)
    (copied / "seed_000/synthetic.json").unlink()
    (copied / "results/synthetic_0.5/seed_000.npz").unlink()
    monkeypatch.setattr(runs, "train", lambda _: pytest.fail("the generator was finished"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "train_segmenter", Mock(side_effect=KeyboardInterrupt))
        trial(trial_config(copied))
    assert (copied / "seed_000/synthetic.json").is_file()
    monkeypatch.setattr(runs, "generate", lambda _: pytest.fail("the pairs were finished"))
    trial(trial_config(copied))
    check_equal(copied, finished.folder)


@pytest.mark.slow
def test_a_trial_that_signals_stop_inside_of_trainings_gives_what_an_undisturbed_one_gives(
    finished, copied, trial_config
):
    for name in ("gan", "synthetic", "synthetic_0.5"):
        shutil.rmtree(copied / "seed_000" / name)
    (copied / "seed_000/synthetic.json").unlink()
    (copied / "results/synthetic_0.5/seed_000.npz").unlink()
    for stopped in ("gan", "synthetic_0.5"):
        with signal_at(0):
            trial(trial_config(copied))
        assert last_checkpoint(copied / "seed_000" / stopped)["global_step"] == 1
    trial(trial_config(copied))
    check_equal(copied, finished.folder)


def test_a_run_has_finished_once_its_last_file_is_there(trial_config, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "train", asked.append)
    own = SeedRuns(TrialData(trial_config(tmp_path)), 0)
    for name in ("G_e001.pt", "last.ckpt"):
        (tmp_path / "seed_000/gan" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "seed_000/gan" / name).touch()
    own.train_generator()
    assert [config.resume for config in asked] == [True]
    (tmp_path / "seed_000/gan/result.json").touch()
    (tmp_path / "seed_000/gan/last.ckpt").touch()
    own.train_generator()
    assert len(asked) == 1 and not (tmp_path / "seed_000/gan/last.ckpt").exists()


@pytest.mark.slow
def test_arms_without_a_pair_that_passed_the_filter_are_real_only(
    copied, trial_config, no_runs, monkeypatch
):
    facts = by_arm(copied)["synthetic_0.5"].facts | {"kept": 0}
    for arm in ("synthetic_0.5", "synthetic_only"):
        (copied / f"results/{arm}/seed_000.npz").unlink()
    monkeypatch.setattr(runs, "compute_pairs", lambda *_: {"synthetic": facts})
    trial(trial_config(copied))
    results = by_arm(copied)
    assert set(results) == set(ARMS) - {"synthetic_only"}
    assert results["synthetic_0.5"].facts["kept"] == 0
    assert np.array_equal(results["synthetic_0.5"].val.counts, results["real"].val.counts)
    assert "The filter kept no pairs for seed 0" in (copied / "trial.md").read_text()


@pytest.mark.slow
def test_processes_that_share_a_generator_find_what_one_process_finds(
    finished, trial_config, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    folder = tmp_path / "trial"
    arms = "arms=[real,synthetic_0.5]"
    trial(trial_config(folder, "devices=2", "share_gan=true", arms))
    shown = capfd.readouterr()
    assert not shown.err
    lines = {line.split(":")[0] for line in shown.out.splitlines() if ": mIoU " in line}
    assert lines == {f"{a}, seed {s}" for a in ("real", "synthetic_0.5") for s in (0, 1)}
    check_equal(folder, finished.folder, arms=["real", "synthetic_0.5"])
    assert (folder / "seed_000/gan").is_dir() and not (folder / "seed_001/gan").exists()
    assert "share one GAN" in (folder / "trial.md").read_text()
    first, second = (by_arm(folder, seed)["real"].inner.stems for seed in (0, 1))
    assert first == second  # else the generator would have seen tiles that are held out
    (entry,) = json.loads((folder / "trial.json").read_text())["filter"]  # not one for each seed
    assert entry["seed"] == 0 and entry["seconds"] > 0 and entry["generators"]["gan"] > 0


@pytest.mark.slow
def test_results_of_other_machines_are_merged(finished, trial_config, tmp_path, no_runs):
    for seed, name in enumerate(("a", "b")):
        (tmp_path / "jobs" / name).mkdir(parents=True)
        shutil.copy(finished.folder / "config.yaml", tmp_path / "jobs" / name)
        for arm in ARMS:
            path = f"results/{arm}/seed_{seed:03d}.npz"
            (tmp_path / "jobs" / name / path).parent.mkdir(parents=True)
            shutil.copy(finished.folder / path, tmp_path / "jobs" / name / path)
    merge = f"merge=[{tmp_path / 'jobs'}]"
    trial(trial_config(tmp_path / "all", merge))
    check_equal(tmp_path / "all", finished.folder, seeds=(0, 1))
    with pytest.raises(UserError, match=r"jobs/a holds a trial with generate.num_samples=6, not 7"):
        trial(trial_config(tmp_path / "other", merge, "generate.num_samples=7"))
    with pytest.raises(UserError, match=r"merge: .*seed_000 holds no results"):
        trial(trial_config(tmp_path / "none", f"merge=[{finished.folder}/seed_000]"))
    (tmp_path / "jobs/b/config.yaml").unlink()
    with pytest.raises(UserError, match=r"^merge: .*jobs/b holds results, but not the config.yaml"):
        trial(trial_config(tmp_path / "unknown", merge))


@pytest.mark.slow
def test_other_settings_do_not_enter_the_same_folder(finished, trial_config, copied):
    with pytest.raises(UserError, match=r"holds a trial with train_segmenter.epochs=1, not 2"):
        trial(trial_config(copied, "train_segmenter.epochs=2"))
    write_yaml(copied / "config.yaml", trial_config(copied, "train.max_minutes=1"))
    with pytest.raises(UserError, match=r"holds a trial with train.max_minutes=1.0, not null"):
        trial(trial_config(copied))
    stored = (finished.folder / "config.yaml").read_text()
    (copied / "config.yaml").write_text(stored + "dropout: 0.5\n")
    with pytest.raises(UserError, match=r"holds a trial with dropout=0.5, not null"):
        trial(trial_config(copied))


@pytest.mark.slow
def test_later_seeds_on_other_data_are_refused(copied, trial_config, trial_root, tmp_path, no_runs):
    root = shutil.copytree(trial_root, tmp_path / "data")
    same = trial_config(copied, f"data_root={root}")
    trial(same)
    for part in ("images", "masks"):
        (root / f"train/{part}/train_011.png").unlink()
    with pytest.raises(UserError, match=r"copied is of other data: train had 12 pairs, now 11"):
        trial(trial_config(copied, f"data_root={root}", "seeds=3"))
    with pytest.raises(UserError, match=r"copied is of other data"):
        trial(trial_config(tmp_path / "new", f"data_root={root}", f"merge=[{copied}]"))
    (copied / "data.json").unlink()  # as earlier versions left it
    trial(same)


def test_two_calls_do_not_compute_in_one_folder(trial_config, tmp_path):
    with held(tmp_path / "trial"):
        with pytest.raises(UserError, match="in use by process"):
            trial(trial_config(tmp_path / "trial"))
        assert [path.name for path in (tmp_path / "trial").iterdir()] == [LOCK]


def test_validation_images_that_stand_in_training_are_refused(trial_config, trial_root, tmp_path):
    root = shutil.copytree(trial_root, tmp_path / "data")
    shutil.copy(root / "train/images/train_000.png", root / "val/images/val_000.png")
    with pytest.raises(UserError, match="has the same pixels as"):
        trial(trial_config(tmp_path / "trial", f"data_root={root}"))
    assert not (tmp_path / "trial").exists()


@pytest.mark.slow
def test_groups_in_both_splits_are_warned_of_in_the_report(copied, trial_config, no_runs):
    config = trial_config(copied, "data.group_regex='[0-9]+'")
    write_yaml(copied / "config.yaml", config)
    (copied / "data.json").unlink()  # of other groups
    trial(config)
    assert "- Warning: 3 location groups (e.g. '000')" in (copied / "trial.md").read_text()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seeds=0", "seeds=0: give a number"),
        ("seeds=[1,1]", r"seeds=\[1, 1\]: give a number"),
        ("ratios=[0.5,1.0]", "use different shares between 0 and 1"),
        ("ratios=[0.25,0.2500001]", "between 0 and 1, of six digits at most"),
        ("ratios=[0.9999999]", "between 0 and 1, of six digits at most"),
        ("merge=[/nothing]", "merge: /nothing holds no results of a trial"),
        ("data.split_file=/nothing", "data.split_file=/nothing does not exist"),
        ("arms=[real,mixed]", "arms=mixed is not one of real"),
        ("train_tiles=0", "train_tiles=0: use 1 or more"),
        ("inner_share=0", "chosen on these tiles"),
        ("oversample_factor=0", "oversample_factor=0.0: use 1 or more"),
        ("oversample_classes=[Forest]", "'Forest'"),
        ("devices=0", "devices=0: use 1 to"),
        ("copy_paste.p=2", r"copy_paste\.p=2"),
        ("~recipe", "recipes is empty: give recipe=synthetic"),
        ("train_tiles=500", "train_tiles=500: there are 12 labelled tiles"),
        ("train.image_size=33", "^train: image_size=33"),
        ("train.seed=3", r"^train\.seed=3: the trial sets this"),
        ("train.max_minutes=3", r"^train\.max_minutes=3.0: the trial sets this"),
        ("train_segmenter.bs=1", "^train_segmenter: bs=1"),
        ("train_segmenter.select=best", "select=best"),
        ("train_segmenter.synthetic=other", r"^train_segmenter\.synthetic=other: the trial sets"),
        ("generate.tau=2", r"^recipes\.synthetic\.generate: tau=2: use a number"),
        ("generate.alpha=0", "alpha=0.0: use more than 0"),
        ("generate.image_size=33", r"^recipes\.synthetic\.generate: image_size=33: .*multiples"),
        ("generate.save_dir=pairs", r"^generate\.save_dir=pairs: the trial sets this"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(trial_config, tmp_path, setting, message):
    with pytest.raises(UserError, match=message):
        trial(trial_config(tmp_path / "trial", setting))
    assert not (tmp_path / "trial").exists()


def test_a_split_file_that_holds_nothing_out_is_refused(trial_config, tmp_path):
    (split := tmp_path / "split.csv").write_text("stem,part\ntrain_000,fit\n")
    with pytest.raises(UserError, match=r"split\.csv holds no tile out.*Give some the part inner"):
        trial(trial_config(tmp_path / "trial", f"data.split_file={split}"))
    assert not (tmp_path / "trial").exists()


def test_what_is_merged_is_read_before_a_trial_begins(trial_config, tmp_path):
    config = trial_config(tmp_path / "trial", f"merge=[{tmp_path / 'other'}]")
    other = tmp_path / "other"
    (other / "results/real").mkdir(parents=True)
    (other / "results/real/seed_000.npz").touch()
    for stored, message in (
        (None, "holds results, but not the config.yaml of their trial"),
        ({}, "other/config.yaml lacks 'recipes'"),
        (plain(config), r"results/real/seed_000.npz cannot be read"),
    ):
        if stored is not None:
            OmegaConf.save(OmegaConf.create(stored), other / "config.yaml")
        with pytest.raises(UserError, match=message):
            trial(config)
        assert not (tmp_path / "trial").exists()


def test_a_folder_that_is_no_trial_s_is_refused(trial_config, tmp_path):
    config = trial_config(tmp_path)
    parts = "train: {epochs: 1}, generate: {tau: 0}, train_segmenter: {epochs: 1}"
    for stored, message in (
        ("", "lacks 'recipes'"),
        ("{}", "lacks 'recipes'"),
        ("data_root: x", "lacks 'recipes'"),
        ("{recipes: {}, train: {}}", "lacks 'generate'"),
        (f"{{recipes: null, {parts}}}", "'recipes', which is None, not a mapping"),
        (f"{{recipes: {{first: null}}, {parts}}}", "'recipes.first', which is None, not a mapping"),
        (f"{{recipes: {{first: {{generate: 1}}}}, {parts}}}", "'recipes.first.generate', which is"),
        (f"{{recipes: {{}}, {parts}, 1: x}}", "holds a trial with .*=.*, not "),
    ):
        (tmp_path / "config.yaml").write_text(stored)
        with pytest.raises(UserError, match=rf"{message}.*choose another"):
            trial(config)
        assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("stored", "given", "advice"),
    [
        ("train_tiles=null", "train_tiles=8", "train_tiles=null"),
        ("share_gan=false", "share_gan=true", "share_gan=false"),
        ("data.group_regex='a,b'", "data.group_regex=null", "data.group_regex='a,b'"),
    ],
)
def test_the_stored_setting_is_named_as_a_command_line_has_it(
    trial_config, tmp_path, stored, given, advice
):
    write_yaml(tmp_path / "config.yaml", trial_config(tmp_path, stored))
    with pytest.raises(UserError, match=re.escape(f"Give {advice}, or choose")):
        trial(trial_config(tmp_path, given))


def test_a_result_that_was_copied_over_another_is_refused_before_anything_runs(
    copied, trial_config, no_runs
):
    shutil.copy(copied / "results/real/seed_001.npz", copied / "results/real/seed_002.npz")
    with pytest.raises(UserError, match=r"seed_002\.npz holds the result of real, seed 1\. Remove"):
        trial(trial_config(copied, "seeds=3"))


def test_variants_need_noise(trial_config, tmp_path):
    noise = ("style_channels", "region_channels", "texture_octaves")
    silent = [f"model.generator.{key}=0" for key in noise]
    check(trial_config(tmp_path, *silent))
    with pytest.raises(UserError, match=r"variants=2: the generator takes no noise.*variants=1"):
        check(trial_config(tmp_path, *silent, "generate.variants=2"))


def test_where_all_labels_gain_nothing_the_other_arms_are_left_out(
    trial_config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runs, "train", lambda _: pytest.fail("a generator was trained"))
    monkeypatch.setattr(verdict, "FINE", 1.0)  # two seeds of tiny runs are coarse
    folder = tmp_path / "trial"
    trial(trial_config(folder, "train_tiles=8"))
    shown = capsys.readouterr().out
    assert shown.count("No room here: with all labels (all_labels) it is ") == 1
    left_out = "oversample,copy_paste,synthetic_0.25,synthetic_0.5,synthetic_only"
    assert f"Left out, since there is no room: arms=[{left_out}] computes them." in shown
    assert {result.arm for result in read_results(folder)} == {"real", "real_half", "all_labels"}
    trial(trial_config(folder, "train_tiles=8", "arms=[oversample]", "seeds=1"))
    assert (folder / "results/oversample/seed_000.npz").is_file()
    assert json.loads((folder / "trial.json").read_text())["verdict"]["kind"] == "no room"


def test_seeds_are_counted_or_listed(trial_config, tmp_path):
    assert trial_config(tmp_path, "seeds=3").seed_list() == [0, 1, 2]
    assert trial_config(tmp_path, "seeds=[7,3]").seed_list() == [3, 7]
