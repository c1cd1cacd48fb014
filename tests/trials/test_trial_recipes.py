import json
import pickle
from pathlib import Path

import pytest
from defaults import defaults

from geoseg_gan.config import plain, read_yaml
from geoseg_gan.data.settings import JitterSettings
from geoseg_gan.models.checkpoints import load_generator
from geoseg_gan.synthesis.settings import ComposeSettings
from geoseg_gan.trial_workers import portable
from geoseg_gan.trials import runs as trial_runs
from geoseg_gan.trials.runs import pairs_folder, refined_folder
from geoseg_gan.trials.settings import RecipeSettings
from geoseg_gan.trials.trial import check, trial
from geoseg_gan.utils.errors import UserError


def test_a_recipe_is_not_called_like_an_arm_of_real_pairs():
    for name in ("real", "copy_paste", "Mine", "a-b"):
        with pytest.raises(UserError, match=f"recipes: {name} is no name for a recipe"):
            RecipeSettings().check(name, defaults(JitterSettings))


def test_a_recipe_that_paints_nothing_is_called_a_placebo():
    silent = RecipeSettings(compose=defaults(ComposeSettings, "none"))
    silent.check("placebo_mine", defaults(JitterSettings))
    for name, recipe in (("mine", silent), ("placebo", RecipeSettings())):
        with pytest.raises(UserError, match="are called placebo"):
            recipe.check(name, defaults(JitterSettings))


def of(recipe, *settings):
    return [f"recipes.{recipe}.{setting}" for setting in settings]


def test_recipes_that_paint_alike_share_their_pairs(composed, trial_overrides):
    names = ["synthetic", "first", "apart", "filtered", "rare", "grafts", "repaint", "style"]
    config = composed("trial", *trial_overrides("t", f"recipe=[{','.join(names)}]"))
    check(config)
    folders = {name: pairs_folder(config, name) for name in names}
    assert folders["synthetic"] == folders["first"] == folders["apart"] == "synthetic"
    assert len(set(folders.values())) == len(names) - 2
    same = composed("trial", *trial_overrides("t", "recipe=[filtered]", "alpha=1.25"))
    assert pairs_folder(same, "filtered") == "synthetic"  # what the trial's own settings say


def test_a_recipe_s_settings_reach_generation_and_training(composed, trial_overrides, monkeypatch):
    class Enough(Exception):
        pass

    def painting(config):
        assert (config.alpha, config.tau, config.compose.match) == (1.25, 0.3, 0.5)
        return {"generated": 4.0, "pairs": 4.0}

    def training(config):
        assert config.synthetic == str(Path(runs.folder / "seed_000" / folder))
        assert (config.synthetic_ratio, config.mixing.schedule) == (0.5, "falling")
        assert config.augment.copy_paste.p == 0.5
        raise Enough

    settings = ("alpha=1.25", "tau=0.3", "compose.match=0.5", "copy_paste=true")
    config = composed("trial", *trial_overrides("t", "recipe=falling", *of("falling", *settings)))
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


@pytest.fixture
def refining(composed, trial_overrides):
    """A trial of a tiny OASIS discriminator, and projected ones that refine."""

    def of(*more):
        common = [o for o in trial_overrides("trial") if not o.startswith("model.discriminator.")]
        tiny, at = ["width=4", "depth=2", "max_width=8"], "recipes.refined.refine"
        judges = [f"model.discriminator.{o}" for o in tiny]
        judges += [f"{at}.discriminator.{o}" for o in (*tiny, "projected=4")]
        asked = ["recipe=[synthetic,refined]", "model/discriminator=oasis", "loss=oasis", *judges]
        return composed("trial", *common, *asked, "seeds=[0]", "ratios=[0.25]", *more)

    return of


def test_a_recipe_may_refine_the_generator_that_others_paint_with(refining):
    config = refining("recipes.refined.refine.epochs=1")
    trial(config)
    folder = Path(config.out_dir) / "seed_000"
    first, *others = folder.glob("gan/G_e*.pt")
    second, *more = folder.glob("refined-*/G_e*.pt")
    assert not others and not more
    assert list(first.parent.glob("D_e*.pt")) and not list(second.parent.glob("D_e*.pt"))
    before, after = load_generator(first), load_generator(second)
    told = after.facts.config
    assert told["init_from"] == str(first)
    assert (told["loss"]["adversarial"], told["optimizer"]["d_lr_ratio"]) == ("both", 1)
    facts = [json.loads(path.read_text()) for path in folder.glob("synthetic*/generation.json")]
    assert {f["checkpoint"]["sha256"] for f in facts} == {before.digest, after.digest}
    assert len({before.digest, after.digest}) == 2


def test_a_recipe_that_refines_can_be_given_to_other_processes(refining):
    config = refining()
    found = pickle.loads(pickle.dumps(portable(config)))
    assert plain(found) == plain(config)
    assert refined_folder(found, "refined") == refined_folder(config, "refined")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("recipes.refined.refine.epochs=0", "recipes.refined.refine.epochs=0 must be positive"),
        ("model.discriminator.width=8", "has width=4, not 8. Use recipe=refined with"),
        ("recipes.refined.refine.loss.adversarial=hinge", "adversarial=hinge needs"),
    ],
)
def test_a_refinement_that_cannot_be_is_refused_at_once(asked, message, refining):
    with pytest.raises(UserError, match=message):
        check(refining(asked))


def test_recipes_may_be_added_but_not_changed(run_trial, tmp_path):
    run_trial("trial", "seeds=[0]", "arms=[real]")
    run_trial("trial", "seeds=[0]", "arms=[real]", "recipe=[first]")
    run_trial("trial", "seeds=[0]", "arms=[real]")
    assert set(read_yaml(tmp_path / "trial/config.yaml")["recipes"]) == {"synthetic", "first"}
    with pytest.raises(UserError, match=r"recipes\.first\.mixing\.schedule=first, not"):
        run_trial("trial", "arms=[real]", "recipe=[first]", "recipes.first.mixing.schedule=falling")
