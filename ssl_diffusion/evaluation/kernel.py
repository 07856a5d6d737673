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

BLOCK = 2048  # rows of both sets; a block of the kernel matrix takes 16 MiB
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
) -> Float64[np.ndarray, " s"]:
    """`kernel_distance` of s pairs of subsets at once: every kernel value is computed once only.

    Memory beyond the inputs is that of a block. Products are float32 on float32 features; sums
    over blocks are float64.

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
    chosen = np.zeros((2, len(in_x), len(x) + len(y)), np.float32)
    chosen[0, :, : len(x)], chosen[1, :, len(x) :] = in_x, in_y
    sums = _sums(x, y, chosen)
    return sums[0, 0] / (n * (n - 1)) + sums[1, 1] / (m * (m - 1)) - 2 * sums[0, 1] / (n * m)


def _kernel(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    cube = base * base
    cube *= base
    return cube


def _sums(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], chosen: Float[np.ndarray, "2 s both"]
) -> Float64[np.ndarray, "2 2 s"]:
    """[a, b]: over pairs of two different features, the first chosen by a, the second by b.

    Both sets are gone through as one: a product of a block with itself costs half of another.
    """
    total = np.zeros((2, *chosen.shape[:2]))
    for rows in _blocks(chosen.shape[2]):
        first = _joined(x, y, rows)
        for columns in _blocks(rows.stop):
            same = columns == rows
            kernel = _kernel(first, first if same else _joined(x, y, columns))
            if same:
                np.fill_diagonal(kernel, 0)
            sums = np.tensordot(kernel, chosen[:, :, columns].astype(kernel.dtype), (1, 2))
            part = np.einsum("asr,rbs->abs", chosen[:, :, rows], sums, dtype=np.float64)
            total += part if same else part + part.swapaxes(0, 1)
    return total


def _joined(x: np.ndarray, y: np.ndarray, rows: slice) -> Float[np.ndarray, "k d"]:
    """Rows of both sets, the one after the other."""
    return np.concatenate([x[rows], y[max(rows.start - len(x), 0) : max(rows.stop - len(x), 0)]])


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))
