"""Kernel distance between two sets of features (Binkowski et al. 2018, arXiv 1801.01401).

    k(x, y) = (x . y / d + 1)^3
    MMD^2   = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

the unbiased estimate of eq. 4: 0 on average where both sets are of one distribution, so that
single values may be below 0, and, unlike a Frechet distance, comparable between set sizes. In an
Inception network's space it is the KID.

THE number of a report is `kernel_distance`: all pairs, no drawing. `subset_kernel_distance` is what
papers mostly quote, the mean of the same over 100 random subsets of 1000: it has the same
expectation and a larger error.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float64

from ssl_diffusion.errors import InputError

BLOCK = 2048  # rows; a block of the kernel matrix takes 16 MiB
SUBSETS, SUBSET_SIZE = 100, 1000


def kernel_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m e"]) -> float:
    """The unbiased MMD^2 over all pairs. Raises InputError below two features, or for other d."""
    every = np.ones((1, len(x)), bool), np.ones((1, len(y)), bool)
    return float(kernel_distances(x, y, *every)[0])


def subset_kernel_distance(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m e"],
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = 0,
) -> float:
    """The published block estimate: the mean over random subsets (each without replacement).

    Smaller sets are taken as they are: then it is `kernel_distance` of as many of both.
    """
    size = min(size, len(x), len(y))
    rng = np.random.default_rng(seed)
    values = [
        kernel_distance(
            x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)]
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values))


def kernel_distances(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m e"],
    in_x: Bool[np.ndarray, "s n"],
    in_y: Bool[np.ndarray, "s m"],
    within_y: Float64[np.ndarray, " s"] | None = None,
) -> Float64[np.ndarray, " s"]:
    """`kernel_distance` of s pairs of subsets at once: every kernel value is computed once only.

    Memory beyond the inputs is that of a block. Products are float32 on float32 features; sums
    over blocks are float64. `within_y` is `sums_within(y, in_y)` where many sets have one y.

    Raises InputError for different dimensions, or below two features in a subset.
    """
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"features of {x.shape[1]} and of {y.shape[1]} dimensions cannot be compared; "
            "embed both with one network"
        )
    n, m = in_x.sum(axis=1, dtype=np.float64), in_y.sum(axis=1, dtype=np.float64)
    if min(n.min(), m.min()) < 2:
        raise InputError(
            f"a kernel distance of {int(n.min())} and {int(m.min())} features, expected at least "
            "2 of each; use more images"
        )
    within_x = sums_within(x, in_x)
    within_y = sums_within(y, in_y) if within_y is None else within_y
    between = _sums_between(x, y, in_x, in_y)
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)


def _kernel(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    cube = base * base
    cube *= base
    return cube


def sums_within(
    x: Float[np.ndarray, "n d"], chosen: Bool[np.ndarray, "s n"]
) -> Float64[np.ndarray, " s"]:
    """Sums of the kernel over pairs of two different features of each subset."""
    total = np.zeros(len(chosen))
    for rows in _blocks(len(x)):
        own = _kernel(x[rows], x[rows])
        np.fill_diagonal(own, 0)
        total += _weighted(own, chosen[:, rows], chosen[:, rows])
        for columns in _blocks(rows.start):  # the kernel is symmetric: half of it
            other = _kernel(x[rows], x[columns])
            total += 2 * _weighted(other, chosen[:, rows], chosen[:, columns])
    return total


def _sums_between(x, y, in_x, in_y) -> Float64[np.ndarray, " s"]:
    total = np.zeros(len(in_x))
    for rows in _blocks(len(x)):
        for columns in _blocks(len(y)):
            total += _weighted(_kernel(x[rows], y[columns]), in_x[:, rows], in_y[:, columns])
    return total


def _weighted(
    kernel: Float[np.ndarray, "n m"],
    rows: Bool[np.ndarray, "s n"],
    columns: Bool[np.ndarray, "s m"],
) -> Float64[np.ndarray, " s"]:
    """The sum of the kernel over rows x columns of each subset."""
    sums = kernel @ columns.T.astype(kernel.dtype)  # [n s]
    return np.einsum("sn,ns->s", rows, sums, dtype=np.float64)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))
