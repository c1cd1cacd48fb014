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


def test_labels_that_gain_nothing_leave_no_room(verdict_of):
    verdict = verdict_of({"synthetic_0.1": 0.0, "all_labels": 0.0}, spread=0.02)
    assert verdict.kind == "no room"
    assert verdict.sentence.startswith("No room here: with all labels (all_labels) it is ")
    assert " No measurable effect: " in verdict.sentence
    assert verdict_of({"labelled_target_0.5": 0.0}, spread=0.02).kind == "no room"
    for gains in ({"all_labels": 0.08}, {"labelled_target_0.1": 0.0, "labelled_target_0.5": 0.08}):
        verdict = verdict_of(gains | {"synthetic_0.1": 0.0})
        assert verdict.kind != "no room" and verdict.arm == "synthetic_0.1"
    assert verdict_of({"all_labels": 0.0, "synthetic_0.1": 0.05}).kind == "use"


def test_too_few_seeds_do_not_say_that_there_is_no_room(verdict_of):
    gains = {"synthetic_0.1": 0.0, "all_labels": 0.03}
    verdict = verdict_of(gains, seeds=2, spread=0.02)
    assert verdict.kind == "no effect" and "No room" not in verdict.sentence


def test_the_share_of_what_labels_give_is_told(verdict_of):
    verdict = verdict_of({"labelled_target_0.5": 0.08, "pseudo_labels_0.5": 0.04}, spread=0.0)
    share = int(verdict.room.split(" reaches ")[1].split("%")[0])
    assert verdict.room.startswith("All labels (labelled_target_0.5) would give +")
    assert 45 <= share <= 55
    assert verdict_of({"pseudo_labels_0.5": 0.04}).room is None


def test_the_share_is_of_the_seeds_that_have_both(make_arms):
    arms = make_arms({"real": 0.0, "pseudo_labels_0.5": 0.04}, seeds=4, spread=0.0)
    arms += make_arms({"labelled_target_0.5": 0.08}, seeds=2, spread=0.0)
    arms[-1] = replace(arms[-1], seed=9)  # which no other arm has
    comparison = Comparison([tally(result) for result in arms])
    kept = {"pseudo_labels_0.5": dict.fromkeys(range(4), 5)}
    gain, labels = (comparison.difference(a).by_seed[0] for a in comparison.arms[1:])
    assert f" reaches {gain / labels:.0%} of it" in reach_verdict(comparison, kept).room


def test_on_new_ground_the_first_recipe_is_meant(make_arms):
    gains = {"real": 0.0, "pseudo_labels_matched_0.5": 0.05, "pseudo_labels_0.5": 0.01}
    inner = {"pseudo_labels_matched_0.5": 0.5, "pseudo_labels_0.5": 0.9}
    comparison = Comparison([tally(result) for result in make_arms(gains, inner=inner)])
    kept = {arm: dict.fromkeys(range(4), 5) for arm in gains}
    assert reach_verdict(comparison, kept).arm == "pseudo_labels_0.5"
    assert reach_verdict(comparison, kept, first=True).arm == "pseudo_labels_matched_0.5"


def test_more_updates_that_gain_are_told(verdict_of):
    assert verdict_of({"real_half": 0.0, "synthetic_0.1": 0.05}).plateau is None
    verdict = verdict_of({"real_half": -0.05, "synthetic_0.1": 0.05})
    assert verdict.kind == "use"
    assert verdict.plateau.startswith("Real only is below its plateau: ")
    assert "give +5." in verdict.plateau and "train_segmenter.epochs" in verdict.plateau


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


def test_an_arm_with_a_generator_has_to_beat_labelled_images(make_arms):
    def judged(gains, unlabelled):
        comparison = Comparison([tally(result) for result in make_arms({"real": 0.0, **gains})])
        kept = {arm: dict.fromkeys(range(4), 5) for arm in gains}
        return reach_verdict(comparison, kept, unlabelled)

    gains, inner = {"synthetic_0.5": 0.06, "pseudo_labels_0.5": 0.05}, ["pseudo_labels_0.5"]
    verdict = judged(gains, inner)
    assert (verdict.kind, verdict.arm) == ("use", "synthetic_0.5")
    assert verdict.rival.startswith("Ratio 0.5 against pseudo_labels_0.5, which is free: +")
    picked = judged({"synthetic_0.5": 0.02, "pseudo_labels_0.5": 0.06}, inner)
    assert (picked.kind, picked.arm, picked.rival) == ("use", "pseudo_labels_0.5", None)


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
