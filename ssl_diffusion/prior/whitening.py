"""Embeddings <-> numbers of unit variance that a denoiser can work on."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from ssl_diffusion.errors import InputError

Either = Array | np.ndarray
SMALLEST = 1e-5  # variance of a component, over the largest: what is below is float16's rounding


class Whitening(NamedTuple):
    """Principal components, each divided by its standard deviation.

    Attributes:
      mean: [d] of the embeddings, whose tokens are one vector.
      whiten: [d, k] white = (embedding - mean) @ whiten.
      colour: [k, d] embedding = mean + white @ colour.
    """

    mean: Float[Either, " d"]
    whiten: Float[Either, "d k"]
    colour: Float[Either, "k d"]

    def to_white(self, embedding: Float[Either, "*n tokens dim"]) -> Float[Either, "*n k"]:
        """White components of embeddings."""
        flat = embedding.reshape(*embedding.shape[:-2], -1)
        return (flat - self.mean) @ self.whiten

    def to_embedding(
        self, white: Float[Either, "*n k"], tokens: int
    ) -> Float[Either, "*n {tokens} dim"]:
        """Embeddings of white components."""
        flat = self.mean + white @ self.colour
        return flat.reshape(*flat.shape[:-1], tokens, -1)


def fit_whitening(
    embedding: Float[np.ndarray, "n tokens dim"], components: int
) -> tuple[Whitening, float]:
    """(whitening by at most so many components, the share of the variance that they hold).

    Components whose variance is below 1e-5 of the largest are left out. Raises InputError where
    there are no more embeddings than components, or all are the same.
    """
    flat = embedding.reshape(len(embedding), -1).astype(np.float64)
    count = min(components, flat.shape[1])
    if len(flat) <= count:
        raise InputError(
            f"{len(flat)} training embeddings for {count} components; expected more: take fewer, "
            "by config.model.components, or more records"
        )
    mean = flat.mean(0)
    variance, vectors = np.linalg.eigh(np.cov(flat - mean, rowvar=False).reshape(flat.shape[1], -1))
    if variance[-1] <= 0:
        raise InputError("all training embeddings are the same; there is nothing to learn")
    kept = np.flatnonzero(variance > SMALLEST * variance[-1])[::-1][:count]
    deviation = np.sqrt(variance[kept])
    arrays = mean, vectors[:, kept] / deviation, (vectors[:, kept] * deviation).T
    share = float(variance[kept].sum() / variance.sum())
    return Whitening(*(array.astype(np.float32) for array in arrays)), share
