"""Copying: how near is each image to the training set, and how would a plain copy have scored?

A generator that returns a training patch scores well on every embedding metric. So two things stand
beside those: what the nearest training patch would score in the sample's place, and whether samples
lie nearer to the training set than real held-out patches do, which only a copying model achieves.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from ssl_diffusion.evaluation.agreement import mean_standard_error, share_standard_error
from ssl_diffusion.evaluation.features import directions


class NearestTraining:
    """The training embedding nearest to each query (largest cosine from the centre), over a stream.

    similarity [n]   cosine with the nearest training embedding
    index [n]        its position in the stream
    embedding [n d]  itself
    """

    def __init__(self, queries: Float[np.ndarray, "n d"], centre: Float[np.ndarray, " d"]) -> None:
        self._centre = centre
        self._queries = directions(queries, centre)
        self._seen = 0
        self.similarity = np.full(len(queries), -np.inf)
        self.index = np.full(len(queries), -1)
        self.embedding = np.full_like(queries, np.nan)

    def update(self, chunk: Float[np.ndarray, "m d"]) -> None:
        """Takes the next chunk of training embeddings; memory is n * m for its time only."""
        cosine = self._queries @ directions(chunk, self._centre).T
        best = cosine.argmax(axis=1)
        value = cosine[np.arange(len(best)), best]
        nearer = value > self.similarity
        self.similarity[nearer] = value[nearer]
        self.index[nearer] = self._seen + best[nearer]
        self.embedding[nearer] = chunk[best[nearer]]
        self._seen += len(chunk)


@dataclasses.dataclass(frozen=True)
class Copying:
    """Distance to the nearest training patch, 1 - cosine from the centre, and its errors.

    sample_distance    generated images
    real_distance      real held-out patches: what images that were never trained on look like
    copy_distance      training patches through the autoencoder: what a copy would look like
    closer_than_real   share of samples nearer to the training set than the nearest 5 % of real
                       patches are: 0.05 for a model that copies by chance only, 1 for a copier; the
                       control is the same of the real ones, 0.05 up to the grain of a quantile
    """

    sample_distance: float
    sample_distance_se: float
    real_distance: float
    real_distance_se: float
    copy_distance: float
    copy_distance_se: float
    closer_than_real: float
    closer_than_real_se: float
    closer_than_real_control: float


def copying(
    samples: Float[np.ndarray, " n"], real: Float[np.ndarray, " m"], copies: Float[np.ndarray, " k"]
) -> Copying:
    """Sums up the similarities with the nearest training embedding of the three kinds of images."""
    samples, real, copies = 1 - samples, 1 - real, 1 - copies
    limit = np.quantile(real, 0.05)
    closer = float((samples < limit).mean())
    return Copying(
        sample_distance=float(samples.mean()),
        sample_distance_se=mean_standard_error(samples),
        real_distance=float(real.mean()),
        real_distance_se=mean_standard_error(real),
        copy_distance=float(copies.mean()),
        copy_distance_se=mean_standard_error(copies),
        closer_than_real=closer,
        closer_than_real_se=share_standard_error(closer, len(samples)),
        closer_than_real_control=float((real < limit).mean()),
    )
