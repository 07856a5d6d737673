"""Copying: how near is each grid to the training grids, cell against cell at the same position?"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.evaluation.grids import GridSet
from ssl_diffusion.evaluation.intervals import Estimate, resamples

COMMON = 0.5  # of a grid's cells must be present in a training grid too, to be compared
QUANTILE = 0.01


@dataclasses.dataclass(frozen=True)
class Nearest:
    """Of each query: mean cosine distance to the nearest training grid (0 to 2), and which it is.

    Infinity and -1 where no training grid has enough cells in common.
    """

    distance: Float[np.ndarray, " n"]
    index: Int[np.ndarray, " n"]


def nearest_grids(
    queries: GridSet, train: Iterable[GridSet], centre: Float[np.ndarray, " d"]
) -> Nearest:
    """Looks through chunks of training grids of the same shape.

    The distance is 1 - cosine from the centre, averaged over the cells that both have; half of the
    query's cells at least. Memory is that of the queries, of one chunk, and queries x chunk.
    """

    def flat(grids: GridSet) -> tuple[np.ndarray, np.ndarray]:
        unit = grids.directions(centre).astype(np.float32)
        return unit.reshape(len(grids), -1), grids.present.reshape(len(grids), -1).astype(
            np.float32
        )

    unit, present = flat(queries)
    least = np.maximum(COMMON * present.sum(axis=1, keepdims=True), 1)
    distance, index, passed = np.full(len(unit), np.inf), np.full(len(unit), -1), 0
    for chunk in train:
        other, other_present = flat(chunk)
        common = present @ other_present.T
        between = 1 - (unit @ other.T) / np.maximum(common, 1)
        between[common < least] = np.inf
        best = between.argmin(axis=1)
        value = between[np.arange(len(unit)), best]
        nearer = value < distance
        distance[nearer], index[nearer] = value[nearer], passed + best[nearer]
        passed += len(chunk)
    return Nearest(np.maximum(distance, 0), index)


def copying_numbers(
    samples: Float[np.ndarray, " n"], held_out: Float[np.ndarray, " m"], seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Distances to the nearest training grid of samples against real held-out grids.

    median, median_held_out   of the distances
    ratio                     of the medians: 1 is as far as new real grids, 0 a copy
    nearer                    share of samples nearer than the 1st percentile of held-out grids
    nearer_held_out           the same of the held-out grids: 0.01 up to the grain of a percentile

    Distances that are infinite (nothing to compare with) are left out.
    """
    samples, held_out = samples[np.isfinite(samples)], held_out[np.isfinite(held_out)]
    if not len(samples) or not len(held_out):
        return {}
    rng = np.random.default_rng(seed)

    def medians(values: np.ndarray) -> np.ndarray:
        draws = len(resamples(1))
        return np.median(rng.choice(values, (draws, len(values))), axis=1)

    draws, draws_held_out = medians(samples), medians(held_out)
    median, median_held_out = float(np.median(samples)), float(np.median(held_out))
    limit = np.quantile(held_out, QUANTILE)
    nearer = samples < limit
    share = resamples(len(samples), seed=seed) @ nearer / len(samples)
    ratio = median / median_held_out if median_held_out else float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = draws / draws_held_out
    estimates = {
        "median": Estimate.of(median, draws),
        "median_held_out": Estimate.of(median_held_out, draws_held_out),
        "ratio": Estimate.of(ratio, ratios),
        "nearer": Estimate.of(float(nearer.mean()), share),
        "nearer_held_out": Estimate(float((held_out < limit).mean()), None, None),
    }
    return {name: dataclasses.asdict(estimate) for name, estimate in estimates.items()}
