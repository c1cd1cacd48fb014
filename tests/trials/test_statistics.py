import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t

from geoseg_gan.trials.statistics import Comparison, tally
from geoseg_gan.utils.confusion import TileConfusions
from geoseg_gan.utils.errors import UserError


def compare(results, **settings):
    return Comparison([tally(result) for result in results], **settings)


def test_iou_is_that_of_all_tiles_together(make_run):
    matrices = np.array([[[6, 2, 0], [1, 3, 0], [0, 0, 0]], [[0, 0, 0], [0, 4, 1], [0, 0, 0]]])
    run = replace(make_run("real", 0), val=TileConfusions(["a", "b"], ["g", "h"], matrices))
    level = compare([run]).level("real")
    values = [estimate.value for estimate in level.classes]
    # Class 2 is in no label: it counts nowhere, though one pixel was taken for it.
    assert values[:2] == pytest.approx([6 / 9, 7 / 11]) and math.isnan(values[2])
    assert level.miou.value == pytest.approx((6 / 9 + 7 / 11) / 2)
    assert level.seeds == [0] and level.by_seed == pytest.approx([level.miou.value])


def test_a_difference_is_the_mean_over_shared_seeds(make_run):
    def iou(right):
        return right / (2 - right)

    runs = [make_run("real", s, [r, r]) for s, r in ((0, 0.8), (1, 0.7), (2, 0.1))]
    runs += [make_run("copy_paste", s, [r, r]) for s, r in ((0, 0.9), (1, 0.6), (5, 0.9))]
    found = compare(runs).difference("copy_paste")
    wanted = [iou(0.9) - iou(0.8), iou(0.6) - iou(0.7)]
    assert found.seeds == [0, 1] and found.by_seed == pytest.approx(wanted)
    assert found.miou.value == pytest.approx(np.mean(wanted))


def test_rare_classes_have_a_mean_of_their_own(make_run):
    def run(arm, seed, hits):
        # Of 10 pixels of each class in each group so many are right, the others taken for class 0.
        matrices = np.zeros((3, 4, 4), np.int64)
        for c, right in enumerate((10, *hits)):
            matrices[:, c, c], matrices[:, c, 0] = right, matrices[:, c, 0] + 10 - right
        matrices[:, 0, 0] = 10
        matrices[1:, 2] = 0  # class 2 occurs in the first group alone
        confusions = TileConfusions(["a", "b", "c"], ["g", "h", "i"], matrices)
        return replace(make_run(arm, seed), val=confusions)

    runs = [run("real", s, (5, 2, 10)) for s in (0, 1)]
    runs += [run("copy_paste", s, (6, 6, 4)) for s in (0, 1)]
    gain = compare(runs, rare=[1, 2]).difference("copy_paste")
    assert gain.rare.value == pytest.approx((0.1 + 0.4) / 2)  # IoU is the share of right pixels
    assert gain.classes[2].low != gain.classes[2].low and gain.rare.has_interval
    assert math.isnan(compare(runs).difference("copy_paste").rare.value)


def test_arms_without_a_shared_seed_have_no_difference(make_run):
    found = compare([make_run("real", 0), make_run("copy_paste", 1)]).difference("copy_paste")
    assert math.isnan(found.miou.value) and found.seeds == [] and not found.miou.has_interval


@pytest.mark.parametrize(("seeds", "groups"), [(1, 4), (4, 1)])
def test_one_seed_or_one_group_gives_no_interval(make_arms, seeds, groups):
    results = make_arms({"real": 0.0, "copy_paste": 0.1}, seeds=seeds, groups=groups)
    found = compare(results).difference("copy_paste")
    assert found.miou.value > 0.05 and not found.miou.has_interval
    assert not found.classes[0].has_interval


def test_a_class_that_one_group_alone_holds_has_no_interval(make_arms):
    def without_class_1(result):
        counts = result.val.counts.copy()
        counts[1:, 1] = 0
        return replace(result, val=replace(result.val, counts=counts))

    results = make_arms({"real": 0.0, "copy_paste": 0.1}, seeds=3, groups=3)
    found = compare([without_class_1(r) for r in results]).difference("copy_paste")
    assert found.classes[0].has_interval and found.miou.has_interval
    assert found.classes[1].value > 0 and not found.classes[1].has_interval


def test_where_seeds_alone_differ_the_interval_is_student_s(make_run):
    # Every group repeats the other, so that resampling groups changes nothing.
    gains = [0.02, 0.05, 0.11]
    runs = [make_run("real", s, [0.5, 0.5]) for s in range(3)]
    runs += [make_run("copy_paste", s, [0.5 + g, 0.5 + g]) for s, g in enumerate(gains)]
    # Two groups leave one degree of freedom.
    found = compare(runs, draws=40_000).difference("copy_paste")
    error = np.std(found.by_seed, ddof=1) / math.sqrt(3)
    assert found.miou.high - found.miou.value == pytest.approx(t.ppf(0.975, 1) * error, rel=0.02)
    assert found.miou.low == pytest.approx(2 * found.miou.value - found.miou.high)


def test_difficulty_that_arms_share_leaves_their_difference_sharp(make_run):
    rng = np.random.default_rng(1)
    runs = []
    for seed in range(4):
        common = rng.uniform(0.5, 0.8, 6)
        runs.append(make_run("real", seed, common, groups=6))
        runs.append(make_run("copy_paste", seed, common + 0.02, groups=6))
    comparison = compare(runs)
    assert comparison.difference("copy_paste") == compare(runs).difference("copy_paste")
    level, gain = comparison.level("copy_paste").miou, comparison.difference("copy_paste").miou
    assert gain.low > 0
    assert gain.high - gain.low < (level.high - level.low) / 10
    # Separated from their partners, the same runs show nothing.
    shuffled = [replace(r, seed=(r.seed + 1) % 4) if r.arm == "real" else r for r in runs]
    blurred = compare(shuffled).difference("copy_paste").miou
    assert blurred.low < 0 < blurred.high


@pytest.mark.parametrize(("seeds", "groups"), [(3, 12), (5, 24), (5, 5)])
def test_intervals_cover_the_truth_and_seldom_speak_for_nothing(make_tallies, seeds, groups):
    rng = np.random.default_rng(0)
    found = [
        Comparison(make_tallies(rng, seeds, groups), 200).difference("synthetic_0.5").miou
        for _ in range(150)
    ]
    assert np.mean([estimate.low <= 0 <= estimate.high for estimate in found]) >= 0.93
    assert np.mean([estimate.low > 0 for estimate in found]) <= 0.05
    # They are no wider than few seeds and groups require.
    spread = np.std([estimate.value for estimate in found])
    reach = np.mean([estimate.high - estimate.low for estimate in found]) / 2
    assert reach < 1.5 * t.ppf(0.975, min(seeds, groups) - 1) * spread


def test_a_true_gain_is_found(make_tallies):
    rng = np.random.default_rng(0)
    lows = [
        Comparison(make_tallies(rng, 5, 24, 0.06), 200).difference("synthetic_0.5").miou.low
        for _ in range(50)
    ]
    assert np.mean(np.array(lows) > 0) > 0.8


def test_the_ratio_is_chosen_by_held_out_tiles_alone(make_arms):
    gains = {"real": 0.0, "synthetic_0.1": 0.1, "synthetic_0.5": 0.0, "synthetic_only": 0.0}
    inner = {"synthetic_0.1": 0.5, "synthetic_0.5": 0.6, "synthetic_only": 0.9, "real": 0.9}
    results = make_arms(gains, inner=inner)
    assert compare(results).choose_arm() == "synthetic_0.5"
    rng = np.random.default_rng(0)
    garbage = [
        replace(r, val=replace(r.val, counts=rng.integers(1, 9, r.val.counts.shape)))
        for r in results
    ]
    assert compare(garbage).choose_arm() == "synthetic_0.5"


def test_ratios_are_compared_over_the_seeds_they_share(make_run):
    runs = [make_run("synthetic_0.1", s, inner=i) for s, i in ((0, 0.5), (1, 0.9))]
    assert compare([*runs, make_run("synthetic_0.5", 0, inner=0.6)]).choose_arm() == "synthetic_0.5"
    assert compare([*runs, make_run("synthetic_0.5", 7)]).choose_arm() is None
    assert compare([make_run("real", 0)]).choose_arm() is None


def test_results_on_other_tiles_are_refused(make_run):
    with pytest.raises(UserError, match=r"arm copy_paste with seed 3 .* different validation"):
        compare([make_run("real", 0), make_run("copy_paste", 3, [0.8] * 3, groups=3)])
