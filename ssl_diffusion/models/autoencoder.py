"""The first stage, images <-> latents: the autoencoder of Rombach et al. 2022, app. E.3.

One network for the KL-regularised kind (the encoder gives mean and log-variance) and the
vector-quantised kind (`codebook` > 0: latents are taken before quantisation, decoding replaces each
by its nearest code first). Published ones differ in their 1x1 "quant" convolutions around the
latent: VQ-f4 and the 4-channel KL-f8 have them, the 16-channel KL-f8 has none (`quant_convs`).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_diffusion.models.layers import Attention, GroupNorm

EPSILON = 1e-6


def _conv(channels: int, size: int = 3, **kw) -> nn.Conv:
    padding = kw.pop("padding", size // 2)
    return nn.Conv(channels, (size, size), padding=padding, **kw)


class ResidualBlock(nn.Module):
    """norm, swish, conv, twice, around a skip (1x1 convolution where the width changes)."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w {self.channels}"]:
        y = nn.silu(GroupNorm(EPSILON, dtype=self.dtype, name="norm1")(x))
        y = _conv(self.channels, dtype=self.dtype, name="conv1")(y)
        y = nn.silu(GroupNorm(EPSILON, dtype=self.dtype, name="norm2")(y))
        y = _conv(self.channels, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, dtype=self.dtype, name="nin_shortcut")(x)
        return x + y


class Middle(nn.Module):
    """Residual block, single-head attention over all positions (optional), residual block."""

    attention: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = ResidualBlock(x.shape[-1], self.dtype, name="block_1")(x)
        if self.attention:
            y = GroupNorm(EPSILON, dtype=self.dtype, name="attn_1_norm")(x)
            y = y.reshape(x.shape[0], -1, x.shape[-1])
            y = Attention(1, qkv_bias=True, dtype=self.dtype, name="attn_1")(y)
            x = x + y.reshape(x.shape)
        return ResidualBlock(x.shape[-1], self.dtype, name="block_2")(x)


class Encoder(nn.Module):
    """Image in [-1, 1] -> features of `out_channels` at 1 / 2^(levels - 1) of the size."""

    base_channels: int
    channel_multipliers: tuple[int, ...]
    blocks_per_level: int
    middle_attention: bool
    out_channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w {self.out_channels}"]:
        x = _conv(self.base_channels, dtype=self.dtype, name="conv_in")(x)
        for level, multiplier in enumerate(self.channel_multipliers):
            if level:
                # Padded below and to the right only, as the published autoencoders are.
                padding = ((0, 1), (0, 1))
                x = _conv(
                    x.shape[-1],
                    strides=2,
                    padding=padding,
                    dtype=self.dtype,
                    name=f"downsample_{level - 1}",
                )(x)
            for block in range(self.blocks_per_level):
                name = f"down_{level}_block_{block}"
                x = ResidualBlock(self.base_channels * multiplier, self.dtype, name=name)(x)
        x = Middle(self.middle_attention, self.dtype, name="mid")(x)
        x = nn.silu(GroupNorm(EPSILON, dtype=self.dtype, name="norm_out")(x))
        return _conv(self.out_channels, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latent -> image; one residual block more per level than the encoder."""

    base_channels: int
    channel_multipliers: tuple[int, ...]
    blocks_per_level: int
    middle_attention: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        widths = [self.base_channels * multiplier for multiplier in self.channel_multipliers]
        x = _conv(widths[-1], dtype=self.dtype, name="conv_in")(z)
        x = Middle(self.middle_attention, self.dtype, name="mid")(x)
        for level in reversed(range(len(widths))):
            for block in range(self.blocks_per_level + 1):
                x = ResidualBlock(widths[level], self.dtype, name=f"up_{level}_block_{block}")(x)
            if level:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = _conv(widths[level], dtype=self.dtype, name=f"upsample_{level}")(x)
        x = nn.silu(GroupNorm(EPSILON, dtype=self.dtype, name="norm_out")(x))
        return _conv(3, dtype=self.dtype, name="conv_out")(x).astype(jnp.float32)


class Autoencoder(nn.Module):
    """`moments`, `encode` and `decode`; images in [-1, 1], latents raw.

    Base channels and their multiples must be divisible by 32 (group normalisation).
    """

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4)
    blocks_per_level: int = 2
    latent_channels: int = 3
    middle_attention: bool = True
    codebook: int = 0
    quant_convs: bool = True
    dtype: Any = jnp.float32

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel."""
        return 2 ** (len(self.channel_multipliers) - 1)

    def setup(self):
        shared = {
            "base_channels": self.base_channels,
            "channel_multipliers": self.channel_multipliers,
            "blocks_per_level": self.blocks_per_level,
            "middle_attention": self.middle_attention,
            "dtype": self.dtype,
        }
        features = self.latent_channels * (1 if self.codebook else 2)
        self.encoder = Encoder(out_channels=features, **shared)
        self.decoder = Decoder(**shared)
        if self.quant_convs:
            self.quant_conv = _conv(features, 1)
            self.post_quant_conv = _conv(self.latent_channels, 1)
        if self.codebook:
            self.codes = self.param(
                "codes", nn.initializers.normal(1.0), (self.codebook, self.latent_channels)
            )

    def moments(
        self, image: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Mean and log-variance (clipped to [-30, 20]) of the posterior; KL kind only."""
        mean, log_variance = jnp.split(self._features(image), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def encode(self, image: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        """The raw latent: the posterior's mean, or the features before quantisation."""
        if self.codebook:
            return self._features(image)
        return self.moments(image)[0]

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """The image of a raw latent."""
        if self.codebook:
            latent = self.codes[self.nearest_code(latent)]
        return self.decoder(self.post_quant_conv(latent) if self.quant_convs else latent)

    def _features(self, image: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        features = self.encoder(image)
        return (self.quant_conv(features) if self.quant_convs else features).astype(jnp.float32)

    def nearest_code(self, latent: Float[Array, "b h w c"]) -> Array:
        """Index of the code nearest (Euclidean) to each latent pixel, int32 [b, h, w].

        |z|^2 does not change which is nearest, but its rounding does for far latents: it is here to
        choose as the published code does.
        """
        squares = jnp.sum(jnp.square(latent), axis=-1, keepdims=True)
        dots = jnp.einsum("bhwc,kc->bhwk", latent, self.codes)
        return jnp.argmin(squares + jnp.sum(jnp.square(self.codes), axis=-1) - 2 * dots, axis=-1)

    def __call__(self, image: Float[Array, "b H W 3"]) -> Float[Array, "b H W 3"]:
        """Reconstruction, which touches every parameter: what `init` runs."""
        return self.decode(self.encode(image))
