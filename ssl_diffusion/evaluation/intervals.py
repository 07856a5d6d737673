"""Numbers with their 95 % intervals: bootstraps, and subsampling where a bootstrap is biased.

Means take a bootstrap over images or over whole grids (Efron 1979). A resample holds items twice,
and what compares a set with itself or fits it (distances, nearest neighbours, covariances) sees
that: duplicates have distance 0, and lower the rank of a covariance. Such numbers take random
halves and their complements, drawn without replacement (Politis & Romano 1994; the delete-half
jackknife of Shao & Wu 1989). By the correction for drawing from a finite set, the spread over
halves is that of the whole over fresh sets, where what each item adds is linear: Var(half | set) =
(2/n - 1/n) a = a / n.

A distance between sets that hardly differ is not linear but of second order (degenerate, Hoeffding
1948, Serfling 1980, ch. 5): its variance is a / n + b / n^2, and that of halves a / n + 3 b / n^2,
three times as much where a = 0. The two halves T, T' of a split tell both parts: E ((T - T') / 2)^2
= a / n + 2 b / n^2, and (T + T') / 2 is spread around the whole by b / n^2.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

DRAWS = 1000
SPLITS = 25  # into halves; a standard error of so many is itself known to 14 %
COVERED = 0.95  # by an interval, of bootstrap draws
ROUNDING = 1e-9  # what sums of equal numbers differ by is no luck


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval, None where a single one tells of none."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: float, draws: Float[np.ndarray, " draws"]) -> "Estimate":
        """The percentile interval of bootstrap draws; draws that are NaN (no such cell) are not."""
        draws = draws[np.isfinite(draws)]
        if not len(draws) or not np.isfinite(value) or np.ptp(draws) == 0:
            return cls(float(value), None, None)
        tail = (1 - COVERED) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return cls(float(value), float(low), float(high))

    @classmethod
    def around(
        cls,
        value: float,
        draws: Float[np.ndarray, " draws"],
        lowest: float = 0.0,
        highest: float = np.inf,
    ) -> "Estimate":
        """Two standard errors, the draws' spread, on either side; within what is possible.

        For draws whose mean is not the value: a resample holds items twice, which raises every
        distance; a half has a larger bias than the whole. The interval is one of the mean over
        sets of this size: what bias the value itself has is in it.
        """
        if len(draws) < 2 or (error := float(np.std(draws, ddof=1))) == 0:
            return cls(float(value), None, None)
        low, high = value - 1.96 * error, value + 1.96 * error
        return cls(float(value), float(max(low, lowest)), float(min(high, highest)))

    @classmethod
    def of_splits(
        cls, value: float, halves: Float[np.ndarray, "splits 2"], lowest: float = 0.0
    ) -> "Estimate":
        """Of a distance between sets, by its values on both halves of each split.

        The variance is that of the difference of halves less that of their mean (see above; never
        less than half of the former); a t interval, since few splits know it badly.
        """
        if len(halves) < 2:
            return cls(float(value), None, None)
        linear = float(np.mean((halves[:, 0] - halves[:, 1]) ** 2)) / 4
        variance = max(linear - float(np.var(halves.mean(axis=1), ddof=1)), linear / 2)
        if variance == 0:
            return cls(float(value), None, None)
        half = stats.t.ppf((1 + COVERED) / 2, len(halves) - 1) * np.sqrt(variance)
        return cls(float(value), float(max(value - half, lowest)), float(value + half))

    @classmethod
    def share(cls, hits: int, count: int) -> "Estimate":
        """A share of independent ones with its exact interval (Clopper & Pearson 1934)."""
        found = stats.binomtest(hits, count).proportion_ci(COVERED, method="exact")
        return cls(hits / count, float(found.low), float(found.high))

    @classmethod
    def over_seeds(
        cls,
        of_seeds: Float[np.ndarray, " seeds"],
        draws: Float[np.ndarray, " draws"],
        units: int,
        lowest: float = -np.inf,
        highest: float = np.inf,
    ) -> "Estimate":
        """The mean over a few trainings, each tested on the same few slides.

        Args:
          of_seeds: the value of each training.
          draws: of the mean over trainings, bootstrapped over the slides (patches, blocks) that
            were tested; draws that are NaN are not.
          units: how many of these there are.
          lowest, highest: that are possible.

        Variances of both kinds of luck add up; so few trainings and slides know their own spread
        badly, for which a t interval is wider than a bootstrap's (degrees of freedom of Welch 1947
        and Satterthwaite 1946). A single training tells nothing of the luck of trainings.
        """
        value, trainings = float(of_seeds.mean()), len(of_seeds)
        draws = draws[np.isfinite(draws)]
        tested = draws.var(ddof=1) * units / (units - 1) if len(draws) > 1 and units > 1 else 0.0
        trained = of_seeds.var(ddof=1) / trainings if trainings > 1 else 0.0
        off = np.abs(np.concatenate([of_seeds, draws]) - value)
        if not np.isfinite(value) or not (off > ROUNDING).any():
            return cls(value, None, None)
        freedom = (tested + trained) ** 2 / (
            tested**2 / max(units - 1, 1) + trained**2 / max(trainings - 1, 1)
        )
        half = stats.t.ppf((1 + COVERED) / 2, freedom) * np.sqrt(tested + trained)
        return cls(value, float(max(value - half, lowest)), float(min(value + half, highest)))


def bootstrap_mean(values: Float[np.ndarray, " n"], seed: int = 0) -> Estimate:
    """The mean of values and its percentile interval; none of a single value, or of equal ones."""
    counts = resamples(len(values), seed=seed)
    return Estimate.of(float(values.mean()), counts @ values / len(values))


def half_samples(
    count: int, splits: int = SPLITS, seed: int = 0
) -> Bool[np.ndarray, "splits 2 count"]:
    """Which of `count` items are in each half of random splits: count // 2 of them in both."""
    order = np.random.default_rng(seed).random((splits, count)).argsort(axis=1)
    first, second = order < count // 2, order >= count - count // 2
    return np.stack([first, second], axis=1)


def resamples(count: int, draws: int = DRAWS, seed: int = 0) -> Int[np.ndarray, "draws count"]:
    """How often each of `count` items (images, grids) is in each bootstrap draw."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)


def evenly(count: int, most: int) -> Int[np.ndarray, " n"]:
    """Indices of at most `most` of `count` items, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))
