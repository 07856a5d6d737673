"""Classifier-free guidance (Ho & Salimans 2022, eq. 6, with their 1 + w written as w)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ssl_diffusion.diffusion.schedule import Schedule
from ssl_diffusion.errors import InputError

Network = Callable[[Array, Array, PyTree], Array]


def guide(network: Network, null_context: PyTree, scale: float | Float[Array, ""]) -> Network:
    """Wraps a network so that its output is uncond + scale (cond - uncond).

    Both halves go through the network as one doubled batch. A Python scale of 1 is no guidance: the
    network itself comes back and is called once. A traced scale cannot be looked at and doubles.

    Args:
      network: (x[b h w c], timestep[b], context) -> output; the context is an array or a tree of
        arrays, whose first axis is the batch.
      null_context: the context of a dropped condition, without that axis.
      scale: guidance scale w; 0 is unconditional, 1 conditional.
    """
    if isinstance(scale, int | float) and scale == 1:
        return network

    def with_null(context: Array, null: Array) -> Array:
        return jnp.concatenate([context, jnp.broadcast_to(null, context.shape)])

    def guided(x: Array, timestep: Array, context: PyTree) -> Array:
        both = network(
            jnp.concatenate([x, x]),
            jnp.concatenate([timestep, timestep]),
            jax.tree.map(with_null, context, null_context),
        )
        conditional, unconditional = jnp.split(both, 2)
        return unconditional + scale * (conditional - unconditional)

    return guided


def guided_evaluations(
    schedule: Schedule, timesteps: Float[np.ndarray, " n"], interval: tuple[float, float] | None
) -> Bool[np.ndarray, " n"]:
    """Which evaluations of a plan are guided (Kynkaanniemi et al. 2024, arXiv 2404.07724).

    Those whose noise level sigma / alpha is in (low, high]; pure noise, where it is infinite, never
    is. The others are for a denoiser made without guidance, which calls the network once: that is
    where the interval saves time.

    Args:
      schedule: the noise table.
      timesteps: of the evaluations, `Plan.timesteps`.
      interval: (low, high), or None, which guides all.

    Raises:
      InputError: see `check_interval`.
    """
    check_interval(interval)
    if interval is None:
        return np.ones(len(timesteps), bool)
    alpha, sigma = schedule.levels(timesteps)
    low, high = interval
    return (sigma > low * alpha) & (sigma <= high * alpha)


def check_guidance(scale: float) -> None:
    """Raises InputError for a scale that is negative or not finite."""
    if not (math.isfinite(scale) and scale >= 0):
        raise InputError(f"guidance {scale}; expected a finite scale >= 0 (1 is none)")


def check_interval(interval: tuple[float, float] | None) -> None:
    """Raises InputError unless the interval is None or finite (low, high), 0 <= low < high."""
    if interval is not None and not 0 <= interval[0] < interval[1] < np.inf:
        raise InputError(
            f"guidance interval {interval[0]:g},{interval[1]:g}; expected low,high with "
            "0 <= low < high, noise levels sigma / alpha"
        )
