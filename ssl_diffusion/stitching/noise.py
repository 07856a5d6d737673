"""Noise of a canvas, keyed by position: it does not depend on how the canvas is cut or shared."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

START = -1  # the number of the start noise; evaluations count from 0


@partial(jax.jit, static_argnames=("rows", "width", "channels"))
def canvas_noise(
    key: Key[Array, ""],
    evaluation: int | Int[Array, ""],
    first_row: int | Int[Array, ""],
    *,
    rows: int,
    width: int,
    channels: int,
) -> Float[Array, "rows width channels"]:
    """Standard normal noise of canvas rows `first_row` on.

    A value depends on the key, the evaluation and its own row, column and channel alone: each row
    has a key, and JAX's counter-based generator numbers the values of a row from its left, so that
    a wider or higher canvas begins with the same noise. (It does since `jax_threefry_partitionable`
    is the default; a test holds it.)
    """
    own = jax.random.fold_in(key, evaluation + 1)

    def row(y: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(own, y), (width, channels))

    return jax.vmap(row)(first_row + jnp.arange(rows))
