"""Spatial coherence: how alike are cells of a grid at a distance, against real and shuffled ones?

A prior that samples every cell by itself gets every Frechet distance of single cells right. What
it cannot have is neighbours that belong together.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from ssl_diffusion.evaluation.grids import GridSet
from ssl_diffusion.evaluation.intervals import Estimate, resamples


@dataclasses.dataclass(frozen=True)
class Coherence:
    """Correlation of cells by their distance: the mean cosine of pairs, seen from a centre.

    distances    cells: 1, 2, 4, ... below the sides of the grids
    horizontal   of pairs in one row, an Estimate for each distance that the set has pairs of
    vertical     of pairs in one column
    draws        the same of each bootstrap draw: [draws, 2, distances], NaN without pairs
    """

    distances: tuple[int, ...]
    horizontal: tuple[Estimate, ...]
    vertical: tuple[Estimate, ...]
    curve: Float[np.ndarray, "2 k"]
    draws: Float[np.ndarray, "draws 2 k"]

    def numbers(self) -> dict:
        """What the report holds of it."""
        named = {"horizontal": self.horizontal, "vertical": self.vertical}
        return {"distances": list(self.distances)} | {
            name: [dataclasses.asdict(one) for one in curve] for name, curve in named.items()
        }


def coherence(grids: GridSet, centre: Float[np.ndarray, " d"], seed: int = 0) -> Coherence:
    """The correlation of cells at 1, 2, 4, ... cells, horizontally and vertically.

    For a field whose cells have unit vectors from the centre with correlation rho(distance), it is
    rho; for independent cells 0 when the centre is their mean. Distances with pairs in no grid, or
    in one direction alone, are NaN there.

    Args:
      grids: of one set.
      centre: the mean of the real training cells that the set is compared with.
      seed: of the bootstrap; sets that are compared take another each.
    """
    unit, present = grids.directions(centre), grids.present
    longest = max(present.shape[1:])
    distances = tuple(2**k for k in range(longest.bit_length()) if 2**k < longest)
    weights = resamples(len(grids), seed=seed)
    curve, draws = (np.full((*n, 2, len(distances)), np.nan) for n in ((), (len(weights),)))
    for axis in (0, 1):  # horizontal, vertical
        along = 2 - axis
        for k, distance in enumerate(distances):
            span = present.shape[along] - distance
            if span < 1:
                continue
            near, far = (
                [slice(None)] * along + [slice(start, start + span)] for start in (0, distance)
            )
            cosine = np.einsum("nrcd,nrcd->n", unit[*near], unit[*far], dtype=np.float64)
            pairs = (present[*near] & present[*far]).sum(axis=(1, 2))
            with np.errstate(invalid="ignore", divide="ignore"):
                curve[axis, k] = cosine.sum() / pairs.sum()
                draws[:, axis, k] = (weights @ cosine) / (weights @ pairs)
    horizontal, vertical = (
        tuple(Estimate.of(float(curve[axis, k]), draws[:, axis, k]) for k in range(len(distances)))
        for axis in (0, 1)
    )
    return Coherence(distances, horizontal, vertical, curve, draws)


def coherence_gap(first: Coherence, second: Coherence) -> Estimate:
    """Mean absolute difference of two sets' curves over directions and distances: 0 to 2."""
    known = np.isfinite(first.curve) & np.isfinite(second.curve)
    if not known.any():
        return Estimate(float("nan"), None, None)

    def gap(one: Float[np.ndarray, "m 2 k"], other: Float[np.ndarray, "m 2 k"]) -> np.ndarray:
        return np.nanmean(np.abs(one - other)[:, known], axis=1)

    return Estimate.around(
        float(gap(first.curve[None], second.curve[None])[0]), gap(first.draws, second.draws)
    )
