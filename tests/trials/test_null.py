import numpy as np
import pytest

from geoseg_gan.errors import UserError
from geoseg_gan.trials.null import lift, null_trials
from geoseg_gan.trials.statistics import Comparison, tally


@pytest.fixture
def runs(make_run):
    """Runs of real only that differ by chance, each held out of other tiles."""
    rng = np.random.default_rng(0)
    tiles = rng.uniform(0.6, 0.8, 8)
    return [
        make_run(
            "real",
            seed,
            tiles + rng.normal(0, 0.01) + rng.normal(0, 0.02, 8),
            inner=rng.uniform(0.5, 0.8),
            groups=8,
        )
        for seed in range(20)
    ]


def test_chance_alone_is_seldom_called_a_gain(runs):
    verdicts = null_trials(runs, seeds=4, ratios=3, trials=100)
    assert verdicts.total() == 100
    assert verdicts["use"] <= 5 and verdicts["no effect"] >= 85


def test_an_effect_is_found_where_there_is_one(runs):
    verdicts = null_trials(runs, seeds=4, ratios=3, trials=40, effect=0.1)
    assert verdicts["use"] >= 36


def test_the_same_seed_deals_alike_and_another_differently(runs):
    def deal(seed):
        # Found about every other time, so that the counts tell dealings apart.
        return null_trials(runs, seeds=4, ratios=2, trials=30, rng_seed=seed, effect=0.04)

    assert deal(0) == deal(0)
    assert len({tuple(sorted(deal(seed).items())) for seed in range(4)}) > 1


def test_too_few_runs_are_refused(runs):
    with pytest.raises(UserError, match="20 runs of arm real are too few for 6 seeds and 3 ratios"):
        null_trials(runs, seeds=6, ratios=3, trials=1)


@pytest.mark.parametrize("effect", [0.03, 0.2])
def test_a_lifted_run_is_better_by_just_the_effect(make_run, effect):
    run = make_run("real", 0, [0.5, 0.7], inner=0.6)
    better = lift(run, effect)
    before, after = (Comparison([tally(r)]).level("real").miou.value for r in (run, better))
    assert after - before == pytest.approx(effect, abs=1e-4)
    assert tally(better).inner_miou - tally(run).inner_miou == pytest.approx(effect, abs=1e-4)
    # No pixel changes its true class.
    shares = [r.val.counts.sum(2) / r.val.counts.sum() for r in (run, better)]
    assert np.allclose(*shares)


def test_a_run_that_cannot_become_so_much_better_is_told(make_run):
    run = make_run("real", 0, [0.99, 0.99], inner=0.5)
    with pytest.raises(UserError, match=r"effect=0\.1: a run reaches 0\.980 without it"):
        lift(run, 0.1)
