"""Names of the arms that a trial compares."""

from typing import NamedTuple

REAL = "real"
"""The arm that all others are compared with."""

PLAIN = "synthetic"
"""The recipe without a setting of its own."""

PLACEBO = "placebo"
"""How names of recipes begin that generate nothing."""

OVERSAMPLE, COPY_PASTE = FREE_RIVALS = ("oversample", "copy_paste")
"""The arms besides `REAL` that need no generated pair."""

ONLY = f"{PLAIN}_only"
"""The arm that is trained on its pairs alone."""


class Mix(NamedTuple):
    """What an arm of real and synthetic pairs is trained on.

    Attributes:
        recipe: How its pairs come about and are mixed in.
        ratio: Their share.
    """

    recipe: str
    ratio: float

    @property
    def arm(self) -> str:
        """The arm's name."""
        return f"{self.recipe}_{self.ratio:g}"


def mix_of(arm: str) -> Mix | None:
    """What an arm mixes; None for arms of real pairs or of synthetic pairs alone."""
    recipe, _, ratio = arm.rpartition("_")
    try:
        return Mix(recipe, float(ratio))
    except ValueError:
        return None


def recipe_of(arm: str) -> str | None:
    """The recipe by which an arm's pairs come about; None for arms of real pairs alone."""
    if arm == ONLY:
        return PLAIN
    mix = mix_of(arm)
    return None if mix is None else mix.recipe


def is_placebo(arm: str) -> bool:
    """Whether an arm's pairs are real ones, which are there to compare with and not to be used."""
    return (recipe_of(arm) or "").startswith(PLACEBO)
