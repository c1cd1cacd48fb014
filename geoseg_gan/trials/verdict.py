"""The rule by which a trial reaches its verdict."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from geoseg_gan.trials.arms import FREE_RIVALS, HALF, PLAIN, REAL, mix_of
from geoseg_gan.trials.statistics import Comparison, Estimate

FINE = 0.03
"""Half the width of an interval, in mIoU, above which it cannot show that there is no room."""

Outcome = Literal["use", "no effect", "do not use", "no room", "no verdict"]

RULE = (
    "The verdict is about one mixed arm: the ratio (or recipe and ratio, where there are several "
    "recipes) with the best mean IoU on the held-out training tiles, averaged over the seeds. "
    "Validation tiles play no part in that choice; with val_groups, held-out tiles play none "
    "either, since they are of other ground: there the verdict is about the first recipe. What "
    "decides is the 95 % interval of its difference in mean IoU to real only on the validation "
    "tiles. If it lies above zero, the verdict is to use synthetic pairs, unless an arm that needs "
    "no generator gains as much: with real tiles alone or, where the picked arm has a generator, "
    "with labelled images. If it lies below zero, or if the filter kept no pairs for any seed, the "
    "verdict is not to use them. If it includes zero, there is no measurable effect; where even "
    "all labels gain nothing, by an interval of three points at most either way, there is no room. "
    "Without an interval (a single seed, or validation tiles of a single location group) there is "
    "no verdict."
)


@dataclass(frozen=True)
class Verdict:
    """What a trial finds.

    Attributes:
        kind: The outcome.
        sentence: The outcome in words.
        arm: The arm that was picked; None where there was none to pick.
        rival: Its difference in words to the best arm that needs no generated pair; None without.
        room: What share of the gain of all labels it reaches, in words; None where nobody knows.
        plateau: That real only gains from more updates, in words; None where it does not.
    """

    kind: Outcome
    sentence: str
    arm: str | None
    rival: str | None = None
    room: str | None = None
    plateau: str | None = None


def no_room(comparison: Comparison) -> str | None:
    """Says that even all labels gain nothing that shows; None where they do, or nobody knows."""
    found = comparison.room()
    if found is None:
        return None
    arm, gain = found[0], found[1].miou
    if not gain.has_interval or gain.low > 0 or gain.high - gain.low > 2 * FINE:
        return None
    return (
        f"No room here: with all labels ({arm}) it is {points(gain)}, so that no pairs could be "
        "shown to help."
    )


def below_plateau(comparison: Comparison) -> str | None:
    """Says that real only gains from more updates; None where that does not show."""
    if HALF not in comparison.arms or not comparison.difference(REAL, HALF).seeds:
        return None
    gain = comparison.difference(REAL, HALF).miou
    if not gain.has_interval or gain.low <= 0:
        return None
    return (
        f"Real only is below its plateau: all updates against half of them give {points(gain)}, "
        "and what pairs gain may be training time. Raise train_segmenter.epochs."
    )


def reach_verdict(
    comparison: Comparison,
    kept: Mapping[str, Mapping[int, int]],
    free: Collection[str] = (),
    first: bool = False,
) -> Verdict:
    """Applies `RULE`.

    Args:
        comparison: The runs.
        kept: How many pairs the filter kept, by arm and seed.
        free: The mixed arms that need no generator.
        first: Whether the first mixed arm is meant, rather than the best on held-out tiles.
    """
    arm = comparison.choose_arm(first)
    verdict = _verdict(comparison, arm, kept, free)
    share = _share_of_room(comparison, arm)
    return replace(verdict, room=share, plateau=below_plateau(comparison))


def _share_of_room(comparison: Comparison, arm: str | None) -> str | None:
    """How much of what all labels gain an arm gains, in words, over the seeds that have both.

    None where these labels gain nothing.
    """
    found = comparison.room()
    if found is None or arm is None:
        return None
    oracle, gain = found[0], comparison.difference(arm)
    labels, ours = (dict(zip(s.seeds, s.by_seed, strict=True)) for s in (found[1], gain))
    seeds = sorted(labels.keys() & ours.keys())
    room = sum(labels[seed] for seed in seeds) / max(1, len(seeds))
    if room <= 0:
        return None
    share = sum(ours[seed] for seed in seeds) / len(seeds) / room
    return (
        f"All labels ({oracle}) would give {signed(room)}: {named(arm)} reaches {share:.0%} of it."
    )


def _verdict(
    comparison: Comparison,
    arm: str | None,
    kept: Mapping[str, Mapping[int, int]],
    free: Collection[str],
) -> Verdict:
    nothing = no_room(comparison)
    if arm is None or not comparison.difference(arm).seeds:
        if nothing is not None:
            return Verdict("no room", nothing, None)
        sentence = (
            "No verdict: results are missing. It takes seeds for which real only and every mixed "
            "arm have results."
        )
        return Verdict("no verdict", sentence, arm)
    counts = [kept[arm].get(seed) for seed in comparison.seeds(arm)]
    if not any(counts):
        return Verdict("do not use", "Don't use it: the filter kept no pairs for any seed.", arm)
    gain = comparison.difference(arm).miou
    said = f"{points(gain)} at {named(arm)}"
    gains = {
        rival: comparison.difference(rival).miou.value
        for rival in (*FREE_RIVALS, *(free if arm not in free else ()))
        if comparison.seeds(rival) and comparison.difference(rival).seeds
    }
    best = max(gains, key=lambda rival: gains[rival], default=None)
    rival = None
    if best is not None and (ahead := comparison.difference(arm, best)).seeds:
        name = named(arm).capitalize()
        rival = f"{name} against {best}, which is free: {points(ahead.miou)}."
    kind: Outcome = "do not use"
    if not gain.has_interval:
        kind = "no verdict"
        sentence = f"No verdict: {said}; one seed or one location group gives no interval."
    elif gain.high < 0:
        sentence = f"Don't use it: {said}."
    elif gain.low <= 0:
        kind = "no effect"
        reach = 100 * (gain.high - gain.low) / 2
        sentence = (
            f"No measurable effect: {said}. With {len(counts)} seeds and {len(comparison.groups)} "
            f"location groups only a difference of more than about {reach:.1f} would show."
        )
        if nothing is not None:
            kind, sentence = "no room", f"{nothing} {sentence}"
    elif best is not None and gains[best] >= gain.value:
        sentence = f"Don't use it: {said}, but {best}, which is free, gains {signed(gains[best])}."
    else:
        kind, sentence = "use", f"Use it: {said}."
    if empty := sum(count == 0 for count in counts):
        sentence += f" The filter kept no pairs for {empty} of {len(counts)} seeds."
    return Verdict(kind, sentence, arm, rival)


def named(arm: str) -> str:
    """A mixed arm in words: "ratio 0.25", with its recipe if that has settings of its own."""
    mix = mix_of(arm)
    assert mix is not None, arm
    if not mix.ratio:
        return f"recipe {mix.recipe}"
    return f"ratio {mix.ratio:g}" + (f" of recipe {mix.recipe}" if mix.recipe != PLAIN else "")


def points(estimate: Estimate) -> str:
    """A difference in mIoU in words, in points: "+2.1 mIoU (95 % 0.8 to 3.4)"."""
    text = f"{signed(estimate.value)} mIoU"
    if estimate.has_interval:
        text += f" (95 % {100 * estimate.low:.1f} to {100 * estimate.high:.1f})"
    return text


def signed(value: float) -> str:
    """A difference of shares in points, with its sign and one decimal."""
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # + 0.0 turns -0.0 into 0.0
