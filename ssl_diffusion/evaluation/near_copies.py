"""Copies of training patches, found in two steps: embeddings, then pixels.

The nearest training patches of a sample in embedding space are its candidates; their pixels decide
(registration.py), so that a new patch of a familiar kind is none, and a copy that is flipped,
turned, shifted or encoded again is one. Where pixels agree too well to be chance is learned from
real held-out patches, which copy nothing, in the same way: a threshold that few of them are over,
from one half of them, reported on the other.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt8
from tqdm import tqdm

from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.registration import CEILING, best_correlation

# Of patches side by side: a copy shifted by a quarter of a patch has its source among the nearest
# 64 nine times of ten (of 16, six times of ten); where training patches overlap, 16 do.
CANDIDATES = 64
FLAGGED = 0.003  # of real held-out patches: well below the 1 % that few of them can show
TAIL = 0.2  # of their agreements, from which the threshold is extrapolated
LEAST = 10  # held-out patches

TrainingImage = Callable[[int], UInt8[np.ndarray, "p p 3"]]


@dataclasses.dataclass(frozen=True)
class Patches:
    """Patches and, for each, the training patches that may be its source.

    images      [n, p, p, 3]
    candidates  [n, k] indices of the nearest in embedding space, CANDIDATES where there are as many
    """

    images: UInt8[np.ndarray, "n p p 3"]
    candidates: Int[np.ndarray, "n k"]


@dataclasses.dataclass(frozen=True)
class NearCopies:
    """What was found for each of n samples, and what for real held-out patches.

    match             index of the candidate whose pixels agree best
    agreement         how well they do, see registration.py, 0 to 0.999
    flagged           whether that is over the threshold
    threshold         agreement that FLAGGED of the held-out patches are over
    held_out_flagged  the same, of the half of the held-out patches that had no say in the threshold
    """

    match: Int[np.ndarray, " n"]
    agreement: Float[np.ndarray, " n"]
    flagged: Bool[np.ndarray, " n"]
    threshold: float
    held_out_flagged: Bool[np.ndarray, " m"]

    def shown(self, most: int = 8) -> list[tuple[int, int]]:
        """(sample, training patch) of the samples that agree best, flagged or not, best first."""
        order = np.argsort(-self.agreement, kind="stable")[:most]
        return [(int(i), int(self.match[i])) for i in order]


def find_copies(samples: Patches, held_out: Patches, training: TrainingImage) -> NearCopies:
    """Looks for every sample among the training patches that are near to it.

    `training` gives the pixels of one of them; every candidate's are read once. Raises InputError
    for patches of another size than the training set's, and for too few held-out ones to tell what
    chance does.
    """
    first = training(0)
    for name, patches in (("samples", samples), ("held-out patches", held_out)):
        if patches.images.shape[1:] != first.shape:
            raise InputError(
                f"{name} of {patches.images.shape[1]} px, but training patches of "
                f"{first.shape[0]} px; look for copies among patches of one size"
            )
    if len(held_out.images) < 2 * LEAST:
        raise InputError(
            f"{len(held_out.images)} held-out patches, expected at least {2 * LEAST} to learn how "
            "well real patches agree by chance; give more"
        )
    with tqdm(
        total=len(held_out.images) + len(samples.images),
        desc="looking for copies",
        unit="patch",
        leave=False,
    ) as bar:
        by_chance, _ = _agreements(held_out, training, bar)
        agreement, match = _agreements(samples, training, bar)
    # Every second one: neighbours in a record set lie side by side in a slide.
    threshold = chance_threshold(by_chance[::2])
    return NearCopies(
        match=match,
        agreement=agreement,
        flagged=agreement > threshold,
        threshold=threshold,
        held_out_flagged=by_chance[1::2] > threshold,
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


def _agreements(
    patches: Patches, training: TrainingImage, bar: tqdm
) -> tuple[Float64[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Of each patch with that of its candidates it agrees with best, and which this is."""
    count = len(patches.images)
    best, match = np.empty(count), np.empty(count, np.int64)
    for i, (image, candidates) in enumerate(zip(patches.images, patches.candidates, strict=True)):
        others = np.stack([training(j) for j in candidates.tolist()])
        found = best_correlation(np.ascontiguousarray(np.broadcast_to(image, others.shape)), others)
        best[i], match[i] = found.max(), candidates[found.argmax()]
        bar.update()
    return best, match
