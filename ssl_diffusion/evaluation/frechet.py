"""Frechet distance between Gaussians fitted to two sets of embeddings (Heusel et al. 2017, eq. 6).

    d^2 = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1^1/2 C2 C1^1/2)^1/2)

In an Inception network's space this is the FID; here it is taken in that of the project's own
encoder, which gives another number that must not be compared with a published FID.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Float64
from scipy.linalg.lapack import dpstrf

from ssl_diffusion.errors import InputError

ROWS = 4096  # of embeddings that are in float64 at a time


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of a set of embeddings in float64; `a + b` is the union of two sets.

    Adding the moments of chunks streams over any number of images with memory d * d
    (Chan, Golub & LeVeque 1979, eq. 2.1), without the cancellation of summing raw squares.
    """

    count: int
    mean: Float64[np.ndarray, " d"]
    scatter: Float64[np.ndarray, "d d"]  # sum of outer products of (embedding - mean)

    @classmethod
    def zero(cls, dim: int) -> "Moments":
        """The moments of no embedding, where a stream starts."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, embeddings: Float[np.ndarray, "n d"]) -> "Moments":
        """The moments of any number of embeddings; memory beyond them is d * d."""
        if not len(embeddings):
            return cls.zero(embeddings.shape[1])
        moments = cls.zero(embeddings.shape[1])
        for start in range(0, len(embeddings), ROWS):
            values = embeddings[start : start + ROWS].astype(np.float64)
            values -= (mean := values.mean(axis=0))
            # Of one array with itself, NumPy computes one half (BLAS syrk).
            moments = moments + cls(len(values), mean, values.T @ values)
        return moments

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        between = np.outer(shift, shift) * (self.count * other.count / count)
        return type(self)(
            count, self.mean + shift * (other.count / count), self.scatter + other.scatter + between
        )

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """Unbiased covariance. Raises InputError below two embeddings."""
        if self.count < 2:
            raise InputError(
                f"{self.count} embedding(s) have no covariance, expected at least 2; "
                "use more patches"
            )
        return self.scatter / (self.count - 1)

    @functools.cached_property
    def factor(self) -> Float64[np.ndarray, "d r"]:
        """F with F F^T = covariance, a column per direction that varies: r < d when count <= d.

        Cholesky's, with pivots, so that it ends where what is left is rounding; 20 times as fast
        as eigenvectors are.
        """
        lower, order, rank, _ = dpstrf(self.covariance, lower=1)
        factor = np.empty((len(order), rank))
        factor[order - 1] = np.tril(lower)[:, :rank]  # LAPACK counts from 1
        return factor


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared Frechet distance of two Gaussians, in squared units of the embedding. At least 0.

    The last trace is the nuclear norm of F1^T F2, whatever factors C = F F^T are taken. So no root
    of a non-symmetric or singular matrix is needed, and fewer embeddings than dimensions are safe
    (the value is then biased upwards: compare only sets of the same size).

    Raises InputError for different dimensions, or below two embeddings.
    """
    if first.mean.shape != second.mean.shape:
        raise InputError(
            f"embeddings of {len(first.mean)} and of {len(second.mean)} dimensions "
            "cannot be compared; embed both with one encoder"
        )
    shift = first.mean - second.mean
    between = first.factor.T @ second.factor
    if between.shape[0] > between.shape[1]:
        between = between.T
    # Its singular values. Those of the product with itself are squares, and 7 times as fast; what
    # squaring loses is below 1e-7 of the distance where covariances span 13 orders of magnitude.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(between @ between.T), 0)).sum()
    spread = np.trace(first.covariance) + np.trace(second.covariance)
    return float(max(shift @ shift + spread - 2 * cross, 0.0))
