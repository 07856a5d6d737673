"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030) with the convolutional stem of CTransPath.

CTransPath (Wang et al. 2022, Medical Image Analysis 81:102559) is a Swin-T whose patch embedding is
replaced by convolutions, and whose embedding is the mean over positions after the last norm.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ssl_diffusion.errors import InputError
from ssl_diffusion.models.layers import MLP, BatchStatistics, Dense

STEM_PX = 4  # two convolutions of stride 2
EPSILON = 1e-5  # of every norm, as published
LARGEST_WINDOW = 32
APART = -100.0  # logit between positions that the shift made neighbours, as published


class WindowAttention(nn.Module):
    """Attention inside windows with a learned bias per relative position: Liu et al. 2021, eq. 4.

    `mask` is added to the logits: [windows, n, n], or zeros [1, n, n].
    """

    heads: int
    window: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b windows n c"], mask: Float[np.ndarray, "k n n"]
    ) -> Float[Array, "b windows n c"]:
        width = x.shape[-1]
        dense = partial(Dense, width, dtype=self.dtype)

        def split(y: Float[Array, "b windows n c"]) -> Float[Array, "b windows n heads f"]:
            return y.reshape(*y.shape[:-1], self.heads, -1)

        q = split(dense(name="to_q")(x) * (width // self.heads) ** -0.5)
        k, v = split(dense(name="to_k")(x)), split(dense(name="to_v")(x))
        places = (2 * self.window - 1) ** 2
        table = self.param("bias_table", nn.initializers.normal(0.02), (places, self.heads))
        bias = table[relative_positions(self.window)].transpose(2, 0, 1)
        logits = jnp.einsum("bwnhf,bwmhf->bwhnm", q, k, preferred_element_type=jnp.float32)
        weights = nn.softmax(logits + bias + mask[:, None]).astype(self.dtype)
        y = jnp.einsum("bwhnm,bwmhf->bwnhf", weights, v)
        return dense(name="to_out")(y.reshape(x.shape))


class SwinBlock(nn.Module):
    """Window attention, shifted or not, and an MLP: Liu et al. 2021, eq. 3."""

    heads: int
    window: int
    shift: int
    mlp_ratio: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        norm = partial(nn.LayerNorm, epsilon=EPSILON, dtype=self.dtype)
        side, width = x.shape[1], x.shape[-1]
        attention = WindowAttention(self.heads, self.window, dtype=self.dtype, name="attn")
        y = jnp.roll(norm(name="norm1")(x), (-self.shift, -self.shift), (1, 2))
        y = attention(_windows(y, self.window), shift_mask(side, self.window, self.shift))
        x = x + jnp.roll(_joined(y, side, self.window), (self.shift, self.shift), (1, 2))
        gelu = partial(nn.gelu, approximate=False)
        mlp = MLP(round(width * self.mlp_ratio), width, gelu, dtype=self.dtype, name="mlp")
        return x + mlp(norm(name="norm2")(x))


class PatchMerging(nn.Module):
    """2x2 positions -> one of twice the width: Liu et al. 2021, sec. 3.1."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 2*c"]:
        # Down before across: the order of the published weights.
        parts = [x[:, row::2, col::2] for col in (0, 1) for row in (0, 1)]
        y = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")(jnp.concatenate(parts, -1))
        return Dense(2 * x.shape[-1], False, dtype=self.dtype, name="reduction")(y)


class Swin(nn.Module):
    """Normalised image [b, size, size, 3] -> embedding [b, 1, dim].

    Attributes:
      width: channels of the first stage, a multiple of 8; every later one has twice as many.
      depths: blocks of every stage; every second one has shifted windows.
      heads: of every stage.
      window: side of a window, positions.
      mlp_ratio: hidden features of the MLP over the stage's width.

    Nothing in it is of a fixed size: an image's side is a multiple of `size_step`, so that every
    stage is whole windows. Raises InputError for stages that do not fit together.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        stages = len(self.depths)
        uneven = any(not h or self.width * 2**i % h for i, h in enumerate(self.heads))
        if self.window > LARGEST_WINDOW:
            raise InputError(
                f"Swin: window is {self.window}, expected at most {LARGEST_WINDOW} positions a "
                "side: every pair of positions in it has a weight"
            )
        if not stages or len(self.heads) != stages or 0 in self.depths or uneven or self.width % 8:
            raise InputError(
                f"Swin: width {self.width}, depths {self.depths}, heads {self.heads}; expected "
                "blocks and heads for every stage, the heads to divide its width (doubled at every "
                "stage), and a width of a multiple of 8"
            )

    @property
    def patch_size(self) -> int:
        """Pixels between the positions of the last stage."""
        return STEM_PX * 2 ** (len(self.depths) - 1)

    @property
    def size_step(self) -> int:
        """Pixels: an image's side is a multiple of it."""
        return self.patch_size * self.window

    @property
    def dim(self) -> int:
        """Channels of the embedding."""
        return self.width * 2 ** (len(self.depths) - 1)

    @property
    def patch_dim(self) -> int:
        """Channels of a position after the last norm."""
        return self.dim

    def __call__(self, image: Float[Array, "b size size 3"]) -> Float[Array, "b 1 {self.dim}"]:
        return self.with_patches(image)[0]

    @nn.compact
    def with_patches(
        self, image: Float[Array, "b size size 3"]
    ) -> tuple[Float[Array, "b 1 {self.dim}"], Float[Array, "b n {self.dim}"]]:
        """The embedding, and the positions after the last norm, row by row of the image."""
        x = self._stem(image)
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if stage:
                x = PatchMerging(dtype=self.dtype, name=f"downsample_{stage - 1}")(x)
            # A stage of one window has nowhere to shift it to.
            shift = self.window // 2 if x.shape[1] > self.window else 0
            for index in range(depth):
                x = SwinBlock(
                    heads,
                    self.window,
                    shift * (index % 2),
                    self.mlp_ratio,
                    self.dtype,
                    name=f"blocks_{stage}_{index}",
                )(x)
        x = nn.LayerNorm(epsilon=EPSILON, name="norm")(x).astype(jnp.float32)
        patches = x.reshape(x.shape[0], -1, self.dim)
        return patches.mean(1, keepdims=True), patches

    def _stem(self, x: Float[Array, "b size size 3"]) -> Float[Array, "b h w {self.width}"]:
        """Convolutions instead of a patch embedding: Wang et al. 2022, sec. 3.2."""
        for index, channels in enumerate((self.width // 8, self.width // 4)):
            x = nn.Conv(
                channels,
                (3, 3),
                2,
                padding=1,
                use_bias=False,
                dtype=self.dtype,
                name=f"stem_conv_{index}",
            )(x)
            norm = BatchStatistics(EPSILON, dtype=self.dtype, name=f"stem_norm_{index}")
            x = nn.relu(norm(x))
        x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name="patch_embed")(x)
        return nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="patch_norm")(x)


def _windows(x: Float[Array, "b h w c"], window: int) -> Float[Array, "b windows n c"]:
    """Non-overlapping squares, row by row, their positions row by row."""
    count = x.shape[1] // window
    x = x.reshape(x.shape[0], count, window, count, window, -1).swapaxes(2, 3)
    return x.reshape(x.shape[0], count * count, window * window, -1)


def _joined(
    windows: Float[Array, "b windows n c"], side: int, window: int
) -> Float[Array, "b {side} {side} c"]:
    """The inverse of `_windows`."""
    count = side // window
    x = windows.reshape(windows.shape[0], count, count, window, window, -1).swapaxes(2, 3)
    return x.reshape(x.shape[0], side, side, -1)


def relative_positions(window: int) -> Int[np.ndarray, "n n"]:
    """Row of the bias table for every pair of positions in a window: Liu et al. 2021, sec. 3.2."""
    row, col = np.divmod(np.arange(window * window), window)
    down = row[:, None] - row + window - 1
    return down * (2 * window - 1) + col[:, None] - col + window - 1


def shift_mask(side: int, window: int, shift: int) -> Float[np.ndarray, "k n n"]:
    """What is added to the logits of each window after a cyclic shift: Liu et al. 2021, fig. 4.

    Positions that were no neighbours before it do not see each other. Zeros [1, n, n] for none.
    """
    positions = window * window
    if not shift:
        return np.zeros((1, positions, positions), np.float32)
    wrapped = (np.arange(side) >= side - shift).astype(int)  # came from the other edge
    label = 2 * wrapped[:, None] + wrapped
    label = label.reshape(side // window, window, side // window, window)
    label = label.swapaxes(1, 2).reshape(math.prod(label.shape) // positions, positions)
    return np.where(label[:, :, None] == label[:, None], 0.0, APART).astype(np.float32)
