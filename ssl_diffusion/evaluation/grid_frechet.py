"""Frechet distance of grids: of single cells, and of neighbours taken together.

Few cells raise a Frechet distance, and cells of one grid count as few. So three things are alike
for all values that stand side by side: the number of grids, the holes in them, and the components
on which they are projected.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.frechet import Moments, frechet_distance
from ssl_diffusion.evaluation.grids import Basis, GridSet
from ssl_diffusion.evaluation.intervals import Estimate, resamples

DRAWS = 30  # each takes a root of a matrix
CELLS_PER_DIMENSION = 10

VIEWS = {"cell": None, "horizontal_pair": 2, "vertical_pair": 1}  # the axis that pairs lie along


def components_for(cells: int, dim: int) -> int:
    """How many components leave ten cells for every dimension of a pair; at least 2."""
    return min(dim, max(2, cells // (2 * CELLS_PER_DIMENSION)))


def seen(
    grids: GridSet, axis: int | None
) -> tuple[Float[np.ndarray, "k features"], Int[np.ndarray, " k"]]:
    """(vectors, the grid that each is of): cells, or neighbours along an axis end to end."""
    if axis is None:
        return grids.flat(), np.nonzero(grids.present)[0]
    near = [slice(None)] * axis + [slice(None, -1)]
    far = [slice(None)] * axis + [slice(1, None)]
    both = grids.present[*near] & grids.present[*far]
    pairs = np.concatenate([grids.cells[*near][both], grids.cells[*far][both]], axis=1)
    return pairs, np.nonzero(both)[0]


def frechet_to(grids: GridSet, reference: Moments, axis: int | None, seed: int = 0) -> Estimate:
    """Frechet distance from a set of grids to real training cells or pairs, as `seen` gives them.

    The interval is of a bootstrap over grids. NaN where fewer than two are seen.
    """
    vectors, grid = seen(grids, axis)
    if len(vectors) < 2:
        return Estimate(float("nan"), None, None)
    draws = [
        frechet_distance(moments, reference)
        for weights in resamples(len(grids), DRAWS, seed)
        if (moments := _weighted(vectors, weights[grid])).count > 1
    ]
    return Estimate.around(frechet_distance(Moments.of(vectors), reference), np.array(draws))


def _weighted(vectors: Float[np.ndarray, "k d"], weights: Int[np.ndarray, " k"]) -> Moments:
    """The moments where each vector counts so many times."""
    count = int(weights.sum())
    if not count:
        return Moments.zero(vectors.shape[1])
    mean = weights @ vectors / count
    offset = vectors - mean
    return Moments(count, mean, (offset * weights[:, None]).T @ offset)


def frechet_numbers(
    samples: GridSet, held_out: GridSet, train: GridSet, seed: int = 0
) -> dict[str, Any]:
    """For each view "cell", "horizontal_pair", "vertical_pair": distances to the training grids.

    As many samples as there are held-out grids are taken, from the first, with the same holes. The
    space is that of the leading principal components of the training cells, as many as the cells
    that are compared allow: `components` of `dimension`, which keep `variance_share`. Of each view
    there are:

    samples       the sampled grids
    held_out      real held-out ones: the floor
    shuffled      held-out cells shuffled across grids: right cells, wrong neighbours
    independent   cells drawn, each by itself, from the Gaussian of the training cells
    constant      every cell the mean training cell: the trace of the covariance

    Raises InputError without any training pair of cells.
    """
    count = min(len(samples), len(held_out))
    samples, held_out = samples.masked_as(held_out)[:count], held_out[:count]
    cells, dimension = int(held_out.present.sum()), held_out.cells.shape[-1]
    basis = Basis.of(train.flat(), components_for(cells, dimension))
    samples, held_out, train = (basis.project(grids) for grids in (samples, held_out, train))
    rng = np.random.default_rng(seed)
    alone = Moments.of(train.flat())
    drawn = rng.multivariate_normal(alone.mean, alone.covariance, held_out.present.shape)
    sets = {
        "samples": samples,
        "held_out": held_out,
        "shuffled": held_out.shuffled(seed),
        "independent": GridSet(drawn, held_out.present),
    }
    numbers: dict[str, Any] = {
        "grids": count,
        "cells": cells,
        "components": len(basis.axes),
        "dimension": dimension,
        "variance_share": basis.variance_share,
    }
    for view, axis in VIEWS.items():
        if axis is not None and train.present.shape[axis] < 2:
            continue
        reference = Moments.of(seen(train, axis)[0])
        if reference.count < 2:
            raise InputError(f"real training grids have no {view} present; take larger ones")
        numbers[view] = {
            name: dataclasses.asdict(frechet_to(grids, reference, axis, seed + 1))
            for name, grids in sets.items()
            if not (name == "shuffled" and axis is None)  # the very same cells
        }
        numbers[view]["constant"] = {"value": float(np.trace(reference.covariance))}
    return numbers
