"""A tiny trial that has finished, and made-up runs of trials."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from geoseg_gan.training import train_segmenter as training
from geoseg_gan.trials import runs
from geoseg_gan.trials.arms import recipe_of
from geoseg_gan.trials.results import RunResult
from geoseg_gan.trials.statistics import Tally
from geoseg_gan.trials.trial import trial
from geoseg_gan.utils.confusion import TileConfusions

TINY_TRIAL = (
    "data.palette=[{name:Background,color:[250,62,119]},{name:Forest land,color:[168,232,84]},"
    "{name:Settlement,color:[255,214,33]}]",
    "model=unet_oasis_light", "model.generator.width=4", "model.generator.depth=2",
    "model.generator.max_width=8", "model.discriminator.width=4", "model.discriminator.depth=2",
    "model.discriminator.max_width=8", "segmenter=unet_resnet34", "segmenter.encoder=mobilenet_v2",
    "+segmenter.options.encoder_depth=3", "+segmenter.options.decoder_channels=[8,8,8]",
    "augment=flips", "image_size=32", "seeds=2", "ratios=[0.25,0.5]",
    "inner_share=0.3", "trainer=cpu", "data.num_workers=0", "train.bs=2", "train.epochs=1",
    "train.epoch_steps=2", "generate.num_samples=6", "generate.num_workers=0", "generate.tau=0",
    "train_segmenter.bs=2", "train_segmenter.epochs=1", "train_segmenter.epoch_steps=2",
)  # fmt: skip


class Finished(NamedTuple):
    """A finished trial: its folder and figures, and each segmenter's first weights by arm, seed."""

    folder: Path
    figures: dict[str, float]
    weights: dict[tuple[str, int], list[torch.Tensor]]


@pytest.fixture(scope="session")
def trial_root(tmp_path_factory, make_folder) -> Path:
    """The data of all tiny trials."""
    return make_folder(tmp_path_factory.mktemp("trial") / "data", train=12, val=3)


@pytest.fixture(scope="session")
def trial_config(trial_root, composed) -> Callable[..., Any]:
    """Composes a tiny trial: `trial_config(out_dir, "seeds=3")`."""

    def compose(out_dir, *more):
        paths = (f"data_root={trial_root}", f"out_dir={out_dir}")
        return composed("trial", *TINY_TRIAL, *paths, *more)

    return compose


@pytest.fixture(scope="session")
def finished(trial_config, trial_root) -> Finished:
    """A trial of two seeds and all arms, which tests only read; `copied` is one to work in."""
    weights, current = {}, []
    train, build = runs.train_segmenter, training.build_segmenter

    def watched_train(config):
        current[:] = Path(config.out_dir).name, config.seed
        return train(config)

    def watched_build(*args, **kwargs):
        network = build(*args, **kwargs)
        weights[tuple(current)] = [weight.clone() for weight in network.state_dict().values()]
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(trial_root.parent / "cache"))
        patch.setattr(runs, "train_segmenter", watched_train)
        patch.setattr(training, "build_segmenter", watched_build)
        folder = trial_root.parent / "finished"
        return Finished(folder, trial(trial_config(folder)), weights)


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the finished trial."""
    return shutil.copytree(finished.folder, tmp_path / "copied")


@pytest.fixture
def no_runs(monkeypatch):
    """Lets every training and generation fail: finished parts must not be computed again."""
    for name in ("train", "generate", "train_segmenter"):
        monkeypatch.setattr(runs, name, lambda config, name=name: pytest.fail(f"{name} ran"))


TILE = 1000  # pixels of each of two classes in every tile


def _tiles(right: np.ndarray, groups: int) -> TileConfusions:
    """Two classes mistaken for each other; `right` is the share that is correct, by tile."""
    hits = np.rint(TILE * np.clip(right, 0, 1)).astype(np.int64)
    counts = np.empty((len(hits), 2, 2), np.int64)
    counts[:, [0, 1], [0, 1]] = hits[:, None]
    counts[:, [0, 1], [1, 0]] = TILE - hits[:, None]
    names = [f"g{number % groups}" for number in range(len(hits))]
    return TileConfusions([f"t{number:02d}" for number in range(len(hits))], names, counts)


@pytest.fixture
def make_run() -> Callable[..., RunResult]:
    """Makes a result: `make_run("real", 0, right=[0.8, 0.9], inner=0.7, kept=3)`."""

    def make(arm, seed, right=(0.8, 0.8), *, inner=0.8, kept=None, groups=2) -> RunResult:
        support = {"pixels": [900, 100], "tiles": [9, 2], "groups": [3, 1], "total_tiles": 9}
        facts = {"kept": kept, "generated": kept and 10, "tau": kept and 0.5, "seconds": 60.0}
        if kept is not None:
            facts |= {"pairs": recipe_of(arm), "gan_seed": seed}
            facts |= {"synthesis_seconds": 0.0, "generator_seconds": {}}
        examples = np.full((2, 8, 8), seed % 2, np.uint8)
        return RunResult(
            arm,
            seed,
            _tiles(np.asarray(right, float), groups),
            _tiles(np.array([inner]), 1),
            examples,
            facts | {"support": support},
        )

    return make


@pytest.fixture
def make_arms(make_run) -> Callable[..., list[RunResult]]:
    """Runs of arms that differ by the given gains: `make_arms({"real": 0.0, "x": 0.1}, seeds=3)`.

    Seeds differ a little, and arms with each seed a little too.
    """

    def make(gains, *, seeds=4, groups=4, inner=None, kept=5, spread=0.004) -> list[RunResult]:
        rng = np.random.default_rng(0)
        tiles = rng.uniform(0.6, 0.8, groups)
        return [
            make_run(
                arm,
                seed,
                tiles + gain + 0.01 * seed + spread * rng.normal(),
                inner=(inner or {}).get(arm, 0.7 + gain),
                kept=None if recipe_of(arm) is None else kept,
                groups=groups,
            )
            for arm, gain in gains.items()
            for seed in range(seeds)
        ]

    return make


@pytest.fixture
def make_tallies() -> Callable[..., list[Tally]]:
    """Draws runs on new tiles: `make_tallies(rng, seeds, groups, gain)`.

    Groups are more or less hard for all arms alike, and suit the synthetic arm more or less.
    """

    def make(rng, seeds, groups, gain=0.0) -> list[Tally]:
        names = tuple(f"g{number:02d}" for number in range(groups))
        size = rng.uniform(500, 3000, (groups, 2))
        hard, suits = rng.normal(0, 0.1, (groups, 1)), rng.normal(0, 0.03, (groups, 1))
        runs = []
        for seed in range(seeds):
            common = rng.normal(0, 0.02)
            for arm in ("real", "synthetic_0.5"):
                right = 0.75 + hard + common + rng.normal(0, 0.01)
                right = right + rng.normal(0, 0.03, (groups, 2)) + (arm != "real") * (gain + suits)
                right = right.clip(0.02, 0.98)
                hits, union = size * right, size * (2 - right)
                inner = np.full(2, 0.5)
                holds = np.ones((groups, 2), bool)
                runs.append(Tally(arm, seed, names, hits, union, holds, inner, 0.5))
        return runs

    return make
