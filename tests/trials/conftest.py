"""Made-up runs of trials."""

from collections.abc import Callable

import numpy as np
import pytest

from geoseg_gan.trials.results import RunResult, recipe_of
from geoseg_gan.trials.statistics import Tally
from geoseg_gan.utils.confusion import TileConfusions

TILE = 1000  # pixels of each of two classes in every tile


def _tiles(right: np.ndarray, groups: int) -> TileConfusions:
    """Two classes by turns mistaken for each other; `right` is the share that is not, by tile."""
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
        facts = {"kept": kept, "painted": kept and 10, "tau": kept and 0.5, "seconds": 60.0}
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
    """Draws a world with new ground, seeds and networks: `make_tallies(rng, seeds, groups, gain)`.

    Ground is more or less hard for all arms alike, and suits one arm more or less.
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
