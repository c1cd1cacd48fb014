"""Knobs of the trial command and its recipes."""

import re
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from geoseg_gan.config import command
from geoseg_gan.data.settings import AugmentSettings, DataSettings, JitterSettings, TransplantStep
from geoseg_gan.losses.settings import ObjectiveSettings
from geoseg_gan.models.settings import ModelSettings, SegmenterSettings
from geoseg_gan.synthesis.settings import EXEMPLARS, UNLABELLED, GenerateConfig
from geoseg_gan.training.settings import OptimizerSettings, TrainConfig, TrainSegmenterConfig
from geoseg_gan.trials.arms import (
    ALL_LABELS,
    COPY_PASTE,
    FREE_RIVALS,
    HALF,
    ONLY,
    OVERSAMPLE,
    PLACEBO,
    PLAIN,
    REAL,
    TARGET,
    Mix,
    is_oracle,
    recipe_of,
)
from geoseg_gan.utils.device import TrainerSettings
from geoseg_gan.utils.errors import LARGEST_SEED, UserError, check_choice, check_range
from geoseg_gan.utils.messages import explain

PartT = TypeVar("PartT")

_MOST_SEEDS = 1000
_COMPOSED = {
    "all": "images generated for masks of the training tiles",
    "grafts": "real tiles into which regions of other tiles are generated",
    "regions": "real tiles of which some regions are generated",
    "none": "real pairs, packed as generated ones",
}
_SHOWN = {"first": "all before the real tiles", "falling": "ever fewer from epoch to epoch"}
_DECIDED: dict[str, dict[str, Any]] = {
    "train": {
        "resume": False,
        "init_from": None,
        "inner_share": 0.0,
        "max_minutes": None,
        "synthetic": None,
        "unlabelled": None,
    },
    "generate": {
        "gen_ckpt": None,
        "save_dir": "",
        "segmenter_ckpt": None,
        "unlabelled": None,
        "true_masks": None,
        "layout": "pairs",
        "style_from": None,
    },
    "train_segmenter": {
        "resume": False,
        "select": "last",
        "inner_share": 0.0,
        "synthetic": None,
        "synthetic_ratio": 0.0,
        "unlabelled": None,
        "rounds": 1,
        "oversample_classes": [],
        "oversample_factor": 1.0,
    },
}
"""Settings that the trial chooses for each seed and arm, with their values in trial.yaml."""


@dataclass
class RecipeSettings:
    """One way to generate synthetic pairs and to train on them.

    All recipes of a seed share a generator, unless they refine it.

    Attributes:
        generate: Changes to the trial's `generate`.
        train_segmenter: Changes to the trial's `train_segmenter`, in `mixing` and
            `augment.match_colors` only.
        refine: Changes to the trial's `train` for a second training of the generator; None for no
            second training.
        copy_paste: Whether real pairs also get the augmentation of the arm copy_paste.
        mix: Whether pairs are mixed in; else only their colours are used, in one arm of ratio 0.
        style_from: Another recipe of the trial, whose pairs give `generate.compose.match` colours,
            and exemplars their regions.
        learn_from: Another recipe of the trial, whose pairs are mixed into `refine`.
        beside: Other recipes of the trial, whose pairs are mixed in as well.
    """

    generate: dict[str, Any] = field(default_factory=dict)
    train_segmenter: dict[str, Any] = field(default_factory=dict)
    refine: dict[str, Any] | None = None
    copy_paste: bool = False
    mix: bool = True
    style_from: str | None = None
    learn_from: str | None = None
    beside: list[str] = field(default_factory=list)

    def uses(self) -> list[str]:
        """The recipes whose pairs this one uses besides its own."""
        own = filter(None, [self.style_from, self.learn_from])
        return list(dict.fromkeys([*own, *self.beside]))


@dataclass
class TrialConfig:
    """Configuration of scripts/trial.py."""

    data_root: str
    out_dir: str
    unlabelled: str | None
    true_masks: str | None
    val_groups: list[str] | None
    image_size: int
    seeds: Any
    arms: list[str]
    ratios: list[float]
    recipes: dict[str, RecipeSettings]
    train_tiles: int | None
    inner_share: float
    share_gan: bool
    lr: float
    oversample_classes: list[Any]
    oversample_factor: float
    devices: int
    merge: list[str]
    copy_paste: TransplantStep
    model: ModelSettings
    data: DataSettings
    loss: ObjectiveSettings
    optimizer: OptimizerSettings
    jitter: JitterSettings
    segmenter: SegmenterSettings
    augment: AugmentSettings
    trainer: TrainerSettings
    train: TrainConfig
    generate: GenerateConfig
    train_segmenter: TrainSegmenterConfig

    def __post_init__(self) -> None:
        """Adds the recipe that shows how much there is to gain, where true masks are known."""
        knows = self.val_groups is not None or self.true_masks is not None
        if knows and not any(name.startswith(TARGET) for name in self.recipes):
            recipe = RecipeSettings(generate={"source": UNLABELLED})
            self.recipes = {**self.recipes, TARGET: recipe}

    def check(self) -> None:
        """Refuses, with a UserError, what the checks of the parts do not cover."""
        self.seed_list()
        # Arms are named by six digits of their ratio.
        wrong = [r for r in self.ratios if not 0 < r < 1 or float(f"{r:g}") != r]
        if wrong or not self.ratios or len(set(self.ratios)) < len(self.ratios):
            raise UserError(
                f"ratios={self.ratios}: use different shares between 0 and 1, of six digits at "
                "most."
            )
        if not self.recipes:
            raise UserError("recipes is empty: give recipe=synthetic, or several: recipe=[...].")
        for arm in self.arms:
            check_choice("arms", arm, self.all_arms())
        check_range("train_tiles", self.train_tiles, 1, 1e9)
        if self.data.split_file is not None and self.train_tiles is not None:
            raise UserError("data.split_file says which tiles are used: leave out train_tiles.")
        if not 0 < self.inner_share <= 0.5:
            raise UserError(
                f"inner_share={self.inner_share}: use a share above 0, up to 0.5; tau and ratio "
                "are chosen on these tiles."
            )
        if self.val_groups is not None:
            self._check_ground()
        check_range("oversample_factor", self.oversample_factor, 1, 1000)
        self.trainer.check(self.devices)
        self.copy_paste.check("copy_paste")
        for part, values in _DECIDED.items():
            common = {"data_root": self.data_root, "seed": 0, "devices": 1}
            for key, value in (common | values).items():
                if (given := getattr(getattr(self, part), key)) != value:
                    raise UserError(
                        f"{part}.{key}={given}: the trial sets this itself. Leave it out."
                    )
        for name in self.recipes:
            self._check_recipe(name)

    def _check_ground(self) -> None:
        if self.data.format == "stream":
            raise UserError("val_groups divides a folder of tiles. Set data.format=folder.")
        for key in ("unlabelled", "true_masks"):
            if (value := getattr(self, key)) is not None:
                raise UserError(
                    f"{key}={value}: with val_groups, the unlabelled images are the training tiles "
                    "of these groups. Leave one of the two out."
                )

    def _check_recipe(self, name: str) -> None:
        recipe, key = self.recipes[name], f"recipes.{name}"
        taken = (REAL, HALF, ALL_LABELS, *FREE_RIVALS)
        if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in taken:
            raise UserError(
                f"recipes: {name} is not allowed as a name. Use lower-case letters, digits and _, "
                "and not the name of another arm."
            )
        if recipe.refine == {}:
            raise UserError(
                f"{key}.refine is empty: recipe=refined has settings for model=unet_oasis and "
                "model=unet_oasis_light. Choose one of them, or give your own settings, as in "
                f"+{key}.refine.epochs=4."
            )
        if recipe.learn_from is not None and recipe.refine is None:
            raise UserError(
                f"{key}.learn_from={recipe.learn_from} is for a second training of the generator. "
                f"Give it settings, as in +{key}.refine.epochs=4."
            )
        if recipe.refine is not None and not self.generation(name).needs_generator:
            raise UserError(
                f"{key}.refine trains a generator again, which this recipe does not use. Leave it "
                "out."
            )
        for other in recipe.uses():
            if other not in self.recipes or other == name or self.recipes[other].uses():
                raise UserError(
                    f"{key} uses the pairs of recipe {other}. Compare both: "
                    f"recipe=[{other},{name}]."
                )
            if other.startswith((PLACEBO, TARGET)) and not name.startswith((PLACEBO, TARGET)):
                raise UserError(
                    f"{key} uses the pairs of {other}, which no user could have: a trial would "
                    "recommend it. Leave them out."
                )
        common = {"data_root", "out_dir", "seed", "devices", "style_from"}
        allowed = {"mixing", "augment.match_colors"}
        for part, wrong in (
            ("generate", recipe.generate.keys() & (common | _DECIDED["generate"].keys())),
            ("train", (recipe.refine or {}).keys() & (common | _DECIDED["train"].keys())),
            ("train_segmenter", _paths(recipe.train_segmenter) - allowed),
        ):
            if wrong:
                first = f"{part}.{min(wrong)}"
                raise UserError(f"{key}: {first} is the same in all arms. Leave it out.")
        pairs = self.generation(name)
        # With val_groups, the trial itself knows where they are.
        knows = pairs.true_masks is not None or (
            self.val_groups is not None and name.startswith(TARGET)
        )
        for prefix, what, holds in (
            (PLACEBO, "generate nothing (compose.generate=none)", pairs.compose.generate == "none"),
            (TARGET, "know the true masks (true_masks=FOLDER, val_groups)", knows),
        ):
            if name.startswith(prefix) != holds:
                raise UserError(
                    f"{key}: recipes that {what}, and only these, have names that begin with "
                    f"{prefix}, so that a trial does not recommend them."
                )

    def seed_list(self) -> list[int]:
        """The seeds in order: those given, or as many as given from 0 on.

        Raises:
            UserError: If `seeds` is neither a positive number nor a list of different seeds.
        """
        value = self.seeds
        if isinstance(value, int) and not isinstance(value, bool):
            value = list(range(min(value, _MOST_SEEDS + 1)))
        if (
            not isinstance(value, list)
            or not all(type(seed) is int and 0 <= seed <= LARGEST_SEED for seed in value)
            or not 1 <= len(set(value)) == len(value) <= _MOST_SEEDS
        ):
            raise UserError(
                f"seeds={self.seeds}: give a number of seeds, as in 5, or different seeds, as in "
                f"[0,1]; at most {_MOST_SEEDS}, each at most {LARGEST_SEED}."
            )
        return sorted(value)

    def all_arms(self) -> list[str]:
        """All arms in the order in which they are computed and reported."""
        mixed = self._mixed_arms()
        only = [ONLY] if PLAIN in self.recipes else []
        return [*self.first_arms(), *FREE_RIVALS, *(a for a in mixed if not is_oracle(a)), *only]

    def first_arms(self) -> list[str]:
        """The arms that show how much there is to gain, by which a trial may end."""
        labels = [ALL_LABELS] if self.train_tiles is not None else []
        return [REAL, HALF, *labels, *filter(is_oracle, self._mixed_arms())]

    def meaning(self, arm: str) -> str:
        """What an arm is trained on, in words."""
        recipe = recipe_of(arm)
        if recipe is not None:
            return "nothing but " * (arm == ONLY) + self._recipe_meaning(recipe)
        oversampled = ", ".join(map(str, self.oversample_classes)) or "rare classes"
        return {
            REAL: "the labelled tiles alone",
            HALF: f"as {REAL}, with half the updates",
            ALL_LABELS: "real tiles without the limit of train_tiles",
            OVERSAMPLE: f"as {REAL}; tiles with {oversampled} are shown "
            f"{self.oversample_factor:g} times as often",
            COPY_PASTE: f"as {REAL}; regions of rare classes are pasted from tile to tile",
        }[arm]

    def _recipe_meaning(self, name: str) -> str:
        """What the pairs of a recipe are, and how they are used, in words."""
        recipe, pairs, own = self.recipes[name], self.generation(name), self.segmentation(name)
        what, shown = _COMPOSED[pairs.compose.generate], _SHOWN.get(own.mixing.schedule)
        classes = ", ".join(map(str, own.mixing.classes or ()))
        if pairs.source == UNLABELLED:
            is_known = name.startswith(TARGET)
            masks = "their true ones" if is_known else f"what the segmenter of {REAL} is sure of"
            what = f"unlabelled images, with {masks} as masks"
        laid = pairs.compose.source == EXEMPLARS
        look = "look" if laid else "colours"
        details = {
            "by a generator that is trained a second time": recipe.refine is not None,
            f"which learns from the pairs of {recipe.learn_from} too": recipe.learn_from,
            "not by a generator but from regions of real tiles": laid,
            f"in the {look} of the pairs of {recipe.style_from}": recipe.style_from,
            "in light and colour of other tiles": pairs.compose.match and not recipe.style_from,
            "pixels that are not recognised do not count": pairs.alpha,
            f"only {classes} count": classes,
            f"{shown}": shown,
            f"the pairs of {', '.join(recipe.beside)} beside them": recipe.beside,
            "real tiles take on their colours": own.augment.match_colors.p,
            "real tiles have copy-paste as well": recipe.copy_paste,
            "none is mixed in": not recipe.mix,
        }
        return "; ".join([what, *(text for text, holds in details.items() if holds)])

    def _mixed_arms(self) -> list[str]:
        return [
            Mix(name, ratio).arm
            for name, recipe in self.recipes.items()
            for ratio in (self.ratios if recipe.mix else [0.0])
        ]

    def generation(self, recipe: str) -> GenerateConfig:
        """`generate` as a recipe changes it; the images that it labels are the trial's."""
        pairs = _changed(self.generate, self.recipes[recipe].generate, f"{recipe}.generate")
        if pairs.source == UNLABELLED:
            masks = self.true_masks if recipe.startswith(TARGET) else None
            pairs = replace(pairs, unlabelled=self.unlabelled, true_masks=masks)
        return pairs

    def refinement(self, recipe: str) -> TrainConfig | None:
        """The second training of a recipe's generator; None for no such training."""
        changes = self.recipes[recipe].refine
        return None if changes is None else _changed(self.train, changes, f"{recipe}.refine")

    def segmentation(self, recipe: str) -> TrainSegmenterConfig:
        """`train_segmenter` as a recipe changes it."""
        changes = self.recipes[recipe].train_segmenter
        return _changed(self.train_segmenter, changes, f"{recipe}.train_segmenter")


def _paths(changes: dict[str, Any]) -> set[str]:
    """The groups that a recipe changes; those of the augmentation one by one."""
    steps = {f"augment.{name}" for name in changes.get("augment", {})}
    return (changes.keys() - {"augment"}) | steps


def _changed(part: PartT, changes: dict[str, Any], key: str) -> PartT:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(part), changes)
        return cast(PartT, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, UserError) as error:
        raise UserError(f"recipes.{key}: {explain(error, type(part))}") from None


trial_command = command("trial", TrialConfig, "geoseg_gan.trials.trial:trial")
