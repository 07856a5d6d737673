"""Vision Transformer (Dosovitskiy et al. 2021) with a patch or a convolutional stem."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_diffusion.models.layers import MLP, Attention, GroupNorm


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to its input."""

    heads: int
    mlp_ratio: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        width = x.shape[-1]
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        x = x + Attention(self.heads, qkv_bias=True, dtype=self.dtype, name="attn")(
            norm(name="norm1")(x)
        )
        activation = partial(nn.gelu, approximate=False)
        mlp = MLP(int(width * self.mlp_ratio), width, activation, dtype=self.dtype, name="mlp")
        return x + mlp(norm(name="norm2")(x))


class ViT(nn.Module):
    """Normalised image [b, size, size, 3] -> embedding [b, 1, width].

    `stem` "patch" is one convolution of `patch_size`; "conv" is a chain of stride-2 convolutions to
    the same size, which a small network on little data learns from faster (Xiao et al. 2021, arXiv
    2106.14881). `pooling` "class" gives the class token after the last norm, "mean" the mean of the
    patch tokens.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    stem: str = "patch"
    pooling: str = "class"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b {self.image_size} {self.image_size} 3"]
    ) -> Float[Array, "b 1 c"]:
        x = self._stem(image).astype(self.dtype)
        x = x.reshape(x.shape[0], -1, self.width)
        if self.pooling == "class":
            token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width))
            x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("pos_embed", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for index in range(self.depth):
            x = Block(self.heads, self.mlp_ratio, self.dtype, name=f"blocks_{index}")(x)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
        x = x[:, :1] if self.pooling == "class" else x.mean(1, keepdims=True)
        return x.astype(jnp.float32)

    def _stem(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        if self.stem == "patch":
            size = (self.patch_size, self.patch_size)
            return nn.Conv(self.width, size, size, padding=0, dtype=self.dtype, name="patch_embed")(
                x
            )
        halvings = self.patch_size.bit_length() - 1
        for index in range(halvings):
            channels = max(32, self.width // 2 ** (halvings - 1 - index) // 32 * 32)
            x = nn.Conv(
                channels, (3, 3), 2, padding=1, dtype=self.dtype, name=f"stem_conv_{index}"
            )(x)
            x = nn.gelu(GroupNorm(1e-6, dtype=self.dtype, name=f"stem_norm_{index}")(x))
        return nn.Conv(self.width, (1, 1), dtype=self.dtype, name="patch_embed")(x)
