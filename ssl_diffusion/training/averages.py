"""Averages of the parameters over training whose length is chosen afterwards.

Karras et al. 2024 (EDM2, arXiv 2312.02696), sec. 3 and app. C. The average at step t weighs the
parameters of step tau with a power of it, so that it grows longer with t and forgets the start:

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),  0 < tau <= t.

An average is named by `sigma_rel`, the standard deviation of this profile as a share of t. A few of
them are kept up to date while training and written as snapshots. A combination of snapshots whose
profiles add up to another profile is the average of that length.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Int, PyTree

from ssl_diffusion.errors import InputError
from ssl_diffusion.files import remove, replacing
from ssl_diffusion.weights.safetensors_file import write_tensors

LONGEST = 12**-0.5  # sigma_rel of gamma = 0, the plain mean of all steps
LEAST_UPDATES = 2**12  # of the second half of any training, in `update`
RIDGE = 1e-12  # squared share of an average by which its rounding may be off, in `solve_weights`


def profile_name(sigma_rel: float) -> str:
    """What files of this average are called, as "0.050"; InputError for more than three decimals
    or a length that no average has."""
    gamma_of(sigma_rel)
    name = f"{sigma_rel:.3f}"
    if float(name) != sigma_rel:
        raise InputError(
            f"sigma_rel is {sigma_rel}, expected at most three decimals, as 0.050; round it"
        )
    return name


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the profile of relative length sigma_rel (EDM2 sec. 3.1, app. C):

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    Raises InputError unless 0 < sigma_rel < 0.2887, beyond which gamma is negative: such an average
    holds on to the start of the training.
    """
    if not 0 < sigma_rel < LONGEST:
        raise InputError(
            f"sigma_rel is {sigma_rel}, expected a length above 0 and below {LONGEST:.4f}; "
            "0.05 to 0.15 are common"
        )
    ratio = sigma_rel**-2  # (gamma + 2)^2 (gamma + 3) = ratio (gamma + 1): three real roots
    return float(np.roots([1.0, 7.0, 16.0 - ratio, 12.0 - ratio]).real.max())


def update(
    averages: tuple[PyTree, ...],
    params: PyTree,
    step: Int[Array, ""] | int,
    gammas: Sequence[float],
) -> tuple[PyTree, ...]:
    """The averages after optimizer step number `step` (from 1), which gave `params`.

    average += (1 - beta) (params - average), beta = (1 - 1/t)^(gamma + 1) (EDM2 sec. 3.1): the mean
    of the profile over every past step. After step 1 they are `params`, whatever they were before.

    Late in a training 1 - beta would be so small that float32 rounds the change away: at step 10^6
    the average of sigma_rel 0.2 of a parameter that moves by 1 % would stand still. So from step
    8192 on only every 2nd step enters, from 16384 every 4th, and so on, with the weight of the
    steps since the last: 1 - beta stays above (gamma + 1) / 8192, and between such steps an average
    is at most 1/4096 of the training old.

    Args:
      averages: float32, one tree like `params` for each of `gammas`; a traced step is fine.
      gammas: exponents of the profiles, from `gamma_of`.
    """
    step = jnp.asarray(step, jnp.int32)
    # The largest power of two up to step / LEAST_UPDATES: it divides the one before, so that the
    # step from which its weight counts was always an update.
    interval = jnp.left_shift(1, 31 - jax.lax.clz(jnp.maximum(step // LEAST_UPDATES, 1)))
    entering = jnp.where(step % interval == 0, interval / step, 0.0)

    def updated(average: PyTree, gamma: float) -> PyTree:
        # 1 - beta to all digits of float32: from a beta next to 1 only half of them would be left.
        weight = -jnp.expm1((gamma + 1) * jnp.log1p(-entering))

        def mix(old: Array, new: Array) -> Array:
            new = new.astype(jnp.float32)
            return jnp.where(step == 1, new, old + weight * (new - old))

        return jax.tree.map(mix, average, params)

    return tuple(updated(average, gamma) for average, gamma in zip(averages, gammas, strict=True))


def solve_weights(
    snapshots: Sequence[tuple[int, float]], step: int, gamma: float
) -> Float[np.ndarray, " snapshots"]:
    """Weights, float64, whose sum of the snapshots is the average of exponent `gamma` at `step`.

    Least squares between the profiles (EDM2 sec. 3.2, app. C), with the weights summing to one.
    The paper leaves the sum free: with networks that keep their weights normalised a factor does
    no harm, but others would shrink by it, by 1 % for the longest averages.

    Snapshots of neighbouring steps and lengths have nearly the same profile. The equations are as
    ill-conditioned as 10^20 for five lengths and 500 steps, and weights of 10^4 with alternating
    signs, which multiply the rounding of the averages, would come of it. A ridge far below the
    error of the fit keeps the sum of their magnitudes below 5 between the kept lengths; beyond
    these it grows (20 at sigma_rel 0.02 from 0.05 and 0.1, 20 steps).

    Args:
      snapshots: (step, gamma) of each; none is later than `step`, and one lies on it, for nothing
        else says what was last. How good the fit is tells `fit_error`.
    """
    if (step, gamma) in snapshots:
        return np.eye(len(snapshots))[snapshots.index((step, gamma))]
    steps, gammas = np.array(snapshots, np.float64).T
    norms = np.sqrt(_inner(steps, gammas, steps, gammas))
    target = np.sqrt(_inner(step, gamma, step, gamma))
    gram = _inner(steps[:, None], gammas[:, None], steps, gammas) / np.outer(norms, norms)
    right = _inner(steps, gammas, step, gamma) / (norms * target)
    # Unknown are weight * norm / target, and the multiplier of the sum.
    sums = target / norms
    matrix = np.block([[gram + RIDGE * np.eye(len(snapshots)), sums[:, None]], [sums, np.zeros(1)]])
    return np.linalg.solve(matrix, np.append(right, 1.0))[:-1] * target / norms


def fit_error(
    snapshots: Sequence[tuple[int, float]],
    weights: Float[np.ndarray, " snapshots"],
    step: int,
    gamma: float,
) -> float:
    """L2 distance of the weighted sum of profiles from the wanted one, as a share of its norm."""
    steps, gammas = np.array(snapshots, np.float64).T
    norm = _inner(step, gamma, step, gamma)
    gram = _inner(steps[:, None], gammas[:, None], steps, gammas)
    square = norm - 2 * weights @ _inner(steps, gammas, step, gamma) + weights @ gram @ weights
    return float(np.sqrt(max(square / norm, 0.0)))


def _inner(step_a, gamma_a, step_b, gamma_b) -> np.ndarray | np.floating:
    """Integral of the product of two profiles (EDM2 app. C); arrays broadcast.

    (a + 1)(b + 1) / (a + b + 1) * m^(a + b + 1) / (s^(a + 1) t^(b + 1)), m = min(s, t): written
    with ratios up to 1, so that no power overflows.
    """
    both = np.minimum(step_a, step_b)
    powers = (both / step_a) ** gamma_a * (both / step_b) ** gamma_b / np.maximum(step_a, step_b)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * powers


class Snapshot(NamedTuple):
    """One average, as it was after that optimizer step."""

    step: int
    sigma_rel: float
    file: Path  # safetensors, names of the parameters' tree joined by "/"


def write_snapshot(
    folder: str | Path, step: int, averages: Sequence[PyTree], sigma_rels: Sequence[float]
) -> None:
    """Writes folder/STEP/SIGMA_REL.safetensors of each average (arrays on the host).

    The folder of the step appears whole or not at all, and replaces an older one of that step. What
    a killed process left of it is removed.
    """
    target = Path(folder) / f"{step:08d}"
    for left in target.parent.glob(f".{target.name}.*"):
        remove(left)
    with replacing(target) as temporary:
        temporary.mkdir()
        for average, sigma_rel in zip(averages, sigma_rels, strict=True):
            flat = traverse_util.flatten_dict(average, sep="/")
            arrays = {name: np.asarray(value) for name, value in flat.items()}
            file = temporary / f"{profile_name(sigma_rel)}.safetensors"
            write_tensors(file, arrays, np.float32)


def forget_snapshots(folder: Path, step: int) -> None:
    """Removes the snapshots after this step: a run that goes on from there writes them again."""
    for later in _visible(folder):
        if later.name.isdigit() and int(later.name) > step:
            remove(later)


def read_snapshots(folder: str | Path) -> list[Snapshot]:
    """The whole snapshots of a run by step, then length; none where there is no folder yet.

    Raises InputError for a name that `write_snapshot` does not give.
    """
    snapshots = []
    for step in _visible(Path(folder)):
        if not re.fullmatch(r"\d{8,}", step.name) or int(step.name) < 1 or not step.is_dir():
            raise InputError(
                f"{step} is no snapshot, expected folders named by step, as 00001000; move it away"
            )
        for file in _visible(step):
            match = re.fullmatch(r"(0\.\d{3})\.safetensors", file.name)
            if not match or not 0 < float(match[1]) < LONGEST:
                raise InputError(
                    f"{file} is no average, expected files named by sigma_rel, as "
                    "0.050.safetensors; move it away"
                )
            snapshots.append(Snapshot(int(step.name), float(match[1]), file))
    return sorted(snapshots)


def _visible(folder: Path) -> list[Path]:
    """What is in the folder, without what is still being written or was left by a kill."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return [entry for entry in entries if not entry.name.startswith(".")]
