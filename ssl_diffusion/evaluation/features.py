"""Embeddings as the measures see them: one finite vector per image, directions from a centre."""

import numpy as np
from jaxtyping import Float

from ssl_diffusion.errors import InputError


def one_vector(embedding: Float[np.ndarray, "n t d"], what: str) -> Float[np.ndarray, "n t*d"]:
    """The tokens of each image end to end. Raises InputError naming `what` if one is not finite.

    A NaN would pass silently otherwise: it loses every comparison, so retrieval merely looks poor.
    """
    vectors = np.asarray(embedding).reshape(len(embedding), -1)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(
            f"{what}: {len(bad)} of {len(vectors)} embeddings hold NaN or infinity "
            f"(first at index {bad[0]}), expected finite numbers; make them again"
        )
    return vectors


def directions(
    vectors: Float[np.ndarray, "n d"], centre: Float[np.ndarray, " d"]
) -> Float[np.ndarray, "n d"]:
    """Unit vectors from `centre` (the mean training embedding) to each embedding.

    Without the subtraction the component that all patches of a slide share dominates the cosine,
    and any two patches look alike.
    """
    offset = vectors - centre
    return offset / np.maximum(np.linalg.norm(offset, axis=1, keepdims=True), 1e-12)
