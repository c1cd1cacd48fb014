"""Knobs of the trial command and its recipes."""

import re
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from geoseg_gan.config import command
from geoseg_gan.data.settings import AugmentSettings, DataSettings, JitterSettings, TransplantStep
from geoseg_gan.losses.settings import ObjectiveSettings
from geoseg_gan.models.settings import ModelSettings, SegmenterSettings
from geoseg_gan.synthesis.settings import GenerateConfig
from geoseg_gan.training.settings import OptimizerSettings, TrainConfig, TrainSegmenterConfig
from geoseg_gan.trials.arms import FREE_RIVALS, ONLY, PLACEBO, PLAIN, REAL, Mix
from geoseg_gan.utils.device import TrainerSettings
from geoseg_gan.utils.errors import UserError, check_choice, check_range
from geoseg_gan.utils.messages import explain

PartT = TypeVar("PartT")

_NAME = re.compile(r"[a-z][a-z0-9_]*")

_DECIDED: dict[str, dict[str, Any]] = {
    "train": {"resume": False, "init_from": None, "inner_share": 0.0, "max_minutes": None},
    "generate": {"gen_ckpt": "", "save_dir": "", "segmenter_ckpt": None, "layout": "pairs"},
    "train_segmenter": {
        "resume": False,
        "select": "last",
        "inner_share": 0.0,
        "synthetic": None,
        "synthetic_ratio": 0.0,
        "oversample_classes": [],
        "oversample_factor": 1.0,
    },
}
"""What the trial sets itself for every seed and arm, with the values of configs/trial.yaml."""

_FAIR = "mixing"
"""The only part of `train_segmenter` in which arms may differ."""


@dataclass
class RecipeSettings:
    """One way to get synthetic pairs and to train on them; all arms of a seed share a generator.

    Attributes:
        generate: What it changes of the trial's `generate`.
        train_segmenter: What it changes of the trial's `train_segmenter`: of `mixing` alone.
        refine: What a second training of the generator changes of the trial's `train`; None for
            no second training.
        copy_paste: Whether real pairs have the copy-paste of the arm of that name as well.
    """

    generate: dict[str, Any] = field(default_factory=dict)
    train_segmenter: dict[str, Any] = field(default_factory=dict)
    refine: dict[str, Any] | None = None
    copy_paste: bool = False


@dataclass
class TrialConfig:
    """Configuration of scripts/trial.py."""

    data_root: str
    out_dir: str
    image_size: int
    seeds: Any
    arms: list[str]
    ratios: list[float]
    recipes: dict[str, RecipeSettings]
    train_tiles: int | None
    train_fraction: float | None
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

    def check(self) -> None:
        """Refuses values that cannot be, but for those that the parts' own checks know of.

        Raises:
            UserError: Naming the key, its value and what to do.
        """
        self.seed_list()
        wrong = [ratio for ratio in self.ratios if not 0 < ratio < 1]
        if wrong or not self.ratios or len(set(self.ratios)) < len(self.ratios):
            raise UserError(f"ratios={self.ratios}: use different shares between 0 and 1.")
        if not self.recipes:
            raise UserError("recipes is empty: give recipe=synthetic, or several: recipe=[...].")
        for arm in self.arms:
            check_choice("arms", arm, self.all_arms())
        if self.train_tiles is not None and self.train_fraction is not None:
            raise UserError("Give train_tiles or train_fraction, not both.")
        check_range("train_tiles", self.train_tiles, 1)
        check_range("train_fraction", self.train_fraction, 0, 1, "(]")
        if self.data.split_file is not None and self.tile_count(1) is not None:
            raise UserError("data.split_file says which tiles are used: leave out train_tiles.")
        if not 0 < self.inner_share <= 0.5:
            raise UserError(
                f"inner_share={self.inner_share}: use a share above 0, up to 0.5; tau and ratio "
                "are chosen on these tiles."
            )
        check_range("oversample_factor", self.oversample_factor, 1)
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

    def _check_recipe(self, name: str) -> None:
        recipe, key = self.recipes[name], f"recipes.{name}"
        if not _NAME.fullmatch(name) or name in (REAL, *FREE_RIVALS):
            raise UserError(
                f"recipes: {name} is no name for a recipe. Use lower-case letters, digits and _, "
                "and not the name of an arm that needs no generated pair."
            )
        if recipe.refine == {}:
            raise UserError(
                f"{key}.refine changes nothing of the training: recipe=refined has settings for "
                "model=unet_oasis and model=unet_oasis_light. Choose one of them, or give settings "
                f"of your own, as in +{key}.refine.epochs=4."
            )
        for part, changes in (
            ("generate", recipe.generate),
            ("train", recipe.refine or {}),
            ("train_segmenter", recipe.train_segmenter),
        ):
            decided = {"data_root", "out_dir", "seed", "devices", *_DECIDED[part]} & changes.keys()
            if part == "train_segmenter":
                decided = changes.keys() - {_FAIR}
            for wrong in sorted(decided):
                raise UserError(f"{key}: {part}.{wrong} is the same in all arms. Leave it out.")
        if name.startswith(PLACEBO) != (self.generation(name).compose.generate == "none"):
            raise UserError(
                f"{key}: recipes that generate nothing (compose.generate=none), and no others, are "
                f"called {PLACEBO}..., so that a trial does not recommend one."
            )

    def seed_list(self) -> list[int]:
        """The seeds: a list as it is given, or those from 0 on.

        Raises:
            UserError: If `seeds` is neither a positive number nor a list of different seeds.
        """
        value = self.seeds
        seeds = list(range(value)) if isinstance(value, int) else value
        valid = isinstance(seeds, list) and all(isinstance(s, int) and s >= 0 for s in seeds)
        if isinstance(value, bool) or not valid or not seeds or len(set(seeds)) < len(seeds):
            raise UserError(
                f"seeds={value}: use how many, as in 5, or different seeds, as in [0,1]."
            )
        return sorted(seeds)

    def all_arms(self) -> list[str]:
        """The arms in the order in which they are computed and reported."""
        mixed = [Mix(recipe, ratio).arm for recipe in self.recipes for ratio in self.ratios]
        return [REAL, *FREE_RIVALS, *mixed, *([ONLY] if PLAIN in self.recipes else [])]

    def tile_count(self, available: int) -> int | None:
        """How many of so many training tiles are used; None for all."""
        if self.train_fraction is not None:
            return max(2, round(self.train_fraction * available))
        return self.train_tiles

    def generation(self, recipe: str) -> GenerateConfig:
        """`generate` as a recipe changes it.

        Raises:
            UserError: If a key or the type of a value is wrong.
        """
        return _changed(self.generate, self.recipes[recipe].generate, f"{recipe}.generate")

    def refinement(self, recipe: str) -> TrainConfig | None:
        """The second training of a recipe's generator; None for no such training.

        Raises:
            UserError: If a key or the type of a value is wrong.
        """
        changes = self.recipes[recipe].refine
        return None if changes is None else _changed(self.train, changes, f"{recipe}.refine")

    def segmentation(self, recipe: str) -> TrainSegmenterConfig:
        """`train_segmenter` as a recipe changes it.

        Raises:
            UserError: If a key or the type of a value is wrong.
        """
        changes = self.recipes[recipe].train_segmenter
        return _changed(self.train_segmenter, changes, f"{recipe}.train_segmenter")


def _changed(part: PartT, changes: dict[str, Any], key: str) -> PartT:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(part), changes)
        return cast(PartT, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, UserError) as error:
        raise UserError(f"recipes.{key}: {explain(error, type(part))}") from None


trial_command = command("trial", TrialConfig, "geoseg_gan.trials.trial:trial")
