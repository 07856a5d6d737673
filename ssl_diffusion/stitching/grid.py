"""Embeddings between the cells of a grid."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

# Above this |cosine| the arc is so flat (or, at -1, so undefined) that a line is taken instead.
NEARLY_PARALLEL = 0.9995


def slerp(
    a: Float[Array, "*n d"], b: Float[Array, "*n d"], t: Float[Array, "*n"]
) -> Float[Array, "*n d"]:
    """Spherical interpolation from `a` (t = 0) to `b` (t = 1) (Shoemake 1985, section 3.3).

    Vectors are not normalised: between two of equal norm the norm stays constant. Linear where
    |cos| > 0.9995, as in the published large-image sampler, and where a vector is zero.
    """
    # Directions first: a product of two norms would underflow for small vectors.
    cos = jnp.sum(_direction(a) * _direction(b), axis=-1)
    linear = jnp.abs(cos) > NEARLY_PARALLEL
    linear |= ~(jnp.any(a != 0, axis=-1) & jnp.any(b != 0, axis=-1))
    angle = jnp.arccos(jnp.where(linear, 0.0, cos))
    from_a = jnp.where(linear, 1 - t, jnp.sin((1 - t) * angle) / jnp.sin(angle))
    from_b = jnp.where(linear, t, jnp.sin(t * angle) / jnp.sin(angle))
    return from_a[..., None] * a + from_b[..., None] * b


@jax.jit
def interpolate_grid(
    grid: Float[Array, "rows cols tokens dim"],
    rows: Float[Array, " ny"],
    cols: Float[Array, " nx"],
) -> Float[Array, "ny nx tokens dim"]:
    """Embeddings at fractional cell positions (see `windows.cell_positions`), each token by itself.

    Slerp along the columns, then along the rows, of unnormalised vectors; the grid's edge is
    replicated beyond it.
    """
    along_cols = _interpolate_rows(jnp.swapaxes(grid, 0, 1), cols)
    return _interpolate_rows(jnp.swapaxes(along_cols, 0, 1), rows)


def window_contexts(
    condition: Callable[[Array], PyTree],
    grid: Float[Array, "rows cols tokens dim"],
    rows: Float[np.ndarray, " ny"],
    cols: Float[np.ndarray, " nx"],
) -> PyTree:
    """What `condition` makes of the embeddings at these cell positions: a tree of [ny, nx, ...].

    `condition` takes embeddings [n, tokens, dim] and gives a tree of [n, ...].
    """
    embeddings = interpolate_grid(grid, jnp.asarray(rows), jnp.asarray(cols))
    contexts = condition(embeddings.reshape(-1, *embeddings.shape[2:]))
    shape = len(rows), len(cols)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), contexts)


def _interpolate_rows(
    grid: Float[Array, "rows cols tokens dim"], positions: Float[Array, " n"]
) -> Float[Array, "n cols tokens dim"]:
    last = grid.shape[0] - 1
    positions = jnp.clip(positions, 0, last)
    low = jnp.floor(positions).astype(jnp.int32)
    t = (positions - low)[:, None, None]
    low_cells, high_cells = grid[low], grid[jnp.minimum(low + 1, last)]
    return slerp(low_cells, high_cells, jnp.broadcast_to(t, low_cells.shape[:-1]))


def _direction(a: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    # Scaled by the largest entry before the norm, whose squares may leave float32's range.
    largest = jnp.max(jnp.abs(a), axis=-1, keepdims=True)
    a = a / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.linalg.norm(a, axis=-1, keepdims=True)
    return a / jnp.where(norm > 0, norm, 1.0)
