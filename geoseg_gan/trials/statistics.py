"""Figures of a trial with intervals, from the stored confusion matrices."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geoseg_gan.trials.arms import REAL, is_control, is_oracle, mix_of
from geoseg_gan.trials.results import RunResult
from geoseg_gan.utils.confusion import iou_of, mean_over
from geoseg_gan.utils.errors import UserError

Floats = npt.NDArray[np.float64]

DRAWS = 4000
"""Bootstrap draws; their own error on a bound is some 1 % of the interval's width."""

_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, in shares of 1.

    Attributes:
        value: The estimate; NaN where the class is in neither labels nor predictions.
        low: Lower bound; NaN where there is no interval.
        high: Upper bound.
    """

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether there are bounds."""
        return not math.isnan(self.low)


_NOTHING = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Summary:
    """An arm's IoU, or its difference from another arm's.

    Attributes:
        miou: The mean over the classes that occur in the validation labels.
        rare: The mean over those of them that are rare; NaN where none is.
        classes: Every class; NaN for those that do not occur.
        seeds: The seeds with results.
        by_seed: The mean IoU, or its difference, for each of them.
    """

    miou: Estimate
    rare: Estimate
    classes: list[Estimate]
    seeds: list[int]
    by_seed: list[float]


@dataclass(frozen=True)
class Tally:
    """A run's validation pixels by location group, which resampling needs.

    Attributes:
        arm: The run's arm.
        seed: The run's seed.
        groups: The G location groups of the validation tiles.
        hits: Pixels of each class that were predicted correctly, shape (G, C).
        union: Pixels of the class or predicted as it, shape (G, C).
        holds: Which classes the labels of each group hold, shape (G, C).
        inner_iou: IoU on the held-out training tiles, shape (C,); NaN for classes they lack.
        inner_miou: Its mean.
    """

    arm: str
    seed: int
    groups: tuple[str, ...]
    hits: Floats
    union: Floats
    holds: npt.NDArray[np.bool_]
    inner_iou: Floats
    inner_miou: float


def tally(result: RunResult) -> Tally:
    """Adds up a run's tiles by location group."""
    groups, row = np.unique(result.val.groups, return_inverse=True)
    hits, union, true = _parts(result.val.counts)
    inner_hits, inner_union, inner_true = (part.sum(0) for part in _parts(result.inner.counts))
    inner = np.where(inner_true > 0, iou_of(inner_hits, inner_union), np.nan)
    return Tally(
        result.arm,
        result.seed,
        tuple(groups.tolist()),
        hits=_by_group(hits, row),
        union=_by_group(union, row),
        holds=_by_group(true, row) > 0,
        inner_iou=inner,
        inner_miou=float(mean_over(inner, inner_true > 0)),
    )


class Comparison:
    """Arms compared on the same validation tiles, seed by seed.

    A difference is the mean over the seeds that both arms have of the difference of their IoU over
    all tiles. Its 95 % interval is the estimate -+ t * SE. SE^2 is the variance of a bootstrap that
    resamples seeds and location groups of the validation tiles, both with replacement and alike for
    all arms (Owen 2007, "The pigeonhole bootstrap", which errs towards width), to which the
    variances of resampling the S seeds alone and the G groups alone are added once more, over S - 1
    and G - 1: a bootstrap's variance is too small by the factor (n - 1) / n (Hesterberg 2015,
    section 4.5.2).
    t is Student's quantile with min(S, G) - 1 degrees of freedom, since percentiles of so few seeds
    would be too narrow. G counts the groups that hold the class; for means, any rare class or any
    at all. With one seed or one group there is no interval.

    Args:
        tallies: The runs.
        draws: How many bootstrap draws.
        rare: IDs of the classes that count as rare.

    Attributes:
        groups: The location groups of the validation tiles.
        occurs: Which of the C classes occur in the validation labels; others count nowhere.
        group_counts: How many groups hold each of them, shape (C,).

    Raises:
        UserError: If the runs were not evaluated on the same tiles.
    """

    def __init__(
        self, tallies: Sequence[Tally], draws: int = DRAWS, rare: Sequence[int] = ()
    ) -> None:
        """Sorts the runs."""
        self.groups = tallies[0].groups
        holds = tallies[0].holds
        self.group_counts: npt.NDArray[np.int64] = holds.sum(0)
        self.occurs: npt.NDArray[np.bool_] = self.group_counts > 0
        self.draws = draws
        self._rare = np.isin(np.arange(len(self.group_counts)), rare) & self.occurs
        self._rare_groups = int(holds[:, self._rare].any(1).sum())
        self._runs: dict[str, dict[int, Tally]] = {}
        self._summaries: dict[tuple[str, str | None], Summary] = {}
        for run in tallies:
            if run.groups != self.groups or not np.array_equal(run.holds, holds):
                raise UserError(
                    f"The results of arm {run.arm} with seed {run.seed} and of arm "
                    f"{tallies[0].arm} with seed {tallies[0].seed} come from different validation "
                    "tiles. Keep results of one data folder only."
                )
            self._runs.setdefault(run.arm, {})[run.seed] = run

    @property
    def arms(self) -> list[str]:
        """The arms that have results."""
        return list(self._runs)

    def seeds(self, arm: str) -> list[int]:
        """The seeds that an arm has results of."""
        return sorted(self._runs.get(arm, {}))

    def level(self, arm: str) -> Summary:
        """An arm's IoU."""
        return self._once(arm, None)

    def difference(self, arm: str, other: str = REAL) -> Summary:
        """How much greater an arm's IoU is than another's, over the seeds that both have."""
        return self._once(arm, other)

    def choose_arm(self, first: bool = False) -> str | None:
        """The mixed arm with the best mean IoU on held-out training tiles, or simply the first.

        Arms are compared over the seeds that all of them have; the earlier wins a tie. None where
        there is no such arm or seed.
        """
        mixed = [arm for arm in self._runs if mix_of(arm) is not None and not is_control(arm)]
        shared = set.intersection(*(set(self._runs[arm]) for arm in mixed)) if mixed else set()
        if not shared:
            return None
        if first:
            return mixed[0]
        return max(mixed, key=lambda arm: self.inner_miou(arm, shared))

    def room(self) -> tuple[str, Summary] | None:
        """The arm with labels that the others lack, and what it gains; None without such an arm.

        Of several ratios, the best on validation tiles: it is a bound, and nothing is chosen by it.
        """
        oracles = [arm for arm in self._runs if is_oracle(arm) and self._shared(arm, REAL)]
        if not oracles:
            return None
        best = max(oracles, key=lambda arm: self.difference(arm).miou.value)
        return best, self.difference(best)

    def inner_miou(self, arm: str, seeds: Collection[int] | None = None) -> float:
        """An arm's mean IoU on the held-out training tiles, averaged over seeds; all by default."""
        runs = self._runs[arm]
        return float(np.mean([runs[seed].inner_miou for seed in sorted(seeds or runs)]))

    def inner_gains(self, arm: str) -> list[float]:
        """An arm's IoU of every class on the held-out training tiles, less that of real only.

        Averaged over the seeds that both have and whose held-out tiles hold the class; NaN for a
        class without such a seed.
        """
        ours, real, seeds = self._runs[arm], self._runs.get(REAL, {}), self._shared(arm, REAL)
        gains = [ours[seed].inner_iou - real[seed].inner_iou for seed in seeds]
        columns = np.array(gains).reshape(len(seeds), len(self.occurs)).T
        means: list[float] = mean_over(columns, np.ones(len(seeds), bool)).tolist()
        return means

    def _once(self, arm: str, other: str | None) -> Summary:
        """Computes a summary once: report and pictures ask for the same figures."""
        if (arm, other) not in self._summaries:
            self._summaries[arm, other] = self._summary(arm, other)
        return self._summaries[arm, other]

    def _shared(self, arm: str, other: str | None) -> list[int]:
        seeds = set(self._runs[arm])
        return sorted(seeds if other is None else seeds & set(self._runs.get(other, {})))

    def _values(self, arm: str, other: str | None, seeds: Sequence[int], weights: Floats) -> Floats:
        """IoU or its difference by draw, seed and class, for weights of groups (draws, G)."""
        values = self._iou(arm, seeds, weights)
        return values if other is None else values - self._iou(other, seeds, weights)

    def _iou(self, arm: str, seeds: Sequence[int], weights: Floats) -> Floats:
        runs = [self._runs[arm][seed] for seed in seeds]
        hits = np.tensordot(weights, np.stack([run.hits for run in runs]), (1, 1))
        return iou_of(hits, np.tensordot(weights, np.stack([run.union for run in runs]), (1, 1)))

    def _summary(self, arm: str, other: str | None) -> Summary:
        seeds = self._shared(arm, other)
        if not seeds:
            return Summary(_NOTHING, _NOTHING, [_NOTHING] * len(self.occurs), [], [])
        rng = np.random.default_rng(0)  # the same draws for all arms and calls
        groups, runs = len(self.groups), len(seeds)
        weights = rng.multinomial(groups, np.full(groups, 1 / groups), self.draws).astype(float)
        of_seeds = rng.multinomial(runs, np.full(runs, 1 / runs), self.draws) / runs
        observed = self._values(arm, other, seeds, np.ones((1, groups)))[0]
        drawn = self._values(arm, other, seeds, weights)
        mious, drawn_mious = mean_over(observed, self.occurs), mean_over(drawn, self.occurs)
        classes = [
            _estimate(observed[:, c], drawn[:, :, c], of_seeds, int(self.group_counts[c]))
            if self.occurs[c]
            else _NOTHING
            for c in range(len(self.occurs))
        ]
        miou = _estimate(mious, drawn_mious, of_seeds, groups)
        rare = _NOTHING
        if self._rare.any():
            means = mean_over(observed, self._rare), mean_over(drawn, self._rare)
            rare = _estimate(*means, of_seeds, self._rare_groups)
        return Summary(miou, rare, classes, seeds, mious.tolist())


def _estimate(observed: Floats, drawn: Floats, of_seeds: Floats, groups: int) -> Estimate:
    """The estimate and its interval.

    Args:
        observed: The figure of every seed, shape (S,).
        drawn: The same with resampled groups, shape (draws, S).
        of_seeds: Weights of resampled seeds, shape (draws, S), rows summing to 1.
        groups: How many location groups it rests on.
    """
    from scipy.stats import t

    value, seeds = float(observed.mean()), len(observed)
    if min(seeds, groups) < 2:
        return Estimate(value, math.nan, math.nan)
    # A draw may leave out all groups that hold a rare class, which then has no IoU in it.
    both = np.nansum(drawn * of_seeds, 1)[~np.isnan(drawn).any(1)]
    alone = drawn.mean(1)
    variance = both.var() + observed.var() / seeds / (seeds - 1) + np.nanvar(alone) / (groups - 1)
    reach = float(t.ppf((1 + _LEVEL) / 2, min(seeds, groups) - 1) * math.sqrt(variance))
    return Estimate(value, value - reach, value + reach)


def _parts(counts: npt.NDArray[np.int64] | Floats) -> tuple[Floats, Floats, Floats]:
    """Hits, union and true pixels of every class from matrices (T, C, C), each (T, C)."""
    values = counts.astype(np.float64)
    hits = np.diagonal(values, axis1=1, axis2=2)
    true, predicted = values.sum(2), values.sum(1)
    return hits, true + predicted - hits, true


def _by_group(pixels: Floats, group: npt.NDArray[np.int64]) -> Floats:
    """Sums of rows (T, C) by their group, shape (G, C)."""
    totals = np.zeros((int(group.max()) + 1, pixels.shape[1]))
    np.add.at(totals, group, pixels)
    return totals
