"""The denoiser of grids of embeddings: a transformer whose tokens are the grid's cells."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ssl_diffusion.errors import InputError
from ssl_diffusion.models.dit import (
    TIMESTEP_WIDTH,
    XAVIER,
    ZEROS,
    Block,
    modulated_norm,
    position_embedding,
)
from ssl_diffusion.models.layers import MLP, Dense, timestep_embedding


class GridTransformer(nn.Module):
    """`apply({"params": p}, grid, timestep, context) -> prediction`, of the grid's shape.

    The blocks of DiT (Peebles & Xie 2023, arXiv 2212.09748, sec. 3.2) over cells with fixed 2-D
    sin-cos positions. `context` is a tree, whose first axes are the batch:

        tokens   [b m width]  attended to; their mean is added to the timestep's embedding
        cells    [b h w width]  added to each cell; may be left out
        present  [b h w] bool  cells that are attended to; left out, all are

    Any height and width will do. Raises InputError for fields that do not fit each other.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads or self.width % 4:
            raise InputError(
                f"GridTransformer: width {self.width}, expected a multiple of heads ({self.heads}) "
                "and of 4"
            )

    @nn.compact
    def __call__(
        self, grid: Float[Array, "b h w c"], timestep: Float[Array, "b"], context: PyTree
    ) -> Float[Array, "b h w c"]:
        _, rows, columns, channels = grid.shape
        width, dtype = self.width, self.dtype
        init = nn.initializers.normal(0.02)
        embedding = MLP(width, width, nn.silu, kernel_init=init, dtype=dtype, name="time_embed")(
            timestep_embedding(timestep, TIMESTEP_WIDTH)
        )
        embed = Dense(width, dtype=dtype, kernel_init=XAVIER, name="context_embed")
        embedding = embedding + embed(context["tokens"].mean(1))
        x = Dense(width, dtype=dtype, kernel_init=XAVIER, name="cell_embed")(grid)
        x = x + position_embedding(rows, columns, width).reshape(rows, columns, width)
        if "cells" in context:
            x = x + context["cells"]
        x = x.reshape(-1, rows * columns, width).astype(dtype)
        mask = None
        if "present" in context:
            mask = context["present"].reshape(-1, 1, rows * columns)
        for i in range(self.depth):
            x = Block(self.heads, self.mlp_ratio, dtype, name=f"transformer_blocks_{i}")(
                x, context["tokens"], embedding, None, mask
            )
        modulation = Dense(2 * width, dtype=dtype, kernel_init=ZEROS, name="adaln_out")(
            nn.silu(embedding)
        ).reshape(-1, 2, width)
        x = modulated_norm(x, modulation[:, :1], modulation[:, 1:], dtype)
        out = Dense(channels, dtype=dtype, kernel_init=ZEROS, name="proj_out")(x)
        return out.reshape(grid.shape).astype(grid.dtype)
