"""The latent-diffusion U-Net (Rombach et al. 2022, arXiv 2112.10752), conditioned on tokens.

Layers and their order are those of the published checkpoints, so weights carry over one for one:
`input_blocks_3_1` here is `input_blocks.3.1` there. Residual blocks see the timestep; spatial
transformers attend to the context.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_diffusion.errors import InputError
from ssl_diffusion.models.layers import (
    GEGLU,
    MLP,
    Attention,
    Context,
    Dense,
    GroupNorm,
    inside,
    pooled,
    timestep_embedding,
)

ZEROS = nn.initializers.zeros


def conv3x3(channels: int, *, dtype: Any, stride: int = 1, name: str, **kwargs: Any) -> nn.Conv:
    """A 3x3 convolution padded by one pixel on every side (SAME would pad stride 2 unevenly)."""
    return nn.Conv(channels, (3, 3), stride, ((1, 1), (1, 1)), dtype=dtype, name=name, **kwargs)


class ResidualBlock(nn.Module):
    """Two convolutions with the timestep between them.

    The embedding is added before the second norm, or with `scale_shift` scales and shifts its
    output (adaptive group normalisation: Dhariwal & Nichol 2021, arXiv 2105.05233, sec. 3).
    """

    channels: int
    scale_shift: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"]
    ) -> Float[Array, "b h w {self.channels}"]:
        y = nn.silu(GroupNorm(1e-5, dtype=self.dtype, name="in_norm")(x))
        y = conv3x3(self.channels, dtype=self.dtype, name="in_conv")(y)
        shift = Dense(self.channels * (2 if self.scale_shift else 1), dtype=self.dtype, name="emb")(
            nn.silu(embedding)
        )[:, None, None]
        out_norm = GroupNorm(1e-5, dtype=self.dtype, name="out_norm")
        if self.scale_shift:
            scale, shift = jnp.split(shift, 2, axis=-1)
            y = out_norm(y) * (1 + scale) + shift
        else:
            y = out_norm(y + shift)
        y = conv3x3(self.channels, dtype=self.dtype, name="out_conv", kernel_init=ZEROS)(nn.silu(y))
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, dtype=self.dtype, name="skip")(x)
        return x + y


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward; each normalised before."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], context: Context) -> Float[Array, "b n c"]:
        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)

        x = x + Attention(self.heads, dtype=self.dtype, name="attn1")(norm("norm1")(x))
        x = x + Attention(self.heads, dtype=self.dtype, name="attn2")(
            norm("norm2")(x), inside(context, "attn2")
        )
        return x + GEGLU(4 * x.shape[-1], dtype=self.dtype, name="ff")(norm("norm3")(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, added to it."""

    heads: int
    depth: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], context: Context) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        y = GroupNorm(1e-6, dtype=self.dtype, name="norm")(x)
        y = y.reshape(batch, height * width, channels)
        y = Dense(channels, dtype=self.dtype, name="proj_in")(y)
        for i in range(self.depth):
            name = f"transformer_blocks_{i}"
            y = TransformerBlock(self.heads, self.dtype, name=name)(y, inside(context, name))
        y = Dense(channels, dtype=self.dtype, name="proj_out", kernel_init=ZEROS)(y)
        return x + y.reshape(x.shape)


class Downsample(nn.Module):
    """Half the resolution, by a convolution of stride 2."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
        return conv3x3(x.shape[-1], stride=2, dtype=self.dtype, name="op")(x)


class Upsample(nn.Module):
    """Twice the resolution: every pixel repeated, then a convolution."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        return conv3x3(c, dtype=self.dtype, name="conv")(x)


class UNet(nn.Module):
    """`apply({"params": p}, latent, timestep, context) -> prediction`.

    `context` is tokens [b m width], or what `layers.project_context` made of them.
    `attention_levels` are the indices into `channel_multipliers` whose residual blocks are each
    followed by a spatial transformer; the middle always has one. Two options are not in the
    published network: `scale_shift` (see `ResidualBlock`) and `pooled_context`, which adds the
    projected mean of the context's tokens to the timestep embedding, as Dhariwal & Nichol 2021
    add the embedding of a class. With `remat` a gradient computes the inside of the blocks anew
    instead of keeping it.

    Raises InputError for fields that do not fit each other, and for a latent whose height or width
    is not a multiple of the downsampling.
    """

    base_channels: int
    channel_multipliers: tuple[int, ...]
    blocks_per_level: int
    attention_levels: tuple[int, ...]
    heads: int
    out_channels: int
    transformer_depth: int = 1
    scale_shift: bool = False
    pooled_context: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.channel_multipliers)
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise InputError(
                f"U-Net: channel_multipliers {self.channel_multipliers}, expected one positive "
                "whole number per level"
            )
        if self.base_channels % 32:
            raise InputError(
                f"U-Net: base_channels {self.base_channels}, expected a multiple of 32 (the number "
                "of groups of its group normalisation)"
            )
        if any(self.base_channels * m % self.heads for m in self.channel_multipliers):
            raise InputError(
                f"U-Net: heads {self.heads} does not divide the channels of every level "
                f"({self.base_channels} x {self.channel_multipliers})"
            )
        if not set(self.attention_levels) <= set(range(levels)):
            raise InputError(
                f"U-Net: attention_levels {self.attention_levels}, expected indices below {levels} "
                f"(the number of channel_multipliers)"
            )

    @nn.compact
    def __call__(
        self,
        latent: Float[Array, "b h w c"],
        timestep: Float[Array, "b"],
        context: Context,
    ) -> Float[Array, "b h w {self.out_channels}"]:
        levels = len(self.channel_multipliers)
        multiple = 2 ** (levels - 1)
        if latent.shape[1] % multiple or latent.shape[2] % multiple:
            raise InputError(
                f"U-Net: latent of {latent.shape[1]}x{latent.shape[2]}, expected multiples of "
                f"{multiple} latent pixels (its downsampling)"
            )
        embedding = MLP(
            4 * self.base_channels,
            4 * self.base_channels,
            nn.silu,
            dtype=self.dtype,
            name="time_embed",
        )(timestep_embedding(timestep, self.base_channels))
        if self.pooled_context:
            embed = Dense(embedding.shape[-1], dtype=self.dtype, name="context_embed")
            embedding = embedding + pooled(embed, context)

        res_block, transformer = ResidualBlock, SpatialTransformer
        if self.remat:
            res_block, transformer = nn.remat(res_block), nn.remat(transformer)

        def residual(x: Float[Array, "b h w c"], channels: int, name: str) -> Float[Array, "..."]:
            return res_block(channels, self.scale_shift, self.dtype, name=name)(x, embedding)

        def attend(x: Float[Array, "b h w c"], name: str) -> Float[Array, "b h w c"]:
            return transformer(self.heads, self.transformer_depth, self.dtype, name=name)(
                x, inside(context, name)
            )

        # Blocks are numbered through all levels, and their layers within the block.
        x = conv3x3(self.base_channels, dtype=self.dtype, name="input_blocks_0_0")(latent)
        skips = [x]
        for level, multiplier in enumerate(self.channel_multipliers):
            for _ in range(self.blocks_per_level):
                block = f"input_blocks_{len(skips)}"
                x = residual(x, self.base_channels * multiplier, f"{block}_0")
                if level in self.attention_levels:
                    x = attend(x, f"{block}_1")
                skips.append(x)
            if level < levels - 1:
                x = Downsample(self.dtype, name=f"input_blocks_{len(skips)}_0")(x)
                skips.append(x)

        x = residual(x, x.shape[-1], "middle_block_0")
        x = attend(x, "middle_block_1")
        x = residual(x, x.shape[-1], "middle_block_2")

        number = 0
        for level, multiplier in reversed(list(enumerate(self.channel_multipliers))):
            for i in range(self.blocks_per_level + 1):
                block = f"output_blocks_{number}"
                number += 1
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = residual(x, self.base_channels * multiplier, f"{block}_0")
                attends = level in self.attention_levels
                if attends:
                    x = attend(x, f"{block}_1")
                if level > 0 and i == self.blocks_per_level:
                    x = Upsample(self.dtype, name=f"{block}_{2 if attends else 1}")(x)

        x = nn.silu(GroupNorm(1e-5, dtype=self.dtype, name="out_norm")(x))
        x = conv3x3(self.out_channels, dtype=self.dtype, name="out_conv", kernel_init=ZEROS)(x)
        return x.astype(latent.dtype)
