"""The verdict of a trial, by a stated rule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from geoseg_gan.trials.arms import FREE_RIVALS, PLAIN, mix_of
from geoseg_gan.trials.statistics import Comparison, Estimate

Outcome = Literal["use", "no effect", "do not use", "no verdict"]


RULE = (
    "The ratio (where there are several recipes, recipe and ratio) with the best mean IoU on the "
    "held-out training tiles, averaged over the seeds, is picked; validation has no say in it. "
    "Its difference to real only in mean IoU on the validation tiles decides. Interval above zero, "
    "and the estimate above that of every arm that needs no generated pair: use it. Interval above "
    "zero, but such an arm gains as much: don't. Interval below zero: don't. Interval around zero: "
    "no measurable effect. The filter kept nothing with any seed: don't. Without an interval (one "
    "seed, or validation tiles of one location group): no verdict."
)


@dataclass(frozen=True)
class Verdict:
    """What a trial finds.

    Attributes:
        kind: The outcome.
        sentence: The outcome in words.
        arm: The arm that was picked; None where there was none to pick.
        rival: How it compares with the best arm that needs no generated pair; None without one.
    """

    kind: Outcome
    sentence: str
    arm: str | None
    rival: str | None = None


def reach_verdict(comparison: Comparison, kept: Mapping[str, Mapping[int, int]]) -> Verdict:
    """Applies the rule.

    Args:
        comparison: The runs.
        kept: By arm how many pairs each seed's filter kept.
    """
    arm = comparison.choose_arm()
    if arm is None or not comparison.difference(arm).seeds:
        sentence = (
            "No verdict: results are missing; it takes seeds that real only and all ratios have."
        )
        return Verdict("no verdict", sentence, arm)
    counts = [kept[arm].get(seed) for seed in comparison.seeds(arm)]
    if not any(counts):
        return Verdict("do not use", "Don't use it: the filter kept nothing with any seed.", arm)
    gain = comparison.difference(arm).miou
    called = named(arm)
    at = f"at {called}"
    said = f"{points(gain)} {at}"
    rivals = {
        rival: comparison.difference(rival).miou.value
        for rival in FREE_RIVALS
        if comparison.seeds(rival)
    }
    # One without a seed in common with real only has no estimate.
    rivals = {rival: value for rival, value in rivals.items() if not math.isnan(value)}
    best = max(rivals, key=lambda rival: rivals[rival], default=None)
    rival = None
    if best is not None and (ahead := comparison.difference(arm, best)).seeds:
        rival = f"{called.capitalize()} against {best}, which is free: {points(ahead.miou)}."
    empty = sum(count == 0 for count in counts)
    more = f" The filter kept nothing with {empty} of {len(counts)} seeds." if empty else ""
    if not gain.has_interval:
        sentence = f"No verdict: {said}, but one seed or one location group gives no interval."
        return Verdict("no verdict", sentence + more, arm, rival)
    if gain.high < 0:
        return Verdict("do not use", f"Don't use it: {said}.{more}", arm, rival)
    if gain.low <= 0:
        reach = 100 * (gain.high - gain.low) / 2
        sentence = (
            f"No measurable effect: {said}; only differences beyond some {reach:.1f} would show "
            f"with {len(counts)} seeds and {len(comparison.groups)} location groups."
        )
        return Verdict("no effect", sentence + more, arm, rival)
    if best is not None and rivals[best] >= gain.value:
        sentence = f"Don't use it: {said}, but {best}, which is free, gains {signed(rivals[best])}."
        return Verdict("do not use", sentence + more, arm, rival)
    return Verdict("use", f"Use it: {said}.{more}", arm, rival)


def named(arm: str) -> str:
    """A mixed arm in words: "ratio 0.25", with its recipe if that has settings of its own."""
    mix = mix_of(arm)
    assert mix is not None, arm
    return f"ratio {mix.ratio:g}" + (f" of recipe {mix.recipe}" if mix.recipe != PLAIN else "")


def points(estimate: Estimate) -> str:
    """A difference in mIoU in words, in points: "+2.1 mIoU (95 % 0.8 to 3.4)"."""
    text = f"{signed(estimate.value)} mIoU"
    if estimate.has_interval:
        text += f" (95 % {100 * estimate.low:.1f} to {100 * estimate.high:.1f})"
    return text


def signed(value: float) -> str:
    """A difference of shares in points, with its sign and one decimal."""
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # which makes a negative zero a plain one
