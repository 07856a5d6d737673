"""How a set of generated images compares with a real one, in the space of one feature network.

Sampled and real sets are both draws from what they stand for, so both are halved for the intervals
(see intervals.py). An interval of FD, precision, recall, density or coverage is one for the mean of
the number over sets of these sizes, whose bias it shares; KID has no bias.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64
from tqdm import tqdm

from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.features import one_vector
from ssl_diffusion.evaluation.frechet import Moments, frechet_distance
from ssl_diffusion.evaluation.intervals import SPLITS, Estimate, evenly, half_samples
from ssl_diffusion.evaluation.kernel import SUBSET_SIZE, kernel_distances, sums_within
from ssl_diffusion.evaluation.manifold import manifold_shares

NEIGHBOURS = 5  # k of the precision, recall, density and coverage
FEW_FOR_KID = 100


def sets_numbers(
    sets: Mapping[str, Float[np.ndarray, "_ d"]],
    real: Float[np.ndarray, "m e"],
    *,
    k: int = NEIGHBOURS,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Each set against the real one, by name; what is of the real set alone is computed once.

    FD, KID, precision, recall, density, coverage (each an Estimate as a dict), and `warnings`:

    fd         squared Frechet distance (frechet.py), squared units of the features
    kid        unbiased kernel distance over all pairs (kernel.py); not multiplied by 1000
    precision, recall, density, coverage    with k neighbours (manifold.py), of as many of the one
               set as of the other, evenly spaced ones: where real images are many more, balls
               around few samples hold them all, and balls around many real ones next to nothing
    n, real_n, manifold_n, dimension, k, seed, splits   what decides the numbers
    warnings   a sentence for each reason not to trust or compare them

    An interval is None where there are too few features to halve. Raises InputError for features
    that are not finite or of different dimensions, and below two in a set.
    """
    for features in sets.values():
        check(features, real)
    m = len(real)
    # The whole sets, then both halves of each split; of less than four no half has two.
    splits = {name: SPLITS if min(len(x), m) >= 4 else 0 for name, x in sets.items()}
    inside = {name: _whole_and_halves(len(x), splits[name], seed) for name, x in sets.items()}
    in_real = _whole_and_halves(m, max(splits.values(), default=0), seed + 1)
    distances = _frechet_distances(sets, real, inside, in_real)
    within_real = sums_within(real, in_real)
    found = {}
    bar = tqdm(sets.items(), "kernels and neighbours", unit="set", delay=5, leave=False)
    for name, samples in bar:
        n, which = len(samples), slice(len(inside[name]))
        kernel = kernel_distances(samples, real, inside[name], in_real[which], within_real[which])
        used_k = max(1, min(k, n // 2 - 1, m // 2 - 1))
        few, few_real = (features[evenly(len(features), min(n, m))] for features in (samples, real))
        halves = (_whole_and_halves(len(few), splits[name], seed + one) for one in (0, 1))
        shares = manifold_shares(few, few_real, used_k, *halves)
        estimates = {
            "fd": Estimate.of_splits(distances[name][0], distances[name][1:].reshape(-1, 2)),
            "kid": Estimate.of_splits(kernel[0], kernel[1:].reshape(-1, 2), lowest=-np.inf),
            "precision": Estimate.around(shares.precision[0], shares.precision[1:], highest=1.0),
            "recall": Estimate.around(shares.recall[0], shares.recall[1:], highest=1.0),
            "density": Estimate.around(shares.density[0], shares.density[1:]),
            "coverage": Estimate.around(shares.coverage[0], shares.coverage[1:], highest=1.0),
        }
        settings = {"n": n, "real_n": m, "dimension": samples.shape[1], "k": used_k}
        settings |= {"manifold_n": min(n, m), "seed": seed, "splits": splits[name]}
        numbers = {one: dataclasses.asdict(estimate) for one, estimate in estimates.items()}
        found[name] = numbers | settings | {"warnings": warnings(samples, real, k)}
    return found


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


def _whole_and_halves(count: int, splits: int, seed: int) -> Bool[np.ndarray, "s count"]:
    """Which items are in the whole set, and in both halves of each split."""
    halves = half_samples(count, splits, seed).reshape(-1, count)
    return np.concatenate([np.ones((1, count), bool), halves])


def _frechet_distances(
    sets: Mapping[str, Float[np.ndarray, "_ d"]],
    real: Float[np.ndarray, "m e"],
    inside: Mapping[str, Bool[np.ndarray, "_ _"]],
    in_real: Bool[np.ndarray, "s m"],
) -> dict[str, Float64[np.ndarray, " _"]]:
    """Of the subsets of each set, of which some have the whole set alone; by name."""
    distances: dict[str, list[float]] = {name: [] for name in sets}
    for s, chosen in enumerate(tqdm(in_real, desc="FD", delay=5, leave=False)):
        reference = Moments.of(real[chosen])
        for name, features in sets.items():
            if s < len(inside[name]):
                own = Moments.of(features[inside[name][s]])
                distances[name].append(frechet_distance(own, reference))
    return {name: np.array(values) for name, values in distances.items()}
