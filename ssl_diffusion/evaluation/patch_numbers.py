"""The numbers of sets of patches in one feature space, with their controls.

Against the training patches as a set: Frechet and kernel distance, precision, recall, density,
coverage. Where every sample was asked for one held-out patch: similarity to it, and retrieval.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from ssl_diffusion.evaluation.agreement import Agreement, agreement
from ssl_diffusion.evaluation.set_measures import sets_numbers
from ssl_diffusion.evaluation.spaces import Space

SEED = 0  # of intervals
SMALL = 512  # dimensions up to which one thread is as fast as several
SET_MEASURES = ("fd", "kid", "precision", "recall", "density", "coverage")
PAIRED = ("samples", "reconstructions", "nearest_train", "noise")  # what is asked for a patch


def compare_sets(
    space: Space, sets: Mapping[str, Float[np.ndarray, "_ d"]], reference: Float[np.ndarray, "r d"]
) -> dict[str, Any]:
    """Each set against the reference, in one space.

    Returns {"title", "dimension", "reference_n", "warnings", "sets": {name: {"n", "fd", ...}}};
    every measure is {"value", "low", "high"}. The warnings are those of all sets.
    """
    section: dict[str, Any] = {
        "title": space.title,
        "dimension": reference.shape[1],
        "reference_n": len(reference),
        "warnings": [],
        "sets": {},
    }
    # On cores that others use too, BLAS threads wait for each other: 40 times as long.
    with threadpool_limits(1 if reference.shape[1] <= SMALL else None, "blas"):
        found = sets_numbers(sets, reference, seed=SEED)
    for name, numbers in found.items():
        known, first = section["warnings"], not section["sets"]
        known += [
            text if first else f"{name}: {text}"
            for text in numbers["warnings"]
            if text not in known
        ]
        section["sets"][name] = {name: numbers[name] for name in ("n", "manifold_n", "k")} | {
            measure: numbers[measure] for measure in SET_MEASURES if measure in numbers
        }
    return section


def add_agreement(
    section: dict[str, Any],
    sets: Mapping[str, Float[np.ndarray, "n d"]],
    gallery: Float[np.ndarray, "m d"],
    wanted: Int[np.ndarray, " n"],
    centre: Float[np.ndarray, " d"],
) -> Agreement:
    """Adds similarity and retrieval to a section of `compare_sets`; returns those of the samples.

    Image i of every set was asked for gallery[wanted[i]], a real held-out patch. "shuffled" is the
    exact control: the samples, had each been asked for another patch.
    """
    found = {
        name: agreement(sets[name], gallery, wanted, centre) for name in PAIRED if name in sets
    }
    for name, one in found.items():
        section["sets"][name] |= one.numbers()
    section["sets"]["shuffled"] = {"n": len(wanted)} | found["samples"].shuffled_numbers()
    section["chance"] = 1 / len(gallery)
    return found["samples"]
