"""From a patch's embedding to the context that the denoiser attends to.

Conditioners are called alike, `apply({"params": p}, embedding[b tokens dim], drop[b]) ->
context[b m width]`. Where `drop` is true the condition is replaced by none at all, as
classifier-free guidance needs it: see `null_context`.
"""

import math
from functools import partial
from itertools import accumulate
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ssl_diffusion.errors import InputError
from ssl_diffusion.models.dit import position_embedding
from ssl_diffusion.models.layers import MLP


class Conditioner(nn.Module):
    """L2-normalises every token of an embedding and projects it linearly.

    Graikos et al. 2024 (arXiv 2312.07330), sec. 3.1. Where `drop` is true the *input* of the
    linear layer is zero, so that the unconditional context is its bias.

    With `parts` the embedding is one token, several embeddings of these widths in a row (a patch's
    and its region's, say); each is normalised and becomes a token of the context through a linear
    layer of its own. All but the first may be absent, which counts as zeros. Raises InputError for
    an embedding of another shape.
    """

    width: int
    parts: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, embedding: Float[Array, "b tokens dim"], drop: Bool[Array, "b"] | None = None
    ) -> Float[Array, "b m {self.width}"]:
        if drop is not None:
            embedding = jnp.where(drop[:, None, None], 0.0, embedding)
        # The input has unit norm, not unit variance: with kernels of unit variance the context has
        # unit variance from the first step on.
        init = nn.initializers.normal(1.0)
        project = partial(nn.Dense, self.width, dtype=self.dtype, kernel_init=init)
        if not self.parts:
            return project(name="projection")(_unit(embedding))
        _, tokens, dim = embedding.shape
        if tokens != 1 or dim not in (self.parts[0], sum(self.parts)):
            raise InputError(
                f"embedding of {tokens} tokens of {dim}, expected one token of {self.parts[0]} or "
                f"of {sum(self.parts)} ({' + '.join(map(str, self.parts))})"
            )
        embedding = jnp.pad(embedding, ((0, 0), (0, 0), (0, sum(self.parts) - dim)))
        parts = jnp.split(embedding, list(accumulate(self.parts))[:-1], axis=-1)
        return jnp.concatenate(
            [project(name=f"projection_{i}")(_unit(part)) for i, part in enumerate(parts)], axis=1
        )


def _unit(x: Float[Array, "b tokens dim"]) -> Float[Array, "b tokens dim"]:
    """Clamped under the root: a zero vector stays zero, and so does its gradient."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


class TokenProjection(nn.Module):
    """Projects embedding tokens by two layers: PixArt-alpha's caption projection (2310.00426).

    Several tokens are the row-major square of an image's patches, and get a fixed 2-D sin-cos
    position each. Where `drop` is true a learned null embedding, the parameter `null`, takes the
    embedding's place; it gets the positions too.

    `grid` is the side of the denoiser's own square of tokens (latent side / patch size), whose
    coordinates the positions are in: tokens are half their true distance apart and begin at
    floor(grid / tokens), as the published tables have it. Raises InputError for several tokens
    that make no square.
    """

    width: int
    grid: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, embedding: Float[Array, "b tokens dim"], drop: Bool[Array, "b"] | None = None
    ) -> Float[Array, "b tokens {self.width}"]:
        _, tokens, dim = embedding.shape
        null = self.param("null", nn.initializers.normal(dim**-0.5), (tokens, dim))
        if drop is not None:
            embedding = jnp.where(drop[:, None, None], null, embedding)
        if tokens > 1:
            side = math.isqrt(tokens)
            if side**2 != tokens:
                raise InputError(
                    f"embedding of {tokens} tokens, expected one or a square number of them"
                )
            spacing, offset = self.grid / side / 2, float(self.grid // tokens)
            embedding = embedding + position_embedding(side, side, dim, 1 / spacing, offset)
        gelu = partial(nn.gelu, approximate=True)
        return MLP(self.width, self.width, gelu, dtype=self.dtype, name="projection")(embedding)


def null_context(
    conditioner: Conditioner | TokenProjection, params: PyTree, tokens: int, dim: int
) -> Float[Array, "m width"]:
    """The context of a dropped embedding of that shape."""
    embedding, drop = jnp.zeros((1, tokens, dim)), jnp.ones(1, bool)
    return conditioner.apply({"params": params}, embedding, drop)[0]
