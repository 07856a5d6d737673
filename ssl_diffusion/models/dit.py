"""Diffusion transformer (DiT: Peebles & Xie 2023, arXiv 2212.09748) with cross-attention.

One class holds the two ways of telling the blocks the timestep: a projection in every block
(`adaln` "block": adaLN-Zero of DiT, sec. 3.2) or one projection shared by all blocks plus a learned
table per block ("single": adaLN-single of PixArt-alpha, Chen et al. 2023, arXiv 2310.00426,
sec. 2.3). Both start at zero, so that every block starts as the identity.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ssl_diffusion.errors import InputError
from ssl_diffusion.models.layers import (
    MLP,
    Attention,
    Context,
    Dense,
    inside,
    pooled,
    timestep_embedding,
)

ZEROS = nn.initializers.zeros
XAVIER = nn.initializers.xavier_uniform()
TIMESTEP_WIDTH = 256  # of the sinusoidal embedding; fixed in both papers


def position_embedding(
    rows: int, columns: int, width: int, interpolation_scale: float = 1.0, offset: float = 0.0
) -> Float[np.ndarray, "{rows}*{columns} {width}"]:
    """Fixed 2-D sin-cos positions of a row-major grid, float32.

    Half the width tells the column, half the row, each [sin | cos] with frequencies
    10000^(-k / (width / 4)). Positions are index / `interpolation_scale` + `offset`. `width`
    is a multiple of 4.
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width / 4))

    def encode(count: int) -> np.ndarray:
        angles = (np.arange(count)[:, None] / interpolation_scale + offset) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    grid = np.empty((rows, columns, width), np.float32)
    grid[..., : width // 2] = encode(columns)[None]
    grid[..., width // 2 :] = encode(rows)[:, None]
    return grid.reshape(rows * columns, width)


def patchify(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b n p"]:
    """Row-major patches; within a patch row, column, channel."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    return x.reshape(b, -1, patch * patch * c)


def unpatchify(x: Float[Array, "b n p"], rows: int, patch: int) -> Float[Array, "b h w c"]:
    """The inverse of `patchify`, given the number of rows of patches."""
    b, n, _ = x.shape
    x = x.reshape(b, rows, n // rows, patch, patch, -1).swapaxes(2, 3)
    return x.reshape(b, rows * patch, n // rows * patch, -1)


def modulated_norm(
    x: Float[Array, "b n c"], shift: Float[Array, "b 1 c"], scale: Float[Array, "b 1 c"], dtype: Any
) -> Float[Array, "b n c"]:
    """Layer normalisation whose scale and shift come from outside."""
    norm = nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False, dtype=dtype)
    return norm(x) * (1 + scale) + shift


class Block(nn.Module):
    """Self-attention and MLP, each modulated and gated, with cross-attention between them.

    `shared` is adaLN-single's projection of the timestep embedding: shift, scale, gate of the
    attention, then of the MLP. With None the block projects `embedding` by itself. `mask` says
    which tokens of `x` are attended to (None is all), `bias` is added to the attention's logits.
    """

    heads: int
    mlp_ratio: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        context: Context,
        embedding: Float[Array, "b c"],
        shared: Float[Array, "b 6 c"] | None,
        mask: Bool[Array, "b 1 n"] | None = None,
        bias: Float[Array, "heads n n"] | None = None,
    ) -> Float[Array, "b n c"]:
        width = x.shape[-1]
        if shared is None:
            adaln = Dense(6 * width, dtype=self.dtype, kernel_init=ZEROS, name="adaln")
            modulation = adaln(nn.silu(embedding)).reshape(-1, 6, width)
        else:
            modulation = shared + self.param("scale_shift_table", ZEROS, (6, width))
        modulation = modulation.astype(self.dtype)[:, :, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.unstack(modulation, axis=1)
        options = {"kernel_init": XAVIER, "dtype": self.dtype}
        attention = partial(Attention, self.heads, qkv_bias=True, **options)

        y = modulated_norm(x, shift1, scale1, self.dtype)
        x = x + gate1 * attention(out_init=XAVIER, name="attn1")(y, mask=mask, bias=bias)
        # PixArt-alpha: neither normalised nor gated, but zero at the start.
        x = x + attention(out_init=ZEROS, name="attn2")(x, inside(context, "attn2"))
        y = modulated_norm(x, shift2, scale2, self.dtype)
        hidden = round(self.mlp_ratio * width)
        return x + gate2 * MLP(hidden, width, nn.gelu, **options, name="ff")(y)


class DiT(nn.Module):
    """`apply({"params": p}, latent, timestep, context) -> prediction`.

    `context` is tokens [b m width], or what `layers.project_context` made of them.
    Positions are computed for the latent at hand: any height and width that `patch_size` divides
    will do. `pooled_context` adds the projected mean of the context's tokens to the timestep
    embedding, as DiT does with its class embedding. `out_channels` may exceed the latent's (a
    learned sigma). With `remat` a gradient computes the inside of the blocks anew instead of
    keeping it.

    Raises InputError for fields that do not fit each other, and for a latent whose height or width
    is not a multiple of the patch.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    out_channels: int
    mlp_ratio: float = 4.0
    adaln: str = "single"
    pooled_context: bool = False
    interpolation_scale: float = 1.0
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads or self.width % 4:
            raise InputError(
                f"DiT: width {self.width}, expected a multiple of heads ({self.heads}) and of 4"
            )
        if self.adaln not in ("single", "block"):
            raise InputError(f"DiT: adaln {self.adaln!r}, expected 'single' or 'block'")

    @nn.compact
    def __call__(
        self,
        latent: Float[Array, "b h w c"],
        timestep: Float[Array, "b"],
        context: Context,
    ) -> Float[Array, "b h w {self.out_channels}"]:
        patch, width, dtype = self.patch_size, self.width, self.dtype
        if latent.shape[1] % patch or latent.shape[2] % patch:
            raise InputError(
                f"DiT: latent of {latent.shape[1]}x{latent.shape[2]}, expected multiples of "
                f"{patch} latent pixels (its patch size)"
            )
        rows, columns = latent.shape[1] // patch, latent.shape[2] // patch

        init = nn.initializers.normal(0.02)
        embedding = MLP(width, width, nn.silu, kernel_init=init, dtype=dtype, name="time_embed")(
            timestep_embedding(timestep, TIMESTEP_WIDTH)
        )
        if self.pooled_context:
            embed = Dense(width, dtype=dtype, kernel_init=XAVIER, name="context_embed")
            embedding = embedding + pooled(embed, context)
        shared = None
        if self.adaln == "single":
            shared = Dense(6 * width, dtype=dtype, kernel_init=ZEROS, name="adaln_single")(
                nn.silu(embedding)
            ).reshape(-1, 6, width)

        x = Dense(width, dtype=dtype, kernel_init=XAVIER, name="patch_embed")(
            patchify(latent, patch)
        )
        x = x + position_embedding(rows, columns, width, self.interpolation_scale).astype(dtype)
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            name = f"transformer_blocks_{i}"
            x = block(self.heads, self.mlp_ratio, dtype, name=name)(
                x, inside(context, name), embedding, shared
            )

        if self.adaln == "single":
            table = self.param("scale_shift_table", ZEROS, (2, width))
            modulation = (embedding[:, None] + table).astype(dtype)
        else:
            modulation = Dense(2 * width, dtype=dtype, kernel_init=ZEROS, name="adaln_out")(
                nn.silu(embedding)
            ).reshape(-1, 2, width)
        x = modulated_norm(x, modulation[:, :1], modulation[:, 1:], dtype)
        out = Dense(
            patch * patch * self.out_channels, dtype=dtype, kernel_init=ZEROS, name="proj_out"
        )(x)
        return unpatchify(out, rows, patch).astype(latent.dtype)
