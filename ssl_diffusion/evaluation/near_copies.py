"""Copies of training patches, found in two steps: embeddings, then pixels.

The nearest training patches of a sample in embedding space are its candidates; their pixels decide
(registration.py), so that a new patch of a familiar kind is none, and a copy that is flipped,
turned, shifted or encoded again is one. Where pixels agree too well to be chance is learned from
real held-out patches, which copy nothing, in the same way: a threshold that few of them are over,
from one half of them, reported on the other.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt8
from tqdm import tqdm

from ssl_diffusion.data.records import Records
from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.features import directions, one_vector
from ssl_diffusion.evaluation.intervals import Estimate
from ssl_diffusion.evaluation.registration import CEILING, best_correlation

# Of patches side by side: a copy shifted by a quarter of a patch has its source among the nearest
# 64 nine times of ten (of 16, six times of ten); where training patches overlap, 16 do.
CANDIDATES = 64
FLAGGED = 0.003  # of real held-out patches: well below the 1 % that few of them can show
TAIL = 0.2  # of their agreements, from which the threshold is extrapolated
LEAST = 10  # held-out patches

Embed = Callable[[UInt8[np.ndarray, "n p p 3"]], Float[np.ndarray, "n d"]]


@dataclasses.dataclass(frozen=True)
class TrainingPatches:
    """What a model was trained on.

    embeddings  gives, each time it is called, chunks [m, d] of all of them in order, made by the
                `embed` that samples are embedded with
    image       gives the pixels of one of them, uint8 [p, p, 3]
    """

    embeddings: Callable[[], Iterable[Float[np.ndarray, "m d"]]]
    image: Callable[[int], UInt8[np.ndarray, "p p 3"]]

    @classmethod
    def of(cls, records: Records, split: str = "train") -> "TrainingPatches":
        """Those of records, with the embeddings that are stored there."""
        vectors, images = records.source(split, ("embedding",)), records.source(split, ("image",))
        return cls(
            embeddings=lambda: (
                one_vector(chunk, f"records, split {split}")
                for chunk in vectors.chunks("embedding")
            ),
            image=lambda index: images[index]["image"],
        )


@dataclasses.dataclass(frozen=True)
class NearCopies:
    """What was found for each of n samples, and what for real held-out patches.

    nearest           index of the nearest training patch in embedding space
    distance          to it, 1 - cosine from the mean training embedding, 0 to 2
    distance_ratio    that over the median of the held-out patches: about 1 for new patches, 0 for
                      copies
    match             index of the candidate whose pixels agree best
    agreement         how well they do, see registration.py, 0 to 0.999
    flagged           whether that is over the threshold
    threshold         agreement that FLAGGED of the held-out patches are over
    held_out_flagged  share of the half of them that had no say in the threshold
    held_out_count    how many that half has
    """

    nearest: Int[np.ndarray, " n"]
    distance: Float[np.ndarray, " n"]
    distance_ratio: Float[np.ndarray, " n"]
    match: Int[np.ndarray, " n"]
    agreement: Float[np.ndarray, " n"]
    flagged: Bool[np.ndarray, " n"]
    threshold: float
    held_out_flagged: float
    held_out_count: int

    @property
    def held_out_share(self) -> Estimate:
        """`held_out_flagged` with its exact interval."""
        return Estimate.share(
            round(self.held_out_flagged * self.held_out_count), self.held_out_count
        )

    def shown(self, most: int = 8) -> list[tuple[int, int]]:
        """(sample, training patch) of the samples that agree best, flagged or not, best first."""
        order = np.argsort(-self.agreement, kind="stable")[:most]
        return [(int(i), int(self.match[i])) for i in order]


def find_copies(
    samples: UInt8[np.ndarray, "n p p 3"],
    embed: Embed,
    train: TrainingPatches,
    calibration: UInt8[np.ndarray, "m q q 3"],
    candidates: int = CANDIDATES,
) -> NearCopies:
    """Looks for every sample among the training patches; `calibration` are held-out patches.

    The training embeddings are read twice (their mean, then the nearest), the pixels of candidates
    once. Raises InputError for patches of another size than the training set's, and for too few
    held-out patches to calibrate with.
    """
    first = train.image(0)
    for name, images in (("samples", samples), ("held-out patches", calibration)):
        if images.shape[1:] != first.shape:
            raise InputError(
                f"{name} of {images.shape[1]} px, but training patches of {first.shape[0]} px; "
                "look for copies among patches of one size"
            )
    if len(calibration) < 2 * LEAST:
        raise InputError(
            f"{len(calibration)} held-out patches, expected at least {2 * LEAST} to learn how well "
            "real patches agree by chance; give more"
        )
    both = np.concatenate([calibration, samples])
    similarity, index = _nearest(embed(both), train, candidates)
    agreement, match = _agreements(both, index, train)
    held_out, agreement = np.split(agreement, [len(calibration)])
    distance = np.maximum(1 - similarity[:, 0], 0)
    usual, distance = np.split(distance, [len(calibration)])
    # Every second one: neighbours in a record set lie side by side in a slide.
    threshold = chance_threshold(held_out[::2])
    return NearCopies(
        nearest=index[len(calibration) :, 0],
        distance=distance,
        distance_ratio=distance / max(float(np.median(usual)), 1e-12),
        match=match[len(calibration) :],
        agreement=agreement,
        flagged=agreement > threshold,
        threshold=threshold,
        held_out_flagged=float((held_out[1::2] > threshold).mean()),
        held_out_count=len(held_out[1::2]),
    )


def chance_threshold(agreements: Float[np.ndarray, " m"]) -> float:
    """The agreement that one in 1 / FLAGGED new patches is over.

    From Fisher's z of the highest TAIL of them, whose excess is taken as exponential (Pickands
    1975, shape 0): a quantile by rank would need hundreds of patches.
    """
    z = np.arctanh(np.minimum(agreements.astype(np.float64), CEILING))
    start = np.quantile(z, 1 - TAIL)
    excess = (z[z > start] - start).mean() if (z > start).any() else 0.0
    # An exact copy is one, whatever real patches do.
    return float(min(np.tanh(start + excess * np.log(TAIL / FLAGGED)), 0.99))


def _nearest(
    queries: Float[np.ndarray, "n d"], train: TrainingPatches, count: int
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Cosines from the mean training embedding, falling, and indices of the nearest patches."""
    total, passed = np.zeros(queries.shape[1]), 0
    for chunk in train.embeddings():
        total, passed = total + chunk.sum(axis=0, dtype=np.float64), passed + len(chunk)
    centre = (total / max(passed, 1)).astype(queries.dtype)
    unit = directions(queries, centre)
    similarity = np.empty((len(queries), 0), queries.dtype)
    index, passed = np.empty((len(queries), 0), np.int64), 0
    for chunk in train.embeddings():
        cosine = unit @ directions(chunk, centre).T
        here = np.broadcast_to(np.arange(passed, passed + len(chunk)), cosine.shape)
        similarity, index = np.hstack([similarity, cosine]), np.hstack([index, here])
        best = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
        similarity = np.take_along_axis(similarity, best, axis=1)
        index = np.take_along_axis(index, best, axis=1)
        passed += len(chunk)
    return similarity, index


def _agreements(
    images: UInt8[np.ndarray, "n p p 3"], index: Int[np.ndarray, "n k"], train: TrainingPatches
) -> tuple[Float64[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Of each image with that of its candidates it agrees with best, and which this is."""
    best, match = np.empty(len(images)), np.empty(len(images), np.int64)
    for i in tqdm(range(len(images)), desc="looking for copies", unit="patch", leave=False):
        others = np.stack([train.image(j) for j in index[i].tolist()])
        own = np.broadcast_to(images[i], others.shape)
        found = best_correlation(np.ascontiguousarray(own), others)
        best[i], match[i] = found.max(), index[i, found.argmax()]
    return best, match
