"""Diversity: are the samples of one condition as different as real grids of it are?"""

import dataclasses

import numpy as np
from jaxtyping import Float

from ssl_diffusion.evaluation.grids import GridSet
from ssl_diffusion.evaluation.intervals import Estimate, resamples


@dataclasses.dataclass(frozen=True)
class Diversity:
    """Mean cosine distance of pairs (0 to 2), of samples over that of real grids: 1 is as diverse.

    grid_means   of the means of two grids
    cells        of a cell of one grid and a cell of another
    within       of two cells of one grid
    """

    grid_means: Estimate
    cells: Estimate
    within: Estimate


def diversity(samples: GridSet, real: GridSet, centre: Float[np.ndarray, " d"]) -> Diversity:
    """Of samples of one condition, relative to real grids of the same; NaN below two grids.

    All pairs are counted: the sum of a.b over pairs of different grids is |sum a|^2 - sum |a|^2.
    A grid that a bootstrap draw holds twice is no pair with itself, so the values have no bias
    from the number of grids. `centre` is the mean of real training cells.
    """
    ours, theirs = (_distances(grids, centre, seed) for seed, grids in enumerate((samples, real)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return Diversity(
            *(
                Estimate.of(value / against if against else float("nan"), draws / draws_against)
                for (value, draws), (against, draws_against) in zip(ours, theirs, strict=True)
            )
        )


def _distances(
    grids: GridSet, centre: Float[np.ndarray, " d"], seed: int
) -> list[tuple[float, np.ndarray]]:
    """(value, bootstrap draws) of the three distances."""
    unit = grids.directions(centre).astype(np.float64)
    sums, counts = unit.sum(axis=(1, 2)), grids.present.sum(axis=(1, 2))
    squares = (sums**2).sum(axis=1)
    offset = sums_of_cells(grids, centre) / np.maximum(counts, 1)[:, None]
    length = np.linalg.norm(offset, axis=1, keepdims=True)
    means = offset / np.maximum(length, 1e-12)
    some = (counts > 0).astype(np.float64)

    def between(weights: np.ndarray, vectors: np.ndarray, counts: np.ndarray) -> np.ndarray:
        own = weights**2
        dots = ((weights @ vectors) ** 2).sum(-1) - own @ (vectors**2).sum(axis=1)
        return 1 - dots / ((weights @ counts) ** 2 - own @ counts**2)

    def within(weights: np.ndarray) -> np.ndarray:
        return 1 - (weights @ (squares - counts)) / (weights @ (counts * (counts - 1)))

    # The first row is the set as it is, the others are draws.
    weights = np.concatenate([np.ones((1, len(grids))), resamples(len(grids), seed=seed)])
    with np.errstate(invalid="ignore", divide="ignore"):
        found = between(weights, means, some), between(weights, sums, counts), within(weights)
    return [(float(values[0]), values[1:]) for values in found]


def sums_of_cells(grids: GridSet, centre: Float[np.ndarray, " d"]) -> Float[np.ndarray, "n d"]:
    """The sum of each grid's cells, from the centre."""
    offset = np.where(grids.present[..., None], grids.cells - centre, 0)
    return offset.sum(axis=(1, 2), dtype=np.float64)
