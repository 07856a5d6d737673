"""Does an image show what its embedding asked for? Similarity and retrieval, with controls."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.features import directions


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Similarity in [-1, 1] and retrieval in [0, 1] of `count` images; `_se` is a standard error.

    similarity       cosine of the image's embedding with the one asked for, both from the centre
    retrieval_at_1   share of images whose most similar gallery embedding is the one asked for
    ..._shuffled     the same had each image been asked for another patch, averaged over every
                     other patch of the gallery
    chance           retrieval_at_1 of a guess
    """

    count: int
    chance: float
    similarity: float
    similarity_se: float
    similarity_shuffled: float
    similarity_shuffled_se: float
    retrieval_at_1: float
    retrieval_at_1_se: float
    retrieval_at_1_shuffled: float


def agreement(
    images: Float[np.ndarray, "n d"],
    gallery: Float[np.ndarray, "m d"],
    wanted: Int[np.ndarray, " n"],
    centre: Float[np.ndarray, " d"],
) -> Agreement:
    """Compares the embedding of each image with gallery[wanted], the embedding it was made from.

    The shuffled control is exact: shift the wanted index around the gallery by 1, 2, ... m-1 and
    average, which is every other patch in turn. For retrieval that mean is (1 - hit) / (m - 1).
    Raises InputError when the gallery holds fewer than two embeddings.
    """
    if len(gallery) < 2:
        raise InputError(f"{len(gallery)} real embedding(s) to retrieve from, expected at least 2")
    cosine = directions(images, centre) @ directions(gallery, centre).T
    own = np.take_along_axis(cosine, wanted[:, None], axis=1)[:, 0]
    other = (cosine.sum(axis=1) - own) / (len(gallery) - 1)
    hit = retrieved(images, gallery, wanted, centre)
    return Agreement(
        count=len(images),
        chance=1 / len(gallery),
        similarity=float(own.mean()),
        similarity_se=mean_standard_error(own),
        similarity_shuffled=float(other.mean()),
        similarity_shuffled_se=mean_standard_error(other),
        retrieval_at_1=float(hit.mean()),
        retrieval_at_1_se=share_standard_error(float(hit.mean()), len(hit)),
        retrieval_at_1_shuffled=float((1 - hit).mean() / (len(gallery) - 1)),
    )


def retrieved(
    images: Float[np.ndarray, "n d"],
    gallery: Float[np.ndarray, "m d"],
    wanted: Int[np.ndarray, " n"],
    centre: Float[np.ndarray, " d"],
) -> Float[np.ndarray, " n"]:
    """1 where the gallery embedding most similar to the image's is the wanted one, else 0."""
    cosine = directions(images, centre) @ directions(gallery, centre).T
    return (cosine.argmax(axis=1) == wanted).astype(np.float64)


def paired_similarity(
    first: Float[np.ndarray, "n d"],
    second: Float[np.ndarray, "n d"],
    centre: Float[np.ndarray, " d"],
) -> Float[np.ndarray, " n"]:
    """Cosine from the centre of each embedding with its partner."""
    return (directions(first, centre) * directions(second, centre)).sum(axis=1)


def mean_standard_error(values: Float[np.ndarray, " n"]) -> float:
    """Standard error of a mean: what a bootstrap over the values converges to. 0 for one value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def share_standard_error(share: float, count: int) -> float:
    """Binomial standard error of a share of `count`."""
    return float(np.sqrt(share * (1 - share) / count))
