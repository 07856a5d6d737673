"""Classifier-free guidance (Ho & Salimans 2022, eq. 6, with their 1 + w written as w)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

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
