"""Vision Transformer (Dosovitskiy et al. 2021) with a patch or a convolutional stem.

One network for the published encoders: LayerScale (Touvron et al. 2021, arXiv 2103.17239), gated
MLP (Shazeer 2020, arXiv 2002.05202), registers (Darcet et al. 2024, arXiv 2309.16588) are options,
and so is what the image tower of CLIP (Radford et al. 2021, arXiv 2103.00020) has besides.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Bool, Float

from ssl_diffusion.errors import InputError
from ssl_diffusion.models.layers import MLP, Attention, Dense, GroupNorm, SwiGLU

CHOICES = {
    "stem": ("patch", "conv"),
    "pooling": ("class", "mean"),
    "mlp": ("gelu", "quick_gelu", "swiglu"),
    "prefix_positions": ("none", "class", "all"),
    "resize": ("bicubic", "offset", "antialias"),
}
ACTIVATIONS = {  # of an MLP without gates
    "gelu": partial(nn.gelu, approximate=False),
    # Hendrycks & Gimpel 2016 (arXiv 1606.08415), sec. 2: x sigmoid(1.702 x). CLIP uses it.
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to its input, with LayerScale channel by channel.

    `mask` as `Attention` takes it.
    """

    heads: int
    mlp_ratio: float
    mlp: str = "gelu"
    layer_scale: bool = False
    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], mask: Bool[Array, "b n n"] | None = None
    ) -> Float[Array, "b n c"]:
        width = x.shape[-1]
        hidden = round(width * self.mlp_ratio)
        norm = partial(nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        attention = Attention(self.heads, qkv_bias=True, dtype=self.dtype, name="attn")
        if self.mlp == "swiglu":
            mlp = SwiGLU(hidden, dtype=self.dtype, name="mlp")
        else:
            mlp = MLP(hidden, width, ACTIVATIONS[self.mlp], dtype=self.dtype, name="mlp")
        x = x + self._scaled(attention(norm(name="norm1")(x), mask=mask), "layer_scale1")
        return x + self._scaled(mlp(norm(name="norm2")(x)), "layer_scale2")

    def _scaled(self, x: Float[Array, "b n c"], name: str) -> Float[Array, "b n c"]:
        if not self.layer_scale:
            return x
        scale = self.param(name, nn.initializers.constant(1e-5), (x.shape[-1],))
        return x * scale.astype(self.dtype)


class ViT(nn.Module):
    """Normalised image [b, size, size, 3] -> embedding [b, 1, dim].

    Attributes:
      image_size: px, of the table of positions; at another size they are interpolated.
      stem: "patch" is one convolution of `patch_size`; "conv" is a chain of stride-2 convolutions
        to the same size, which a small network on little data learns from faster (Xiao et al. 2021,
        arXiv 2106.14881).
      mlp_ratio: hidden features of the MLP over `width`.
      pooling: "class" gives the class token after the last norm, "mean" the mean of the patch
        tokens (there is no class token then).
      mlp: "gelu", "quick_gelu", or "swiglu" with as many gates as hidden features.
      layer_scale: whether every residual branch is multiplied by a learned vector.
      registers: how many learned tokens stand between the class token and the patches.
      prefix_positions: which of the tokens before the patches have a learned position besides:
        "none", "class" (the class token alone), "all".
      resize: how the positions of the patches are interpolated, as `interpolation` has it.
      epsilon: of every LayerNorm.
      pre_norm: whether the tokens are normalised before the first block too; the patch embedding
        has no bias then.
      projection: channels that the embedding is projected to, without a bias; 0 leaves it as wide
        as the tokens.

    Raises InputError for an option that is none of these.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    stem: str = "patch"
    pooling: str = "class"
    mlp: str = "gelu"
    layer_scale: bool = False
    registers: int = 0
    prefix_positions: str = "class"
    resize: str = "bicubic"
    epsilon: float = 1e-6
    pre_norm: bool = False
    projection: int = 0
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(
                    f"ViT: {name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}"
                )

    @property
    def size_step(self) -> int:
        """Pixels: an image's side is a multiple of it."""
        return self.patch_size

    @property
    def dim(self) -> int:
        """Channels of the embedding."""
        return self.projection or self.width

    @property
    def patch_dim(self) -> int:
        """Channels of a patch token."""
        return self.width

    def __call__(self, image: Float[Array, "b size size 3"]) -> Float[Array, "b 1 {self.dim}"]:
        return self.with_patches(image)[0]

    @nn.compact
    def with_patches(
        self, image: Float[Array, "b size size 3"]
    ) -> tuple[Float[Array, "b 1 {self.dim}"], Float[Array, "b n {self.width}"]]:
        """The embedding, and the patch tokens after the last norm, row by row of the image."""
        x = self._stem(image).astype(self.dtype)
        new, old = x.shape[1], self.image_size // self.patch_size
        x = x.reshape(x.shape[0], -1, self.width)
        learned = partial(self.param, init_fn=nn.initializers.normal(0.02))
        prefix = jnp.zeros((1, 0, self.width))
        if self.pooling == "class":
            prefix = learned("cls_token", shape=(1, 1, self.width))
        with_position = prefix.shape[1] if self.prefix_positions != "none" else 0
        if self.registers:
            registers = learned("register_tokens", shape=(1, self.registers, self.width))
            prefix = jnp.concatenate([prefix, registers], axis=1)
        if self.prefix_positions == "all":
            with_position = prefix.shape[1]
        positions = learned("pos_embed", shape=(1, with_position + old * old, self.width))
        prefix = prefix.at[:, :with_position].add(positions[:, :with_position])
        x = x + _resized(positions[:, with_position:], old, new, self.resize)
        prefix = jnp.broadcast_to(prefix, (x.shape[0], *prefix.shape[1:]))
        x = jnp.concatenate([prefix, x], axis=1)
        if self.pre_norm:
            x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm_pre")(x)
        block = partial(
            Block, self.heads, self.mlp_ratio, self.mlp, self.layer_scale, self.epsilon, self.dtype
        )
        for index in range(self.depth):
            x = block(name=f"blocks_{index}")(x)
        x = nn.LayerNorm(epsilon=self.epsilon, name="norm")(x)
        patches = x[:, prefix.shape[1] :]
        x = x[:, :1] if self.pooling == "class" else patches.mean(1, keepdims=True)
        if self.projection:
            x = Dense(self.projection, use_bias=False, dtype=self.dtype, name="projection")(x)
        return x.astype(jnp.float32), patches.astype(jnp.float32)

    def _stem(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
        if self.stem == "patch":
            size = (self.patch_size, self.patch_size)
            return nn.Conv(
                self.width,
                size,
                size,
                padding=0,
                use_bias=not self.pre_norm,
                dtype=self.dtype,
                name="patch_embed",
            )(x)
        halvings = self.patch_size.bit_length() - 1
        for index in range(halvings):
            channels = max(32, self.width // 2 ** (halvings - 1 - index) // 32 * 32)
            x = nn.Conv(
                channels, (3, 3), 2, padding=1, dtype=self.dtype, name=f"stem_conv_{index}"
            )(x)
            x = nn.gelu(GroupNorm(1e-6, dtype=self.dtype, name=f"stem_norm_{index}")(x))
        return nn.Conv(self.width, (1, 1), dtype=self.dtype, name="patch_embed")(x)


def _resized(
    positions: Float[Array, "1 n c"], old: int, new: int, rule: str
) -> Float[Array, "1 m c"]:
    """Positions of `old` x `old` patches at `new` x `new`; as they are if that is the same."""
    if new == old:
        return positions
    matrix = interpolation(old, new, rule)
    table = positions.reshape(old, old, -1)
    resized = jnp.einsum("ih,jw,hwc->ijc", matrix, matrix, table, precision=Precision.HIGHEST)
    return resized.reshape(1, new * new, -1)


def interpolation(old: int, new: int, rule: str) -> Float[np.ndarray, "{new} {old}"]:
    """Cubic convolution (Keys 1981) from `old` to `new` samples, corners not aligned, as a matrix.

    Published encoders follow one of three rules. "bicubic": a = -0.75, the edge repeats (DINOv2 in
    transformers). "offset": the same, with samples (new + 0.1) / old times as dense, by which the
    code of DINO, and of HIPT after it, kept a rounding from losing a row. "antialias": a = -0.5,
    the kernel is cut at the edge, and as wide as a new sample if there are fewer of them (timm,
    and transformers for encoders with registers).
    """
    ratio = old / (new + 0.1) if rule == "offset" else old / new
    centre = (np.arange(new)[:, None] + 0.5) * ratio - 0.5
    if rule == "antialias":
        weights = _cubic((np.arange(old) - centre) / max(ratio, 1.0), -0.5)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    taps = np.floor(centre).astype(int) + np.arange(-1, 3)
    matrix = np.zeros((new, old))
    np.add.at(
        matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), _cubic(taps - centre, -0.75)
    )
    return matrix.astype(np.float32)


def _cubic(distance: Float[np.ndarray, "n m"], a: float) -> Float[np.ndarray, "n m"]:
    """Keys 1981 (IEEE TASSP 29:1153), eq. 4 with its free parameter `a`."""
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
