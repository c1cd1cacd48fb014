from dataclasses import replace

import pytest

from geoseg_gan.trials.statistics import Comparison, Estimate, tally
from geoseg_gan.trials.verdict import points, reach_verdict, signed


@pytest.fixture
def verdict_of(make_arms):
    def judged(gains, *, kept=5, **settings):
        results = make_arms({"real": 0.0, **gains}, kept=kept, **settings)
        counts = {r.arm: {r.seed: kept for r in results} for r in results}
        return reach_verdict(Comparison([tally(result) for result in results]), counts)

    return judged


def test_a_clear_gain_says_use_it(verdict_of):
    verdict = verdict_of({"synthetic_0.1": 0.02, "synthetic_0.25": 0.05, "copy_paste": 0.01})
    assert (verdict.kind, verdict.arm) == ("use", "synthetic_0.25")
    assert verdict.sentence.startswith("Use it: +") and "(95 % " in verdict.sentence
    assert verdict.sentence.endswith(" at ratio 0.25.")
    assert verdict.rival.startswith("Ratio 0.25 against copy_paste, which is free: +")


def test_a_placebo_is_never_picked(verdict_of):
    verdict = verdict_of({"placebo_0.25": 0.09, "synthetic_0.25": 0.02})
    assert verdict.arm == "synthetic_0.25"


def test_a_clear_loss_says_do_not(verdict_of):
    verdict = verdict_of({"synthetic_0.1": -0.05})
    assert verdict.kind == "do not use" and verdict.rival is None
    assert verdict.sentence.startswith("Don't use it: -")


def test_an_interval_around_zero_says_what_could_have_been_seen(verdict_of):
    verdict = verdict_of({"synthetic_0.1": 0.0}, spread=0.02)
    assert verdict.kind == "no effect"
    assert verdict.sentence.startswith("No measurable effect: ")
    assert "With 4 seeds and 4 location groups only a difference of more than" in verdict.sentence


def test_a_free_rival_that_gains_more_says_do_not(verdict_of):
    gains = {"synthetic_0.1": 0.05, "oversample": 0.0, "copy_paste": 0.08}
    verdict = verdict_of(gains)
    assert verdict.kind == "do not use"
    assert "but copy_paste, which is free, gains +" in verdict.sentence
    assert verdict_of(gains | {"copy_paste": 0.01}).kind == "use"


def test_the_ratio_that_was_picked_decides_not_the_best_on_validation(verdict_of):
    gains = {"synthetic_0.1": 0.06, "synthetic_0.5": -0.05}
    inner = {"synthetic_0.1": 0.6, "synthetic_0.5": 0.7}
    verdict = verdict_of(gains, inner=inner)
    assert (verdict.kind, verdict.arm) == ("do not use", "synthetic_0.5")


def test_a_filter_that_kept_nothing_is_told(verdict_of, make_arms):
    assert verdict_of({"synthetic_0.1": 0.05}, kept=0).sentence == (
        "Don't use it: the filter kept no pairs for any seed."
    )
    runs = [tally(result) for result in make_arms({"real": 0.0, "synthetic_0.1": 0.05})]
    verdict = reach_verdict(Comparison(runs), {"synthetic_0.1": {0: 0, 1: 5, 2: 5, 3: 0}})
    assert verdict.kind == "use"
    assert verdict.sentence.endswith("The filter kept no pairs for 2 of 4 seeds.")


@pytest.mark.parametrize(("seeds", "groups"), [(1, 4), (3, 1)])
def test_without_an_interval_there_is_no_verdict(verdict_of, seeds, groups):
    verdict = verdict_of({"synthetic_0.1": 0.05}, seeds=seeds, groups=groups)
    assert verdict.kind == "no verdict" and verdict.sentence.startswith("No verdict: +")


def test_missing_results_give_no_verdict(make_run, make_arms):
    for runs in (
        [make_run("real", 0)],
        [make_run("synthetic_0.1", 0, kept=3)],
        [make_run("real", 0), make_run("synthetic_0.1", 1, kept=3)],
    ):
        verdict = reach_verdict(
            Comparison([tally(run) for run in runs]), {"synthetic_0.1": {0: 3, 1: 3}}
        )
        assert verdict.kind == "no verdict" and "results are missing" in verdict.sentence
    # A rival that shares no seed with real only cannot be compared.
    runs = make_arms({"real": 0.0, "synthetic_0.1": 0.05})
    runs.append(replace(runs[0], arm="copy_paste", seed=9))
    verdict = reach_verdict(
        Comparison([tally(run) for run in runs]), {"synthetic_0.1": dict.fromkeys(range(4), 3)}
    )
    assert verdict.kind == "use" and verdict.rival is None


def test_differences_are_told_in_points():
    assert points(Estimate(0.021, 0.008, 0.034)) == "+2.1 mIoU (95 % 0.8 to 3.4)"
    assert points(Estimate(-0.021, float("nan"), float("nan"))) == "-2.1 mIoU"
    assert [signed(value) for value in (-0.0001, 0.0)] == ["+0.0", "+0.0"]
