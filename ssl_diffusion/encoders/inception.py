"""Inception-v3 (Szegedy et al. 2016, arXiv 1512.00567) as FID uses it.

FID (Heusel et al. 2017, arXiv 1706.08500) is defined on the features of one TensorFlow graph of
2015-12-05. Its layers are those of the paper, but for three things in which later copies of
Inception-v3 differ: averages at the border leave the padding out, the last block takes a maximum
where the others take an average, and the input is (x - 128) / 128. Names are the graph's.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssl_diffusion.models.layers import BatchStatistics

EPSILON = 1e-3  # of every norm, as in the graph


class ConvNorm(nn.Module):
    """Convolution, normalisation by recorded statistics, ReLU."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 {self.channels}"]:
        x = nn.Conv(
            self.channels,
            self.kernel,
            self.stride,
            padding=self.padding,
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )(x)
        return nn.relu(BatchStatistics(EPSILON, dtype=self.dtype, name="bn")(x))


class Branches(nn.Module):
    """Chains of convolutions beside each other and a pooled one, joined channel by channel.

    Attributes:
      chains: of each branch the convolutions, (name, channels, kernel, stride). Those of stride 2
        have no padding. A tuple of convolutions in the place of one is a fork: each sees the same
        input, and they are joined.
      pool: "average" or "maximum", 3x3, of stride 1.
      pool_channels: of the convolution after it; 0 is none, and pooling of stride 2.
    """

    chains: tuple[tuple[Any, ...], ...]
    pool: str
    pool_channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        joined = []
        for chain in self.chains:
            y = x
            for step in chain:
                fork = step if isinstance(step[0], tuple) else (step,)
                y = jnp.concatenate([self._convolved(y, *one) for one in fork], axis=-1)
            joined.append(y)
        if not self.pool_channels:
            return jnp.concatenate([*joined, _reduced(x)], axis=-1)
        y = _averaged(x) if self.pool == "average" else nn.max_pool(x, (3, 3), padding="SAME")
        joined.append(self._convolved(y, "branch_pool", self.pool_channels))
        return jnp.concatenate(joined, axis=-1)

    def _convolved(
        self,
        x: Float[Array, "b h w c"],
        name: str,
        channels: int,
        kernel: tuple[int, int] = (1, 1),
        stride: int = 1,
    ) -> Float[Array, "b h2 w2 c2"]:
        padding = "SAME" if stride == 1 else "VALID"
        return ConvNorm(channels, kernel, stride, padding, self.dtype, name=name)(x)


class Inception(nn.Module):
    """Image [b, 299, 299, 3] of (x - 128) / 128, x in 0..255 -> features of two depths, by width.

    768 is the mean over positions after Mixed_6e, 2048 that after Mixed_7c, FID's. The graph's
    classifier is no part of it.
    """

    dtype: Any = jnp.float32

    size = 299
    widths = (768, 2048)

    @nn.compact
    def __call__(self, image: Float[Array, "b 299 299 3"]) -> dict[int, Float[Array, "b _"]]:
        conv, branches = (partial(kind, dtype=self.dtype) for kind in (ConvNorm, Branches))
        x = conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(image.astype(self.dtype))
        x = conv(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
        x = _reduced(conv(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = conv(80, name="Conv2d_3b_1x1")(x)
        x = _reduced(conv(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x))
        for letter, pooled in zip("bcd", (32, 64, 64), strict=True):
            x = branches(BLOCK_35, "average", pooled, name=f"Mixed_5{letter}")(x)
        x = branches(TO_17, "maximum", 0, name="Mixed_6a")(x)
        for letter, inner in zip("bcde", (128, 160, 160, 192), strict=True):
            x = branches(block_17(inner), "average", 192, name=f"Mixed_6{letter}")(x)
        features = {768: _mean(x)}
        x = branches(TO_8, "maximum", 0, name="Mixed_7a")(x)
        x = branches(BLOCK_8, "average", 192, name="Mixed_7b")(x)
        x = branches(BLOCK_8, "maximum", 192, name="Mixed_7c")(x)
        return features | {2048: _mean(x)}


BLOCK_35 = (  # Szegedy et al. 2016, fig. 5, with a 5x5 of the first Inception left in
    (("branch1x1", 64),),
    (("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5))),
    (("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))),
)
TO_17 = (  # fig. 10
    (("branch3x3", 384, (3, 3), 2),),
    (("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3), 2)),
)
TO_8 = (
    (("branch3x3_1", 192), ("branch3x3_2", 320, (3, 3), 2)),
    (
        ("branch7x7x3_1", 192),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
        ("branch7x7x3_4", 192, (3, 3), 2),
    ),
)
BLOCK_8 = (  # fig. 7
    (("branch1x1", 320),),
    (
        ("branch3x3_1", 384),
        (("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))),
    ),
    (
        ("branch3x3dbl_1", 448),
        ("branch3x3dbl_2", 384, (3, 3)),
        (("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))),
    ),
)


def block_17(inner: int) -> tuple[tuple[Any, ...], ...]:
    """Branches at 17x17 positions, `inner` channels in the factored 7x7: fig. 6."""
    return (
        (("branch1x1", 192),),
        (("branch7x7_1", inner), ("branch7x7_2", inner, (1, 7)), ("branch7x7_3", 192, (7, 1))),
        (
            ("branch7x7dbl_1", inner),
            ("branch7x7dbl_2", inner, (7, 1)),
            ("branch7x7dbl_3", inner, (1, 7)),
            ("branch7x7dbl_4", inner, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        ),
    )


def _reduced(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """The maximum of 3x3, stride 2, without padding."""
    return nn.max_pool(x, (3, 3), (2, 2))


def _averaged(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The average of 3x3, of those of the nine positions that are in the image."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _mean(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    return x.astype(jnp.float32).mean((1, 2))
