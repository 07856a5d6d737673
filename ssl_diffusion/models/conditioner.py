"""From a patch's embedding to the context that the denoiser attends to."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree


class Conditioner(nn.Module):
    """L2-normalises every token of an embedding and projects it linearly.

    Graikos et al. 2024 (arXiv 2312.07330), sec. 3.1. Where `drop` is true the *input* of the
    linear layer is zero, so that the unconditional context is its bias: see `null_context`.
    """

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, embedding: Float[Array, "b tokens dim"], drop: Bool[Array, "b"] | None = None
    ) -> Float[Array, "b tokens {self.width}"]:
        # Clamped under the root: a zero vector stays zero, and so does its gradient.
        squares = jnp.sum(jnp.square(embedding), axis=-1, keepdims=True)
        embedding = embedding * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
        if drop is not None:
            embedding = jnp.where(drop[:, None, None], 0.0, embedding)
        # The input has unit norm, not unit variance: with kernels of unit variance the context has
        # unit variance from the first step on.
        init = nn.initializers.normal(1.0)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="projection")(
            embedding
        )


def null_context(params: PyTree, tokens: int) -> Float[Array, "tokens width"]:
    """The context of a dropped embedding of that many tokens, from the conditioner's parameters."""
    bias = params["projection"]["bias"]
    return jnp.broadcast_to(bias, (tokens, bias.size))
