"""Classifier-free guidance (Ho & Salimans 2022, eq. 6, with their 1 + w written as w)."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Network = Callable[[Array, Array, Array], Array]


def guide(
    network: Network, null_context: Float[Array, "tokens width"], scale: float | Float[Array, ""]
) -> Network:
    """Wraps a network so that its output is uncond + scale (cond - uncond).

    Both halves go through the network as one doubled batch. A Python scale of 1 is no guidance: the
    network itself comes back and is called once. A traced scale cannot be looked at and doubles.

    Args:
      network: (x[b h w c], timestep[b], context[b tokens width]) -> output.
      null_context: the context of a dropped condition.
      scale: guidance scale w; 0 is unconditional, 1 conditional.
    """
    if isinstance(scale, int | float) and scale == 1:
        return network

    def guided(x: Array, timestep: Array, context: Array) -> Array:
        null = jnp.broadcast_to(null_context, context.shape)
        both = network(
            jnp.concatenate([x, x]),
            jnp.concatenate([timestep, timestep]),
            jnp.concatenate([context, null]),
        )
        conditional, unconditional = jnp.split(both, 2)
        return unconditional + scale * (conditional - unconditional)

    return guided
