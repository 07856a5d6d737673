"""Does a sample show what was asked for? Judged by models fitted to real training data alone."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.grids import GridSet
from ssl_diffusion.evaluation.intervals import Estimate, resamples

SHUFFLES = 200
MOST_CELLS = 50_000  # that a probe is fitted to; more change little and take minutes


class Probe:
    """A logistic regression that tells the class of a cell; classes weigh alike (balanced)."""

    def __init__(
        self,
        cells: Float[np.ndarray, "n d"],
        labels: Int[np.ndarray, " n"],
        classes: Sequence[str],
        seed: int = 0,
    ):
        """Fits it to real training cells.

        Args:
          cells: embeddings of real training cells.
          labels: index into `classes` of each, -1 for cells that are left out.
          classes: names of the classes.
          seed: of the draw where there are more than 50,000 cells.

        Raises:
          InputError: cells of one class only.
        """
        from sklearn.linear_model import LogisticRegression  # a second to import
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        known = np.flatnonzero(labels >= 0)
        if len(known) > MOST_CELLS:
            known = np.random.default_rng(seed).choice(known, MOST_CELLS, replace=False)
        found = np.unique(labels[known])
        if len(found) < 2:
            raise InputError(
                f"real training cells of {len(found)} of the classes {', '.join(classes)}; "
                "expected two or more to tell apart"
            )
        self.classes, self.known = tuple(classes), tuple(found.tolist())
        self._model = make_pipeline(
            StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
        ).fit(cells[known], labels[known])

    def cells(self, grids: GridSet) -> Int[np.ndarray, "n rows cols"]:
        """The class of each cell; -1 where it is not present."""
        found = np.full(grids.present.shape, -1)
        if grids.present.any():
            found[grids.present] = self._model.predict(grids.flat())
        return found

    def grids(self, grids: GridSet) -> Int[np.ndarray, "n 1 1"]:
        """The class of each grid: the largest mean probability over its cells; -1 for none."""
        found = np.full((len(grids), 1, 1), -1)
        some = grids.present.any(axis=(1, 2))
        if some.any():
            sums = np.zeros((len(grids), len(self.known)))
            of_cells = self._model.predict_proba(grids.flat())
            np.add.at(sums, np.nonzero(grids.present)[0], of_cells)
            found[some, 0, 0] = np.array(self.known)[sums[some].argmax(axis=1)]
        return found


@dataclasses.dataclass(frozen=True)
class Told:
    """How well the classes found are those that were asked for.

    accuracy             share of cells; its chance depends on how often each class is asked for
    balanced             mean over the classes asked for of the share of its cells: whoever gives
                         all the same has 1 / classes asked for at most
    shuffled             `accuracy` had each grid been asked for what another was: mean and 95 % of
                         shuffles; so `shuffled_balanced`
    chance               of `balanced`, for a guess among all classes
    grids, cells         that were counted
    """

    accuracy: Estimate
    balanced: Estimate
    shuffled: Estimate
    shuffled_balanced: Estimate
    chance: float
    grids: int
    cells: int


def told(
    found: Int[np.ndarray, "n rows cols"],
    asked: Int[np.ndarray, "n rows cols"],
    among: int,
    seed: int = 0,
) -> Told:
    """Compares classes of cells, of `among` there are; where either is -1 the cell is not counted.

    Intervals of accuracies are of a bootstrap over grids. For one class per grid, give [n, 1, 1].
    Raises InputError where nothing is left to count.
    """
    classes = np.unique(asked[asked >= 0])

    def tables(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Right cells and counted cells, [grids, classes asked for]."""
        counted = (asked[..., None] == classes) & (found >= 0)[..., None]
        right = counted & (found == asked)[..., None]
        return right.sum(axis=(1, 2)), counted.sum(axis=(1, 2))

    right, counted = tables(asked)
    if not counted.sum():
        raise InputError("no cell with both a class asked for and a class found")

    def scores(right: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(accuracy, balanced accuracy) of each sum over grids: [sums, classes]."""
        with np.errstate(invalid="ignore", divide="ignore"):
            each = right / counted
        some = counted > 0
        balanced = np.where(some, each, 0).sum(axis=-1) / np.maximum(some.sum(axis=-1), 1)
        return right.sum(axis=-1) / np.maximum(counted.sum(axis=-1), 1), balanced

    weights = resamples(len(found), seed=seed)
    (accuracy,), (balanced,) = scores(right.sum(axis=0)[None], counted.sum(axis=0)[None])
    accuracy_draws, balanced_draws = scores(weights @ right, weights @ counted)
    rng = np.random.default_rng(seed)
    summed = [
        [table.sum(axis=0) for table in tables(asked[rng.permutation(len(asked))])]
        for _ in range(SHUFFLES)
    ]
    shuffled, shuffled_balanced = scores(*(np.stack(part) for part in zip(*summed, strict=True)))
    return Told(
        accuracy=Estimate.of(float(accuracy), accuracy_draws),
        balanced=Estimate.of(float(balanced), balanced_draws),
        shuffled=Estimate.of(float(shuffled.mean()), shuffled),
        shuffled_balanced=Estimate.of(float(shuffled_balanced.mean()), shuffled_balanced),
        chance=1 / among,
        grids=int((counted.sum(axis=1) > 0).sum()),
        cells=int(counted.sum()),
    )


def within_grids(asked: Int[np.ndarray, "n rows cols"], seed: int = 0) -> Int[np.ndarray, "n r c"]:
    """What each grid was asked for, its cells in an order of chance: a layout that is ignored."""
    rng = np.random.default_rng(seed)
    flat = asked.reshape(len(asked), -1)
    return rng.permuted(flat, axis=1).reshape(asked.shape)


def r2(predicted: Float[np.ndarray, "n k"], true: Float[np.ndarray, "n k"]) -> float:
    """Share of variance explained, averaged over the k statistics that vary; at most 1.

    1 - sum (true - predicted)^2 / sum (true - mean)^2 of each. 0 is the mean of `true`. Raises
    InputError where none varies.
    """
    spread = ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    vary = spread > 1e-12 * np.maximum((true**2).sum(axis=0), 1e-300)
    if not vary.any():
        raise InputError("none of the statistics varies: there is nothing to explain")
    error = ((true - predicted) ** 2).sum(axis=0)
    return float((1 - error[vary] / spread[vary]).mean())


def linear_baseline(
    vectors: Float[np.ndarray, "m v"],
    statistics: Float[np.ndarray, "m k"],
    held_out: Float[np.ndarray, "n v"],
) -> Float[np.ndarray, "n k"]:
    """Statistics of held-out vectors as a ridge regression of the training ones predicts them.

    The penalty is the best of 13 by leave-one-out error on the training data.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-3, 5, 13)))
    predicted = model.fit(vectors, statistics).predict(held_out)
    return predicted.reshape(len(held_out), -1).astype(statistics.dtype)
