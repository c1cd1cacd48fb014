import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from geoseg_gan.config import plain, stored_yaml, write_yaml
from geoseg_gan.data.images import write_image
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.synthetic import read_synthetic
from geoseg_gan.models.loaded import load_generator, load_segmenter
from geoseg_gan.trials import runs
from geoseg_gan.trials.ground import on_new_ground
from geoseg_gan.trials.runs import (
    SeedRuns,
    TrialData,
    compute_seeds,
    pairs_folder,
    refined_folder,
)
from geoseg_gan.trials.settings import RecipeSettings
from geoseg_gan.trials.trial import check, trial
from geoseg_gan.trials.verdict import named
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.messages import choices


def changed(before, after, path=""):
    """Dotted keys of the values in which two settings differ."""
    for key, value in after.items():
        if isinstance(value, dict):
            yield from changed(before[key], value, f"{path}{key}.")
        elif before[key] != value:
            yield f"{path}{key}"


def recipe_changes(config, name):
    yield from changed(plain(config.generate), plain(config.generation(name)))
    yield from changed(plain(config.train_segmenter), plain(config.segmentation(name)))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("synthetic", set()),
        ("first", {"mixing.schedule"}),
        ("filtered", {"alpha"}),
        ("gated", {"mixing.classes"}),
        ("grafts", {"jitter.transplant.p", "compose.generate", "compose.match"}),
        ("placebo", {"compose.generate"}),
        ("exemplars", {"compose.source"}),
        ("pseudo_labels", {"source"}),
        ("color_matched", {"source", "augment.match_colors.p"}),
        ("pseudo_labels_matched", {"source", "augment.match_colors.p"}),
        ("generated_look", {"compose.match"}),
        ("pseudo_labels_generated", {"compose.match", "augment.match_colors.p"}),
        ("labelled_target", {"source", "true_masks"}),
        ("refined", set()),
    ],
)
def test_a_recipe_changes_what_it_lists(name, keys, trial_config, tmp_path):
    needed = {
        "generated_look": "pseudo_labels,",
        "pseudo_labels_generated": "pseudo_labels_matched,",
    }
    asked = [f"recipe=[{needed.get(name, '')}{name}]"]
    if name == "gated":
        asked.append("recipes.gated.train_segmenter.mixing.classes=[Settlement]")
    if name == "labelled_target":
        asked.append("true_masks=masks")
    config = trial_config(tmp_path, *asked)
    check(config)
    assert set(recipe_changes(config, name)) == keys
    assert (config.refinement(name) is not None) == (name == "refined")


def test_what_arms_are_trained_on_is_said_by_their_settings(trial_config, tmp_path):
    names = (
        "color_matched,exemplars,filtered,first,generated_look,grafts,"
        "labelled_target,placebo,pseudo_labels,pseudo_labels_generated,pseudo_labels_matched,refined,synthetic"
    )
    config = trial_config(tmp_path, f"recipe=[{names}]", "true_masks=masks", "train_tiles=8")
    said = {arm: config.meaning(arm) for arm in config.all_arms()}
    assert all(said.values()) and said["oversample"].endswith(
        "rare classes are shown 3 times as often"
    )
    assert said["synthetic_only"] == f"nothing but {said['synthetic_0.5']}"
    sure = "unlabelled images, with what the segmenter of real is sure of as masks"
    assert said["pseudo_labels_0.25"] == said["pseudo_labels_0.5"] == sure
    assert said["color_matched_0"] == f"{sure}; real tiles take on their colours; none is mixed in"
    assert "their true ones" in said["labelled_target_0.5"]
    assert "; in the colours of the pairs of pseudo_labels" in said["generated_look_0.5"]
    assert "; not by a generator but from regions of real tiles" in said["exemplars_0.5"]
    shares = [arm for arm in said if arm.endswith("_0.5")]
    assert len({said[arm] for arm in shares}) == len(shares)


def test_every_recipe_is_checked_above():
    marks = test_a_recipe_changes_what_it_lists.pytestmark[0].args[1]
    assert {name for name, _ in marks} == set(choices("recipe"))


@pytest.mark.slow
def test_recipes_that_generate_alike_share_their_pairs(trial_config, tmp_path):
    names = ["synthetic", "first", "filtered", "grafts", "refined"]
    config = trial_config(tmp_path, f"recipe=[{','.join(names)}]")
    folders = {name: pairs_folder(config, name) for name in names}
    assert folders["synthetic"] == folders["first"] == "synthetic"
    assert len(set(folders.values())) == len(names) - 1
    same = trial_config(tmp_path, "recipe=[filtered]", "generate.alpha=1.25")
    assert pairs_folder(same, "filtered") == "synthetic"  # what the trial's own settings say


FOUND = {"generated": 5.0, "pairs": 4.0}
NEW = ("val_groups=[train_00*,val_*]", "recipe=[pseudo_labels,labelled_target]", "ratios=[0.5]")


def test_pairs_of_a_trial_that_was_moved_are_found_again(trial_config, tmp_path):
    def folder(name, *more):
        return pairs_folder(on_new_ground(trial_config(tmp_path / name, *more)), "labelled_target")

    assert folder("trial", *NEW) == folder("moved", *NEW)
    assert folder("trial", *NEW) != folder("trial", *NEW, "+recipes.labelled_target.generate.bs=3")


def test_new_ground_needs_no_generator(trial_config, trial_root, tmp_path):
    arms = ["real", "labelled_target_0.5", "pseudo_labels_0.5"]
    few = (f"arms=[{','.join(arms)}]", "seeds=[1]", "generate.confidence=0")
    trial(config := trial_config(tmp_path / "trial", *NEW, *few))
    stored = json.loads((tmp_path / "trial/trial.json").read_text())
    assert list(stored["arms"]) == arms
    ground = tmp_path / "trial/ground"
    parts = [ground / part for part in ("train/images", "unlabelled", "val/images")]
    names = [sorted(path.stem for path in part.iterdir()) for part in parts]
    new = [f"train_{number:03d}" for number in range(10)]
    assert names == [["train_010", "train_011"], new, ["val_000", "val_001", "val_002"]]
    used = on_new_ground(config)
    folders = {path.name for path in (tmp_path / "trial/seed_001").iterdir() if path.is_dir()}
    pairs = {name: pairs_folder(used, name) for name in used.recipes}
    assert folders == {*arms, *pairs.values()}
    generated = {n: read_synthetic(tmp_path / "trial/seed_001" / p) for n, p in pairs.items()}
    assert len(generated["labelled_target"].pairs) == 6  # as many as generate.num_samples
    real = load_segmenter(tmp_path / "trial/seed_001/real/segmenter.pt")
    assert generated["pseudo_labels"].filter_digest == real.digest
    reader = mask_reader(config.data)
    first = next(ground.glob("unlabelled_masks/train_000.*"))
    assert first.samefile(trial_root / "train/masks" / first.name)
    label, _ = reader.read(first)
    pair = generated["labelled_target"].pairs[0]
    assert np.isin(generated["labelled_target"].reader().read(pair.mask)[0], label).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("val_groups=[north*]", "no location group is called north.*There are train_000, "),
        ("val_groups=[val_*]", "the unlabelled images are .* in train/, which holds none"),
        ("val_groups=[train_00*]", "the validation tiles are .* in val/, which holds none"),
        ("val_groups=['*']", "leaves no labelled tile"),
        ("data.group_regex='[0-9]+'", "location group 000 is in train and in val"),
        ("unlabelled=images", "unlabelled=images: with val_groups"),
        ("train_tiles=3", "train_tiles=3: there are 2 labelled tiles"),
    ],
)
def test_new_ground_that_cannot_be_is_refused_at_once(setting, message, trial_config, tmp_path):
    groups = ("val_groups=[00*]",) if "regex" in setting else NEW[:1]
    with pytest.raises(UserError, match=message):
        trial(trial_config(tmp_path / "trial", *groups, setting))
    assert not (tmp_path / "trial").exists()


def test_unlabelled_images_that_are_validated_on_are_refused(trial_config, trial_root, tmp_path):
    shutil.copytree(trial_root / "val/images", tmp_path / "images")
    asked = ("recipe=[pseudo_labels]", f"unlabelled={tmp_path / 'images'}")
    with pytest.raises(UserError, match=r"val_000.png has the same pixels as .*images/val_000"):
        trial(trial_config(tmp_path / "trial", *asked))


def test_unlabelled_images_of_another_type_are_refused_at_once(trial_config, tmp_path):
    write_image(tmp_path / "images/z.tif", np.zeros((64, 64, 3), np.uint16))
    asked = ("recipe=[pseudo_labels]", f"unlabelled={tmp_path / 'images'}")
    with pytest.raises(UserError, match=r"z.tif is 3-band uint16, but the labelled images are 3-"):
        trial(trial_config(tmp_path / "trial", *asked))
    assert not (tmp_path / "trial").exists()


def test_later_seeds_on_other_unlabelled_images_are_refused(trial_config, trial_root, tmp_path):
    shutil.copytree(trial_root / "train/images", tmp_path / "images")
    asked = (f"unlabelled={tmp_path / 'images'}", "recipe=[pseudo_labels]", "arms=[real]")
    trial(trial_config(tmp_path / "trial", *asked, "seeds=1"))
    (tmp_path / "images/train_000.png").unlink()
    with pytest.raises(UserError, match="of other data: unlabelled had 12 pairs, now 11"):
        trial(trial_config(tmp_path / "trial", *asked))


def test_all_recipes_label_the_trial_s_own_images(trial_config, tmp_path):
    config = trial_config(tmp_path, "unlabelled=images", "true_masks=masks")
    mine = {"source": "unlabelled", "confidence": 0.7}
    config.recipes |= {name: RecipeSettings(mine) for name in ("mine", "labelled_target_mine")}
    check(config)
    used = [config.generation(name) for name in config.recipes]
    given = [(own.unlabelled, own.true_masks) for own in used]
    target = ("images", "masks")
    assert given == [(None, None), target, ("images", None), target]
    config.recipes["mine"].generate = mine | {"unlabelled": "others"}
    with pytest.raises(UserError, match=r"recipes.mine: generate.unlabelled is the same in all"):
        check(config)


def test_a_trial_whose_recipes_repeat_its_images_goes_on(
    trial_config, trial_root, tmp_path, monkeypatch
):
    images = shutil.copytree(trial_root / "train/images", tmp_path / "images")
    config = trial_config(tmp_path / "trial", "recipe=[pseudo_labels]", f"unlabelled={images}")
    for name in ("_compute", "_report"):
        monkeypatch.setattr(f"geoseg_gan.trials.trial.{name}", lambda *_: {})
    stored = trial_config(tmp_path / "trial", "recipe=[pseudo_labels]", f"unlabelled={images}")
    stored.recipes["pseudo_labels"].generate["unlabelled"] = str(images)
    write_yaml(tmp_path / "trial/config.yaml", stored)
    trial(config)
    stored.recipes["pseudo_labels"].generate["unlabelled"] = "others"
    write_yaml(tmp_path / "trial/config.yaml", stored)
    with pytest.raises(UserError, match=r"pseudo_labels\.generate\.unlabelled=others, not null"):
        trial(config)


def test_a_recipe_s_settings_reach_generation_and_training(trial_config, tmp_path):
    more = ("+recipes.first.generate.tau=0.3", "recipes.first.copy_paste=true")
    config = trial_config(tmp_path, "recipe=[first]", *more)
    own = SeedRuns(TrialData(config), 0)
    assert own.generation_settings(config.generation("first"), *[tmp_path] * 3).tau == 0.3
    segmenter = own.segmenter_settings("first_0.5", tmp_path)
    assert segmenter.synthetic == str(tmp_path / "seed_000" / pairs_folder(config, "first"))
    assert (segmenter.synthetic_ratio, segmenter.mixing.schedule) == (0.5, "first")
    assert segmenter.augment.copy_paste.p == 0.5


@pytest.mark.slow
def test_a_recipe_may_refine_the_generator_of_the_others(finished, trial_config, tmp_path):
    seed = tmp_path / "trial/seed_000"
    for part in ("gan", "real"):
        shutil.copytree(finished.folder / "seed_000" / part, seed / part)
    quick = (
        "recipes.refined.refine.epochs=1",
        "recipes.refined.refine.model.discriminator.projected=4",
    )
    config = trial_config(tmp_path / "trial", "recipe=[synthetic,refined]", *quick)
    runs = SeedRuns(TrialData(config), 0)
    first = seed / "gan/G_e001.pt"
    facts = runs.generate("refined", seed / "real/segmenter.pt")
    (second,) = (seed / refined_folder(config, "refined")).glob("G_e*.pt")
    assert list(first.parent.glob("D_e*.pt")) and not list(second.parent.glob("D_e*.pt"))
    before, after = load_generator(first), load_generator(second)
    trained = after.facts.config
    assert trained["init_from"] == str(first) and before.digest != after.digest
    assert (trained["loss"]["adversarial"], trained["optimizer"]["d_lr_ratio"]) == ("both", 1)
    stored = json.loads((seed / facts["pairs"] / "generation.json").read_text())
    assert stored["checkpoint"]["sha256"] == after.digest
    assert set(facts["generator_seconds"]) == {"gan", refined_folder(config, "refined")}


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("refined", "recipes.refined.refine.epochs=0", "^recipes.refined.refine: .*epochs=0"),
        (
            "refined",
            "+recipes.refined.refine.model.discriminator.width=8",
            "refine: model.discriminator.width=8: a second training starts from",
        ),
        ("refined", "recipes.refined.refine.loss.adversarial=hinge", "^recipes.refined.refine: "),
        (
            "first",
            "+recipes.first.generate.compose.generate=none",
            "have names that begin with placebo",
        ),
        (
            "placebo",
            "recipes.placebo.generate.compose.generate=all",
            "have names that begin with placebo",
        ),
        ("first", "+recipes.first.generate.seed=1", "generate.seed is the same in all arms"),
        ("first", "+recipes.first.train_segmenter.epochs=9", "epochs is the same in all arms"),
        ("first", "+recipes.first.train_segmenter.augment.flip.p=0", "augment.flip is the same"),
        ("first", "+recipes.first.generate.jitter.flop=1", "^recipes.first.generate: .*flop"),
        ("first", "+recipes.first.generate.alpha=much", "^recipes.first.generate: alpha.*much"),
        ("first", "+recipes.first.generate.alpha=0", "^recipes.first.generate: alpha=0"),
        ("first", "+recipes.first.generate.image_size=256", "256"),
        ("first", "+recipes.first.generate.compose.generate=grafts", "first.generate: comp"),
        ("gated", "recipes.gated.train_segmenter.mixing.classes=[Sea]", "'Sea'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_at_once(name, setting, message, trial_config, tmp_path):
    with pytest.raises(UserError, match=message):
        trial(trial_config(tmp_path / "trial", f"recipe=[{name}]", setting))
    assert not (tmp_path / "trial").exists()


def test_a_recipe_that_mixes_nothing_in_has_one_arm(trial_config, tmp_path):
    config = trial_config(tmp_path, "recipe=[color_matched,pseudo_labels]")
    mixed = config.all_arms()[-3:]
    assert mixed == ["color_matched_0", "pseudo_labels_0.25", "pseudo_labels_0.5"]
    settings = SeedRuns(TrialData(config), 0).segmenter_settings("color_matched_0", tmp_path)
    assert settings.synthetic_ratio == 0 and settings.augment.match_colors.p == 0.5
    assert settings.synthetic == str(tmp_path / "seed_000" / pairs_folder(config, "pseudo_labels"))
    assert named("color_matched_0") == "recipe color_matched"


def test_a_recipe_may_use_the_pairs_of_another(trial_config, tmp_path, monkeypatch):
    names = "recipe=[pseudo_labels_matched,pseudo_labels_generated]"
    config = trial_config(tmp_path, names, "ratios=[0.5]")
    (tmp_path / "G.pt").touch()
    asked = []
    monkeypatch.setattr(runs, "generate", lambda own: asked.append(own) or FOUND)
    monkeypatch.setattr(runs, "read_json", lambda *_: {"tau": 0.5})
    own = SeedRuns(TrialData(config), 0)
    monkeypatch.setattr(own, "train_generator", lambda *_: tmp_path / "G.pt")
    own.generate("pseudo_labels_generated", tmp_path / "segmenter.pt")
    labelled, generated = asked
    assert (labelled.source, generated.source) == ("unlabelled", "masks")
    assert (labelled.style_from, generated.style_from) == (None, labelled.save_dir)
    assert generated.save_dir != labelled.save_dir
    segmenter = own.segmenter_settings("pseudo_labels_generated_0.5", tmp_path)
    assert segmenter.synthetic == [generated.save_dir, labelled.save_dir]
    with pytest.raises(UserError, match=r"recipe=\[pseudo_labels,generated_look\]"):
        check(trial_config(tmp_path, "recipe=[generated_look]"))


def test_without_pairs_of_a_recipe_those_that_use_them_are_left_out(
    trial_config, tmp_path, monkeypatch
):
    names = "recipe=[pseudo_labels,pseudo_labels_matched,generated_look,pseudo_labels_generated]"
    config = trial_config(tmp_path, names, "ratios=[0.5]")
    made, computed = [], []

    def generate(own, recipe, recognizer):
        made.append(recipe)
        return {"kept": 0 if recipe == "pseudo_labels" else 4}

    monkeypatch.setattr(SeedRuns, "generate", generate)
    monkeypatch.setattr(SeedRuns, "train_segmenter", lambda own, arm: tmp_path)
    monkeypatch.setattr(SeedRuns, "compute", lambda own, arm, pairs: computed.append((arm, pairs)))
    arms = [arm for arm in config.all_arms() if arm == "real" or arm.endswith("_0.5")]
    compute_seeds(config, [0], arms)
    assert "generated_look" not in made
    assert dict(computed) == {
        "real": {},
        "pseudo_labels_0.5": {"kept": 0},
        "pseudo_labels_matched_0.5": {"kept": 4},
        "pseudo_labels_generated_0.5": {"kept": 4},
    }


def test_a_generator_may_learn_from_the_pairs_of_another_recipe(
    trial_config, tmp_path, monkeypatch
):
    config = trial_config(tmp_path, "recipe=[pseudo_labels,generated_look]", "ratios=[0.5]")
    plain_folder = pairs_folder(config, "generated_look")
    own = config.recipes["generated_look"]
    own.learn_from = "pseudo_labels"
    with pytest.raises(UserError, match=r"learn_from=pseudo_labels is for a second training"):
        check(config)
    own.refine = {"epochs": 2, "synthetic_ratio": 0.25}
    own.learn_from, config.recipes["placebo"] = "placebo", RecipeSettings()
    with pytest.raises(UserError, match=r"uses the pairs of placebo, which no user could have"):
        check(config)
    own.learn_from = config.recipes.popitem() and "pseudo_labels"
    check(config)
    trained, asked = [], []
    monkeypatch.setattr(runs, "train", trained.append)
    monkeypatch.setattr(runs, "generate", lambda own: asked.append(own) or FOUND)
    monkeypatch.setattr(runs, "read_json", lambda *_: {"tau": 0.5})
    seed = SeedRuns(TrialData(config), 0)
    seed.generate("generated_look", tmp_path / "segmenter.pt")
    labelled, generated = asked
    first, second = trained
    assert (first.synthetic, second.synthetic) == (None, labelled.save_dir)
    assert second.synthetic_ratio == 0.25 and second.epochs == 2
    assert second.init_from == str(seed.folder / "gan" / f"G_e{first.epochs:03d}.pt")
    assert generated.gen_ckpt == str(Path(second.out_dir) / "G_e002.pt")
    folder = pairs_folder(config, "generated_look")
    own.learn_from = None
    assert len({plain_folder, folder, pairs_folder(config, "generated_look")}) == 3


def test_a_recipe_of_a_user_s_own_is_checked(trial_config, tmp_path):
    config = trial_config(tmp_path)
    for name, recipe, message in (
        ("copy_paste", RecipeSettings(), "recipes: copy_paste is not allowed as a name"),
        ("Mine", RecipeSettings(), "recipes: Mine is not allowed as a name"),
        ("mine", RecipeSettings(refine={}), "recipe=refined has settings for model=unet_oasis"),
    ):
        config.recipes = {name: recipe}
        with pytest.raises(UserError, match=message):
            check(config)


@pytest.mark.slow
def test_recipes_may_be_added_but_not_changed(copied, trial_config, no_runs):
    trial(trial_config(copied, "recipe=[synthetic,first]", "arms=[real]"))
    trial(trial_config(copied))
    assert set(stored_yaml(copied)["recipes"]) == {"synthetic", "first"}
    other = "recipes.first.train_segmenter.mixing.schedule=falling"
    with pytest.raises(UserError, match=r"recipes\.first\.\S+schedule=first, not falling"):
        trial(trial_config(copied, "recipe=[first]", other, "arms=[real]"))
    with pytest.raises(UserError, match=r"recipes\.first\.generate=\{\}, not"):
        more = "+recipes.first.generate.alpha=1"
        trial(trial_config(copied, "recipe=[first]", more, "arms=[real]"))


@pytest.mark.slow
def test_exemplars_need_no_generator(trial_config, tmp_path):
    asked = ("recipe=[exemplars]", "ratios=[0.5]", "arms=[real,exemplars_0.5]", "seeds=[1]")
    trial(trial_config(tmp_path / "trial", *asked, "generate.tau=0"))
    stored = json.loads((tmp_path / "trial/trial.json").read_text())
    assert stored["title"] == "Does synthetic data help?"
    assert list(stored["arms"]) == ["real", "exemplars_0.5"]
    [run] = [run for run in stored["runs"] if run["arm"] == "exemplars_0.5"]
    assert run["kept"] == run["generated"] > 0 and not run["generator_seconds"]
    assert not (tmp_path / "trial/seed_001/gan").exists()
