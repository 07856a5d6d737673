"""Balanced accuracy and AUC of classifiers, and differences of two on the same test patches.

Intervals are of a t distribution (`Estimate.over_seeds`): over seeds (which patches were labelled,
how training went) and over units (slides, blocks) of the test patches, which are resampled alike
for all classifiers. Differences are paired.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.evaluation.intervals import Estimate, resamples

METRICS = ("balanced_accuracy", "auc")


@dataclass(frozen=True)
class Scored:
    """A metric, from `lowest` to 1: of each seed, and draws of their mean, `units` resampled."""

    of_seeds: Float[np.ndarray, " seeds"]
    draws: Float[np.ndarray, " draws"]
    units: int
    lowest: float = 0.0

    def told(self) -> dict[str, Any]:
        """value, low, high, the standard deviation over seeds, and each seed's."""
        estimate = Estimate.over_seeds(self.of_seeds, self.draws, self.units, self.lowest, 1.0)
        spread = float(self.of_seeds.std(ddof=1)) if len(self.of_seeds) > 1 else None
        return asdict(estimate) | {"seed_sd": spread, "seeds": self.of_seeds.tolist()}

    def minus(self, other: "Scored") -> dict[str, Any]:
        """The same of the paired difference."""
        of_seeds, draws = self.of_seeds - other.of_seeds, self.draws - other.draws
        return Scored(of_seeds, draws, self.units, lowest=-1.0).told()


class Judge:
    """Scores probabilities for one set of test patches."""

    def __init__(self, labels: Int[np.ndarray, " n"], units: Int[np.ndarray, " n"], seed: int = 0):
        """`labels` are the true classes, 0 or more; `units` number from 0 what is resampled."""
        self._labels, self._units = labels, units
        self._count = int(units.max()) + 1
        self._classes = np.unique(labels)
        self._weights = resamples(self._count, seed=seed).astype(np.float64)

    def score(self, runs: list[Float[np.ndarray, "n classes"]]) -> dict[str, Scored]:
        """By metric; `runs` are the probabilities of each seed's classifier."""
        scored = {}
        for name, measure in zip(METRICS, (self._balanced, self._auc), strict=True):
            values, draws = zip(*map(measure, runs), strict=True)
            scored[name] = Scored(np.array(values), np.mean(draws, axis=0), self._count)
        return scored

    def _balanced(self, run: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean over the classes of the share of its patches that are found."""
        is_class = self._labels[:, None] == self._classes
        right = is_class & (run.argmax(axis=1) == self._labels)[:, None]
        found, there = (self._by_unit(table.astype(np.float64)) for table in (right, is_class))
        return self._mean_ratio(found, there)

    def _auc(self, run: np.ndarray) -> tuple[float, np.ndarray]:
        """Area under the ROC curve, each class against the rest, mean over classes.

        The share of pairs of a patch of the class and another that are in the right order (Hanley
        & McNeil 1982), ties half: summed by pairs of units, resamples are products of matrices.
        """
        values, draws = [], []
        for c in self._classes:
            positive = self._labels == c
            wins = self._wins(run[:, c], positive)
            pairs = np.outer(
                *(self._by_unit(m[:, None] * 1.0)[:, 0] for m in (positive, ~positive))
            )
            values.append(wins.sum() / pairs.sum())
            sums = (
                ((self._weights @ table) * self._weights).sum(axis=1) for table in (wins, pairs)
            )
            with np.errstate(invalid="ignore", divide="ignore"):
                draws.append(np.divide(*sums))
        return float(np.mean(values)), np.mean(draws, axis=0)

    def _wins(self, scores: np.ndarray, positive: np.ndarray) -> Float[np.ndarray, "units units"]:
        """Pairs in the right order, by the unit of the positive and that of the other."""
        wins = np.zeros((self._count, self._count))
        own, own_units = scores[positive], self._units[positive]
        for unit in np.unique(self._units[~positive]):
            others = np.sort(scores[~positive & (self._units == unit)])
            below = np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")
            wins[:, unit] = np.bincount(own_units, below / 2, minlength=self._count)
        return wins

    def _by_unit(self, table: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "units c"]:
        sums = np.zeros((self._count, table.shape[1]))
        np.add.at(sums, self._units, table)
        return sums

    def _mean_ratio(self, found: np.ndarray, there: np.ndarray) -> tuple[float, np.ndarray]:
        value = float((found.sum(axis=0) / there.sum(axis=0)).mean())
        with np.errstate(invalid="ignore", divide="ignore"):
            each = (self._weights @ found) / (self._weights @ there)
        return value, each.mean(axis=1)  # NaN where a class was not drawn: no draw
