"""How a set of generated images compares with a real one, in the space of one feature network.

Sampled and real sets are both draws from what they stand for, so both are halved for the intervals
(see intervals.py). An interval of FD, precision, recall, density or coverage is one for the mean of
the number over sets of these sizes, whose bias it shares; KID has no bias.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64
from tqdm import tqdm

from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.features import one_vector
from ssl_diffusion.evaluation.frechet import Moments, frechet_distance
from ssl_diffusion.evaluation.intervals import HALVES, Estimate, evenly, half_samples
from ssl_diffusion.evaluation.kernel import SUBSET_SIZE, kernel_distances
from ssl_diffusion.evaluation.manifold import manifold_shares

NEIGHBOURS = 5  # k of the precision, recall, density and coverage
FEW_FOR_KID = 100


def set_numbers(
    samples: Float[np.ndarray, "n d"],
    real: Float[np.ndarray, "m e"],
    *,
    k: int = NEIGHBOURS,
    seed: int = 0,
) -> dict[str, Any]:
    """FD, KID, precision, recall, density, coverage (each an Estimate as a dict), and `warnings`.

    fd         squared Frechet distance (frechet.py), squared units of the features
    kid        unbiased kernel distance over all pairs (kernel.py); not multiplied by 1000
    precision, recall, density, coverage    with k neighbours (manifold.py), of as many of the one
               set as of the other, evenly spaced ones: where real images are many more, balls
               around few samples hold them all, and balls around many real ones next to nothing
    n, real_n, manifold_n, dimension, k, seed, halves   what decides the numbers
    warnings   a sentence for each reason not to trust or compare them

    An interval is None where there are too few features to halve. Raises InputError for features
    that are not finite or of different dimensions, and below two in a set.
    """
    check(samples, real)
    n, m = len(samples), len(real)
    used_k = max(1, min(k, n // 2 - 1, m // 2 - 1))
    settings = {"n": n, "real_n": m, "dimension": samples.shape[1], "k": used_k}
    settings |= {"manifold_n": min(n, m), "seed": seed, "halves": HALVES}
    # The sets themselves, then their halves; of less than four no half has two.
    draws = HALVES if min(n, m) >= 4 else 0
    in_samples, in_real = (
        np.concatenate([np.ones((1, count), bool), half_samples(count, draws, seed + which)])
        for which, count in enumerate((n, m))
    )
    distances = _frechet_distances(samples, real, in_samples, in_real)
    kernel = kernel_distances(samples, real, in_samples, in_real)
    few, few_real = (features[evenly(len(features), min(n, m))] for features in (samples, real))
    halves = [
        np.concatenate([np.ones((1, len(few)), bool), half_samples(len(few), draws, seed + which)])
        for which in (0, 1)
    ]
    shares = manifold_shares(few, few_real, used_k, *halves)
    estimates = {
        "fd": Estimate.around(distances[0], distances[1:]),
        "kid": Estimate.around(kernel[0], kernel[1:], lowest=-np.inf),
        "precision": Estimate.around(shares.precision[0], shares.precision[1:], highest=1.0),
        "recall": Estimate.around(shares.recall[0], shares.recall[1:], highest=1.0),
        "density": Estimate.around(shares.density[0], shares.density[1:]),
        "coverage": Estimate.around(shares.coverage[0], shares.coverage[1:], highest=1.0),
    }
    numbers = {name: dataclasses.asdict(estimate) for name, estimate in estimates.items()}
    return numbers | settings | {"warnings": warnings(samples, real, k)}


def check(samples: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m e"]) -> None:
    """Raises InputError unless a distance between the two sets is defined."""
    for name, features in (("samples", samples), ("real images", real)):
        one_vector(features[:, None], name)
        if len(features) < 2:
            raise InputError(
                f"{name}: {len(features)} of them, expected at least 2 to compare sets; give more"
            )
    if samples.shape[1] != real.shape[1]:
        raise InputError(
            f"features of {samples.shape[1]} (samples) and {real.shape[1]} dimensions (real "
            "images) cannot be compared; embed both with one network"
        )


def warnings(
    samples: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m e"], k: int = NEIGHBOURS
) -> list[str]:
    """What makes the numbers of these sets doubtful, each with its consequence."""
    found, dimension = [], samples.shape[1]
    for name, features in (("samples", samples), ("real images", real)):
        count = len(features)
        if count <= dimension:
            found.append(
                f"{count} {name} in {dimension} dimensions: their covariance is singular; the FD "
                "is biased upwards, and compares only with values at the same two counts"
            )
        elif count < 10 * dimension:
            found.append(
                f"{count} {name} are not many more than {dimension} dimensions: the FD is "
                "biased upwards by a noticeable part; compare at the same two counts"
            )
        if count < FEW_FOR_KID:
            found.append(
                f"{count} {name}: a KID of so few is unbiased, but may be off by more than itself "
                f"(papers take subsets of {SUBSET_SIZE}); read its interval, not its value. "
                "Intervals of precision, recall, density and coverage are too narrow with so few"
            )
        if count // 2 - 1 < k:
            found.append(
                f"{count} {name} have too few neighbours for k = {k}: it is lowered to "
                f"{max(1, count // 2 - 1)}; precision, recall, density and coverage do not "
                "compare with values at another k"
            )
        if count < 4:
            found.append(f"{count} {name} cannot be halved: no number has an interval")
        same = count - len({hash(row.tobytes()) for row in features})
        if same:
            found.append(
                f"{same} of {count} {name} have the very features of another: duplicates count as "
                "new, intervals are too narrow, and balls of no width lower recall and coverage"
            )
    return found


def _frechet_distances(
    samples: Float[np.ndarray, "n d"],
    real: Float[np.ndarray, "m e"],
    in_samples: Bool[np.ndarray, "s n"],
    in_real: Bool[np.ndarray, "s m"],
) -> Float64[np.ndarray, " s"]:
    subsets = tqdm([*zip(in_samples, in_real, strict=True)], desc="FD", delay=5, leave=False)
    return np.array(
        [frechet_distance(Moments.of(samples[a]), Moments.of(real[b])) for a, b in subsets]
    )
