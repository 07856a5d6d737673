"""Does an image show what its embedding asked for? Similarity and retrieval, with controls."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.features import directions
from ssl_diffusion.evaluation.intervals import Estimate, bootstrap_mean

BLOCK = 2048  # images compared with the gallery at once: bounds the memory


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What each of n images has in common with the embedding it was made from.

    similarity           cosine with the embedding asked for, both from the centre, in [-1, 1]
    similarity_shuffled  its mean over every other embedding of the gallery
    retrieved            1 where the most similar of the gallery is the one asked for, else 0
    gallery              how many embeddings there were to retrieve from
    """

    similarity: Float[np.ndarray, " n"]
    similarity_shuffled: Float[np.ndarray, " n"]
    retrieved: Float64[np.ndarray, " n"]
    gallery: int

    def numbers(self) -> dict[str, Any]:
        """With 95 % intervals: a bootstrap over the images, and an exact one of the share."""
        return {
            "similarity": estimated(self.similarity),
            "retrieval_at_1": share(self.retrieved > 0),
        }

    def shuffled_numbers(self) -> dict[str, Any]:
        """The same had each image been asked for another patch, averaged over every other one.

        Exact: shift the wanted index around the gallery by 1, 2, ... m-1 and average. For retrieval
        that mean is (1 - hit) / (m - 1).
        """
        return {
            "similarity": estimated(self.similarity_shuffled),
            "retrieval_at_1": estimated((1 - self.retrieved) / (self.gallery - 1)),
        }


def agreement(
    images: Float[np.ndarray, "n d"],
    gallery: Float[np.ndarray, "m d"],
    wanted: Int[np.ndarray, " n"],
    centre: Float[np.ndarray, " d"],
) -> Agreement:
    """Compares the embedding of each image with gallery[wanted], the embedding it was made from.

    Raises InputError when the gallery holds fewer than two embeddings.
    """
    if len(gallery) < 2:
        raise InputError(f"{len(gallery)} real embedding(s) to retrieve from, expected at least 2")
    seen, found = directions(images, centre), directions(gallery, centre)
    own, other, best = (np.zeros(len(images), kind) for kind in (np.float32, np.float32, int))
    for start in range(0, len(images), BLOCK):
        rows = slice(start, start + BLOCK)
        cosine = seen[rows] @ found.T
        own[rows] = np.take_along_axis(cosine, wanted[rows, None], axis=1)[:, 0]
        other[rows] = (cosine.sum(axis=1) - own[rows]) / (len(gallery) - 1)
        best[rows] = cosine.argmax(axis=1)
    return Agreement(own, other, (best == wanted).astype(np.float64), len(gallery))


def joined(parts: Sequence[Agreement]) -> Agreement:
    """The images of several galleries (of one size, say the grids of several images) together."""
    return Agreement(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("similarity", "similarity_shuffled", "retrieved")
        ),
        gallery=round(np.mean([part.gallery for part in parts])),
    )


def paired_similarity(
    first: Float[np.ndarray, "n d"],
    second: Float[np.ndarray, "n d"],
    centre: Float[np.ndarray, " d"],
) -> Float[np.ndarray, " n"]:
    """Cosine from the centre of each embedding with its partner."""
    return (directions(first, centre) * directions(second, centre)).sum(axis=1)


def estimated(values: Float[np.ndarray, " n"]) -> dict[str, float | None]:
    """The mean and its bootstrap interval, as report.json holds them."""
    return dataclasses.asdict(bootstrap_mean(values.astype(np.float64)))


def share(hits: Bool[np.ndarray, " n"]) -> dict[str, float | None]:
    """The share of hits and its exact interval: that of none, or of all, is one too."""
    return dataclasses.asdict(Estimate.share(int(hits.sum()), len(hits)))
