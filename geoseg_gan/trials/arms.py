"""Names of the arms that a trial compares."""

from typing import NamedTuple

REAL = "real"
"""The arm that all others are compared with."""

HALF = f"{REAL}_half"
"""The arm of as many tiles at half the updates, which shows whether more would help."""

ALL_LABELS = "all_labels"
"""Real tiles without the limit of train_tiles: what more labels would give."""

PLAIN = "synthetic"
"""The recipe that changes none of the trial's settings."""

PLACEBO = "placebo"
"""Recipes that generate nothing have names with this prefix."""

TARGET = "labelled_target"
"""Recipes that know the true masks of the unlabelled images have names with this prefix."""

OVERSAMPLE, COPY_PASTE = FREE_RIVALS = ("oversample", "copy_paste")
"""The arms besides `REAL` that need no generated pair."""

ONLY = f"{PLAIN}_only"
"""The arm that is trained on synthetic pairs alone."""


class Mix(NamedTuple):
    """What a mixed arm is trained on: pairs of a recipe, and their share."""

    recipe: str
    ratio: float

    @property
    def arm(self) -> str:
        """The arm's name."""
        return f"{self.recipe}_{self.ratio:g}"


def mix_of(arm: str) -> Mix | None:
    """What an arm mixes; None if it has only real or only synthetic pairs."""
    recipe, _, ratio = arm.rpartition("_")
    try:
        return Mix(recipe, float(ratio))
    except ValueError:
        return None


def recipe_of(arm: str) -> str | None:
    """The recipe of an arm's synthetic pairs; None if it has only real pairs."""
    if arm == ONLY:
        return PLAIN
    mix = mix_of(arm)
    return None if mix is None else mix.recipe


def is_control(arm: str) -> bool:
    """Whether an arm mixes in pairs that no user could have, which no verdict recommends."""
    return (recipe_of(arm) or "").startswith((PLACEBO, TARGET))


def is_oracle(arm: str) -> bool:
    """Whether an arm has labels that the others lack, which shows how much there is to gain."""
    return arm == ALL_LABELS or (recipe_of(arm) or "").startswith(TARGET)
