"""Copying: how near is each image to the training set, and how would a plain copy have scored?

A generator that returns a training patch scores well on every embedding metric. So two things stand
beside those: what the nearest training patch would score in the sample's place, and whether samples
lie nearer to the training set than real held-out patches do, which only a copying model achieves.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from ssl_diffusion.evaluation.agreement import estimated
from ssl_diffusion.evaluation.features import directions
from ssl_diffusion.evaluation.intervals import DRAWS, Estimate, resamples

NEAREST = 0.05  # of real patches, that samples may not be nearer than
ROUNDING = 1e-6  # of 1 - cosine in float32: what is nearer is the same


class NearestTraining:
    """The training embeddings nearest to each query (largest cosines from the centre), of a stream.

    similarity [n k]  cosines, falling; of at most `count` of them
    index [n k]       their positions in the stream
    """

    def __init__(
        self, queries: Float[np.ndarray, "n d"], centre: Float[np.ndarray, " d"], count: int = 1
    ) -> None:
        self._centre, self._count = centre, count
        self._queries = directions(queries, centre)
        self._seen = 0
        self.similarity = np.empty((len(queries), 0), self._queries.dtype)
        self.index = np.empty((len(queries), 0), np.int64)

    def update(self, chunk: Float[np.ndarray, "m d"]) -> None:
        """Takes the next chunk of training embeddings; memory is n * m for its time only."""
        cosine = self._queries @ directions(chunk, self._centre).T
        best = np.argpartition(cosine, -min(self._count, len(chunk)), axis=1)[:, -self._count :]
        index = np.hstack([self.index, best + self._seen])
        similarity = np.hstack([self.similarity, np.take_along_axis(cosine, best, axis=1)])
        order = np.argsort(-similarity, axis=1, kind="stable")[:, : self._count]
        self.similarity = np.take_along_axis(similarity, order, axis=1)
        self.index = np.take_along_axis(index, order, axis=1)
        self._seen += len(chunk)


def copying(
    samples: Float[np.ndarray, " n"],
    real: Float[np.ndarray, " m"],
    copies: Float[np.ndarray, " k"] | None = None,
    *,
    paired: bool = False,
) -> dict[str, Any]:
    """Sums up the similarities (cosines) with the nearest training embedding of three sets.

    With `paired`, sample i was made of real patch i: the two are resampled together. Distances are
    1 - cosine; every number is a mean with its bootstrap interval:

    sample_distance    generated images
    real_distance      real held-out patches: what images that were never trained on look like
    copy_distance      training patches through the autoencoder: what a copy would look like; absent
                       without `copies`
    distance_ratio     the first over the second: 1 for a model that does not copy, 0 for a copier;
                       None where the real ones are copies themselves
    closer_than_real   share of samples nearer to the training set than the nearest 5 % of real
                       patches are: 0.05 for a model that copies by chance only, 1 for a copier; the
                       control is the same of the real ones, 0.05 up to the grain of a quantile,
                       which has no interval
    """
    samples, real = 1 - samples, 1 - real
    numbers: dict[str, Any] = {
        "sample_distance": estimated(samples),
        "real_distance": estimated(real),
        "distance_ratio": (
            dataclasses.asdict(_ratio(samples, real, paired))
            if np.median(real) > ROUNDING
            else None
        ),
        "closer_than_real": dataclasses.asdict(_closer(samples, real)),
        "closer_than_real_control": dataclasses.asdict(
            Estimate(_share_below_quantile(real, real), None, None)
        ),
    }
    if copies is not None:
        numbers["copy_distance"] = estimated(1 - copies)
    return numbers


def _ratio(
    samples: Float[np.ndarray, " n"], real: Float[np.ndarray, " m"], paired: bool
) -> Estimate:
    """Ratio of the means, resampled together or independently."""
    above = resamples(len(samples), seed=0) @ samples / len(samples)
    below = resamples(len(real), seed=0 if paired else 1) @ real / len(real)
    with np.errstate(divide="ignore", invalid="ignore"):  # no ratio to patches that are copies
        return Estimate.of(float(samples.mean() / real.mean()), above / below)


def _share_below_quantile(
    values: Float[np.ndarray, " n"], reference: Float[np.ndarray, " m"]
) -> float:
    return float((values < np.quantile(reference, NEAREST)).mean())


def _closer(samples: Float[np.ndarray, " n"], real: Float[np.ndarray, " m"]) -> Estimate:
    """The share of samples nearer than a quantile of the real ones, which is uncertain itself.

    Each bootstrap draw of the real ones has its own quantile, by which the samples' share is drawn
    from its posterior (Jeffreys' prior): so that a share of none has an interval, too.
    """
    rng, count = np.random.default_rng(0), len(samples)
    ordered = np.sort(samples)
    limits = [
        np.quantile(real[rng.integers(len(real), size=len(real))], NEAREST) for _ in range(DRAWS)
    ]
    hits = np.searchsorted(ordered, limits)
    draws = rng.beta(hits + 0.5, count - hits + 0.5)
    return Estimate.of(_share_below_quantile(samples, real), draws)
