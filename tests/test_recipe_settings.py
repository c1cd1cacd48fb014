import pytest

from geoseg_gan.data.jitter import JitterSettings
from geoseg_gan.errors import UserError
from geoseg_gan.recipes import RecipeSettings
from geoseg_gan.synthesis.compose import ComposeSettings


def test_a_recipe_is_not_called_like_an_arm_of_real_pairs():
    for name in ("real", "copy_paste", "Mine", "a-b"):
        with pytest.raises(UserError, match=f"recipes: {name} is no name for a recipe"):
            RecipeSettings().check(name, JitterSettings())


def test_a_recipe_that_paints_nothing_is_called_a_placebo():
    silent = RecipeSettings(compose=ComposeSettings("none"))
    silent.check("placebo_mine", JitterSettings())
    for name, recipe in (("mine", silent), ("placebo", RecipeSettings())):
        with pytest.raises(UserError, match="are called placebo"):
            recipe.check(name, JitterSettings())
