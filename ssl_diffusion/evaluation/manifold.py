"""Fidelity and diversity of a set of features against real ones, by nearest neighbours.

The manifold of a set is the union of balls around its features, each as wide as the distance to the
k-th nearest other feature of the set. Improved precision and recall (Kynkaanniemi et al. 2019,
arXiv 1904.06991), density and coverage (Naeem et al. 2020, arXiv 2002.09797), as
shares in [0, 1] but for the density:

    precision  of samples that lie in the manifold of the real features
    recall     of real features that lie in the manifold of the samples
    density    how many real balls a sample lies in, over k, on average; of equal distributions 1
    coverage   of real balls that hold a sample; of equal distributions, sets of n samples and m
               real: 1 - product over i = 1 .. k of (m - i) / (m + n - i)

A feature on the surface of a ball is inside. All depend on k and on the sizes of both sets: compare
at the same ones only.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from ssl_diffusion.errors import InputError

ROWS, COLUMNS = 1024, 8192  # a block of distances takes 32 MiB
# Of a feature's so many nearest neighbours, half a set misses all but k - 1 once in 10^7 (k = 5).
CANDIDATES_PER_NEIGHBOUR = 8


@dataclasses.dataclass(frozen=True)
class ManifoldShares:
    """One value of each measure for each pair of subsets."""

    precision: Float64[np.ndarray, " s"]
    recall: Float64[np.ndarray, " s"]
    density: Float64[np.ndarray, " s"]
    coverage: Float64[np.ndarray, " s"]


def precision_recall(
    samples: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m e"], k: int = 3
) -> tuple[float, float]:
    """Improved precision and recall; 3 is the k of the paper. Raises InputError as below."""
    shares = _of_whole_sets(samples, real, k)
    return float(shares.precision[0]), float(shares.recall[0])


def density_coverage(
    samples: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m e"], k: int = 5
) -> tuple[float, float]:
    """Density and coverage; 5 is the k of the paper. Raises InputError as below."""
    shares = _of_whole_sets(samples, real, k)
    return float(shares.density[0]), float(shares.coverage[0])


def _of_whole_sets(samples: np.ndarray, real: np.ndarray, k: int) -> ManifoldShares:
    every = np.ones((1, len(samples)), bool), np.ones((1, len(real)), bool)
    return manifold_shares(samples, real, k, *every)


def manifold_shares(
    samples: Float[np.ndarray, "n d"],
    real: Float[np.ndarray, "m e"],
    k: int,
    in_samples: Bool[np.ndarray, "s n"],
    in_real: Bool[np.ndarray, "s m"],
) -> ManifoldShares:
    """All four of s pairs of subsets at once: every distance is computed once only.

    Subsets are whole sets, or halves of them. Memory beyond the inputs is that of a block and of
    the nearest neighbours' distances, 8 k for each feature.

    Raises InputError for different dimensions, or unless each subset has more than k features.
    """
    if samples.shape[1] != real.shape[1]:
        raise InputError(
            f"features of {samples.shape[1]} and of {real.shape[1]} dimensions cannot be compared; "
            "embed both with one network"
        )
    n, m = in_samples.sum(axis=1), in_real.sum(axis=1)
    if min(n.min(), m.min()) <= k:
        raise InputError(
            f"the {k} nearest others of each feature in sets of {n.min()} and {m.min()}, expected "
            f"more than {k} in each; use more images"
        )
    # From their centre, |x|^2 + |y|^2 - 2 x.y loses less to rounding.
    centre = real.mean(axis=0)
    samples, real = samples - centre, real - centre
    radius_samples = _radii(samples, in_samples, k)
    radius_real = _radii(real, in_real, k)
    widest_samples, widest_real = radius_samples.max(axis=0), radius_real.max(axis=0)

    precise, recalled = np.zeros(in_samples.shape, bool), np.zeros(in_real.shape, bool)
    covered, balls = np.zeros(in_real.shape, bool), np.zeros(len(n))
    for rows in _blocks(len(samples), ROWS):
        for columns in _blocks(len(real), COLUMNS):
            squared = _squared(samples[rows], real[columns])
            # A pair outside of the widest balls is so in every subset; few are left.
            i, j = np.nonzero(
                squared <= np.maximum(widest_samples[rows, None], widest_real[None, columns])
            )
            squared = squared[i, j]
            i, j = i + rows.start, j + columns.start
            for s in range(len(n)):
                both = in_samples[s, i] & in_real[s, j]
                in_ball_of_real = both & (squared <= radius_real[s, j])
                in_ball_of_sample = both & (squared <= radius_samples[s, i])
                precise[s, i[in_ball_of_real]] = True
                covered[s, j[in_ball_of_real]] = True
                recalled[s, j[in_ball_of_sample]] = True
                balls[s] += np.count_nonzero(in_ball_of_real)
    return ManifoldShares(
        precision=precise.sum(axis=1) / n,
        recall=recalled.sum(axis=1) / m,
        density=balls / (k * n),
        coverage=covered.sum(axis=1) / m,
    )


def _radii(
    features: Float[np.ndarray, "n d"], chosen: Bool[np.ndarray, "s n"], k: int
) -> Float[np.ndarray, "s n"]:
    """Squared distance of each feature to the k-th nearest other one of each subset."""
    squared, index = _nearest_others(features, min(CANDIDATES_PER_NEIGHBOUR * k, len(features) - 1))
    radii = np.empty(chosen.shape, squared.dtype)
    for s, in_subset in enumerate(chosen):
        rank = np.cumsum(in_subset[index], axis=1)
        kth = np.where(rank[:, -1] >= k, (rank >= k).argmax(axis=1), -1)
        radii[s] = squared[np.arange(len(kth)), kth]
    return radii


def _nearest_others(
    features: Float[np.ndarray, "n d"], count: int
) -> tuple[Float[np.ndarray, "n count"], Int[np.ndarray, "n count"]]:
    """Squared distances to each feature's nearest others, rising, and which they are."""
    distances = np.empty((len(features), count), features.dtype)
    indices = np.empty((len(features), count), np.int64)
    for rows in _blocks(len(features), ROWS):
        own = np.arange(rows.start, rows.stop)
        nearest = np.empty((len(own), 0), features.dtype)
        index = np.empty((len(own), 0), np.int64)
        for columns in _blocks(len(features), COLUMNS):
            squared = _squared(features[rows], features[columns])
            here = (columns.start <= own) & (own < columns.stop)
            squared[here, own[here] - columns.start] = np.inf
            if (few := min(count, squared.shape[1])) < squared.shape[1]:
                best = np.argpartition(squared, few, axis=1)[:, :few]
            else:
                best = np.broadcast_to(np.arange(few), squared.shape)
            nearest = np.hstack([nearest, np.take_along_axis(squared, best, axis=1)])
            index = np.hstack([index, best + columns.start])
            order = np.argsort(nearest, axis=1)[:, :count]
            nearest = np.take_along_axis(nearest, order, axis=1)
            index = np.take_along_axis(index, order, axis=1)
        distances[rows], indices[rows] = nearest, index
    return distances, indices


def _squared(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Squared distances, in the features' own float32 or float64."""
    squared = x @ y.T
    squared *= -2
    squared += np.einsum("nd,nd->n", x, x)[:, None]
    squared += np.einsum("nd,nd->n", y, y)
    return squared


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
